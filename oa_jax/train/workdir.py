"""The folder of a run: plain files, written to a temporary name and renamed, and a lock."""

from __future__ import annotations

import fcntl
import io
import json
import math
import os
import pathlib

import numpy as np

from oa_jax.config import first_difference
from oa_jax.errors import UserError


class Workdir:
    """Files of one run. Use as a context: a second process on the same folder is refused."""

    def __init__(self, path):
        self.path = pathlib.Path(path).expanduser()
        self._lock = None

    def __enter__(self):
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
        return self

    def __exit__(self, *_):
        self._lock.close()

    @property
    def checkpoints(self) -> pathlib.Path:
        return (self.path / "checkpoints").absolute()

    @property
    def is_finished(self) -> bool:
        return (self.path / "summary.json").exists()

    def claim(self, config: dict) -> None:
        """Store the configuration, if `check` finds nothing against it."""
        self.check(config)
        if not (self.path / "config.json").exists():
            self.write_json("config.json", config)

    def check(self, config: dict) -> None:
        """Raise UserError unless the folder is empty or holds a run of this configuration."""
        if (self.path / "config.json").exists():
            difference = first_difference(self.read_json("config.json"), config)
            if difference:
                raise UserError(
                    f"--workdir={self.path} holds a run of another configuration: {difference}"
                )
            return
        strangers = sorted(p.name for p in self.path.iterdir() if p.name != ".lock")
        strangers = [name for name in strangers if not name.endswith(".tmp")]
        if strangers:
            raise UserError(
                f"--workdir={self.path}: holds {strangers[0]} but no config.json: "
                "expected an empty folder or a run of this program"
            )

    def read_json(self, name: str):
        path = self.path / name
        try:
            return json.loads(path.read_text())
        except FileNotFoundError:
            raise UserError(f"{path}: no such file: expected the workdir of a run") from None
        except (ValueError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: not valid JSON: {error}") from None

    def write_json(self, name: str, value) -> None:
        self._replace(name, (json.dumps(_plain(value), indent=1) + "\n").encode())

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

    def keep_rows(self, last_epoch: int) -> None:
        """Drop the rows of metrics.jsonl after `last_epoch`, and a line cut off by a kill."""
        path = self.path / "metrics.jsonl"
        kept = []
        if path.exists():
            for line in path.read_text().splitlines():
                try:
                    row = json.loads(line)
                except ValueError:
                    continue  # cut off: its epoch will be run again
                if row["epoch"] <= last_epoch:
                    kept.append(line + "\n")
        self._replace("metrics.jsonl", "".join(kept).encode())

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
