"""SASRec (arXiv 1808.09781): of all events, of one domain's, or with gated cross-attention.

Blocks are those of the authors' code, which `pmixer/SASRec.pytorch` follows, not of the paper's
equation: a residual comes from LN(X), and keys and values from X. Item vectors are scaled by √D, a
token's position is its column, and a last norm stands before the product with item vectors.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from oa_jax.backbones.sasrec.fields import SINGLE, Model
from oa_jax.nn import histories, losses, shards
from oa_jax.nn.fusion import DOMAINS, Probe
from oa_jax.nn.known import GCAConfig
from oa_jax.nn.layers import XAVIER_NORMAL, Packing
from oa_jax.nn.streams import STREAMS, ByTable, Rate, StreamNet, dropout_of, rows_of

Batch = dict[str, jax.Array]


def streams_of(config: Model, gca: GCAConfig) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(streams that run, those that score items): with a fusion, x is there to be looked at."""
    if config.stream in SINGLE:
        return (config.stream,), (config.stream,)
    if config.stream == "merged" and not gca.positions:
        return ("x",), ("x",)
    return (STREAMS if gca.positions else DOMAINS), DOMAINS


class SASRec(StreamNet):
    """The network: a batch to the hidden states of the streams that score."""

    def setup(self):
        shape = (sum(self.n_items) + 1, self.config.d_embed)
        init = shards.with_spare_rows(XAVIER_NORMAL)
        self.items = self.param("items", init, shape)
        if not self.config.tied:
            self.items_out = self.param("items_out", init, shape)
        self.names, self.scored = streams_of(self.config, self.gca)
        self.add_layers(XAVIER_NORMAL, dict.fromkeys(self.names, self.config.length + 1))

    @nn.compact
    def __call__(
        self, batch: Batch, rate: Rate = None, last_only: bool = False
    ) -> tuple[dict[str, jax.Array], dict[str, Probe]]:
        """-> ({stream that scores: h}, probes {"place/domain": Probe}).

        Packed batches (with `at_x`, …) give h at those slots, others at every position, or at the
        last one of each row.
        """
        out, probes = self.run(batch, rate, self.names, last_only=last_only)
        return {name: out[name].map(self.norm[name]).h_PxD for name in self.scored}, probes


@dataclasses.dataclass(frozen=True)
class Backbone(ByTable):
    """SASRec to the rest of the house, see `base.Backbone`."""

    n_items: tuple[int, int]
    config: Model
    gca: GCAConfig = GCAConfig()
    block: int = 256  # of the sampled softmax: see `losses.position_negatives`
    form: str = "auto"
    dtype: str = "float32"  # of activations

    @property
    def net(self) -> SASRec:
        return SASRec(self.n_items, self.config, self.gca, self.dtype)

    def init(self, key: jax.Array) -> dict:
        return self.net.init(key, self.rows(*histories.ONE))["params"]

    def loss(self, params: dict, batch: Batch, key: jax.Array | None, hparams: dict) -> losses.Loss:
        """Training loss of one batch -> (scalar, aux of scalars): the sum over the streams that
        score of the mean over their tokens, and λ mean cos²(X, X').

        batch: of `task.py`. key: None for no dropout. hparams: dropout, ortho_weight.
        """
        hidden, probes = self.net.apply({"params": params}, batch, **dropout_of(key, hparams))
        aux = {}
        for name, h_PxD in hidden.items():
            packing = Packing(batch[f"at_{name}"], batch["seq"].shape)
            target_P = packing.pack(batch[f"pos_{name}"])
            weight_P = (target_P > 0) / jnp.maximum(jnp.sum(target_P > 0), 1)
            args = self.index(params), h_PxD, weight_P, target_P
            if self.config.loss == "full":
                loss = losses.whole_domain(*args, self.n_items, self.block)
            elif self.config.loss == "sampled":
                how = self.block, self.form
                loss = losses.position_negatives(*args, batch[f"neg_{name}"], *how)[0]
            else:
                loss = losses.position_binary(*args, batch[f"neg_{name}"])
            aux[f"loss_{name}"] = loss
        total = sum(aux.values())
        return losses.penalised(total, aux, probes, hparams["ortho_weight"], self.gca.part_of)

    def rows(self, history_BxH: jax.Array, domain_B: jax.Array) -> Batch:
        length = self.config.length
        return rows_of(history_BxH, domain_B, length, length, self.n_items)
