"""The folder of a run: plain files, written to a temporary name and renamed, and a lock."""

from __future__ import annotations

import fcntl
import io
import json
import math
import os
import pathlib

import numpy as np

from oa_jax.errors import UserError
from oa_jax.processes import first_does


class Workdir:
    """Files of one run. Use as a context: a second command on the same folder is refused.

    Of several processes of one run the first reads and writes, for all of them.
    """

    def __init__(self, path):
        self.path = pathlib.Path(path).expanduser()
        self._lock = None

    def __enter__(self):
        self._take_lock()
        return self

    @first_does
    def _take_lock(self):
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.path / ".lock", "w")  # noqa: SIM115 (held for the whole run)
        except OSError as error:
            raise UserError(
                f"--workdir={self.path}: cannot write there: {error.strerror}"
            ) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise UserError(f"--workdir={self.path}: in use by another process") from None

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
    def claim(self, config: dict) -> None:
        """Store the configuration, in place of an older one."""
        if not (self.path / "config.json").exists() or self._read_json("config.json") != config:
            self._write_json("config.json", config)

    @first_does
    def reopen(self) -> None:
        """Take back the end of a run that is to go on."""
        (self.path / "summary.json").unlink(missing_ok=True)

    @first_does
    def check(self) -> None:
        """Raise UserError unless the folder is empty or holds a run."""
        if (self.path / "config.json").exists():
            return
        strangers = sorted(p.name for p in self.path.iterdir() if p.name != ".lock")
        strangers = [name for name in strangers if not name.endswith(".tmp")]
        if strangers:
            raise UserError(
                f"--workdir={self.path}: holds {strangers[0]} but no config.json: "
                "expected an empty folder or a run of this program"
            )

    @first_does
    def read_json(self, name: str):
        return self._read_json(name)

    def _read_json(self, name):
        path = self.path / name
        try:
            return json.loads(path.read_text())
        except FileNotFoundError:
            raise UserError(f"{path}: no such file: expected the workdir of a run") from None
        except (ValueError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: not valid JSON: {error}") from None

    @first_does
    def write_json(self, name: str, value) -> None:
        self._write_json(name, value)

    def _write_json(self, name, value):
        self._replace(name, (json.dumps(_plain(value), indent=1) + "\n").encode())

    @first_does
    def write_npz(self, name: str, arrays: dict[str, np.ndarray]) -> None:
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)
        self._replace(name, buffer.getvalue())

    def _replace(self, name, content: bytes):
        temporary = self.path / f"{name}.tmp"
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.path / name)

    @first_does
    def keep_rows(self, epochs: dict[int, int]) -> None:
        """Keep the rows of metrics.jsonl of each seed up to its epoch in `epochs`; drop the others,
        and a line cut off by a kill."""
        path = self.path / "metrics.jsonl"
        kept = []
        if path.exists():
            for line in path.read_text().splitlines():
                try:
                    row = json.loads(line)
                except ValueError:
                    continue  # cut off: its epoch will be run again
                if row["epoch"] <= epochs.get(row["seed"], -1):
                    kept.append(line + "\n")
        self._replace("metrics.jsonl", "".join(kept).encode())

    @first_does
    def append_rows(self, rows: list[dict]) -> None:
        """Add rows to metrics.jsonl."""
        with open(self.path / "metrics.jsonl", "a") as file:
            file.writelines(json.dumps(_plain(row)) + "\n" for row in rows)


def _plain(value):
    """Python numbers for JSON; what is not finite becomes null."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
