"""The end of a run: ranks of the best parameters, metrics, statistics, summary."""

from __future__ import annotations

import jax
import numpy as np

from oa_jax import processes
from oa_jax.backbones.known import BACKBONES
from oa_jax.engine.state import State
from oa_jax.errors import UserError
from oa_jax.experiment import SPLITS, Experiment
from oa_jax.nn import angles
from oa_jax.ranking.metrics import metrics_by_domain, metrics_by_group

Ranks = dict[str, np.ndarray]


def rank_all(experiment: Experiment, params) -> tuple[Ranks, dict]:
    """Ranks of `params` (leaves with S) over both splits, and GCA sums over the test users.

    -> arrays of ranks.npz, {"place/domain": sums (S,)}. Keys: `seed` (S,); of each split
    `SPLIT/user`, `SPLIT/domain` (R,), `SPLIT/in/GROUP` (R,) bool; of each ranking PROTOCOL
    `SPLIT/PROTOCOL/rank` and `/ties` (S, R), `/n_candidates` (R,), `/finite` (S, R).
    """
    out, sums = {"seed": experiment.seeds}, {}
    for split in SPLITS:
        rows = experiment.eval_rows[split]
        n_rows = len(rows["target"])
        out |= {f"{split}/user": rows["user"], f"{split}/domain": rows["domain"]}
        out |= {f"{split}/in/{name}": of for name, of in experiment.groups[split].items()}
        arrays = experiment.padded(rows)
        kinds, tables = tuple(experiment.protocol_names), experiment.tables
        ranks, sums = experiment.engine.final(params, arrays, kinds, tables)
        for kind, values in processes.fetch(ranks).items():
            name = f"{split}/{experiment.protocol_names[kind]}"
            for field, value in values._asdict().items():
                value = value[:, :n_rows]
                out[f"{name}/{field}"] = value[0] if field == "n_candidates" else value
    return out, processes.fetch(sums)


def metrics_of(experiment: Experiment, ranks: Ranks, slot: int, split: str) -> dict[str, float]:
    """Metrics of one seed on one split under every ranking protocol.

    Raises UserError naming seed and user when a score was not finite.
    """
    metrics = {}
    for name in experiment.protocol_names.values():
        key = f"{split}/{name}"
        finite = ranks[f"{key}/finite"][slot]
        if not finite.all():
            user = ranks[f"{split}/user"][np.argmin(finite)]
            raise UserError(
                f"seed {ranks['seed'][slot]}: non-finite score for user {user} ({key}): "
                "expected finite scores"
            )
        counts = [ranks[f"{key}/rank"][slot], ranks[f"{key}/ties"][slot]]
        counts.append(ranks[f"{key}/n_candidates"])
        domain, tie_weight = ranks[f"{split}/domain"], experiment.tie_weight
        metrics |= metrics_by_domain(*counts, domain, tie_weight, name)
        metrics |= metrics_by_group(*counts, experiment.groups[split], tie_weight, name)
    return metrics


def summarise(experiment: Experiment, states: State, ranks: Ranks, sums, initial_sums) -> dict:
    """summary.json, without timings: per seed, mean and sd (n - 1) over the seeds that ended well.

    `initial_sums`: the statistics of the untrained parameters, a null control.
    """
    per_seed, good = [], []
    for slot, seed in enumerate(experiment.seeds):
        diverged = int(states.diverged_step[slot])
        entry = {"seed": int(seed), "epochs": int(states.epoch[slot])}
        entry |= {"best_epoch": int(states.best_epoch[slot]), "diverged_step": diverged}
        if not diverged:
            for split in SPLITS:
                metrics = metrics_of(experiment, ranks, slot, split)
                entry |= {f"{split}/{name}": value for name, value in metrics.items()}
            for when, total in (("best", sums), ("init", initial_sums)):
                of_seed = jax.tree.map(lambda a, slot=slot: a[slot], total)
                statistics = angles.flatten(of_seed)
                entry |= {f"{when}/{name}": value for name, value in statistics.items()}
            good.append(entry)
        per_seed.append(entry)
    names = [k for k in good[0] if k not in ("seed", "diverged_step")] if good else []
    values = {name: np.array([entry[name] for entry in good], np.float64) for name in names}
    return {
        "label": label(experiment.config),
        "n_parameters": experiment.n_parameters,
        "null_abs_cos": angles.null_abs_cos(experiment.config["model"]["d_embed"]),
        "n_seeds": len(good),
        "mean": {name: float(v.mean()) for name, v in values.items()},
        "sd": {k: float(v.std(ddof=1)) if len(v) > 1 else None for k, v in values.items()},
        "tied_share": {
            key: float(np.mean(ranks[key] > 0)) for key in ranks if key.endswith("/ties")
        },
        "per_seed": per_seed,
    }


def label(config: dict) -> str:
    """A short name of the variant: the backbone, and where GCA stands."""
    name = BACKBONES[config["backbone"]].label(config)
    places = ",".join(map(str, config["gca"]["positions"]))
    return f"{name} + GCA[{places}]" if places else name
