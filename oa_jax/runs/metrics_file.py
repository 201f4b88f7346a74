"""metrics.jsonl: a row per (epoch, seed), and the line that a person sees of an epoch."""

import math

import jax
import numpy as np

from oa_jax.experiment import Experiment
from oa_jax.nn import angles
from oa_jax.runs import writers
from oa_jax.runs.workdir import Workdir

MANY_SEEDS = 9  # of which a line for people shows the spread, not each


class MetricsFile:
    """Writes metrics.jsonl, and where `train.writers` says. latest: the last row of each seed."""

    def __init__(self, experiment: Experiment, workdir: Workdir):
        self.experiment, self.workdir = experiment, workdir
        self.newest: list[dict] = []
        self.latest: dict[int, dict] = {}
        self._writers = writers.opened(experiment.config, workdir)

    def add(self, places, report, slots) -> None:
        """A row for each of some seeds.

        places: of the seeds among those of the run. report: arrays of the host, leading axis S, of
        an epoch of a program: what the engine reports, `epoch`, `best_epoch`, `diverged_step`.
        slots: where the seeds are in it.
        """
        self.newest = []
        for place, i in zip(places, slots, strict=True):
            row = {"epoch": int(report["epoch"][i]), "seed": int(self.experiment.seeds[place])}
            row |= {name: int(report[name][i]) for name in ("best_epoch", "diverged_step")}
            if "train" in report:
                row["learning_rate"] = float(report["learning_rate"][i])
                row |= {f"train/{k}": float(v[i]) for k, v in report["train"].items()}
            row |= {f"val/{k}": v for k, v in self._val_metrics(report, i).items()}
            row |= angles.flatten(jax.tree.map(lambda a, i=i: a[i], report["gca"]))
            self.newest.append(row)
        self.workdir.append_rows(self.newest)
        for row in self.newest:
            self.latest[row["seed"]] = row
            for writer in self._writers:
                writer.row(row)

    def close(self) -> None:
        for writer in self._writers:
            writer.close()

    def _val_metrics(self, report, i):
        evaluation = self.experiment.evaluation
        n_rows = len(evaluation.rows["val"]["target"])
        ranks = jax.tree.map(lambda a: a[i][:n_rows], report["ranks"])
        counts = ranks.rank, ranks.ties, ranks.n_candidates
        metrics = evaluation.metrics("val", evaluation.watched, counts, groups=["all"])
        if not ranks.finite.all():  # quirk Q9: nothing is above a target that is not a number
            return dict.fromkeys(metrics, float("nan"))
        return metrics

    def line(self, seconds: float) -> str:
        """The newest rows in a line: epoch, validation NDCG@10 of each seed (* a new best), speed,
        time left; of many seeds mean, standard deviation and range."""
        evaluation, parts = self.experiment.evaluation, []
        epoch = max(row["epoch"] for row in self.newest)
        name = evaluation.rankings[evaluation.watched]
        well = [row for row in self.newest if not row["diverged_step"]]
        bad = [row for row in self.newest if row["diverged_step"]]
        scores = {d: [row[f"val/{d}/ndcg@10/{name}"] for row in well] for d in "AB"}
        better = [row["best_epoch"] == row["epoch"] for row in well]
        if len(well) < MANY_SEEDS:
            for row, is_better, *pair in zip(well, better, *scores.values(), strict=True):
                pair = "/".join(f"{score:.4f}" for score in pair)
                parts.append(f"{row['seed']}:{pair}{'*' if is_better else ' '}")
        else:
            for d, v in scores.items():
                spread = f"{np.mean(v):.4f} ± {np.std(v, ddof=1):.4f}"
                parts.append(f"{d} {spread} ({min(v):.4f} to {max(v):.4f})")
            parts.append(f"{len(well)} seeds, {sum(better)} with a new best")
        parts += [f"seed {row['seed']} diverged at step {row['diverged_step']}" for row in bad]
        most = self.experiment.config.train.max_epochs
        return (
            f"epoch {epoch:3d}  val ndcg@10 A/B  {'  '.join(parts)}  "
            f"{self.experiment.data.task.n_steps / seconds:.1f} steps/s  "
            f"{math.ceil((most - epoch) * seconds / 60)} min left at most"
        )
