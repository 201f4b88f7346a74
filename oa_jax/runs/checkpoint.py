"""Orbax checkpoints: `state` (everything but the best parameters) and `best`, all seeds."""

from __future__ import annotations

import functools
import logging
import pathlib
import shutil
import sys
import warnings

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.errors import JaxRuntimeError

from oa_jax import processes
from oa_jax.engine.mesh import is_table
from oa_jax.engine.state import State
from oa_jax.errors import UserError

COUNTERS = ("epoch", "best_epoch", "diverged_step")


class Checkpoints:
    """The checkpoints of a workdir. Close it: leaving without loses the save under way."""

    def __init__(self, directory: pathlib.Path, keep: int = 2):
        options = ocp.CheckpointManagerOptions(max_to_keep=keep)
        self._directory = directory
        self._manager = ocp.CheckpointManager(directory, options=options)

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if processes.several() and kind is JaxRuntimeError:
            return  # another process is lost: what waits for it would wait in vain
        self._manager.close()  # waits, and raises what went wrong in the background

    def save(self, epoch: int, states: State, seconds: dict[str, float]) -> None:
        """Save in the background. Nobody may give the buffers of `states` up meanwhile: they must
        not be those that a program takes over (donation)."""
        self._manager.save(
            epoch,
            args=ocp.args.Composite(
                state=ocp.args.PyTreeSave(states.replace(best_params=())),
                best=ocp.args.PyTreeSave(states.best_params),
                seconds=ocp.args.JsonSave(seconds),
            ),
        )

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
        unreadable = []
        _quieten_abandoned_reads()
        for epoch in sorted(self._manager.all_steps(), reverse=True):
            try:
                found = self._manager.restore(epoch, args=_restore_args(abstract))
            except (OSError, ValueError, KeyError) as error:
                reason = type(error).__name__  # the error itself would keep its files open
                unreadable.append(epoch)
                continue
            self._set_aside(unreadable)
            states = found["state"].replace(best_params=found["best"])
            return epoch, states, found["seconds"]
        if self._manager.all_steps():
            raise UserError(
                f"{self._directory}: no checkpoint of this workdir can be read"
                f" ({reason}): expected at least one whole step"
            )
        return None

    def _set_aside(self, epochs):
        """Rename steps to N.unreadable: the manager would take them for saved."""
        self._rename(epochs)
        if epochs:
            self._manager.reload()

    @processes.first_does
    def _rename(self, epochs):
        for epoch in epochs:
            step = self._directory / str(epoch)
            target = step.with_suffix(".unreadable")
            shutil.rmtree(target, ignore_errors=True)
            step.rename(target)


@functools.cache  # a hook for each of an analysis' thousand reads would be a long chain
def _quieten_abandoned_reads():
    """A failed restore closes its event loop over the reads under way. Whoever ends, or is thrown
    away, after that has an error that nobody takes, and Python prints each in a way of its own:
    say nothing in these ways from now on, for whoever it be, and everything in others."""
    report = sys.unraisablehook
    left = ("Event loop is closed", "coroutine ignored GeneratorExit")

    def hook(unraisable):
        if str(unraisable.exc_value) not in left:
            report(unraisable)

    sys.unraisablehook = hook
    logging.getLogger("asyncio").addFilter(_is_awaited)
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)


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
    -> (params, {"epoch", "best_epoch", "diverged_step"}: (S,)). Raises OSError, ValueError or
    KeyError when the step cannot be read or holds parameters of other shapes.
    """
    n_seeds = jax.tree.leaves(abstract_params)[0].shape[0]
    state = {name: jax.ShapeDtypeStruct((n_seeds,), np.int32) for name in COUNTERS}
    items = {"best": abstract_params} if best else {}
    items["state"] = state if best else state | {"params": abstract_params}
    args = ocp.args.Composite(**{name: _as_numpy(item) for name, item in items.items()})
    _quieten_abandoned_reads()
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
        found = reader.restore(directory / str(epoch), args=args)
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
