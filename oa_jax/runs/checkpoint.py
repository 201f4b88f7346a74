"""Orbax checkpoints: `state` (everything but the best parameters) and `best`, all seeds.

Each step holds SHA256SUMS of its files, in the form that `sha256sum -c` reads. A step without,
of an older version, is read as it is.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import logging
import pathlib
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.errors import JaxRuntimeError

from oa_jax import files, processes
from oa_jax.engine.mesh import is_table
from oa_jax.engine.state import State
from oa_jax.errors import UserError

COUNTERS = ("epoch", "best_epoch", "diverged_step")
SUMS = "SHA256SUMS"
UNREADABLE = (OSError, ValueError, KeyError)  # what Orbax raises over a damaged step


class Checkpoints:
    """The checkpoints of a workdir. Close it: leaving without loses the save under way.

    keep: how many steps stay. say: is told in a line of a step that cannot be read. Raises
    UserError for a folder that is none, and, at the next save or the end, for a failed save.
    """

    def __init__(
        self,
        directory: pathlib.Path,
        keep: int = 2,
        say: Callable[[str], None] = lambda line: None,
    ):
        if directory.exists() and not directory.is_dir():
            raise UserError(f"{directory}: a file: expected the folder of the checkpoints")
        # Orbax calls it when all files of the step are there, before the step gets its name.
        finishing = ocp.AsyncOptions(post_finalization_callback=self._write_sums)
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, async_options=finishing)
        self._directory, self._say, self._saving = directory, say, 0
        self._manager = ocp.CheckpointManager(directory, options=options)

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind, *_):
        if processes.several() and kind is JaxRuntimeError:
            return  # another process is lost: what waits for it would wait in vain
        try:
            with self._failing_in_one_line():
                self._manager.close()  # waits, and raises what went wrong in the background
        except UserError:
            with contextlib.suppress(Exception):
                self._manager.close()  # ends the threads, which a failed save leaves
            raise

    def save(self, epoch: int, states: State, seconds: dict[str, float]) -> None:
        """Save in the background. Nobody may give the buffers of `states` up meanwhile: they must
        not be those that a program takes over (donation)."""
        with self._failing_in_one_line():
            self._manager.wait_until_finished()
            self._saving = epoch
            self._manager.save(
                epoch,
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeSave(states.replace(best_params=())),
                    best=ocp.args.PyTreeSave(states.best_params),
                    seconds=ocp.args.JsonSave(seconds),
                ),
            )

    @contextlib.contextmanager
    def _failing_in_one_line(self):
        try:
            yield
        except (*UNREADABLE, UserError) as error:
            full = "No space left on device"
            reason = full if full in str(error) else " ".join(str(error).split())[:200]
            for step in self._unfinished(self._saving):
                shutil.rmtree(step, ignore_errors=True)
            raise UserError(
                f"{self._directory}: the checkpoint of epoch {self._saving} cannot be saved: "
                f"{reason}: what was saved before stays"
            ) from None

    def _unfinished(self, epoch):
        return self._directory.glob(f"{epoch}.orbax-checkpoint-tmp*")

    def _write_sums(self):
        if not processes.is_first():
            return
        for step in self._unfinished(self._saving):
            # Below the items only: Orbax writes its own notes above them once more.
            found = (path for path in sorted(step.glob("*/**/*")) if path.is_file())
            lines = [f"{_digest(path)}  {path.relative_to(step)}\n" for path in found]
            files.write(step / SUMS, "".join(lines))

    def n_seeds(self) -> int | None:
        """How many seeds the newest step holds, None if it cannot be told."""
        steps = self._manager.all_steps()
        if not steps:
            return None
        try:
            with ocp.PyTreeCheckpointer() as reader:
                tree = reader.metadata(self._directory / str(max(steps)) / "state").item_metadata
            return tree["seed"].shape[0]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def restore_newest(self, abstract: State):
        """(epoch, states, seconds) of the newest readable step, None if there is none.

        abstract: shapes and types of the states and where they shall lie, which may be elsewhere
        than where they lay when they were saved.

        A kill while an old step was being deleted leaves a half of it behind: walk back.
        """
        wrong: dict[int, str] = {}
        for epoch in sorted(self._manager.all_steps(), reverse=True):
            wrong[epoch] = self._wrong_file(epoch)
            if wrong[epoch]:
                continue
            args = _restore_args(abstract)
            try:
                found = _quietly(self._manager.restore, epoch, args=args)
            except ValueError as error:
                wrong[epoch] = str(error)
                continue
            del wrong[epoch]
            self._set_aside(wrong)
            states = found["state"].replace(best_params=found["best"])
            return epoch, states, found["seconds"]
        if wrong:
            raise UserError(
                f"{self._directory}: no checkpoint of this workdir can be read"
                f" ({next(iter(wrong.values()))}): expected at least one whole step"
            )
        return None

    @processes.first_does
    def _wrong_file(self, epoch):
        return wrong_file(self._directory / str(epoch))

    def _set_aside(self, wrong):
        """Rename steps to N.unreadable: the manager would take them for saved."""
        self._rename(list(wrong))
        for epoch, why in wrong.items():
            self._say(f"checkpoint {epoch} cannot be read ({why}): kept as {epoch}.unreadable")
        if wrong:
            self._manager.reload()

    @processes.first_does
    def _rename(self, epochs):
        for epoch in epochs:
            step = self._directory / str(epoch)
            target = step.with_suffix(".unreadable")
            shutil.rmtree(target, ignore_errors=True)
            step.rename(target)


def wrong_file(step: pathlib.Path) -> str:
    """The first file of a step that is not as it was saved, in words; nothing if all are."""
    if not (step / SUMS).exists():
        return ""
    for line in (step / SUMS).read_text(errors="replace").splitlines():
        digest, _, name = line.partition("  ")
        if not (step / name).is_file():
            return f"{name} is missing"
        try:
            same = _digest(step / name) == digest
        except OSError as error:  # a run under way deletes its old steps
            return f"{name}: {error.strerror}"
        if not same:
            return f"{name} is not as it was saved"
    return ""


def _digest(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _quietly(restore: Callable, *args, **kwargs) -> Any:
    """What `restore(…)` returns; a ValueError with the type of what it raised."""
    with _quiet():
        try:
            return restore(*args, **kwargs)
        except UNREADABLE as error:
            # The error itself would keep its files open, and the reads that it has left.
            reason = type(error).__name__
        gc.collect()  # those tell of themselves as they are collected: now, while nobody listens
    raise ValueError(reason)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """A failed restore closes its event loop over the reads under way. Whoever ends, or is thrown
    away, after that has an error that nobody takes, and Python prints each in a way of its own:
    while this holds, say nothing in these ways, for whoever it be, and everything in others."""
    report, logger = sys.unraisablehook, logging.getLogger("asyncio")
    left = ("Event loop is closed", "coroutine ignored GeneratorExit")

    def hook(unraisable):
        if str(unraisable.exc_value) not in left:
            report(unraisable)

    sys.unraisablehook = hook
    logger.addFilter(_is_awaited)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
            yield
    finally:
        logger.removeFilter(_is_awaited)
        sys.unraisablehook = report


def _is_awaited(record: logging.LogRecord) -> bool:
    """False for a task or future that nobody waits for."""
    told, _, _ = record.getMessage().partition("\n")
    left = ("exception was never retrieved", "Task was destroyed but it is pending!")
    return not told.endswith(left)


def listed(directory: pathlib.Path) -> list[int]:
    """Epochs of the steps in a folder of checkpoints, ascending; not every one need be whole."""
    return sorted(int(p.name) for p in directory.iterdir() if p.name.isdecimal() and p.is_dir())


def read(directory: pathlib.Path, epoch: int, abstract_params, best: bool):
    """Parameters of all seeds and a few counters, as numpy arrays with a leading S.

    Nothing is written and no lock is taken: the run may be under way. abstract_params: shapes and
    types of the parameters. best: each seed's best parameters instead of its last.
    -> (params, {"epoch", "best_epoch", "diverged_step"}: (S,)). Raises ValueError when the step
    cannot be read, is not as it was saved, or holds parameters of other shapes.
    """
    n_seeds = jax.tree.leaves(abstract_params)[0].shape[0]
    state = {name: jax.ShapeDtypeStruct((n_seeds,), np.int32) for name in COUNTERS}
    items = {"best": abstract_params} if best else {}
    items["state"] = state if best else state | {"params": abstract_params}
    args = ocp.args.Composite(**{name: _as_numpy(item) for name, item in items.items()})
    wrong = wrong_file(directory / str(epoch))
    if wrong:
        raise ValueError(wrong)
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
        found = _quietly(reader.restore, directory / str(epoch), args=args)
    found = {
        name: jax.tree_util.tree_map_with_path(_as_expected, item, found[name])
        for name, item in items.items()
    }
    params = found["best"] if best else found["state"]["params"]
    return params, {name: found["state"][name] for name in COUNTERS}


def _as_numpy(item):
    """Restore `item`, which may be a part of what was saved, to arrays of the host."""
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
    return ocp.args.PyTreeRestore(item, restore_args=as_numpy, partial_restore=True)


def _as_expected(path, expected, found):
    """`found` in the expected shape: a table that was divided among devices has rows to spare."""
    if is_table(path) and isinstance(found, np.ndarray) and not found[:, expected.shape[1] :].any():
        found = found[:, : expected.shape[1]]
    # A leaf that was never saved comes back as the shape that was asked for.
    if not isinstance(found, np.ndarray) or found.shape != expected.shape:
        raise ValueError(f"found {getattr(found, 'shape', None)}, expected {expected.shape}")
    return found


def _restore_args(target: State):
    def tree(item):
        strict = ocp.checkpoint_utils.construct_restore_args(item)
        # On another mesh a table has more rows, or fewer, than it was saved with.
        rows = ocp.checkpoint_utils.construct_restore_args(item, strict=False)
        mixed = jax.tree_util.tree_map_with_path(
            lambda path, a, b: b if is_table(path) else a, strict, rows
        )
        return ocp.args.PyTreeRestore(item, restore_args=mixed)

    return ocp.args.Composite(
        state=tree(target.replace(best_params=())),
        best=tree(target.best_params),
        seconds=ocp.args.JsonRestore(),
    )
