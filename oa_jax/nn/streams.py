"""What all but ABXI share: SASRec blocks over three streams, domain ones without gaps.

Stream x holds everything, A and B one domain each; a domain's token carries the column of stream x
at which it stands.
"""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from oa_jax.nn import histories, shards
from oa_jax.nn.fusion import DOMAINS, Probe, Times, fuse, with_donors, without_donors
from oa_jax.nn.known import GCAConfig
from oa_jax.nn.layers import (
    XAVIER_NORMAL,
    Dense,
    Dropout,
    Init,
    LayerNorm,
    MultiHeadAttention,
    Packing,
    Stream,
    linear_bias,
    own_view,
)
from oa_jax.nn.task import GRIDS

STREAMS = tuple(GRIDS)
INIT = Init(XAVIER_NORMAL, XAVIER_NORMAL)
EPSILON = 1e-8
# Most rows fill little of a window this long: chunks have far fewer places than grids.
CHUNKED_LENGTH = 48
Rate = float | jax.Array | None  # of dropout; None without


def takes_chunks(form: str, length: int) -> bool:
    """Whether a block's attention of packed streams of this length is taken `in_chunks`."""
    return form == "chunks" or (form == "auto" and length >= CHUNKED_LENGTH)


def packed(config: Any, length: int, gca: GCAConfig) -> dict[str, str]:
    """`Parts.packed` of streams: all, where that of everything, of this length, is taken by chunks.

    config: the group `model`. The rows of a block that have donors stay grids.
    """
    donors = gca.positions and gca.source == "shuffled"
    if donors or not takes_chunks(config.attention, length):
        return {}
    return {f"at_{stream}": grid for stream, grid in GRIDS.items()}


class Block(nn.Module):
    """One SASRec block of LLM4CDSR's code: keys and values from X, residuals from LN(X)."""

    heads: int

    @nn.compact
    def __call__(
        self,
        stream: Stream,
        causal: bool,
        key_mask: bool,
        chunks: bool,
        rate: Rate,
        last_only: bool = False,
    ) -> Stream:
        """The stream after the block, or only its last position, of which alone it is computed.

        causal: a token sees no later one; key_mask: nor empty places.  chunks: the attention of a
        packed stream is taken `in_chunks`.
        """
        width = stream.h_PxD.shape[-1]
        query = stream.last() if last_only else stream
        query = query.map(LayerNorm(EPSILON, name="norm_attention"))
        attention = MultiHeadAttention(self.heads, INIT, name="attention")
        update, _ = attention(*own_view(query, stream, causal, key_mask, chunks), rate)
        norm = LayerNorm(EPSILON, name="norm_ffn")
        init = {"kernel_init": XAVIER_NORMAL, "bias_init": linear_bias(width)}
        ffn_in, ffn_out = (Dense(width, **init, name=f"ffn_{part}") for part in ("in", "out"))

        def feed_forward(h):
            h = norm(h + update)
            inner = nn.relu(Dropout()(ffn_in(h), rate))
            return h + Dropout()(ffn_out(inner), rate)

        return query.map(feed_forward)


class StreamNet(nn.Module):
    """A network of three streams. Its `setup` makes `items`, a table by joint id, or it has its
    own `vectors`; and calls `add_layers`. Its `__call__` is compact, as fusions are made where they
    are used."""

    n_items: tuple[int, int]
    config: Any  # the group `model` of the backbone
    gca: GCAConfig
    dtype: str  # of what passes between the layers; what comes out is float32

    def add_layers(self, init: nn.initializers.Initializer, rows: dict[str, int]) -> None:
        """What every stream has of its own: a table of positions, of so many rows, for those that
        `rows` names; blocks, last norm, dropout."""
        cfg = self.config
        self.positions = {
            s: self.param(f"positions_{s}", init, (n, cfg.d_embed)) for s, n in rows.items()
        }
        self.block = {s: [Block(cfg.heads) for _ in range(cfg.blocks)] for s in STREAMS}
        self.norm = {s: LayerNorm(EPSILON) for s in STREAMS}
        self.dropout = {s: Dropout() for s in STREAMS}

    def vectors(self, stream: str, ids_P: jax.Array, tables: Any) -> jax.Array:
        """(P, D): the scaled item vectors of a stream's tokens."""
        return shards.rows(self.items, ids_P) * math.sqrt(self.config.d_embed)

    def place(self, real_BxL: jax.Array) -> jax.Array:
        """(B, L): each token's row in the table of positions, its column from 1; 0 at padding."""
        return jnp.arange(1, real_BxL.shape[1] + 1) * real_BxL

    def run(
        self,
        batch: dict[str, jax.Array],
        rate: Rate,
        names: tuple[str, ...] = STREAMS,
        causal: bool = True,
        key_mask: bool = True,
        last_only: bool = False,
        tables: Any = None,
    ) -> tuple[dict[str, Stream], dict[str, Probe]]:
        """Embedding, blocks and fusions -> (streams before the last norm, {"place/domain": Probe}).

        names: the streams, of all positions, or of those in `at_NAME`; x alone meets no fusion.
        last_only: the last position of each row.  tables: frozen inputs, for `vectors`.
        """
        cfg, streams, probes = self.config, {}, {}
        for name in names:
            ids_BxL = batch[GRIDS[name]]
            if name == "x":
                ids_BxL = with_donors(ids_BxL, batch)
            packing = Packing(batch.get(f"at_{name}"), ids_BxL.shape)
            ids_P, place_P = packing.pack(ids_BxL), packing.pack(self.place(ids_BxL != 0))
            h_PxD = self.vectors(name, ids_P, tables) + self.positions[name][place_P]
            h_PxD = self.dropout[name](h_PxD.astype(self.dtype), rate)
            stream = Stream(h_PxD, ids_P != 0, packing)
            streams[name] = stream.map(lambda h: h)  # padding back to 0
        own = _own_columns(batch)
        until = _last_columns(batch, own) if self.gca.window == "now" else own
        for at in range(cfg.blocks + 1):
            # What follows the last block is pointwise, unless a fusion stands there.
            alone = last_only and at == cfg.blocks
            shorten = alone and at not in self.gca.positions
            if at:
                for name, stream in streams.items():
                    chunks = takes_chunks(cfg.attention, stream.packing.shape[1])
                    how = causal, key_mask, chunks, rate, shorten
                    streams[name] = self.block[name][at - 1](stream, *how)
            if len(streams) > 1:
                # Before the first fusion a token of a domain knows of nothing beyond itself.
                times = Times(
                    until, own if at == min(self.gca.positions, default=at) else until, own
                )
                form = cfg.attention
                streams, seen = fuse(self.gca, at, streams, times, cfg.heads, INIT, alone, form)
                probes |= seen
        if last_only:
            streams = {name: stream.last() for name, stream in streams.items()}
        if "x" in streams:
            streams["x"] = without_donors(streams["x"], batch["seq"].shape[0])
        exact = {s: one.replace(h_PxD=one.h_PxD.astype(jnp.float32)) for s, one in streams.items()}
        return exact, probes


