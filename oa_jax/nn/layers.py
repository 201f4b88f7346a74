"""Layers that the backbones share. One seed, one device, no hidden state.

Token streams are *packed*: about half of all (row, position) slots of a batch are padding, so the
pointwise layers run on an array of real tokens (P, D), and only attention sees (B, L, D).

Parameters are float32. A layer computes in the type of what it is given (`train.activation_dtype`),
but for what is sensitive to rounding: the statistics of norms, and the softmax of attention.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.extend.random import threefry2x32_p

# Initialisers of the official ABXI code (its models/layers).
TABLE_INIT = nn.initializers.truncated_normal(0.02)  # cut at two standard deviations
WEIGHT_INIT = nn.initializers.normal(0.02)
LORA_A_INIT = nn.initializers.normal(50**-0.5)  # variance 1/50
LAYER_NORM_EPSILON = 1e-5
XAVIER_NORMAL = nn.initializers.variance_scaling(1.0, "fan_avg", "normal")


def linear_bias(fan_in: int) -> nn.initializers.Initializer:
    """A bias as PyTorch draws it: uniform within ±1/√fan_in."""
    draw, bound = jax.random.uniform, fan_in**-0.5
    return lambda key, shape, dtype=jnp.float32: draw(key, shape, dtype, -bound, bound)


class Init(NamedTuple):
    """Initialisers of a backbone: of stacked in-projections and of all other weight matrices."""

    in_projection: nn.initializers.Initializer = nn.initializers.xavier_uniform()
    weight: nn.initializers.Initializer = WEIGHT_INIT


ABXI_INIT = Init()


def _of_input(h, *parameters, dtype=None, **_):
    """What `nn.Dense` multiplies and adds, in the type of its input."""
    return h, *(p if p is None else p.astype(h.dtype) for p in parameters)


Dense = functools.partial(nn.Dense, promote_dtype=_of_input)


def parallel_part(update: jax.Array, x: jax.Array) -> jax.Array:
    """Projection of `update` on X, per token (last axis): (X'·X / X·X) X; 0 where X is 0."""
    norm2 = jnp.sum(x * x, -1, keepdims=True)
    scale = jnp.sum(update * x, -1, keepdims=True) / jnp.where(norm2 > 0, norm2, 1.0)
    return scale * x


@flax.struct.dataclass
class Packing:
    """Where packed tokens stand in the (B, L) grid.

    at_P: flat index row * L + position of each slot; B * L (out of range) marks an unused slot.
    `None` packs the whole grid in order, which is a reshape.
    parts: sizes of the lists of slots that stand one after the other, each with its real slots
    first; () is a single list.
    """

    at_P: jax.Array | None
    shape: tuple[int, int] = flax.struct.field(pytree_node=False)
    parts: tuple[int, ...] = flax.struct.field(pytree_node=False, default=())

    def pack(self, grid_BxL: jax.Array) -> jax.Array:
        """(B, L, …) -> (P, …); unused slots are 0."""
        flat = grid_BxL.reshape(-1, *grid_BxL.shape[2:])
        return flat if self.at_P is None else _take(flat, self.at_P, self._slot_of())

    def unpack(self, packed_P: jax.Array) -> jax.Array:
        """(P, …) -> (B, L, …); empty places are 0."""
        grid = packed_P if self.at_P is None else _take(packed_P, self._slot_of(), self.at_P)
        return grid.reshape(*self.shape, *packed_P.shape[1:])

    def _slot_of(self):
        """(B * L,): the slot of each place, P where there is none."""
        size = len(self.at_P)
        slots = jnp.full(self.shape[0] * self.shape[1], size)
        return slots.at[self.at_P].set(jnp.arange(size), mode="drop")


@jax.custom_vjp
def _take(rows, index, back):
    """rows[index], 0 where the index is out of range. `back` undoes it: as no row is taken twice,
    the gradient is taken the same way, where a general one would be scattered row by row."""
    return rows.at[index].get(mode="fill", fill_value=0)


_take.defvjp(
    lambda rows, index, back: (_take(rows, index, back), (index, back)),
    lambda saved, cotangent: (_take(cotangent, *saved[::-1]), None, None),
)


@flax.struct.dataclass
class Stream:
    """Tokens of one stream: hidden states (P, D), which of them are real (P,), their places."""

    h_PxD: jax.Array
    real_P: jax.Array
    packing: Packing

    def map(self, fn: Callable[[jax.Array], jax.Array]) -> "Stream":
        """Apply a pointwise function, and keep padding at 0 and the type of the states."""
        h_PxD = fn(self.h_PxD).astype(self.h_PxD.dtype)
        return self.replace(h_PxD=h_PxD * self.real_P[:, None])

    def grid(self) -> tuple[jax.Array, jax.Array]:
        """States (B, L, D), and which places are real (B, L)."""
        return self.packing.unpack(self.h_PxD), self.packing.unpack(self.real_P)

    @classmethod
    def of(cls, h_BxLxD: jax.Array, real_BxL: jax.Array) -> "Stream":
        """A whole grid in order."""
        packing = Packing(None, real_BxL.shape)
        return cls(packing.pack(h_BxLxD), packing.pack(real_BxL), packing)

    def last(self) -> "Stream":
        """The stream's last position only: (B, D)."""
        return Stream.of(*(a[:, -1:] for a in self.grid()))


@flax.struct.dataclass
class Chunks:
    """A packing of slots in n chunks of C, or of them and what stands around each: `before`, an
    empty place, if there is room for it, and the chunk before; `after`, the next chunk. What the
    first and the last one lack is zeros.

    rank_P: the place of each slot in the row of chunks, out of range for none; None: in order.
    size: the number of slots, P.
    """

    rank_P: jax.Array | None
    size: int = flax.struct.field(pytree_node=False)
    n: int = flax.struct.field(pytree_node=False)
    chunk: int = flax.struct.field(pytree_node=False)
    before: int = flax.struct.field(pytree_node=False, default=0)  # 0, C or 1 + C
    after: int = flax.struct.field(pytree_node=False, default=0)  # 0 or C

    @property
    def shape(self) -> tuple[int, int]:
        return self.n, self.before + self.chunk + self.after

    def pack(self, grid_nxC: jax.Array) -> jax.Array:
        """(n, C, …) -> (P, …)."""
        if self.rank_P is not None:
            return self._ranked().pack(grid_nxC)
        return grid_nxC.reshape(-1, *grid_nxC.shape[2:])[: self.size]

    def unpack(self, packed_P: jax.Array) -> jax.Array:
        """(P, …) -> (n, C, …), or with what stands around."""
        if self.rank_P is not None:
            own = self._ranked().unpack(packed_P)
        else:
            spare = [(0, self.n * self.chunk - self.size)] + [(0, 0)] * (packed_P.ndim - 1)
            own = jnp.pad(packed_P, spare).reshape(self.n, self.chunk, *packed_P.shape[1:])
        parts = [own]
        if self.before:
            before = jnp.zeros((self.n, self.before, *own.shape[2:]), own.dtype)
            parts = [before.at[1:, -self.chunk :].set(own[:-1]), own]
        if self.after:
            parts.append(jnp.zeros_like(own).at[:-1].set(own[1:]))
        return jnp.concatenate(parts, 1)

    def _ranked(self):
        return Packing(self.rank_P, (self.n, self.chunk))


def chunks_pay(form: str, packing: Packing) -> bool:
    """Whether a packed stream's attention is better made `in_chunks`. form: rows, chunks, or auto:
    chunks where twice the slots, their keys, are not more than the places of the grid."""
    if packing.at_P is None or form == "rows":
        return False
    return form == "chunks" or 2 * len(packing.at_P) <= math.prod(packing.shape)


def in_chunks(
    query: Stream,
    source: Stream,
    at_P: jax.Array | None = None,
    empty: bool = False,
    causal: bool = True,
) -> tuple[Stream, Stream, jax.Array]:
    """Two views of packed streams, and how often a token may use each key: those of its row that,
    if `causal`, are not later than it.

    A row's tokens stand side by side, at most L of them, so that in chunks of L a token finds all
    of them in its own chunk, the one before and, if it may see later ones, the next. Of short rows
    that is far less than grids (B, L, L), which are empty but for their corners.

    at_P: the place of each token of the query in the source's grid, if the query is another
    stream; where the source has no token, it has no key. empty: the grid's empty places, if
    `causal` up to the token's own, are keys as well: they are all alike, so that one of them, the
    first key, counts for all.
    """
    packing, size = source.packing, len(source.real_P)
    rows, length = packing.shape
    n = -(-size // length)
    ranks = [None, None]  # of the query, of the source
    if packing.parts or at_P is not None:
        there = jnp.zeros(rows * length, jnp.int32).at[packing.at_P].set(1, mode="drop")
        rank = jnp.where(there > 0, jnp.cumsum(there) - 1, n * length)
        places = packing.at_P if at_P is None else at_P, packing.at_P
        ranks = [rank.at[at].get(mode="fill", fill_value=n * length) for at in places]
    ranks[1] = ranks[1] if packing.parts else None
    own, mine = Chunks(ranks[0], len(query.real_P), n, length), Chunks(ranks[1], size, n, length)
    around = Chunks(ranks[1], size, n, length, int(empty) + length, 0 if causal else length)
    row_P = packing.at_P // length
    allowed = mine.unpack(row_P)[:, :, None] == around.unpack(row_P)[:, None]
    if causal:
        allowed &= jnp.tril(jnp.ones((length, around.shape[1]), bool), around.before)
    allowed &= around.unpack(source.real_P)[:, None]
    if empty:
        places = 1 + mine.unpack(packing.at_P % length) if causal else length
        empty_places = places - allowed.sum(-1)
        allowed = allowed.astype(jnp.int32).at[:, :, 0].set(empty_places)
    return query.replace(packing=own), source.replace(packing=around), allowed


def own_view(
    query: Stream, stream: Stream, causal: bool, key_mask: bool, chunks: bool
) -> tuple[Stream, Stream, jax.Array]:
    """What a stream's attention to itself is given: two streams, and which keys (last axis) each
    token may use. query: all tokens, or the last position of each row.  chunks: packed tokens are
    viewed `in_chunks`, all others by rows."""
    if chunks and query.packing.at_P is not None:
        return in_chunks(query, stream, empty=not key_mask, causal=causal)
    rows, length = stream.packing.shape
    allowed = jnp.ones((rows, length, length), bool)
    if causal:
        allowed = jnp.tril(allowed)
    if key_mask:
        allowed &= stream.packing.unpack(stream.real_P)[:, None, :]
    return query, stream, allowed[:, -query.packing.shape[1] :]


class Dropout(nn.Module):
    """Inverted dropout whose rate may be a traced value, so that a sweep over rates is one program.

    Sixteen random bits decide a unit (the rate is rounded to 1/65536): half the cost of a full
    word, and drawing the masks is a large share of a step on a CPU. `rate=None` turns it off.
    A unit's bits follow from its place in its part of the slots, whatever the number of unused
    slots behind it: how much room a batch was given changes no draw.
    """

    @nn.compact
    def __call__(
        self, h: jax.Array, rate: float | jax.Array | None, parts: tuple[int, ...] = ()
    ) -> jax.Array:
        if rate is None:
            return h
        key, width = self.make_rng("dropout"), h.shape[-1]
        sizes = parts or (h.size // width,)
        keys = jax.random.split(key, len(sizes))

        bits = [half_words(k, n * width) for k, n in zip(keys, sizes, strict=True)]
        halves = jnp.concatenate(bits).reshape(h.shape)
        keep = halves >= jnp.round(rate * 65536).astype(jnp.uint32)
        return jnp.where(keep, h / (1.0 - rate), 0.0).astype(h.dtype)


def half_words(key: jax.Array, size: int) -> jax.Array:
    """(size,) uint16: the random words of a key, cut in two, the low half first.

    Under vmap a TPU would lay seeds along the 128 lanes of what is cut, most of them empty: there
    every unit makes its own word, which elsewhere would be twice the work.
    """
    own, cut = (functools.partial(form, size=size) for form in (_own_halves, _cut_halves))
    return jax.lax.platform_dependent(key, tpu=own, default=cut)


def _cut_halves(key, size):
    words = jax.random.bits(key, (-(-size // 2),), jnp.uint32)
    return jax.lax.bitcast_convert_type(words, jnp.uint16).ravel()[:size]


def _own_halves(key, size):
    at = jnp.arange(size, dtype=jnp.uint32)
    high, low = threefry2x32_p.bind(*jax.random.key_data(key), jnp.zeros_like(at), at // 2)
    return ((high ^ low) >> (at % 2 * 16)).astype(jnp.uint16)


class LayerNorm(nn.Module):
    """LayerNorm over the last axis, biased variance, affine."""

    epsilon: float = LAYER_NORM_EPSILON

    @nn.compact
    def __call__(self, h: jax.Array) -> jax.Array:
        # Two-pass variance: the fast one-pass form loses digits that parity tests look at.
        how = {"epsilon": self.epsilon, "use_fast_variance": False, "dtype": h.dtype}
        return nn.LayerNorm(**how, name="norm")(h)


class SwiGLU(nn.Module):
    """W3( silu(W2 h) * (W1 h) ), no biases: the feed-forward of ABXI."""

    width: int

    @nn.compact
    def __call__(self, h: jax.Array) -> jax.Array:
        def dense(features, name):
            return Dense(features, use_bias=False, kernel_init=WEIGHT_INIT, name=name)

        gated = nn.silu(dense(self.width, "gate")(h)) * dense(self.width, "up")(h)
        return dense(h.shape[-1], "down")(gated)


class LoRA(nn.Module):
    """A low-rank linear layer h Bᵀ Aᵀ with A (D, r) random and B (r, D) zero at the start."""

    rank: int

    @nn.compact
    def __call__(self, h: jax.Array) -> jax.Array:
        width = h.shape[-1]
        a = self.param("a", LORA_A_INIT, (width, self.rank))
        b = self.param("b", nn.initializers.zeros, (self.rank, width))
        return (h @ b.T.astype(h.dtype)) @ a.T.astype(h.dtype)


class MultiHeadAttention(nn.Module):
    """Multi-head attention between two packed streams; self-attention when both are one.

    The three in-projections are one (D, 3D) matrix, Xavier-initialised as a whole, as in the
    official code. Empty places enter as zero states, so their keys and values are the biases:
    whether anybody may look at them is the caller's choice of `allowed_BxTxS`: bool, or numbers,
    how often a key counts, which only the first may do more than once (`in_chunks`).
    """

    heads: int
    initial: Init = ABXI_INIT
    inner: int = 0  # width of all heads together, a multiple of their number; 0: D

    @nn.compact
    def __call__(
        self,
        query: Stream,
        source: Stream,
        allowed_BxTxS: jax.Array,
        rate: float | jax.Array | None = None,
        change: Callable[[jax.Array, Callable[[], jax.Array]], jax.Array] | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """-> ((P, D) at the query's slots, weights (P, S): how much a query looks at each key, the
        mean over the heads). A query with no allowed key gets exactly 0.

        rate: dropout on the attention weights.  change: what is made of the heads' outputs
        (B, H, T, E) before they are mixed; its second argument gives the query's own values.
        """
        width, dtype = query.h_PxD.shape[-1], query.h_PxD.dtype
        inner = self.inner or width
        w_in = self.param("w_in", self.initial.in_projection, (width, 3 * inner))
        b_in = self.param("b_in", nn.initializers.zeros, (3 * inner,))
        w_in, b_in = w_in.astype(dtype), b_in.astype(dtype)

        def project(stream, part):
            columns = slice(part * inner, (part + 1) * inner)
            grid = stream.packing.unpack(stream.h_PxD @ w_in[:, columns]) + b_in[columns]
            return grid.reshape(*grid.shape[:2], self.heads, inner // self.heads).swapaxes(1, 2)

        q_BxHxTxE, k_BxHxSxE, v_BxHxSxE = project(query, 0), project(source, 1), project(source, 2)
        logits_BxHxTxS = (q_BxHxTxE @ k_BxHxSxE.swapaxes(2, 3)) * (inner // self.heads) ** -0.5
        logits_BxHxTxS = logits_BxHxTxS.astype(jnp.float32)
        counts_BxT = None
        if allowed_BxTxS.dtype != bool:  # a key that counts n times has n times the weight
            logits_BxHxTxS += jnp.log(jnp.maximum(allowed_BxTxS, 1))[:, None]
            counts_BxT, allowed_BxTxS = allowed_BxTxS[..., 0], allowed_BxTxS > 0
        logits_BxHxTxS = jnp.where(allowed_BxTxS[:, None], logits_BxHxTxS, -1e30)
        weights_BxHxTxS = nn.softmax(logits_BxHxTxS, axis=-1).astype(dtype)
        if counts_BxT is None or rate is None:
            weights_BxHxTxS = Dropout()(weights_BxHxTxS, rate)
        else:
            first, others = jnp.split(weights_BxHxTxS, [1], -1)
            kept_BxHxT = self._kept(counts_BxT, source.packing.chunk, rate).astype(dtype)
            parts = first * kept_BxHxT[..., None], Dropout()(others, rate)
            weights_BxHxTxS = jnp.concatenate(parts, -1)
        mixed_BxHxTxE = weights_BxHxTxS @ v_BxHxSxE
        if change is not None:
            mixed_BxHxTxE = change(mixed_BxHxTxE, lambda: project(query, 2))
        mixed_BxTxI = mixed_BxHxTxE.swapaxes(1, 2).reshape(*allowed_BxTxS.shape[:2], inner)
        dense = Dense(width, kernel_init=self.initial.weight, name="out")
        out = dense(query.packing.pack(mixed_BxTxI))
        has_key_Px1 = query.packing.pack(allowed_BxTxS.any(-1))[:, None]
        weights_PxS = query.packing.pack(weights_BxHxTxS.mean(1)) * has_key_Px1
        return out * has_key_Px1, weights_PxS

    def _kept(self, counts_BxT, most, rate):
        """(B, H, T): the mean of what dropout makes of the ones of n <= `most` equal keys."""
        there_Bx1xTxN = jnp.arange(most) < counts_BxT[:, None, :, None]
        there_BxHxTxN = jnp.repeat(there_Bx1xTxN, self.heads, 1).astype(jnp.float32)
        return Dropout()(there_BxHxTxN, rate).sum(-1) / jnp.maximum(counts_BxT, 1)[:, None]
