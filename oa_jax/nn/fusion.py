"""Where two streams meet: what a fusion is, what it shows, and the one loop that uses it."""

from __future__ import annotations

import dataclasses
import importlib

import flax
import flax.linen as nn
import jax

from oa_jax.nn.known import FUSIONS, GCAConfig
from oa_jax.nn.layers import ABXI_INIT, Init, Stream

DOMAINS = ("A", "B")


@flax.struct.dataclass
class Probe:
    """What one fusion saw and did, at the query's slots. All (P, D) but the masks, (P,) bool.

    x: X.  update: X', raw: before the gate and before any projection.  y_pooled: mean of Y over
    the keys that the token may use.  y_aligned: Y at the token's own time.  gate: α, ones where
    there is none.  real_P: tokens that count.  has_key_P: those with at least one allowed key.
    has_aligned_P: those with a Y token at their own time.  weights_PxS: how much each token looks
    at each position of the source; None of a fusion without attention.
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


class Fusion(nn.Module):
    """One domain at one place: its tokens take something from a source. To be subclassed.

    heads, initial: of the backbone's own attention. Further fields of a subclass are its
    configuration: they are filled from the fields of `GCAConfig` with the same name.
    """

    heads: int = 1
    initial: Init = ABXI_INIT

    def __call__(
        self, query: Stream, source: Stream, q_time_BxT: jax.Array, s_time_BxS: jax.Array
    ) -> tuple[Stream, Probe]:
        """-> (the query's stream X'', Probe).

        Times are positions on the merged axis, -1 where there is no token: a query may use keys
        that are not later than it. Padded tokens stay 0, and nothing is ever not a number.
        """
        raise NotImplementedError


def make(gca: GCAConfig, heads: int, initial: Init = ABXI_INIT, name: str | None = None) -> Fusion:
    """The fusion that `gca` names, with its fields. heads: the backbone's, for `gca.heads=0`."""
    module, _, kind = FUSIONS[gca.fusion].rpartition(".")
    kind = getattr(importlib.import_module(module), kind)
    of_group = {field.name for field in dataclasses.fields(gca)}
    own = {f.name: getattr(gca, f.name) for f in dataclasses.fields(kind) if f.name in of_group}
    return kind(**own | {"heads": gca.heads or heads, "initial": initial, "name": name})


def fuse(
    gca: GCAConfig,
    place: int,
    streams: dict[str, Stream],
    times: dict[str, jax.Array],
    heads: int,
    initial: Init = ABXI_INIT,
) -> tuple[dict[str, Stream], dict[str, Probe]]:
    """GCA[place]: each domain's stream looks at the merged or at the other domain's stream.

    streams: of "x" (merged), "A" and "B", of which x is not changed (paper, Section 3).
    times: of each stream, (B, L) positions on the merged axis.
    -> (streams, {"place/domain": Probe}), as they were and {} where `gca` has no such place.
    To be called in a network's compact method, whose submodules `gca_{place}_{domain}` they are:
    stored parameters have these names.
    """
    if place not in gca.positions:
        return streams, {}
    out, probes = dict(streams), {}
    for domain, other in zip(DOMAINS, reversed(DOMAINS), strict=True):
        source = "x" if gca.kv == "merged" else other
        module = make(gca, heads, initial, f"gca_{place}_{domain}")
        out[domain], probes[f"{place}/{domain}"] = module(
            streams[domain], streams[source], times[domain], times[source]
        )
    return out, probes
