"""Orbax checkpoints: `state` (everything but the best parameters) and `best`, all seeds.

Each step holds SHA256SUMS of its files, in the form that `sha256sum -c` reads. A step without,
of an older version, is read as it is.
"""

import contextlib
import gc
import hashlib
import io
import logging
import pathlib
import shutil
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from oa_jax import files, processes
from oa_jax.engine.mesh import is_table
from oa_jax.engine.state import State
from oa_jax.errors import UserError
from oa_jax.runs.workdir import listed

COUNTERS = ("epoch", "best_epoch", "diverged_step")
SUMS = "SHA256SUMS"
Say = Callable[[str], None]
UNREADABLE = (OSError, ValueError, KeyError)  # what Orbax raises over a damaged step


class Checkpoints(contextlib.AbstractContextManager):
    """The checkpoints of a workdir. Close it: leaving without loses the save under way.

    keep: how many steps stay. say: is told in a line of a step that cannot be read. Raises
    UserError for a folder that is none, and, at the next save or the end, for a failed save.
    """

    def __init__(self, directory: pathlib.Path, keep: int = 2, say: Say = lambda line: None):
        if directory.exists() and not directory.is_dir():
            raise UserError(f"{directory}: a file: expected the folder of the checkpoints")
        # Orbax calls it when all files of the step are there, before the step gets its name.
        finishing = ocp.AsyncOptions(post_finalization_callback=self._write_sums)
        # What a process left that was killed in a save goes, too.
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, async_options=finishing, cleanup_tmp_directories=True
        )
        self._directory, self._say, self._saving = directory, say, 0
        self._manager = ocp.CheckpointManager(directory, options=options)

    def __exit__(self, kind, error, _):
        if processes.is_lost(error):
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
        self.wait()
        self._saving = epoch
        with self._failing_in_one_line():
            self._manager.save(
                epoch,
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeSave(states.replace(best_params=(), hparams=())),
                    best=ocp.args.PyTreeSave(states.best_params),
                    seconds=ocp.args.JsonSave(seconds),
                ),
            )

    def wait(self) -> None:
        """Wait for the save under way."""
        with self._failing_in_one_line():
            self._manager.wait_until_finished()

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
        for step in self._unfinished(self._saving) if processes.is_first() else ():
            lines = [f"{digest}  {name}\n" for name, digest in _digests(step).items()]
            files.write(step / SUMS, "".join(lines))

    def restore_newest(
        self, abstract: Callable[[int | None], State]
    ) -> tuple[int, State, dict[str, float]] | None:
        """(epoch, states, seconds) of the newest readable step, None if there is none. The states
        have no `hparams`, and neither `params` nor `moments` of a run that kept its best ones only.

        abstract: shapes and types of the states of so many seeds (None: it cannot be told) and
        where they shall lie, which may be elsewhere than where they lay when they were saved.
        Raises UserError when no step is readable.
        """
        wrong: dict[int, str] = {}
        # A kill while an old step was being deleted leaves a half of it behind: walk back.
        for epoch in sorted(self._manager.all_steps(), reverse=True):
            wrong[epoch] = processes.first_does(wrong_file)(self._directory / str(epoch))
            if wrong[epoch]:
                continue
            n_seeds, whole = seeds_in(self._directory / str(epoch))
            like = abstract(n_seeds)
            state = like.replace(best_params=(), hparams=())
            if not whole:
                state = state.replace(params=(), moments=())
            args = ocp.args.Composite(
                state=_to_devices(state),
                best=_to_devices(like.best_params),
                seconds=ocp.args.JsonRestore(),
            )
            try:
                found = _quietly(self._manager.restore, epoch, args=args)
            except ValueError as error:
                wrong[epoch] = str(error)
                continue
            del wrong[epoch]
            self._set_aside(wrong)
            if wrong:
                self._manager.reload()
            return epoch, found["state"].replace(best_params=found["best"]), found["seconds"]
        if wrong:
            raise UserError(
                f"{self._directory}: no checkpoint of this workdir can be read"
                f" ({next(iter(wrong.values()))}): expected at least one whole step"
            )
        return None

    @processes.first_does
    def _set_aside(self, wrong):
        """Rename steps to N.unreadable: the manager would take them for saved."""
        for epoch, why in wrong.items():
            step = self._directory / str(epoch)
            target = step.with_suffix(".unreadable")
            shutil.rmtree(target, ignore_errors=True)
            step.rename(target)
            self._say(f"checkpoint {epoch} cannot be read ({why}): kept as {target.name}")


