"""Who works on which run, where several commands, or machines, share a folder."""

import contextlib
import pathlib
from collections.abc import Iterable, Iterator
from typing import IO

from oa_jax import files


class Claims(contextlib.AbstractContextManager):
    """The claims of a worker in a folder, which end with this context.

    A claim is a lock on a file of the run's name, so it also ends with a worker that is killed.
    """

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        self._own: dict[str, IO] = {}

    def __exit__(self, *_) -> None:
        for name in list(self._own):
            self.free(name)

    def take(self, names: Iterable[str]) -> str | None:
        """The first of `names` that is nobody's, now this worker's."""
        with self.alone():
            for name in names:
                if name not in self._own and (claim := files.lock(self._file(name))):
                    self._own[name] = claim
                    return name
        return None

    def others(self, names: Iterable[str]) -> set[str]:
        """Those of `names` that other workers have."""
        found = set()
        with self.alone():  # else a worker that takes one meanwhile would not get it
            for name in names:
                if name in self._own or not self._file(name).exists():
                    continue
                if claim := files.lock(self._file(name)):
                    claim.close()
                else:
                    found.add(name)
        return found

    def free(self, name: str) -> None:
        """Give a claim up, if it is this worker's."""
        if name in self._own:
            self._own.pop(name).close()

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """While no other worker takes a run, or writes what all of them write: index and study."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with contextlib.closing(files.lock(self.folder / "lock", wait=True)):
            yield

    def _file(self, name) -> pathlib.Path:
        return self.folder / f"{name}.lock"
