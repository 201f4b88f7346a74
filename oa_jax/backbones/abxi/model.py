"""ABXI (DiMarzioBian/ABXI) with gated cross-attention at any subset of its three places.

Three streams share tables, attention and feed-forward: x (everything), a and b (one domain each).
In a training row the a stream has an entry exactly where the *target* is in A, so every position
belongs to one domain. The batch therefore carries two lists of positions, `at_A` and `at_B`;
stream a lives on the first, b on the second, and x on both, one after the other.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from oa_jax.backbones.abxi.fields import Model, Quirks
from oa_jax.nn import histories, losses, shards
from oa_jax.nn.fusion import DOMAINS, Probe, Times, fuse, with_donors, without_donors
from oa_jax.nn.known import GCAConfig
from oa_jax.nn.layers import (
    TABLE_INIT,
    Dropout,
    LayerNorm,
    LoRA,
    MultiHeadAttention,
    Packing,
    Stream,
    SwiGLU,
    chunks_pay,
    own_view,
)
from oa_jax.nn.streams import ByTable, Rate

Batch = dict[str, jax.Array]


class ABXI(nn.Module):
    """The network: a batch to the two hidden states that score items, (·, D) each."""

    n_items: tuple[int, int]
    config: Model
    gca: GCAConfig
    quirks: Quirks
    dtype: str = "float32"  # of what passes between the layers

    @nn.compact
    def __call__(
        self, batch: Batch, rate: Rate = None, last_only: bool = False
    ) -> tuple[dict[str, jax.Array], dict[str, Probe]]:
        """-> ({"A": h, "B": h}, probes {"place/domain": Probe}).

        Training batches (with `at_A`, `at_B`) give h at those slots. Evaluation batches give h at
        every position of the compact streams, or at the last one only, for both domains.
        """
        streams, columns = self._embed(batch, rate)
        times = Times(columns, columns, own_columns(batch, self.n_items[0]))
        probes, heads = {}, self.config.heads
        # What follows the last place at which positions meet is pointwise.
        mixing = max((1, *self.gca.positions))
        for place, layer in enumerate((None, self._attend, self._feed_forward)):
            alone = last_only and place == mixing
            if layer:
                streams = layer(streams, rate, alone and place not in self.gca.positions)
            how = {"last_only": alone, "form": self.config.attention}
            streams, seen = fuse(self.gca, place, streams, times, heads, **how)
            probes |= seen
        streams["x"] = without_donors(streams["x"], batch["seq_x"].shape[0])
        return self._project(streams, "at_A" in batch, rate), probes

    def _embed(self, batch, rate):
        cfg = self.config
        shape = (sum(self.n_items) + 1, cfg.d_embed)
        items = self.param("items", shards.with_spare_rows(TABLE_INIT), shape)
        if not cfg.tied:
            self.param("items_out", shards.with_spare_rows(TABLE_INIT), shape)
        positions = self.param("positions", TABLE_INIT, (cfg.length + 1, cfg.d_embed))
        packings, times = _layout(batch)
        streams = {}
        for name, key in (("x", "seq_x"), ("A", "seq_a"), ("B", "seq_b")):
            packing = packings[name]
            ids_BxL = with_donors(batch[key], batch) if name == "x" else batch[key]
            real_BxL = ids_BxL != 0
            count = jnp.cumsum(real_BxL, axis=1)
            if self.quirks.q6_positions_from_end:
                count = count[:, -1:] - count + 1
            ids_P, place_P = packing.pack(ids_BxL), packing.pack(count * real_BxL)
            h_PxD = (shards.rows(items, ids_P) + positions[place_P]) * (ids_P != 0)[:, None]
            h_PxD = h_PxD.astype(self.dtype)
            streams[name] = Stream(Dropout()(h_PxD, rate, packing.parts), ids_P != 0, packing)
        return streams, times

    def _attend(self, streams, rate, last_only):
        attention = MultiHeadAttention(self.config.heads, name="attention")
        norm, padding = LayerNorm(name="norm_attention"), self.quirks.q3_attend_to_padding

        def block(stream):
            query = stream.last() if last_only else stream
            chunks = chunks_pay(self.config.attention, stream.packing)
            update, _ = attention(*own_view(query, stream, True, not padding, chunks))
            update = Dropout()(update, rate, query.packing.parts)
            return query.map(lambda h: norm(h + update))

        return {name: block(stream) for name, stream in streams.items()}

    def _feed_forward(self, streams, rate, _):
        ffn = SwiGLU(self.config.d_ffn, name="ffn")

        def block(name, stream):
            lora = LoRA(self.config.rank_domain, name=f"lora_domain_{name}")
            norm = LayerNorm(name=f"norm_ffn_{name}")
            parts = stream.packing.parts
            return stream.map(
                lambda h: norm(h + Dropout()(ffn(h), rate, parts) + Dropout()(lora(h), rate, parts))
            )

        return {name: block(name, stream) for name, stream in streams.items()}

    def _project(self, streams, packed, rate):
        cfg, out = self.config, {}
        invariant = SwiGLU(cfg.d_ffn, name="project_invariant")
        x = streams["x"].h_PxD
        x_of = jnp.split(x, [len(streams["A"].h_PxD)]) if packed else (x, x)
        for domain, x in zip(DOMAINS, x_of, strict=True):
            h = streams[domain].h_PxD
            lora = LoRA(cfg.rank_invariant, name=f"lora_invariant_{domain}")
            project = SwiGLU(cfg.d_ffn, name=f"project_{domain}")
            norm_x = LayerNorm(name=f"norm_invariant_{domain}")
            norm_own = LayerNorm(name=f"norm_own_{domain}")
            from_x = x + Dropout()(invariant(x), rate) + Dropout()(lora(x), rate)
            out[domain] = norm_x(from_x) + norm_own(h + Dropout()(project(h), rate))
        return out


def _layout(batch):
    """Packing and times (positions on the merged axis) of the three streams."""
    shape = batch["seq_x"].shape
    axis = jnp.broadcast_to(jnp.arange(shape[1]), shape)
    if "at_A" in batch:
        at = {domain: batch[f"at_{domain}"] for domain in DOMAINS}
        packings = {domain: Packing(at_P, shape) for domain, at_P in at.items()}
        together = jnp.concatenate(list(at.values()))
        packings["x"] = Packing(together, shape, tuple(map(len, at.values())))
        return packings, dict.fromkeys(packings, axis)
    packings = dict.fromkeys(DOMAINS, Packing(None, shape))
    packings["x"] = Packing(None, with_donors(batch["seq_x"], batch).shape)
    return packings, {"x": axis, "A": batch["until_a"], "B": batch["until_b"]}


def own_columns(batch: Batch, n_a: int) -> dict[str, jax.Array]:
    """{stream: (B, L)}, columns of seq_x: where the item behind each token stands, -1 where it was
    trimmed away. (The token's time says instead up to where it may look.) n_a: items of A."""
    ids_BxL, shape = batch["seq_x"], batch["seq_x"].shape
    axis, columns = jnp.broadcast_to(jnp.arange(shape[1]), shape), {}
    for domain in DOMAINS:
        mine = (ids_BxL > 0) & ((ids_BxL > n_a) == (domain == "B"))
        column = jnp.where(mine, axis, -1)
        # The newest item so far; in evaluation one after the other, without gaps.
        columns[domain] = jax.lax.cummax(column, 1) if "at_A" in batch else jnp.sort(column, 1)
    return columns | {"x": axis}


@dataclasses.dataclass(frozen=True)
class Backbone(ByTable):
    """ABXI to the rest of the house, see `base.Backbone`."""

    n_items: tuple[int, int]
    config: Model
    gca: GCAConfig = GCAConfig()
    quirks: Quirks = Quirks.of("official")
    block: int = 256  # of the sampled softmax: see `losses.position_negatives`
    form: str = "auto"
    dtype: str = "float32"  # of activations

    @property
    def net(self) -> ABXI:
        return ABXI(self.n_items, self.config, self.gca, self.quirks, self.dtype)

    def init(self, key: jax.Array) -> dict:
        return self.net.init(key, self.rows(*histories.ONE))["params"]

    def loss(self, params: dict, batch: Batch, key: jax.Array | None, hparams: dict) -> losses.Loss:
        """Training loss of one batch -> (scalar, aux of scalars).

        batch: seq_x, seq_a, seq_b, gt (B, L); at_A, at_B (P_A,), (P_B,) flat positions of the
        targets of each domain; `negatives` (P_A + P_B, K), a position's own, or
        `shared_negatives` (B, K), the sequence's; `n_users` ().
        hparams: temperature, dropout, ortho_weight. The official loss, and λ · mean cos²(X, X').
        """
        how = {} if key is None else {"rate": hparams["dropout"], "rngs": {"dropout": key}}
        hidden, probes = self.net.apply({"params": params}, batch, **how)
        h_PxD = jnp.concatenate([hidden[d] for d in DOMAINS]) / hparams["temperature"]
        weight_P = jnp.concatenate([self._weights(batch, d) for d in DOMAINS])
        packing = Packing(jnp.concatenate([batch["at_A"], batch["at_B"]]), batch["gt"].shape)
        args = self.index(params), h_PxD, weight_P, packing.pack(batch["gt"])
        if "shared_negatives" in batch:
            total, terms_P = losses.shared_negatives(*args, packing, batch["shared_negatives"])
        else:
            how = self.block, self.form
            total, terms_P = losses.position_negatives(*args, batch["negatives"], *how)
        split = len(batch["at_A"])
        aux = {"loss_a": jnp.sum(terms_P[:split]), "loss_b": jnp.sum(terms_P[split:])}
        return losses.penalised(total, aux, probes, hparams["ortho_weight"], self.gca.part_of)

    def _weights(self, batch, domain):
        """Weight of each position: mean over a user's targets, then over users (Q19)."""
        at_P = batch[f"at_{domain}"]
        rows, length = batch["gt"].shape
        counts_B = jnp.zeros(rows).at[at_P // length].add(1.0, mode="drop")
        n_users = batch["n_users"]
        if not self.quirks.q19_mean_over_all_users:
            n_users = jnp.maximum(jnp.sum(counts_B > 0), 1)
        per_user = 1.0 / jnp.maximum(counts_B, 1.0)
        return per_user.at[at_P // length].get(mode="fill", fill_value=0) / n_users

    def rows(self, history_BxH: jax.Array, domain_B: jax.Array) -> Batch:
        length = self.config.length
        column_H = histories.columns(history_BxH, length)
        out = {"seq_x": histories.last(history_BxH, length), "domain": domain_B}
        for d, letter in enumerate("ab"):
            own = histories.of_domain(history_BxH, d, self.n_items)
            seq, column = histories.chosen_last(own, length, (history_BxH, 0), (column_H, length))
            following = jnp.pad(column[:, 1:], [(0, 0), (0, 1)], constant_values=length)
            until = jnp.maximum(following - 1, -1)
            out |= {f"seq_{letter}": seq, f"until_{letter}": jnp.where(seq > 0, until, -1)}
        return out
