"""Where two streams meet: what a fusion is, what it shows, and the one loop that uses it."""

import dataclasses
import importlib
import types
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp

from oa_jax.errors import UserError
from oa_jax.events.log import DOMAINS
from oa_jax.nn.known import FUSIONS, GCAConfig
from oa_jax.nn.layers import (
    ABXI_INIT,
    Dense,
    Init,
    LayerNorm,
    Stream,
    chunks_pay,
    in_chunks,
    parallel_part,
)

# What `part` makes of an update, given X and the scales of "split".
PARTS = {
    "full": lambda update, x, scales: update,
    "parallel": lambda update, x, scales: parallel_part(update, x),
    "orthogonal": lambda update, x, scales: update - parallel_part(update, x),
    "split": lambda update, x, scales: (
        scales["scale_orthogonal"] * update
        + (scales["scale_parallel"] - scales["scale_orthogonal"]) * parallel_part(update, x)
    ),
}
PLAIN = "merged", "visible", True, True  # source, own_item, causal, key_mask
SCALES = ("scale_parallel", "scale_orthogonal")  # λ∥ and λ⊥ of "split"


@flax.struct.dataclass
class Probe:
    """What one fusion saw and did, at the query's slots. All (P, D) but the masks, (P,) bool.

    x: X.  update: X', raw: before the gate and before any projection.  y_pooled: mean of Y over
    the keys that the token may use.  y_aligned: Y at the token's own time.  gate: α, ones where
    there is none.  real_P: tokens that count.  has_key_P: those with at least one allowed key.
    has_aligned_P: those with a Y token at their own time.  weights_PxS: how much each token looks
    at each position of the source.  more: {name: (P,)}, what a fusion has to say beside; its means
    become statistics.  allowed_PxS: which of the positions of the source it may use.
    """

    x: jax.Array
    update: jax.Array
    y_pooled: jax.Array
    y_aligned: jax.Array
    gate: jax.Array
    real_P: jax.Array
    has_key_P: jax.Array
    has_aligned_P: jax.Array
    weights_PxS: jax.Array | None = None
    more: dict[str, jax.Array] = flax.struct.field(default_factory=dict)
    allowed_PxS: jax.Array | None = None


class View(NamedTuple):
    """Which tokens of a source (last axis) each token of a query may use; bool.

    aligned: of these, the ones at the token's own time.  back: the other way round, which tokens
    of the query each token of the source may use; None for a fusion `by_token` in training.
    """

    allowed_BxTxS: jax.Array
    aligned_BxTxS: jax.Array
    back_BxSxT: jax.Array | None


class Taken(NamedTuple):
    """What a fusion takes from a source: X' (P, D), the weight of each source token in it (P, S),
    and the `more` of the probe."""

    update: jax.Array
    weights_PxS: jax.Array
    more: Mapping[str, jax.Array] = types.MappingProxyType({})


