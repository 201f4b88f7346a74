"""CDSRNP (arXiv 2410.13588) with gated cross-attention: a reconstruction.

The authors' code and method section are not public. What is theirs: three streams, support sets of
overlapped users, the prior of the support and the posterior of support and query users aligned by
KL, an interest adaptive layer. Forms are those of related public work (C2DSR, AMID, TaNP,
NF-NPCDR); what we chose is a field of `fields.Model`.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from oa_jax.backbones.cdsrnp import neural_process
from oa_jax.backbones.cdsrnp.decoder import Decoder, Encoded, Latent
from oa_jax.backbones.cdsrnp.fields import Model
from oa_jax.backbones.cdsrnp.neural_process import MLP, Gaussian, LatentHead
from oa_jax.nn import histories, losses, shards
from oa_jax.nn.draws import GENERATOR
from oa_jax.nn.fusion import Probe
from oa_jax.nn.known import GCAConfig
from oa_jax.nn.layers import Stream
from oa_jax.nn.streams import STREAMS, OnTables, Rate, StreamNet, dropout_of, rows_of

Batch = dict[str, jax.Array]
SUPPORT_BLOCK = 256  # rows of the evaluation support that are encoded together


class CDSRNP(StreamNet):
    """The network: streams, pair representations, latents, logits."""

    def setup(self):
        cfg = self.config
        shape = (sum(self.n_items) + 1, cfg.d_embed)
        # √d times this, of unit variance, enters the streams.
        table_init = shards.with_spare_rows(nn.initializers.normal(cfg.d_embed**-0.5))
        self.items = self.param("items", table_init, shape)
        lengths = {"x": cfg.merged_length, "A": cfg.length, "B": cfg.length}
        self.add_layers(nn.initializers.normal(0.02), lengths)
        self.decoder = Decoder(cfg.decoder_widths, cfg.interest, cfg.film_from_one)
        if cfg.neural_process:
            self.pair_encoder = MLP((cfg.d_embed,) * 3)
            self.latent_head = LatentHead(cfg.d_latent or cfg.d_embed // 2)

    def place(self, real_BxL: jax.Array) -> jax.Array:
        """The column, also of padding."""
        return jnp.broadcast_to(jnp.arange(real_BxL.shape[1]), real_BxL.shape)

    @nn.compact
    def __call__(
        self, batch: Batch, rate: Rate = None
    ) -> tuple[dict[str, Stream], dict[str, Probe]]:
        """-> ({stream: Stream}, probes {"place/domain": Probe}). rate: dropout, None without.

        Packed batches (with `at_x`, `at_A`, `at_B`) hold those tokens, others every position.
        """
        out, probes = self.run(batch, rate)
        return {name: stream.map(self.norm[name]) for name, stream in out.items()}, probes

    def represent(
        self, states: dict[str, jax.Array], pair_NxKxD: jax.Array, domain_N: jax.Array
    ) -> jax.Array:
        """(N, P, D): r of each user with its target (y = 1) and, if asked, its negative (y = 0)."""
        user_NxE = jnp.concatenate(
            [*(states[s] for s in STREAMS), (domain_N == 1)[:, None].astype(jnp.float32)], -1
        )
        labels = (1.0, 0.0) if self.config.pair_negative else (1.0,)
        pairs = []
        for k, label in enumerate(labels):
            y_Nx1 = jnp.full((len(domain_N), 1), label)
            pairs.append(jnp.concatenate([user_NxE, pair_NxKxD[:, k], y_Nx1], -1))
        return self.pair_encoder(jnp.stack(pairs, 1))

    def latent(self, r: jax.Array) -> Gaussian:
        """The latent's distribution given the mean representation of a set of users."""
        return self.latent_head(r)

    def decode(self, row: Encoded, latent: Latent | None, items: jax.Array) -> jax.Array:
        """Logits of candidates, see `Decoder`."""
        return self.decoder(row, latent, items)


def _states(streams, kind):
    """(N, D) of each stream: its last step, or the mean of its steps; 0 without any."""
    out = {}
    for name, stream in streams.items():
        h_NxLxD, real_NxL = stream.grid()
        n_real_Nx1 = jnp.maximum(real_NxL.sum(1), 1)[:, None]
        out[name] = h_NxLxD[:, -1] if kind == "last" else h_NxLxD.sum(1) / n_real_Nx1
    return out


