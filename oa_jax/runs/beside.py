"""A run in a process of its own, beside what this one does."""

from __future__ import annotations

import contextlib
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable, Iterator

import jax

from oa_jax.runs.workdir import Workdir


@contextlib.contextmanager
def beside(
    workdir: pathlib.Path, arguments: list[str], say: Callable[[str], None]
) -> Iterator[None]:
    """`train` with `arguments` in a process of its own as long as the block takes, and to its end
    if that ends well; what it says is in WORKDIR.log. Nothing on an accelerator, which one process
    takes for itself, without a second core, or when the run is finished."""
    alone = jax.default_backend() != "cpu" or (os.cpu_count() or 1) < 2
    if alone or Workdir(workdir).is_finished:
        yield
        return
    workdir.parent.mkdir(parents=True, exist_ok=True)
    said = workdir.parent / f"{workdir.name}.log"
    say(f"{workdir} trains beside it: what it says is in {said}")
    command = [sys.executable, "-m", "oa_jax", "train", *arguments]
    with said.open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as other:
        try:
            yield
            say(f"waiting for {workdir}")
            other.wait()
        except BaseException:
            other.terminate()  # what it has is saved
            raise
