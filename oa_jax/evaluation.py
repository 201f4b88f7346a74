"""Who is ranked, against what, and what the ranks are worth: written once for all users of ranks.

training   the watched ranking of validation users (`Evaluation.arrays`), by epoch
a run      every ranking of both splits, at its end (`Evaluation.padded`, `metrics`)
rules      the same, without a model
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

import numpy as np

from oa_jax.errors import UserError
from oa_jax.ranking.candidates import candidates_digest
from oa_jax.ranking.metrics import metrics_by_domain, metrics_by_group

SPLITS = ("val", "test")
COUNTS = ("rank", "ties", "n_candidates", "finite")  # of each row, as of `ranking.ranks.Ranks`


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Evaluation rows of both splits with their candidates.

    rows: {split: {name: (R, …)}} of the task, and candidates by ranking.
    groups: {split: {name: mask (R,)}}, sets of users reported beside the two domains.
    rankings: {ranking: its name in metrics and files}; "full" needs no candidates.
    watched: the ranking of validation users that training selects by.
    tie_weight: 0 puts the target first among equal scores, 0.5 in their middle, 1 last.
    block_users: users that are ranked together.
    """

    rows: dict[str, dict[str, np.ndarray]]
    groups: dict[str, dict[str, np.ndarray]]
    rankings: dict[str, str]
    watched: str
    tie_weight: float
    block_users: int

    def padded(self, rows: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Rows in whole blocks of users; `real` marks those that count."""
        n_rows = len(rows["target"])
        fill = -n_rows % self.block_users
        out = {k: np.pad(v, [(0, fill)] + [(0, 0)] * (v.ndim - 1)) for k, v in rows.items()}
        return out | {"real": np.arange(n_rows + fill) < n_rows}

    def arrays(self, n_probe: int) -> dict[str, dict[str, np.ndarray]]:
        """What an epoch looks at: "val", the validation users with the watched candidates, and
        "probe", `n_probe` of them without any, whose angles are measured."""
        val = self.rows["val"]
        # Evenly spaced users, so that the probe does not depend on the order of the ids' ends.
        chosen = np.unique(np.linspace(0, len(val["target"]) - 1, n_probe).astype(int))
        unused = {"seen", *self.rankings}
        probe = {name: values[chosen] for name, values in val.items() if name not in unused}
        kept = {k: v for k, v in val.items() if k not in unused or k == self.watched}
        return {"val": self.padded(kept), "probe": self.padded(probe)}

    def identity(self) -> dict[str, str]:
        """A digest of the candidates of every split and ranking."""
        kinds = [kind for kind in self.rankings if kind != "full"]
        rows = self.rows
        return {f"{k}_{s}": candidates_digest(rows[s][k]) for s in SPLITS for k in kinds}

    def metrics(
        self,
        split: str,
        ranking: str,
        rank,
        ties,
        n_candidates,
        groups: Iterable[str] | None = None,
    ) -> dict[str, float]:
        """Metrics of one seed's counts (R,) in a ranking, by domain and by group of users.

        groups: names of those wanted; by default all. Names as in `metrics_by_domain`.
        """
        domain, name = self.rows[split]["domain"], self.rankings[ranking]
        masks = self.groups[split]
        masks = masks if groups is None else {k: masks[k] for k in groups if k in masks}
        counts = (rank, ties, n_candidates)
        out = metrics_by_domain(*counts, domain, self.tie_weight, name)
        return out | metrics_by_group(*counts, masks, self.tie_weight, name)

    def stored(self, seeds: np.ndarray, ranks: Mapping[str, Mapping[str, Mapping]]) -> dict:
        """Arrays of ranks.npz out of {split: {ranking: counts}}, leaves (S, R) of padded rows.

        Keys: `seed` (S,); of each split `SPLIT/user`, `SPLIT/domain` (R,), `SPLIT/in/GROUP` (R,)
        bool; of each ranking `SPLIT/NAME/rank`, `/ties`, `/finite` (S, R), `/n_candidates` (R,).
        """
        out = {"seed": seeds}
        for split in SPLITS:
            rows = self.rows[split]
            n_rows = len(rows["target"])
            out |= {f"{split}/user": rows["user"], f"{split}/domain": rows["domain"]}
            out |= {f"{split}/in/{name}": mask for name, mask in self.groups[split].items()}
            for ranking, counts in ranks[split].items():
                for field in COUNTS:
                    values = np.asarray(counts[field])[:, :n_rows]
                    values = values[0] if field == "n_candidates" else values
                    out[f"{split}/{self.rankings[ranking]}/{field}"] = values
        return out

    def of_seed(self, stored: Mapping[str, np.ndarray], slot: int) -> dict[str, float]:
        """All metrics of one seed of ranks.npz, names with their split in front.

        Raises UserError naming seed and user when a score was not finite.
        """
        out = {}
        for split in SPLITS:
            for ranking, name in self.rankings.items():
                key = f"{split}/{name}"
                finite = stored[f"{key}/finite"][slot]
                if not finite.all():
                    user = stored[f"{split}/user"][np.argmin(finite)]
                    raise UserError(
                        f"seed {stored['seed'][slot]}: non-finite score for user {user} ({key}): "
                        "expected finite scores"
                    )
                rank, ties = (stored[f"{key}/{field}"][slot] for field in ("rank", "ties"))
                found = self.metrics(split, ranking, rank, ties, stored[f"{key}/n_candidates"])
                out |= {f"{split}/{metric}": value for metric, value in found.items()}
        return out
