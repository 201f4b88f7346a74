"""The folder of a run: plain files, written to a temporary name and renamed, and a lock."""

import json
import os
import pathlib

import numpy as np

from oa_jax import files
from oa_jax.errors import UserError
from oa_jax.processes import first_does

FAILED = "failed.json"  # of a run of a sweep that could not begin, or not end


def listed(directory: pathlib.Path) -> list[int]:
    """Epochs of the steps in a folder of checkpoints, ascending; not every one need be whole."""
    return sorted(int(p.name) for p in directory.glob("*") if p.name.isdecimal() and p.is_dir())


class Workdir:
    """Files of one run. Use as a context: a second command on the same folder is refused.

    Of several processes of one run the first reads and writes, for all of them.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = files.local(path, "--workdir")
        self._lock = None

    def __enter__(self) -> "Workdir":
        self._take_lock()
        return self

    @first_does
    def _take_lock(self):
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = files.lock(self.path / ".lock")
        except OSError as error:
            raise UserError(
                f"--workdir={self.path}: cannot write there: {error.strerror}"
            ) from None
        if self._lock is None:
            raise UserError(f"--workdir={self.path}: in use by another process")

    def __exit__(self, *_):
        if self._lock:
            self._lock.close()

    @property
    def checkpoints(self) -> pathlib.Path:
        return (self.path / "checkpoints").absolute()

    @property
    def is_finished(self) -> bool:
        return self.holds("summary.json")

    @first_does
    def holds(self, name: str) -> bool:
        return (self.path / name).exists()

    @first_does
    def is_begun(self) -> bool:
        """Whether something of a run is kept here: a checkpoint, or its end."""
        return (self.path / "summary.json").exists() or bool(listed(self.checkpoints))

    @first_does
    def claim(self, config: dict, reopen: bool = False) -> None:
        """Store the configuration, in place of an older one, of a run that begins or goes on: what
        was made of an earlier state goes. reopen: its end is taken back, too."""
        stale = ["summary.json"] * reopen + ["ranks.npz", "lists.json"]
        if not listed(self.checkpoints):
            stale.append("init_from.json")
        for name in stale:  # first: a kill in between leaves a run that the same command extends
            (self.path / name).unlink(missing_ok=True)
        path = self.path / "config.json"
        if not path.exists() or files.read_json(path) != config:
            files.write_json(path, config)

    @first_does
    def check(self) -> None:
        """Raise UserError unless the folder is empty or holds a run."""
        if (self.path / "config.json").exists():
            return
        names = (p.name for p in self.path.iterdir() if p.name != FAILED)
        strangers = sorted(n for n in names if not n.startswith(".") and not n.endswith(".tmp"))
        if strangers:
            (self.path / ".lock").unlink(missing_ok=True)  # a folder of others stays as it was
            raise UserError(
                f"--workdir={self.path}: holds {strangers[0]} but no config.json: "
                "expected an empty folder or a run of this program"
            )

    @first_does
    def read_json(self, name: str) -> dict:
        return files.read_json(self.path / name, "the workdir of a run")

    @first_does
    def write_json(self, name: str, value: dict) -> None:
        files.write_json(self.path / name, value)

    @first_does
    def write_npz(self, name: str, arrays: dict[str, np.ndarray]) -> None:
        files.write_npz(self.path / name, arrays)

    @first_does
    def keep_rows(self, epochs: dict[int, int]) -> int:
        """Keep the rows of metrics.jsonl of each seed up to its epoch in `epochs`, in the order of
        epochs and of the seeds there; drop the others, and a line cut off by a kill. -> how many
        are missing, as after a loss of power.

        Raises UserError naming a line above the last one that is no row.
        """
        path = self.path / "metrics.jsonl"
        lines = path.read_bytes().splitlines() if path.exists() else []
        kept, order = {}, list(epochs)
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line.decode())
                if row["epoch"] <= epochs.get(row["seed"], -1):
                    kept[row["epoch"], order.index(row["seed"])] = line + b"\n"
            except (ValueError, TypeError, KeyError, RecursionError):
                if number < len(lines):  # else cut off: its epoch will be run again
                    raise UserError(
                        f"{path}: line {number}: found {line[:40]!r}: expected a row of an epoch"
                    ) from None
        files.write(path, b"".join(kept[of] for of in sorted(kept)))
        return sum(epochs.values()) - sum(epoch > 0 for epoch, _ in kept)

    @first_does
    def append_rows(self, rows: list[dict]) -> None:
        """Add rows to metrics.jsonl."""
        path = self.path / "metrics.jsonl"
        try:
            with open(path, "a") as file:
                file.writelines(json.dumps(files.plain(row)) + "\n" for row in rows)
        except OSError as error:
            raise UserError(f"{path}: cannot write: {error.strerror}") from None