class Fusion(nn.Module):
    """One domain at one place: its tokens take something from a source. To be subclassed.

    A subclass gives X' in `take`, and α in `alpha` if it has a gate. Its fields are its
    configuration: they are filled from those of `GCAConfig` with the same name.

    part: a name of `PARTS`, or a function (X', query stream, name of the module) -> what is used
    in its place, for interventions on trained models. With `part_of="update"` it acts on X', and
    the gate sees what is left; with "gated" the gate sees X', and α ⊙ X' is what is replaced: with
    `gate_act="tanh"` only this does not depend on the arbitrary signs of X' (see `angles`).
    """

    # Traits of a class: its weights are its own choice, unlike those of `one_y`; what becomes of a
    # token depends on no other of its stream.
    attends: ClassVar[bool] = True
    by_token: ClassVar[bool] = True

    heads: int = 1
    initial: Init = ABXI_INIT
    width: int = 0
    pool: str = "newest"
    residual: bool = True
    layer_norm: bool = True
    part: str | Callable = "full"
    part_of: str = "update"
    key_mask: bool = True
    causal: bool = True

    def take(self, query: Stream, source: Stream, view: View) -> Taken:
        """X' and what it is made of. A token uses nothing that `view` does not allow."""
        raise NotImplementedError

    def alpha(self, x: jax.Array, update: jax.Array, y_aligned: jax.Array) -> jax.Array:
        """The gate α (P, D); without one, ones."""
        return jnp.ones_like(x)

    def last(self, h: jax.Array) -> jax.Array:
        """What is made of the sum of X and α ⊙ X', before the norm."""
        return h

    def __call__(
        self,
        query: Stream,
        source: Stream,
        q_time_BxT: jax.Array,
        s_time_BxS: jax.Array,
        hidden_BxTxS: jax.Array | None = None,
    ) -> tuple[Stream, Probe]:
        """-> (the query's stream X'' = norm(X + α ⊙ X'), Probe).

        Times are positions on the merged axis, -1 where there is no token: a query may use keys
        that are not later than it. hidden: keys that it may not use all the same. Without any
        key X' is 0. Padded tokens stay 0, and nothing is ever not a number.
        """
        view = self.view(query, source, q_time_BxT, s_time_BxS, self.causal, hidden_BxTxS)
        return self.fused(query, source, view)

    def view(self, query, source, q_time_BxT, s_time_BxS, causal, hidden_BxTxS=None) -> View:
        """What the tokens may use. A query from before the window (time < 0) has no place among
        the keys."""
        in_window_BxTx1 = (q_time_BxT >= 0)[:, :, None]
        q_BxTx1, s_Bx1xS = q_time_BxT[:, :, None], s_time_BxS[:, None, :]
        q_real_BxTx1 = query.packing.unpack(query.real_P)[:, :, None]
        s_real_Bx1xS = source.packing.unpack(source.real_P)[:, None, :]
        allowed = jnp.ones((*q_time_BxT.shape, s_time_BxS.shape[1]), bool)
        back = allowed & q_real_BxTx1
        if causal:
            allowed &= (s_Bx1xS <= q_BxTx1) & in_window_BxTx1
            back &= (q_BxTx1 <= s_Bx1xS) & in_window_BxTx1
        if self.key_mask:
            allowed &= s_real_Bx1xS
        aligned = (s_Bx1xS == q_BxTx1) & in_window_BxTx1 & s_real_Bx1xS
        if hidden_BxTxS is not None:
            allowed, aligned = allowed & ~hidden_BxTxS, aligned & ~hidden_BxTxS
        return View(allowed, aligned, back.swapaxes(1, 2))

    @nn.compact
    def fused(self, query: Stream, source: Stream, view: View) -> tuple[Stream, Probe]:
        """As `__call__`, of a view."""
        x = query.h_PxD
        has_key, has_aligned = (
            query.packing.pack(chosen.any(-1)) & query.real_P
            for chosen in (view.allowed_BxTxS, view.aligned_BxTxS)
        )
        taken = self.take(query, source, view)
        if not isinstance(taken, Taken):
            found = f"{type(self).__name__}.take: found {type(taken).__name__}"
            raise UserError(f"{found}, expected Taken(update, weights)")
        raw, more, scales = taken.update * has_key[:, None], dict(taken.more), {}
        if self.part == "split":
            scales = {name: self.param(name, nn.initializers.ones, ()) for name in SCALES}
            more |= {name: jnp.broadcast_to(one, has_key.shape) for name, one in scales.items()}

        def part_of(update):
            if callable(self.part):
                return self.part(update, query, self.name)
            return PARTS[self.part](update, x, scales)

        y_pooled, y_aligned = (
            mean_of(query, source, chosen) for chosen in (view.allowed_BxTxS, view.aligned_BxTxS)
        )
        used = part_of(raw) if self.part_of == "update" else raw
        gate = self.alpha(x, used, y_aligned)
        gated = gate * used
        if self.part_of == "gated":
            gated = part_of(gated)
        norm = LayerNorm(name="norm") if self.layer_norm else lambda h: h
        out = query.map(lambda h: norm(self.last(h + gated if self.residual else gated)))
        masks = query.real_P, has_key, has_aligned
        seen = taken.weights_PxS, more, query.packing.pack(view.allowed_BxTxS)
        return out, Probe(x, raw, y_pooled, y_aligned, gate, *masks, *seen)

    def one_y(self, query: Stream, source: Stream, view: View) -> tuple[jax.Array, jax.Array]:
        """(P, D), the Y of each token for a fusion that does not attend, and its weights (P, S).
        pool: the newest that it may use, or the mean of all."""
        chosen = view.allowed_BxTxS
        if self.pool == "newest":  # sources are in the order of time
            newest = jnp.argmax(jnp.cumsum(chosen, -1), -1)
            chosen &= newest[..., None] == jnp.arange(chosen.shape[-1])
        return mean_of(query, source, chosen), query.packing.pack(shares(chosen))

    def dense(self, width: int, name: str) -> nn.Dense:
        return Dense(width, kernel_init=self.initial.weight, name=name)


