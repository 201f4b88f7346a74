"""CDSRNP's task, support set and model from a configuration."""

import dataclasses

import numpy as np

from oa_jax.backbones import base
from oa_jax.backbones.cdsrnp import arrays as host
from oa_jax.backbones.cdsrnp.model import Backbone
from oa_jax.backbones.cdsrnp.task import CDSRNPTask
from oa_jax.events.log import TEST, VALIDATION
from oa_jax.nn.streams import packed
from oa_jax.nn.task import FILLS
from oa_jax.ranking.candidates import candidates_digest, donors, draw_candidates


@dataclasses.dataclass(frozen=True)
class Support:
    """The fixed support set of evaluation: rows of training with a negative each."""

    rows: dict[str, np.ndarray]
    metadata: dict


class Parts(base.Parts):
    hparams = ("model.kl_weight",)
    skip_short = True
    tie_weight = 1.0  # our choice: ties are counted against the target

    def task(self, log, split) -> CDSRNPTask:
        of, batch_size = self.config.model, self.config.train.batch_size
        support = of.support if of.neural_process else 0
        sizes = of.length, batch_size, of.merged_length, of.targets, support, of.exclude_query
        return CDSRNPTask(log, split, *sizes)

    def backbone(self, n_items, tables) -> Backbone:
        rows = None if tables is None else tables.rows
        return Backbone(n_items, self.config.model, rows, self.config.gca)

    def tables(self, log, split) -> Support | None:
        """All training rows of overlapped users, or `eval_support` of them, drawn by the data."""
        model = self.config.model
        if not model.neural_process:
            return None
        task = self.task(log, split)
        fingerprint, pool = log.fingerprint(), task.pool
        if 0 < model.eval_support < len(pool):
            draw = np.random.default_rng([int(fingerprint, 16), 0])
            pool = np.sort(draw.choice(pool, model.eval_support, replace=False))
        rows, user = task.arrays_of_rows(pool), task.rows.user[pool]
        own = host.trained_items(log, split)[user]
        drawn = draw_candidates(fingerprint, "support", user, rows["target"], own, log.n_items, 1)
        rows = {name: rows[name] for name in (*FILLS, "target", "domain")}
        rows |= {"negative": drawn[:, 1], "real": np.ones(len(pool), bool)}
        if self.config.gca.positions and self.config.gca.source == "shuffled":
            rows["donor"] = rows["seq"][donors(fingerprint, "support", len(pool))]
        return Support(rows, {"support": candidates_digest(drawn)})

    @property
    def packed(self):
        model = self.config.model
        return packed(model, model.merged_length, self.config.gca)

    @property
    def rankings(self):
        names = super().rankings
        if self.config.evaluate.test_items:
            names = {"test_items": f"test{self.config.evaluate.n_negatives}"} | names
        return names

    @property
    def watched(self) -> str:
        return "test_items" if self.config.evaluate.test_items else "candidates"

    def candidates(self, log, split, rows):
        """`test_items`: negatives among the items of the tested sequences, as AMID draws."""
        out = super().candidates(log, split, rows)
        if self.config.evaluate.test_items:
            out["test_items"] = self._among_tested(log, split, rows)
        return out

    def _among_tested(self, log, split, rows):
        """Among the items of the sequences that the source gives a target in `split`: drawn by
        their places in the list of these, looked up there."""
        item, kind = log.item, {"val": VALIDATION, "test": TEST}[split]
        if log.role is not None:
            item = item[np.isin(log.user, log.user[log.role == kind])]
        items, place = np.unique(item), np.zeros(sum(log.n_items) + 1, np.int32)
        place[items] = 1 + np.arange(len(items))
        n_a = int(np.searchsorted(items, log.n_items[0], side="right"))
        of_rows = rows["user"], place[rows["target"]], [place[seen] for seen in rows["seen"]]
        sizes = (n_a, len(items) - n_a), self.config.evaluate.n_negatives
        drawn = draw_candidates(log.fingerprint(), f"{split}/test_items", *of_rows, *sizes)
        return items[drawn - 1].astype(np.int32)

    def groups(self, log, split, rows):
        """All users; those with a history in both domains and in one, by the target's domain."""
        overlap = host.is_overlapped(rows)
        groups = {"all": np.ones(len(overlap), bool), "overlap": overlap, "single": ~overlap}
        for d, name in enumerate("AB"):
            of_domain = rows["domain"] == d
            groups[f"overlap_{name}"] = overlap & of_domain
            groups[f"single_{name}"] = ~overlap & of_domain
        return groups

    @property
    def name(self) -> str:
        return "cdsrnp" if self.config.model.neural_process else "cdsrnp without NP"
