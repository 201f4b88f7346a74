"""Who works on which run, where several commands, or machines, share a folder."""

import contextlib
import os
import pathlib
import secrets
import socket
import threading
import time
from collections.abc import Iterable

from oa_jax import files

STALE = 120.0  # seconds without a sign of life after which a worker counts as dead


class Claims:
    """The claims in a folder. A context, in which this worker gives signs of life.

    A claim is a worker's name in `claims.json`; a sign of life is the time of the worker's own
    file, which is compared with that of another file in the same file system, as the clocks of two
    machines differ. On one machine a worker is also dead when its process is gone.
    """

    def __init__(self, folder: pathlib.Path, stale: float = STALE):
        self.folder, self.stale = folder, stale
        self.worker = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"

    def __enter__(self) -> "Claims":
        self._ended, self._last = threading.Event(), 0.0
        self.lost = False  # this worker was silent for so long that others took it for dead
        self.folder.mkdir(parents=True, exist_ok=True)
        self._beat()
        self._thread = threading.Thread(target=self._beats, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._ended.set()
        self._thread.join()
        with contextlib.suppress(OSError):
            self._file(self.worker).unlink()

    def take(self, names: Iterable[str]) -> str | None:
        """The first of `names` that is nobody's, or a dead worker's, now this worker's."""
        with self._claims() as claims:
            for name in names:
                if name not in claims or not self._is_alive(claims[name]):
                    claims[name] = self.worker
                    return name
        return None

    def others(self) -> dict[str, str]:
        """{name: worker} of the claims of the other workers that live."""
        with self._claims() as claims:
            return {n: w for n, w in claims.items() if w != self.worker and self._is_alive(w)}

    def free(self, name: str) -> None:
        """Give a claim of this worker up."""
        with self._claims() as claims:
            if claims.get(name) == self.worker:
                del claims[name]

    @contextlib.contextmanager
    def alone(self):
        """While no other worker writes what all of them write: claims, index, the study."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with contextlib.closing(files.lock(self.folder / "lock", wait=True)):
            yield

    @contextlib.contextmanager
    def _claims(self):
        path = self.folder / "claims.json"
        with self.alone():
            claims = files.read_json(path, "the claims of a sweep") if path.exists() else {}
            before = dict(claims)
            yield claims
            if claims != before:
                files.write_json(path, claims)

    def _is_alive(self, worker):
        if worker == self.worker:
            return True
        host, process, _ = worker.rsplit("-", 2)
        try:
            if host == socket.gethostname():
                with contextlib.suppress(PermissionError):  # perhaps another one of that number
                    os.kill(int(process), 0)
                with contextlib.suppress(OSError):  # ended, and not waited for by its parent
                    stat = pathlib.Path(f"/proc/{process}/stat").read_text()
                    if stat.rpartition(")")[2].split()[0] == "Z":
                        return False
            self._file(self.worker).touch()
            now = self._file(self.worker).stat().st_mtime
            return now - self._file(worker).stat().st_mtime < self.stale
        except (ProcessLookupError, FileNotFoundError):
            return False

    def _file(self, worker) -> pathlib.Path:
        return self.folder / f"{worker}.alive"

    def _beat(self):
        now = time.monotonic()
        self.lost = self.lost or bool(self._last) and now - self._last > self.stale
        self._file(self.worker).touch()
        self._last = now

    def _beats(self):
        while not self._ended.wait(self.stale / 6):
            with contextlib.suppress(OSError):  # a disk that is full for a while
                self._beat()