def mean_of(query: Stream, source: Stream, chosen_BxTxS: jax.Array) -> jax.Array:
    """(P, D): the mean of the source's tokens that are chosen for each token of the query."""
    y_BxSxD = source.packing.unpack(source.h_PxD)
    shares_BxTxS = shares(chosen_BxTxS).astype(y_BxSxD.dtype)
    return query.packing.pack(jnp.einsum("bts,bsd->btd", shares_BxTxS, y_BxSxD))


def shares(chosen_BxTxS: jax.Array) -> jax.Array:
    """Equal weights of the chosen ones, with the sum 1; 0 without any."""
    return chosen_BxTxS / jnp.maximum(chosen_BxTxS.sum(-1, keepdims=True), 1)


def kind_of(fusion: str) -> type[Fusion]:
    """The class behind a name of `FUSIONS`, or of its own. Raises UserError if it is no fusion."""
    module, _, name = FUSIONS.get(fusion, fusion).rpartition(".")
    try:
        kind = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"--config.gca.fusion={fusion}: {error}: expected MODULE.CLASS") from None
    if not (isinstance(kind, type) and issubclass(kind, Fusion)):
        raise UserError(f"--config.gca.fusion={fusion}: expected a subclass of oa_jax.Fusion")
    return kind


def is_by_token(gca: GCAConfig) -> bool:
    """Whether what becomes of a token depends on no other of its stream, also in any expert."""
    experts = gca.experts if gca.fusion == "experts" else ()
    return all(kind_of(name).by_token for name in (gca.fusion, *experts))


def fields_for(kind: type, values: Any) -> dict:
    """The fields of a dataclass that `values`, another one, has under the same name."""
    names = {one.name for one in dataclasses.fields(kind)} - {"name", "parent"}
    names &= {one.name for one in dataclasses.fields(values)}
    return {name: getattr(values, name) for name in names}


def make(gca: GCAConfig, heads: int, initial: Init = ABXI_INIT, name: str | None = None) -> Fusion:
    """The fusion that `gca` names, with its fields. heads: the backbone's, for `gca.heads=0`."""
    kind = kind_of(gca.fusion)
    more = {"heads": gca.heads or heads, "initial": initial, "name": name}
    return kind(**fields_for(kind, gca) | more)


def n_parameters(gca: GCAConfig, d_embed: int, heads: int) -> int:
    """Parameters of one module (one domain at one place) of a fusion, exactly."""
    token = Stream.of(jnp.zeros((1, 1, d_embed)), jnp.ones((1, 1), bool))
    time = jnp.zeros((1, 1), jnp.int32)
    shapes = jax.eval_shape(make(gca, heads).init, jax.random.key(0), token, token, time, time)
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def matched_width(gca: GCAConfig, d_embed: int, heads: int) -> int:
    """The `gca.width` with which a module has the number of parameters nearest to that of GCA with
    the same fields and a width of its own.

    It is a multiple of the number of heads. Raises UserError where even the narrowest has more,
    and where the width changes nothing.
    """
    target = n_parameters(dataclasses.replace(gca, fusion="gca", width=0), d_embed, heads)
    unit = gca.heads or heads

    def size(width):
        return n_parameters(dataclasses.replace(gca, width=width), d_embed, heads)

    # A fusion's number of parameters grows linearly with its width.
    least = size(unit)
    more = size(2 * unit) - least
    if not more:
        raise UserError(f"gca.fusion={gca.fusion}: its size does not depend on gca.width")
    width = unit * (1 + round((target - least) / more))
    if width < unit:
        raise UserError(
            f"gca.fusion={gca.fusion}: has at least {least} parameters, expected {target}"
        )
    return width


class Times(NamedTuple):
    """Columns of the merged axis, {stream: (B, L)}, -1 where there is no token.

    query: the last one that a token may look at.  key: the last one that a token knows of.  own:
    where its item stands.
    """

    query: dict[str, jax.Array]
    key: dict[str, jax.Array]
    own: dict[str, jax.Array]


