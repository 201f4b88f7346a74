"""ABXI's task and model from a configuration."""

from oa_jax.backbones import base
from oa_jax.backbones.abxi.model import Backbone
from oa_jax.backbones.abxi.task import ABXITask


class Parts(base.Parts):
    hparams = ("model.temperature",)
    merged = "seq_x"

    def task(self, log, split) -> ABXITask:
        of, q1 = self.config.train, self.config.quirks.q1_pool_b_from_last_a
        length = self.config.model.length
        return ABXITask(log, split, length, of.batch_size, of.n_negatives, of.negatives, q1)

    def backbone(self, n_items, tables=None) -> Backbone:
        of, train = self.config, self.config.train
        how = train.block_positions, train.softmax_form
        return Backbone(n_items, of.model, of.gca, of.quirks, *how)

    @property
    def tie_weight(self) -> float:
        return 0.0 if self.config.quirks.q10_ties_favour_target else 0.5

    def candidates(self, log, split, rows):
        last_a = self.config.quirks.q1_pool_b_from_last_a
        return {"candidates": self.draw(log, split, rows, rows["seen"], last_a)}