def seeds_in(step: pathlib.Path) -> tuple[int | None, bool]:
    """(how many seeds a step holds, None if it cannot be told; whether it has all that it takes to
    go on: of the end of a run the best parameters alone may have been kept)."""
    try:
        with _muted("absl"), ocp.PyTreeCheckpointer() as reader:
            leaves = reader.metadata(step / "state").item_metadata
        return leaves["seed"].shape[0], isinstance(leaves["params"], Mapping)
    except (*UNREADABLE, TypeError, AttributeError):
        return None, True


def can_go_on(directory: pathlib.Path) -> bool:
    """Whether the newest step in the folder of checkpoints has all that it takes to go on."""
    steps = listed(directory)
    return bool(steps) and seeds_in(directory / str(max(steps)))[1]


def _digests(step: pathlib.Path) -> dict[str, str]:
    """{name: SHA-256} of the files of a step's items. Above the items are Orbax's own notes, which
    it writes once more after the callback."""
    found = {}
    for path in filter(pathlib.Path.is_file, sorted(step.glob("*/**/*"))):
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256")
        found[str(path.relative_to(step))] = digest.hexdigest()
    return found


def wrong_file(step: pathlib.Path) -> str:
    """The first file of a step that is not as it was saved, in words; nothing if all are."""
    if not (step / SUMS).exists():
        return ""
    try:
        lines, found = (step / SUMS).read_text(errors="replace").splitlines(), _digests(step)
    except OSError as error:  # a run under way deletes its old steps
        return f"{error.filename}: {error.strerror}"
    for digest, _, name in (line.partition("  ") for line in lines):
        if found.get(name) != digest:
            return f"{name} is {'not as it was saved' if name in found else 'missing'}"
    return ""


@contextlib.contextmanager
def _muted(*names: str):
    """Nothing from these loggers: of a whole step Orbax misses a file that it never had (absl)."""
    loggers = [logging.getLogger(name) for name in names]
    before = [one.disabled for one in loggers]
    for one in loggers:
        one.disabled = True
    try:
        yield
    finally:
        for one, disabled in zip(loggers, before, strict=True):
            one.disabled = disabled


def _quietly(restore: Callable, *args, **kwargs) -> Any:
    """What `restore(…)` returns; a ValueError with the type of what it raised.

    A failed restore closes its event loop over the reads under way. Whoever ends, or is thrown
    away, after that has an error that nobody takes, which Python prints or logs: here to nobody.
    """
    heard, reason = io.StringIO(), ""
    # The handlers of these know the true stderr.
    with _muted("asyncio", "absl"), contextlib.redirect_stderr(heard):
        try:
            found = restore(*args, **kwargs)
        except UNREADABLE as error:
            # The error itself would keep its files open, and the reads that it has left.
            reason = type(error).__name__
        gc.collect()  # those tell of themselves as they are collected: now, into `heard`
    if reason:
        raise ValueError(reason)
    sys.stderr.write(heard.getvalue())  # nothing failed: it was about something else
    return found


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
    wrong = wrong_file(directory / str(epoch))
    if wrong:
        raise ValueError(wrong)
    args = {}
    for name, item in items.items():  # each a part of what was saved, as arrays of the host
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
        args[name] = ocp.args.PyTreeRestore(item, restore_args=as_numpy, partial_restore=True)
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
        step = directory / str(epoch)
        found = _quietly(reader.restore, step, args=ocp.args.Composite(**args))
    found = {
        name: jax.tree_util.tree_map_with_path(_as_expected, item, found[name])
        for name, item in items.items()
    }
    params = found["best"] if best else found["state"]["params"]
    return params, {name: found["state"][name] for name in COUNTERS}


def _as_expected(path, expected, found):
    """`found` in the expected shape: a table that was divided among devices has rows to spare."""
    if is_table(path) and isinstance(found, np.ndarray) and not found[:, expected.shape[1] :].any():
        found = found[:, : expected.shape[1]]
    # A leaf that was never saved comes back as the shape that was asked for.
    if not isinstance(found, np.ndarray) or found.shape != expected.shape:
        raise ValueError(f"found {getattr(found, 'shape', None)}, expected {expected.shape}")
    return found


def _to_devices(item):
    """Restore `item` to where its leaves say, for which a table may have to gain or lose rows."""

    def restore_args(path, leaf):
        return ocp.checkpoint_utils.construct_restore_args(leaf, strict=not is_table(path))

    args = jax.tree_util.tree_map_with_path(restore_args, item)
    # In part, as older versions stored the `hparams` too.
    return ocp.args.PyTreeRestore(item, restore_args=args, partial_restore=True)