@dataclasses.dataclass(frozen=True, eq=False)
class Backbone(OnTables):
    """CDSRNP to the rest of the house, see `base.Backbone`.

    tables: the fixed support set of evaluation, {name: (rows, …)}; None without the process.
    """

    n_items: tuple[int, int]
    config: Model
    tables: Any = None
    gca: GCAConfig = GCAConfig()
    dtype: str = "float32"  # of activations

    @property
    def net(self) -> CDSRNP:
        return CDSRNP(self.n_items, self.config, self.gca, self.dtype)

    def init(self, key: jax.Array) -> dict:
        cfg, batch = self.config, self.rows(*histories.ONE)

        def touch(net):
            (streams, _), domain_N = net(batch), batch["domain"]
            pair_NxKxD, latent = jnp.zeros((1, 2, cfg.d_embed)), None
            if cfg.neural_process:
                r = net.represent(_states(streams, cfg.np_state), pair_NxKxD, domain_N)[:, 0]
                latent = Latent(net.latent(r).mean, r)
            net.decode(self._rows(streams, domain_N), latent, pair_NxKxD)

        return {"net": nn.init(touch, self.net)(key)["params"]}

    def apply(self, params: dict, *args: Any, **options: Any) -> Any:
        """The network, or its `method`."""
        return self.net.apply({"params": params["net"]}, *args, **options)

    def _rows(self, streams, domain_N) -> Encoded:
        states, steps, real = _states(streams, self.config.score_state), {}, {}
        for name, stream in streams.items():
            # Stream x stands in for an empty one with its latest steps.
            latest = (grid[:, -self.config.length :] for grid in stream.grid())
            steps[name], real[name] = latest

        def own(values):
            to_a = (domain_N == 0).reshape(-1, *[1] * (values["A"].ndim - 1))
            return jnp.where(to_a, values["A"], values["B"])

        is_empty = ~own(real)[:, -1]
        return Encoded(
            own(states),
            states["x"],
            jnp.where(is_empty[:, None, None], steps["x"], own(steps)),
            jnp.where(is_empty[:, None], real["x"], own(real)),
            domain_N.astype(jnp.int32),
        )

    def loss(self, params: dict, batch: Batch, key: jax.Array | None, hparams: dict) -> losses.Loss:
        """Training loss of a batch -> (scalar, aux of scalars): recommendation, the weighted
        divergences of posterior and prior, and λ mean cos²(X, X').

        batch: of `task.py`. key: None for no dropout and z at the posterior's mean.
        hparams: dropout, kl_weight, ortho_weight.
        """
        streams, probes = self.apply(params, batch, **dropout_of(key, hparams))
        ids_Nx2 = jnp.stack([batch["target"], batch["negative"]], 1)
        pair_NxKxD, latent, aux = shards.rows(params["net"]["items"], ids_Nx2), None, {}
        if self.config.neural_process:
            latent, aux = self._posterior(params, batch, streams, pair_NxKxD, key)
        scores_NxK = self.apply(
            params, self._rows(streams, batch["domain"]), latent, pair_NxKxD, method="decode"
        )
        asked_N = batch["real"] & batch["query"]
        total = losses.pairwise(scores_NxK[:, 0], scores_NxK[:, 1], asked_N, nan_if_empty=False)
        aux["loss_rec"] = total
        if self.config.neural_process:
            weight, epochs = hparams["kl_weight"], self.config.kl_warmup
            if epochs:
                weight *= jnp.minimum(batch["epoch"] / epochs, 1.0)
            total += weight * (aux["kl_A"] + aux["kl_B"])
        return losses.penalised(total, aux, probes, hparams["ortho_weight"], self.gca.part_of)

    def _posterior(self, params, batch, streams, pair_NxKxD, key):
        """z of the posterior with r of the context, and the two divergences from the prior."""
        r = self._represent(params, batch, streams, pair_NxKxD)
        context = self._sums(r, batch["domain"], batch["real"] & ~batch["query"]).mean
        every = self._sums(r, batch["domain"], batch["real"]).mean
        prior = self.apply(params, context, method="latent")
        posterior = self.apply(params, every, method="latent")
        kl_2, shared = neural_process.kl_divergence(posterior, prior), self._is_shared
        kl_2 = kl_2 / 2 if shared else kl_2  # of one z, told twice
        z = posterior.mean if key is None else posterior.draw(jax.random.fold_in(key, 1), shared)
        return Latent(z, context), {"kl_A": kl_2[0], "kl_B": kl_2[1]}

    @property
    def _is_shared(self):
        return self.config.latents == "shared"

    def _represent(self, params, batch, streams, pair_NxKxD):
        states = _states(streams, self.config.np_state)
        return self.apply(params, states, pair_NxKxD, batch["domain"], method="represent")

    def _sums(self, r_NxPxD, domain_N, chosen_N):
        """Of the directions to A and to B: sums over the chosen rows."""
        chosen_2xN = jnp.stack([chosen_N] * 2)
        if not self._is_shared:
            chosen_2xN &= jnp.stack([domain_N == d for d in (0, 1)])
        return neural_process.sums(r_NxPxD, chosen_2xN)

    def index(self, params: dict) -> tuple[dict, Latent | None]:
        """(parameters, Latent of the prior given the fixed support set, None without one)."""
        return params, self.prior(params) if self.config.neural_process else None

    def prior(self, params: dict) -> Latent:
        """The latent at test: of the support set `tables`, without a posterior."""
        size = min(SUPPORT_BLOCK, len(self.tables["real"]))

        def blocks(rows):
            rows = jnp.pad(rows, [(0, -len(rows) % size)] + [(0, 0)] * (rows.ndim - 1))
            return rows.reshape(-1, size, *rows.shape[1:])

        def one(batch):
            ids_Nx2 = jnp.stack([batch["target"], batch["negative"]], 1)
            pair = shards.rows(params["net"]["items"], ids_Nx2)
            streams, _ = self.apply(params, batch)
            r = self._represent(params, batch, streams, pair)
            return self._sums(r, batch["domain"], batch["real"])

        parts = jax.lax.map(one, jax.tree.map(blocks, dict(self.tables)))
        context = jax.tree.map(lambda a: a.sum(0), parts).mean
        gaussian = self.apply(params, context, method="latent")
        if self.config.eval_latent == "draw":
            key = jax.random.key(0, impl=GENERATOR)
            return Latent(gaussian.draw(key, self._is_shared), context)
        return Latent(gaussian.mean, context)

    def rows(self, history_BxH: jax.Array, domain_B: jax.Array) -> Batch:
        sizes = self.config.length, self.config.merged_length
        return rows_of(history_BxH, domain_B, *sizes, self.n_items)

    def encode(self, params: dict, batch: Batch) -> Encoded:
        streams, _ = self.apply(params, batch)
        return self._rows(streams, batch["domain"])

    def score(
        self, index: tuple[dict, Latent | None], encoded: Encoded, candidates: jax.Array
    ) -> jax.Array:
        params, latent = index
        rows = shards.block_rows if candidates.ndim == 1 else shards.rows
        items = rows(params["net"]["items"], candidates)
        return self.apply(params, encoded, latent, items, method="decode")
