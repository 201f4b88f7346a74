"""metrics.jsonl: a row per (epoch, seed), and the line that a person sees of an epoch."""

from __future__ import annotations

import math

import jax
import numpy as np

from oa_jax import processes
from oa_jax.errors import UserError
from oa_jax.experiment import Experiment
from oa_jax.nn import angles
from oa_jax.runs.workdir import Workdir


class Rows:
    """Writes metrics.jsonl, and TensorBoard's events if asked to."""

    def __init__(self, experiment: Experiment, workdir: Workdir):
        self.experiment, self.workdir = experiment, workdir
        self._newest: list[dict] = []
        wanted = experiment.config.train.tensorboard and processes.is_first()
        self._board = _board(workdir) if wanted else None

    def add(self, epoch, states, report, slots=None, running=None) -> None:
        """A row for each running seed of the program.

        states, report: of the program's seeds, leading axis S. slots: (S,) their places among all
        seeds; running: (S,) those that this epoch has changed; by default all.
        """
        seeds = self.experiment.seeds if slots is None else self.experiment.seeds[slots]
        running = np.ones(len(seeds), bool) if running is None else running
        counters = {k: getattr(states, k) for k in ("best_epoch", "diverged_step")}
        report, counters = processes.fetch((report, counters))
        self._newest = []
        for i in np.flatnonzero(running):
            row = {"epoch": epoch, "seed": int(seeds[i])}
            row |= {name: int(value[i]) for name, value in counters.items()}
            if "train" in report:
                row["learning_rate"] = float(report["learning_rate"][i])
                row |= {f"train/{k}": float(v[i]) for k, v in report["train"].items()}
            row |= {f"val/{k}": v for k, v in self._val_metrics(report, i).items()}
            row |= angles.flatten(jax.tree.map(lambda a, i=i: a[i], report["gca"]))
            self._newest.append(row)
        self.workdir.append_rows(self._newest)
        if self._board:
            for row in self._newest:
                for name, value in row.items():
                    self._board.add_scalar(f"seed{row['seed']}/{name}", value, epoch)
            self._board.flush()

    def _val_metrics(self, report, i):
        evaluation = self.experiment.evaluation
        n_rows = len(evaluation.rows["val"]["target"])
        ranks = jax.tree.map(lambda a: a[i][:n_rows], report["ranks"])
        counts = ranks.rank, ranks.ties, ranks.n_candidates
        metrics = evaluation.metrics("val", evaluation.watched, *counts, groups=["all"])
        if not ranks.finite.all():  # quirk Q9: nothing is above a target that is not a number
            return dict.fromkeys(metrics, float("nan"))
        return metrics

    def line(self, epoch: int, seconds: float) -> str:
        """Epoch, validation NDCG@10 of each running seed (* a new best), speed, time left."""
        evaluation, parts = self.experiment.evaluation, []
        name = evaluation.rankings[evaluation.watched]
        for row in self._newest:
            if row["diverged_step"]:
                parts.append(f"seed {row['seed']} diverged at step {row['diverged_step']}")
                continue
            pair = "/".join(f"{row[f'val/{d}/ndcg@10/{name}']:.4f}" for d in "AB")
            parts.append(f"{row['seed']}:{pair}{'*' if row['best_epoch'] == epoch else ' '}")
        most = self.experiment.config.train.max_epochs
        return (
            f"epoch {epoch:3d}  val ndcg@10 A/B  {'  '.join(parts)}  "
            f"{self.experiment.data.task.n_steps / seconds:.1f} steps/s  "
            f"{math.ceil((most - epoch) * seconds / 60)} min left at most"
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