def fuse(
    gca: GCAConfig,
    place: int,
    streams: dict[str, Stream],
    times: Times,
    heads: int,
    initial: Init = ABXI_INIT,
    last_only: bool = False,
    form: str = "rows",
) -> tuple[dict[str, Stream], dict[str, Probe]]:
    """GCA[place]: each domain's stream looks at what `gca.source` says.

    streams: of "x" (merged), "A" and "B", of which x is not changed (paper, Section 3).
    -> (streams, {"place/domain": Probe}), as they were and {} where `gca` has no such place.
    last_only: the last position of each row, for which alone the fusion is asked if it can be.
    form: rows or chunks, see `chunks_pay`; what has other keys than the earlier ones of the merged
    stream is fused by rows.
    To be called in a network's compact method, whose submodules `gca_{place}_{domain}` they are:
    stored parameters have these names.
    """
    out, probes = {name: s.last() for name, s in streams.items()} if last_only else streams, {}
    if place not in gca.positions:
        return out, probes
    by_token, sources = is_by_token(gca) and not callable(gca.part), streams
    alone = last_only and by_token
    queries, out = out if alone else streams, dict(out)
    chunks = by_token and not alone and chunks_pay(form, streams["x"].packing)
    chunks &= (gca.source, gca.own_item, gca.causal, gca.key_mask) == PLAIN
    if gca.source == "shuffled":
        sources = streams | {"x": of_other_users(streams["x"], len(times.query["A"]))}
    for domain, other in zip(DOMAINS, reversed(DOMAINS), strict=True):
        name = {"other": other, "self": domain}.get(gca.source, "x")
        query, source, hidden = queries[domain], sources[name], None
        columns = slice(-query.packing.shape[1], None)
        if gca.own_item == "hidden" and gca.source in ("merged", "self"):
            own_BxTx1 = times.own[domain][:, columns, None]
            hidden = (times.own[name][:, None, :] == own_BxTx1) & (own_BxTx1 >= 0)
        module, time_BxT = make(gca, heads, initial, f"gca_{place}_{domain}"), times.query[domain]
        if chunks:
            fused, probes[f"{place}/{domain}"] = module.fused(*in_columns(query, source, time_BxT))
            fused = fused.replace(packing=query.packing)
        else:
            fused, probes[f"{place}/{domain}"] = module(
                query, source, time_BxT[:, columns], times.key[name], hidden
            )
        out[domain] = fused.last() if last_only else fused
    return out, probes


def in_columns(query: Stream, source: Stream, time_BxT: jax.Array) -> tuple[Stream, Stream, View]:
    """Views `in_chunks` of a domain's stream and the merged one, with each token of the first in
    its column of the other, and what it may use there."""
    rows, length = source.packing.shape
    place_BxT = jnp.arange(rows)[:, None] * length + time_BxT
    at_P = query.packing.pack(jnp.where(time_BxT < 0, rows * length, place_BxT))
    at_P = jnp.where(query.real_P, at_P, rows * length)
    query, source, allowed = in_chunks(query, source, at_P)
    own = jnp.eye(*allowed.shape[1:], allowed.shape[1], dtype=bool)
    return query, source, View(allowed, allowed & own, None)


def with_donors(ids_BxL: jax.Array, batch: dict[str, jax.Array]) -> jax.Array:
    """The merged sequences of a batch, and below them those of the `donor`s that evaluation rows
    have with `gca.source=shuffled`: they meet the same layers. `without_donors` takes them off."""
    return jnp.concatenate([ids_BxL, batch["donor"]]) if "donor" in batch else ids_BxL


def without_donors(stream: Stream, n_rows: int) -> Stream:
    """The first rows of a stream."""
    if stream.packing.shape[0] == n_rows:
        return stream
    return Stream.of(*(a[:n_rows] for a in stream.grid()))


def of_other_users(x: Stream, n_rows: int) -> Stream:
    """The merged stream of another user in each row's place.

    In evaluation its donor's, which stands below the rows: the same in whatever block of users. In
    training that of the next row of the batch that has a token: batches are drawn by (seed, step),
    so that is a random other. A row that is alone has none.
    """
    h_BxLxD, real_BxL = x.grid()
    if len(real_BxL) > n_rows:
        h_BxLxD, real_BxL = h_BxLxD[n_rows:], real_BxL[n_rows:]
    else:
        there_B = real_BxL.any(1)
        next_B = jnp.where(there_B & (there_B.sum() > 1), next_with_tokens(real_BxL), n_rows)
        h_BxLxD, real_BxL = (
            a.at[next_B].get(mode="fill", fill_value=0) for a in (h_BxLxD, real_BxL)
        )
    return Stream.of(h_BxLxD, real_BxL)


def next_with_tokens(real_BxL: jax.Array) -> jax.Array:
    """(B,): the next row that has a token; rows come round again, to the row itself at last."""
    there_B = real_BxL.any(1)
    order_B = jnp.argsort(~there_B, stable=True)
    return order_B[jnp.cumsum(there_B) % jnp.maximum(there_B.sum(), 1)]
