"""Orbax checkpoints: `state` (everything but the best parameters) and `best`, all seeds."""

from __future__ import annotations

import pathlib
import shutil
import sys

import jax
import orbax.checkpoint as ocp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from oa_jax.errors import UserError
from oa_jax.train.engine import seed_mesh
from oa_jax.train.state import State


class Checkpoints:
    """The checkpoints of a workdir. Close it: leaving without loses the save under way."""

    def __init__(self, directory: pathlib.Path, keep: int = 2):
        options = ocp.CheckpointManagerOptions(max_to_keep=keep)
        self._directory = directory
        self._manager = ocp.CheckpointManager(directory, options=options)

    def __enter__(self):
        return self

    def __exit__(self, *_):
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

    def restore_newest(self, abstract: State):
        """(epoch, states, seconds) of the newest readable step, None if there is none.

        A kill while an old step was being deleted leaves a half of it behind: walk back.
        """
        n_seeds = abstract.seed.shape[0]
        sharding = NamedSharding(seed_mesh(n_seeds), P("seed"))
        target = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), abstract
        )
        unreadable = []
        _quieten_abandoned_reads()
        for epoch in sorted(self._manager.all_steps(), reverse=True):
            try:
                found = self._manager.restore(epoch, args=_restore_args(target))
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
        for epoch in epochs:
            step = self._directory / str(epoch)
            target = step.with_suffix(".unreadable")
            shutil.rmtree(target, ignore_errors=True)
            step.rename(target)
        if epochs:
            self._manager.reload()


def _quieten_abandoned_reads():
    """Reads that a failed restore left behind end when nobody waits for them, and Python would
    print a traceback for each: say nothing of those, and everything of others."""
    report = sys.unraisablehook

    def hook(unraisable):
        if str(unraisable.exc_value) != "Event loop is closed":
            report(unraisable)

    sys.unraisablehook = hook


def _restore_args(target: State):
    def tree(item):
        return ocp.args.PyTreeRestore(
            item, restore_args=ocp.checkpoint_utils.construct_restore_args(item)
        )

    return ocp.args.Composite(
        state=tree(target.replace(best_params=())),
        best=tree(target.best_params),
        seconds=ocp.args.JsonRestore(),
    )