def _own_columns(batch):
    """{stream: (B, L)}: where each token stands in the merged sequence; -1 at a domain's padding,
    and for tokens older than the sequence shows."""
    axis = jnp.broadcast_to(jnp.arange(batch["seq"].shape[1]), batch["seq"].shape)
    return {s: axis if s == "x" else batch.get(f"time_{s}") for s in STREAMS}


def _last_columns(batch, own):
    """The same: the last column before the token's target, which is the next item of its domain.
    In training, where histories go on, `pair_D` says so; otherwise the last token's target comes
    after all that is there."""
    until = dict(own)
    for domain in DOMAINS:
        if f"pair_{domain}" in batch:
            until[domain] = batch[f"pair_{domain}"]
        elif own[domain] is not None:
            end = batch["seq"].shape[1]
            before_next = jnp.roll(own[domain], -1, 1).at[:, -1].set(end) - 1
            until[domain] = jnp.where(batch[f"seq_{domain}"] != 0, jnp.maximum(before_next, -1), -1)
    return until


class OnTables:
    """What a `Backbone` with frozen `tables` beside its parameters has in common with others."""

    def on(self, tables: Any) -> "OnTables":
        return dataclasses.replace(self, tables=tables)

    def probe(self, params: dict, rows: dict) -> dict[str, Probe]:
        return self.apply(params, rows)[1]


class ByTable:
    """What a `Backbone` whose scores are products of a state with a table of items has in common
    with others. Its parameters are those of `net`, a network that gives ({stream: h}, probes)."""

    def index(self, params: dict) -> jax.Array:
        """The table of items that scores are products with."""
        return params["items" if self.config.tied else "items_out"]

    def encode(self, params: dict, batch: dict) -> jax.Array:
        """-> (B, D): the state of the only stream, or by the target's domain."""
        hidden, _ = self.net.apply({"params": params}, batch, last_only=True)
        if len(hidden) == 1:
            return next(iter(hidden.values()))
        return jnp.where((batch["domain"] == 0)[:, None], hidden["A"], hidden["B"])

    def score(self, index: jax.Array, encoded_BxD: jax.Array, candidates: jax.Array) -> jax.Array:
        return shards.scores(index, encoded_BxD, candidates)

    def probe(self, params: dict, batch: dict) -> dict[str, Probe]:
        return self.net.apply({"params": params}, batch)[1]


def dropout_of(key: jax.Array | None, hparams: dict) -> dict:
    """Options of `apply`: {} without a key."""
    if key is None:
        return {}
    return {"rate": hparams["dropout"], "rngs": {"dropout": jax.random.fold_in(key, 0)}}


def rows_of(
    history_BxH: jax.Array,
    domain_B: jax.Array,
    length: int,
    merged_length: int,
    n_items: tuple[int, int],
) -> dict[str, jax.Array]:
    """`Backbone.rows` of streams by joint ids: what `events.rows.streams` gives on the host."""
    column_H = jnp.maximum(histories.columns(history_BxH, merged_length), -1)
    out = {"seq": histories.last(history_BxH, merged_length), "domain": domain_B}
    for d, name in enumerate(DOMAINS):
        own = histories.of_domain(history_BxH, d, n_items)
        found = histories.chosen_last(own, length, (history_BxH, 0), (column_H, -1))
        out |= dict(zip((f"seq_{name}", f"time_{name}"), found, strict=True))
    return out
