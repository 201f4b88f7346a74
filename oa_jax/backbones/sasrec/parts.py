"""SASRec's task and model from a configuration."""

from oa_jax.backbones import base
from oa_jax.backbones.sasrec.fields import SINGLE
from oa_jax.backbones.sasrec.model import Backbone, streams_of
from oa_jax.backbones.sasrec.task import SASRecTask
from oa_jax.events.split import limit_domain
from oa_jax.nn.streams import packed


class Parts(base.Parts):
    skip_short = True
    without_fusion = {"model.stream": "apart"}  # `merged` without one is another model

    def task(self, log, split) -> SASRecTask:
        model, train = self.config.model, self.config.train
        if model.stream in SINGLE:  # of the other domain it knows nothing
            split = limit_domain(split, log, SINGLE.index(model.stream))
        n_negatives = 0 if model.loss == "full" else train.n_negatives
        streams = streams_of(model, self.config.gca)
        return SASRecTask(log, split, model.length, train.batch_size, *streams, n_negatives)

    def backbone(self, n_items, tables=None) -> Backbone:
        of, train = self.config, self.config.train
        return Backbone(n_items, of.model, of.gca, train.block_positions, train.softmax_form)

    @property
    def packed(self):
        model = self.config.model
        return packed(model, model.length, self.config.gca)

    @property
    def name(self) -> str:
        stream = self.config.model.stream
        return "sasrec" if stream == "merged" else f"sasrec {stream}"
