"""Gated cross-attention on plain arrays, for a Flax model of your own, Linen or NNX."""

import jax
import jax.numpy as jnp
import numpy as np

from oa_jax.errors import UserError
from oa_jax.fields import checked, one_of, whole
from oa_jax.nn.fusion import Probe
from oa_jax.nn.gca import GatedCrossAttention
from oa_jax.nn.known import GCAConfig
from oa_jax.nn.layers import Stream


class GatedCrossAttentionLayer(GatedCrossAttention):
    """y = LN(X + α([X; X']) ⊙ X'), X' = MHA(X, Y, Y) (arXiv 2510.09435); parameters as there.

    Fields: `heads`, which must divide D, and those of `GatedCrossAttention` (`gate_act="tanh"`,
    `layer_norm=False`, …). causal: None, a query uses no later key exactly where times are given;
    False, it may use all; True, without times the columns are the times, so T must be S.
    Raises UserError naming a field, what was found and what was expected.

    In Linen, inside your own compact method or setup:

    >>> import jax, jax.numpy as jnp
    >>> import flax.linen as nn
    >>> from oa_jax.nn.layer import GatedCrossAttentionLayer
    >>> class Mine(nn.Module):
    ...     @nn.compact
    ...     def __call__(self, query, source, source_mask):
    ...         y, probe = GatedCrossAttentionLayer(heads=2)(query, source, None, source_mask)
    ...         return nn.Dense(1)(y)
    >>> x, y, mask = jnp.ones((3, 5, 8)), jnp.ones((3, 7, 8)), jnp.ones((3, 7), bool)
    >>> params = Mine().init(jax.random.key(0), x, y, mask)
    >>> Mine().apply(params, x, y, mask).shape
    (3, 5, 1)

    In NNX, through its bridge:

    >>> from flax import nnx
    >>> layer = nnx.bridge.ToNNX(GatedCrossAttentionLayer(heads=2), rngs=nnx.Rngs(0))
    >>> layer = nnx.bridge.lazy_init(layer, x, y)  # makes the parameters, from the shapes
    >>> out, probe = layer(x, y, source_mask=mask)
    >>> out.shape, probe.gate.shape
    ((3, 5, 8), (3, 5, 8))
    """

    causal: bool | None = None

    def __post_init__(self):
        rules = GCAConfig.__dataclass_fields__ | {
            "heads": whole(1, ""),
            "causal": one_of(None, "", None, True, False),
        }
        for name in rules.keys() & self.__dataclass_fields__.keys():
            value = getattr(self, name)
            if not (name == "part" and callable(value)):
                checked(name, value, rules[name])
        super().__post_init__()

    def __call__(
        self,
        query_BxTxD: jax.Array,
        source_BxSxD: jax.Array,
        query_mask: jax.Array | None = None,
        source_mask: jax.Array | None = None,
        query_time: jax.Array | None = None,
        source_time: jax.Array | None = None,
    ) -> tuple[jax.Array, Probe]:
        """-> (y (B, T, D), Probe of arrays (B, T, D) and masks (B, T)).

        query_mask (B, T), source_mask (B, S): True for tokens, False for padding; without, all are
        tokens. What stands at padding plays no part, and y is 0 there. A query without any key
        that it may use has X' = 0.
        query_time (B, T), source_time (B, S), both or neither: whole numbers from 0 up to 2**31 on
        one axis (under jit larger ones wrap unseen: subtract the first); where causal, a query with
        a negative time uses no key. With them the probe's `y_aligned` is the source at the query's
        own time; without, that in the query's column.
        Raises UserError in one line for shapes and types that do not fit, and what is missing.
        """
        timed = query_time is not None
        q_shape, s_shape = self._checked(query_BxTxD, source_BxSxD, timed, source_time is not None)
        of_query = {"query_mask": query_mask, "query_time": query_time}
        of_source = {"source_mask": source_mask, "source_time": source_time}
        for given, shape in ((of_query, q_shape), (of_source, s_shape)):
            for name, array in given.items():
                if array is None:
                    continue
                if jnp.shape(array) != shape:
                    raise UserError(f"{name}: found shape {jnp.shape(array)}, expected {shape}")
                kind, is_mask = jnp.result_type(array), name.endswith("mask")
                if not jnp.issubdtype(kind, jnp.integer) and not (is_mask and kind == jnp.bool_):
                    # A mask that is added to weights, or times that rounding has moved.
                    expected = "True for tokens, False for padding" if is_mask else "whole numbers"
                    raise UserError(f"{name}: found {kind}, expected {expected}")
                known = not is_mask and not isinstance(array, jax.core.Tracer)
                if known and (most := int(np.max(array, initial=0))) >= 2**31:
                    raise UserError(f"{name}: found {most}, expected numbers below 2**31")
        if not timed:
            query_time, source_time = (
                jnp.broadcast_to(jnp.arange(shape[1]), shape) for shape in (q_shape, s_shape)
            )
        causal = timed if self.causal is None else self.causal
        query, source = _stream(query_BxTxD, query_mask), _stream(source_BxSxD, source_mask)
        view = self.view(query, source, query_time, source_time, causal)
        out, probe = self.fused(query, source, view)
        grid = jax.tree.map(query.packing.unpack, probe)
        return query.packing.unpack(out.h_PxD), grid

    def _checked(self, query, source, q_timed, s_timed):
        """((B, T), (B, S)) of arrays that fit each other and this layer."""
        q_shape, s_shape = jnp.shape(query), jnp.shape(source)
        if len(q_shape) != 3:
            raise UserError(f"query: found shape {q_shape}, expected (B, T, D)")
        for name, array in (("query", query), ("source", source)):
            if not jnp.issubdtype(jnp.result_type(array), jnp.floating):
                raise UserError(
                    f"{name}: found {jnp.result_type(array)}, expected a type of floats"
                )
        rows, length, width = q_shape
        if len(s_shape) != 3 or (s_shape[0], s_shape[2]) != (rows, width):
            expected = f"({rows}, S, {width}) for the query's {q_shape}"
            raise UserError(f"source: found shape {s_shape}, expected {expected}")
        if not s_shape[1]:
            raise UserError(f"source: found shape {s_shape}, expected a column, masked or not")
        if width % self.heads:
            raise UserError(f"heads={self.heads}: expected a divisor of the width {width}")
        if q_timed != s_timed:
            given, other = ("query", "source") if q_timed else ("source", "query")
            raise UserError(f"{other}_time: missing: expected it with {given}_time, or neither")
        by_time = "causal=True" if self.causal else "gate_input=source"
        if (self.causal or self.gate_input == "source") and not q_timed and length != s_shape[1]:
            raise UserError(
                f"{by_time}: needs query_time and source_time, as the query's {length} columns "
                f"are not the source's {s_shape[1]}"
            )
        return (rows, length), (rows, s_shape[1])


def _stream(h_BxLxD, mask):
    """The whole grid as a stream. Padding is 0, so that not even NaN there goes anywhere."""
    shape = jnp.shape(h_BxLxD)
    real = jnp.ones(shape[:2], bool) if mask is None else jnp.asarray(mask, bool)
    return Stream.of(jnp.where(real[..., None], h_BxLxD, 0), real)
