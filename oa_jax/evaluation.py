"""Who is ranked, against what, and what the ranks are worth: written once for all users of ranks.

training   the watched ranking of validation users (`Evaluation.arrays`), by epoch
a run      every ranking of both splits, at its end (`Evaluation.padded`, `metrics`)
rules      the same, without a model
"""

import dataclasses
import functools
from collections.abc import Iterable, Mapping

import numpy as np

from oa_jax.errors import UserError
from oa_jax.events.rows import Ragged
from oa_jax.ranking.candidates import candidates_digest
from oa_jax.ranking.metrics import metrics_by_domain
from oa_jax.ranking.ranks import Ranks

SPLITS = ("val", "test")


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Evaluation rows of both splits with their candidates.

    rows: {split: {name: (R, …)}} of the task, and candidates by ranking; `seen` is `Ragged`.
    groups: {split: {name: mask (R,)}}, sets of users reported beside the two domains.
    rankings: {ranking: its name in metrics and files}; "full" needs no candidates.
    watched: the ranking of validation users that training selects by.
    tie_weight: 0 puts the target first among equal scores, 0.5 in their middle, 1 last.
    block_users: users that are ranked together.
    packed: see `Parts.packed`.
    """

    rows: dict[str, dict[str, np.ndarray]]
    groups: dict[str, dict[str, np.ndarray]]
    rankings: dict[str, str]
    watched: str
    tie_weight: float
    block_users: int
    packed: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def padded(self, rows: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Rows in whole blocks of users; `real` marks those that count. In the place of `seen` come
        `seen_row` and `seen_item`, and beside the grids that are `packed` the flat places of their
        tokens: as many for each block and of each split, so that one program ranks both, see
        `Ragged.blocks`."""
        n_rows, of_blocks = len(rows["target"]), {}
        fill = -n_rows % self.block_users
        for name, ragged in self._ragged(rows).items():
            row, value = map(np.ravel, ragged.blocks(self.block_users, self._widths[name]))
            if name == "seen":
                of_blocks |= {"seen_row": row, "seen_item": value}
            else:
                of_blocks[name] = row * np.int32(rows[self.packed[name]].shape[1]) + value
        rows = {name: values for name, values in rows.items() if name != "seen"}
        out = {k: np.pad(v, [(0, fill)] + [(0, 0)] * (v.ndim - 1)) for k, v in rows.items()}
        return out | of_blocks | {"real": np.arange(n_rows + fill) < n_rows}

    def _ragged(self, rows):
        """What of the rows is given by blocks: `seen`, and the columns of the packed tokens."""
        seen = {"seen": rows["seen"]} if "seen" in rows else {}
        grids = {name: rows[grid] for name, grid in self.packed.items() if grid in rows}
        return seen | {k: Ragged.of(*np.nonzero(grid), len(grid)) for k, grid in grids.items()}

    @functools.cached_property
    def _widths(self):
        """{name: the width of a block that holds any of both splits}."""
        found = [self._ragged(rows) for rows in self.rows.values()]
        return {k: max(of[k].width(self.block_users) for of in found) for k in found[0]}

    def arrays(self, n_probe: int) -> dict[str, dict[str, np.ndarray]]:
        """What an epoch looks at: "val", the validation users with the watched candidates, and
        "probe", `n_probe` of them without any (all, if there are fewer), whose angles are
        measured."""
        val = self.rows["val"]
        n_probe = min(n_probe, len(val["target"]))
        # Evenly spaced users, so that the probe does not depend on the order of the ids' ends.
        chosen = np.unique(np.linspace(0, len(val["target"]) - 1, n_probe).astype(int))
        unused = {"seen", *self.rankings}
        probe = {name: values[chosen] for name, values in val.items() if name not in unused}
        kept = {k: v for k, v in val.items() if k not in unused or k == self.watched}
        return {"val": self.padded(kept), "probe": self.padded(probe)}

    def identity(self) -> dict[str, str]:
        """A digest of the candidates of every split and ranking."""
        drawn = [kind for kind in self.rankings if kind != "full"]
        return {f"{k}_{s}": candidates_digest(self.rows[s][k]) for s in SPLITS for k in drawn}

    def metrics(
        self, split: str, ranking: str, counts: tuple, groups: Iterable[str] | None = None
    ) -> dict[str, float]:
        """Metrics of one seed's counts (rank, ties, n_candidates), (R,) each, in a ranking, by
        domain and by group of users. groups: names of those wanted; by default all."""
        masks, domain = self.groups[split], self.rows[split]["domain"]
        masks = masks if groups is None else {k: masks[k] for k in groups if k in masks}
        last = self.tie_weight, self.rankings[ranking], masks
        return metrics_by_domain(*counts, domain, *last)

    def stored(self, seeds: np.ndarray, ranks: Mapping[str, Mapping[str, Ranks]]) -> dict:
        """Arrays of ranks.npz out of {split: {ranking: Ranks}}, leaves (S, R) of padded rows.

        Keys: `seed` (S,); of each split `SPLIT/user`, `SPLIT/domain` (R,), `SPLIT/in/GROUP` (R,)
        bool; of each ranking `SPLIT/NAME/rank`, `/ties`, `/finite` (S, R), `/n_candidates` (R,).
        """
        out = {"seed": seeds}
        for split in SPLITS:
            user, domain = (self.rows[split][name] for name in ("user", "domain"))
            out |= {f"{split}/user": user, f"{split}/domain": domain}
            out |= {f"{split}/in/{name}": mask for name, mask in self.groups[split].items()}
            for ranking, counts in ranks[split].items():
                key = f"{split}/{self.rankings[ranking]}"
                for name, values in counts._asdict().items():
                    out[f"{key}/{name}"] = np.asarray(values)[:, : len(user)]
                out[f"{key}/n_candidates"] = out[f"{key}/n_candidates"][0]
        return out

    def of_seed(self, stored: Mapping[str, np.ndarray], slot: int) -> dict[str, float]:
        """All metrics of one seed of ranks.npz, names with their split in front.

        Raises UserError naming seed and user when a score was not finite.
        """
        out = {}
        for split in SPLITS:
            for ranking, name in self.rankings.items():
                key = f"{split}/{name}"
                rank, ties, finite = (
                    stored[f"{key}/{k}"][slot] for k in ("rank", "ties", "finite")
                )
                if not finite.all():
                    user = stored[f"{split}/user"][np.argmin(finite)]
                    raise UserError(
                        f"seed {stored['seed'][slot]}: non-finite score for user {user} ({key}): "
                        "expected finite scores"
                    )
                counts = rank, ties, stored[f"{key}/n_candidates"]
                found = self.metrics(split, ranking, counts)
                out |= {f"{split}/{metric}": value for metric, value in found.items()}
        return out
