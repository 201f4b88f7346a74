"""Other processes of this program, beside what this one does."""

import contextlib
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax

FRACTION = "XLA_CLIENT_MEM_FRACTION"  # of a GPU, which a process takes


def share_machine(processes: int) -> int:
    """How many processes can share this machine, if so many are wanted: as many as there are CPUs,
    but 1 where it has a TPU, which one takes for itself. Before JAX is used.

    Each gets its share of the CPUs for its threads, which would wait for each other if each had as
    many as CPUs. Of a GPU each gets a share of the memory: one trains while another compiles.
    """
    if hasattr(os, "sched_getaffinity"):
        there = len(os.sched_getaffinity(0))
    else:
        there = os.cpu_count() or 1
    os.environ.setdefault("NPROC", str(max(1, there // processes)))  # XLA's threads
    if not {FRACTION, "XLA_PYTHON_CLIENT_MEM_FRACTION"} & set(os.environ):  # its older name
        os.environ[FRACTION] = f"{0.9 / processes:.3f}"
    return there if jax.default_backend() in ("cpu", "gpu") else 1


@contextlib.contextmanager
def beside(
    commands: Mapping[pathlib.Path, Sequence[str]], say: Callable[[str], None]
) -> Iterator[None]:
    """Commands in processes of their own as long as the block takes, and to their end if that ends
    well. commands: {file for what it says: its words}."""
    with contextlib.ExitStack() as stack:
        others = {}
        for said, words in commands.items():
            said.parent.mkdir(parents=True, exist_ok=True)
            log = stack.enter_context(said.open("w"))
            command = [sys.executable, "-m", "oa_jax", *words]
            other = subprocess.Popen(command, stdout=log, stderr=log)
            others[said] = stack.enter_context(other)
        try:
            yield
            for said, other in others.items():
                if other.poll() is None:
                    say(f"waiting for another process: what it says is in {said}")
            for said, other in others.items():
                if status := other.wait():
                    say(f"another process ended with status {status}: what it said is in {said}")
        except BaseException:
            for other in others.values():
                other.terminate()  # what it has is saved
            raise
