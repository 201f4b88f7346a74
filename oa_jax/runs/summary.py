"""The end of a run: ranks of the best parameters, metrics, statistics, summary."""

import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from oa_jax import files, processes
from oa_jax.engine.state import State
from oa_jax.evaluation import SPLITS
from oa_jax.experiment import Experiment
from oa_jax.nn import angles

Ranks = dict[str, np.ndarray]  # of ranks.npz
EXPECTED = "the summary of a run"
FIELDS = {"label": str, "n_parameters": int, "mean": dict, "sd": dict, "per_seed": list}
OF_SEED = {"seed": int, "epochs": int, "diverged_step": int}


def check_summary(file: str | pathlib.Path, summary: Any) -> Any:
    """`summary`, read from a file. Raises UserError naming the field that is not as `summarise`
    makes it."""
    files.check(file, summary, FIELDS, EXPECTED)
    for entry in summary["per_seed"]:
        files.check(file, entry, OF_SEED, f"{EXPECTED} with an entry for each seed")
    null = {"null_abs_cos": summary.get("null_abs_cos")}
    for values in (null, summary["mean"], summary["sd"]):
        files.check_numbers(file, values)
    return summary


def rank_all(
    experiment: Experiment, params: Any, before_split: Callable[[], None] = lambda: None
) -> tuple[Ranks, dict]:
    """Ranks of `params` (leaves with S) over both splits, and GCA sums over the test users.

    -> arrays of ranks.npz (`Evaluation.stored`), {"place/domain": sums (S,)}.
    """
    evaluation, found, sums = experiment.evaluation, {}, {}
    kinds = tuple(evaluation.rankings)
    for split in SPLITS:
        before_split()
        arrays = evaluation.padded(evaluation.rows[split])
        ranks, sums = experiment.engine.final(params, arrays, kinds, experiment.tables)
        found[split] = processes.fetch(ranks)
    return evaluation.stored(experiment.seeds, found), processes.fetch(sums)


def summarise(
    experiment: Experiment, states: State, ranks: Ranks, sums: dict, initial_sums: dict
) -> dict:
    """summary.json, without timings: per seed, mean and sd (n - 1) over the seeds that ended well.

    `initial_sums`: the statistics of the untrained parameters, a null control.
    """
    per_seed, good, slots = [], [], []
    for slot, seed in enumerate(experiment.seeds):
        diverged = int(states.diverged_step[slot])
        entry = {"seed": int(seed), "epochs": int(states.epoch[slot])}
        entry |= {"best_epoch": int(states.best_epoch[slot]), "diverged_step": diverged}
        if not diverged:
            entry |= experiment.evaluation.of_seed(ranks, slot)
            for when, total in (("best", sums), ("init", initial_sums)):
                statistics = angles.flatten(jax.tree.map(lambda a, slot=slot: a[slot], total))
                entry |= {f"{when}/{name}": value for name, value in statistics.items()}
            good.append(entry)
            slots.append(slot)
        per_seed.append(entry)
    names = [k for k in good[0] if k not in ("seed", "diverged_step")] if good else []
    values = {name: np.array([entry[name] for entry in good], np.float64) for name in names}
    return {
        "label": experiment.label,
        "n_parameters": experiment.engine.n_parameters,
        "null_abs_cos": angles.null_abs_cos(experiment.config.model.d_embed),
        "n_seeds": len(good),
        "watched": experiment.evaluation.rankings[experiment.evaluation.watched],
        "mean": {name: float(v.mean()) for name, v in values.items()},
        "sd": {k: float(v.std(ddof=1)) if len(v) > 1 else None for k, v in values.items()},
        "tied_share": {
            key: float(np.mean(ranks[key][slots] > 0))
            for key in ranks
            if good and key.endswith("/ties")
        },
        "per_seed": per_seed,
    }
