"""The host loop: epochs on the device; metrics, checkpoints and compaction between them."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
import time

import jax
import numpy as np

import oa_jax
from oa_jax.errors import UserError
from oa_jax.evaluate import orthogonality
from oa_jax.evaluate.metrics import metrics_by_domain
from oa_jax.experiment import Experiment
from oa_jax.train import engine as engine_lib
from oa_jax.train.checkpoint import Checkpoints
from oa_jax.train.state import State
from oa_jax.train.workdir import Workdir


@dataclasses.dataclass
class Clock:
    """Seconds by kind, over all sessions of a run."""

    seconds: dict[str, float]

    def timed(self, kind: str, fn, *args):
        begin = time.perf_counter()
        out = jax.block_until_ready(fn(*args))
        self.seconds[kind] = self.seconds.get(kind, 0.0) + time.perf_counter() - begin
        return out


def train(experiment: Experiment, workdir: Workdir, say) -> tuple[State, dict[str, float]]:
    """Train all seeds to their ends -> (states of all seeds, seconds by kind).

    Goes on from the newest checkpoint. `say` prints one line.
    """
    engine, seeds = experiment.engine, experiment.seeds
    rows, clock = Rows(experiment, workdir), Clock({"train": 0.0, "save": 0.0})
    config = experiment.config["train"]
    with Checkpoints(workdir.checkpoints, config["keep_checkpoints"]) as checkpoints:
        found = checkpoints.restore_newest(engine.abstract(seeds, experiment.hparams()))
        arrays = experiment.train_arrays()
        epoch = 0
        workdir.keep_rows(found[0] if found else -1)
        if found:
            epoch, states, clock.seconds = found
            say(f"going on after epoch {epoch}")
        else:
            states = engine.create(seeds, experiment.hparams())
            report = jax.device_get(engine.assess(states, arrays))
            rows.add(0, states, np.arange(len(seeds)), report)
        groups = Groups(states)
        before = clock.seconds.get("compile", 0.0)
        while groups.active_slots.size:
            begin = time.perf_counter()
            capacity = engine.capacity(seeds, epoch)
            active, report = clock.timed("train", engine.epoch, groups.active, arrays, capacity)
            slots, epoch = groups.active_slots, epoch + 1
            report = jax.device_get(report)
            rows.add(epoch, active, slots, report)
            say(rows.line(epoch, slots, report, time.perf_counter() - begin, active))
            groups.update(active)
            clock.seconds["compile"] = before + engine.seconds["compile"]
            if epoch % config["checkpoint_every"] == 0 or not groups.active_slots.size:
                clock.timed("save", checkpoints.save, epoch, groups.all(), clock.seconds)
    return groups.all(), clock.seconds


class Groups:
    """The states of all seeds, as those still training and those that have stopped.

    Stopped seeds leave the compiled program (compaction): uneven stopping costs little.
    """

    def __init__(self, states: State):
        self._parts: list[tuple[np.ndarray, State]] = []
        self.active_slots = np.arange(states.seed.shape[0])
        self.active = states
        self.update(states)

    def update(self, active: State) -> None:
        """Take the new states of the active slots and put the stopped ones aside."""
        done = np.asarray(active.done)
        self.active = active
        if done.any():
            self._parts.append((self.active_slots[done], engine_lib.take_seeds(active, done)))
            self.active = engine_lib.take_seeds(active, ~done)
            self.active_slots = self.active_slots[~done]

    def all(self) -> State:
        """All states in the order of the slots."""
        parts = list(self._parts)
        if self.active_slots.size:
            parts.append((self.active_slots, self.active))
        order = np.argsort(np.concatenate([slots for slots, _ in parts]))
        return engine_lib.join_seeds([states for _, states in parts], order)


class Rows:
    """Writes metrics.jsonl, a row per (epoch, seed), and TensorBoard's events if asked to."""

    def __init__(self, experiment: Experiment, workdir: Workdir):
        self.experiment, self.workdir = experiment, workdir
        self.val = experiment.eval_rows["val"]
        self._board = _board(workdir) if experiment.config["train"]["tensorboard"] else None

    def add(self, epoch, states, slots, report):
        """One row for each of `slots`; `report` and `states` have these slots only."""
        best = np.asarray(states.best_epoch), np.asarray(states.diverged_step)
        rows = []
        for i, slot in enumerate(slots):
            row = {"epoch": epoch, "seed": int(self.experiment.seeds[slot])}
            if "train" in report:
                row["learning_rate"] = float(report["learning_rate"][i])
                row |= {f"train/{k}": float(v[i]) for k, v in report["train"].items()}
            row |= {f"val/{k}": v for k, v in self._val_metrics(report, i).items()}
            row |= orthogonality.flatten(jax.tree.map(lambda a, i=i: a[i], report["gca"]))
            row |= {"best_epoch": int(best[0][i]), "diverged_step": int(best[1][i])}
            rows.append(row)
            if self._board:
                for name, value in row.items():
                    self._board.add_scalar(f"seed{row['seed']}/{name}", value, epoch)
        self.workdir.append_rows(rows)

    def _val_metrics(self, report, i):
        n_rows = len(self.val["target"])
        ranks = jax.tree.map(lambda a: a[i][:n_rows], report["ranks"])
        return metrics_by_domain(
            ranks.rank,
            ranks.ties,
            ranks.n_candidates,
            self.val["domain"],
            self.experiment.tie_weight,
            self.experiment.protocol_names["candidates"],
        )

    def line(self, epoch, slots, report, seconds, states) -> str:
        """What a person wants to see of an epoch."""
        name = self.experiment.protocol_names["candidates"]
        most = self.experiment.config["train"]["max_epochs"]
        parts = []
        for i, slot in enumerate(slots):
            seed, diverged = self.experiment.seeds[slot], int(states.diverged_step[i])
            if diverged:
                parts.append(f"seed {seed} diverged at step {diverged}")
                continue
            values = self._val_metrics(report, i)
            best = "*" if int(states.best_epoch[i]) == epoch else " "
            pair = "/".join(f"{values[f'{d}/ndcg@10/{name}']:.4f}" for d in "AB")
            parts.append(f"{seed}:{pair}{best}")
        rate = self.experiment.task.n_steps / seconds
        left = (most - epoch) * seconds / 60
        return (
            f"epoch {epoch:3d}  val ndcg@10 A/B  {'  '.join(parts)}  "
            f"{rate:.1f} steps/s  {left:.0f} min left at most"
        )


def _board(workdir):
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        raise UserError(
            "train.tensorboard=True: tensorboardX is not installed: expected the extra "
            "`tensorboard` (pip install 'oa-jax[tensorboard]')"
        ) from None
    return SummaryWriter(str(workdir.path / "tensorboard"))


def environment(experiment: Experiment) -> dict:
    """What a result depends on beside its configuration."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "ml-collections")
    return {
        "oa-jax": oa_jax.__version__,
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in packages},
        "devices": [f"{d.platform}: {d.device_kind}" for d in jax.devices()],
        "seed_axis": experiment.engine.axis,
        "commit": _commit(),
        "fingerprints": experiment.identity(),
    }


def _commit() -> str | None:
    """The source's commit, where the package runs from a checkout."""
    import pathlib
    import subprocess

    root = pathlib.Path(oa_jax.__file__).parent.parent
    try:
        command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
