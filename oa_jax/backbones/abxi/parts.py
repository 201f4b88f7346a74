"""ABXI's task and model from a configuration."""

from __future__ import annotations

from oa_jax.backbones import base
from oa_jax.backbones.abxi.model import ABXIConfig, ABXIQuirks, Backbone
from oa_jax.backbones.abxi.task import Task


class Parts(base.Parts):
    hparams = {"temperature": ("model", "temperature")}

    def task(self, log, split) -> Task:
        train = self.config.train
        return Task(
            log,
            split,
            self.config.model.length,
            train.batch_size,
            train.n_negatives,
            train.negatives,
            self.config.quirks.q1_pool_b_from_last_a,
        )

    def backbone(self, n_items, tables=None) -> Backbone:
        config = self.config
        return Backbone(
            ABXIConfig(n_items=n_items, **base.picked(ABXIConfig, config.model)),
            config.gca,
            ABXIQuirks(**base.picked(ABXIQuirks, config.quirks)),
            config.train.block_positions,
        )

    @property
    def tie_weight(self) -> float:
        return 0.0 if self.config.quirks.q10_ties_favour_target else 0.5

    def candidates(self, log, split, rows):
        last_a = self.config.quirks.q1_pool_b_from_last_a
        return {"candidates": self.draw(log, split, rows, rows["seen"], last_a)}
