"""Statistics of X, X' and Y from probes, as sums over tokens that add up.

`sums` runs on the device and adds over blocks of users; `statistics` turns the total into means.
Tokens without any allowed key have X' = 0 and no angle: they are left out.

With the tanh gate the angle of X and X' is not a property of the function. Change the sign of unit
k of X' (its column of `out`), of row D + k of `gate_in` and of column k of `gate_out`: X'_k and α_k
both turn round, α ⊙ X' and all outputs stay, cos(X, X') does not. cos(X, α ⊙ X') does: it is
comparable across gates, seeds and runs.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.numpy.linalg import norm

from oa_jax.nn.fusion import Probe
from oa_jax.nn.layers import parallel_part


def sums(probe: Probe) -> dict[str, jax.Array]:
    """Sums over the real tokens of one probe, float32 scalars; see `statistics` for the names."""
    token_P = probe.has_key_P.astype(jnp.float32)
    aligned_P = token_P * probe.has_aligned_P
    gated, parallel = probe.gate * probe.update, parallel_part(probe.update, probe.x)
    others = {"": probe.update, "gated_": gated, "xy_": probe.y_pooled}
    cos = {name: cosine(probe.x, other) for name, other in others.items()}
    of_tokens = {f"{name}cos": cos_P for name, cos_P in cos.items()}
    of_tokens |= {f"{name}abs_cos": jnp.abs(cos_P) for name, cos_P in cos.items()}
    of_tokens |= {
        "cos2": cos[""] ** 2,
        "norm_x": norm(probe.x, axis=-1),
        "norm_update": norm(probe.update, axis=-1),
        "norm_gated": norm(gated, axis=-1),
        "energy_update": norm(probe.update, axis=-1) ** 2,
        "energy_parallel": norm(parallel, axis=-1) ** 2,
        "gate": jnp.mean(probe.gate, -1),
        "gate2": jnp.mean(probe.gate**2, -1),
    } | probe.more
    total = {name: jnp.sum(value * token_P) for name, value in of_tokens.items()}
    cos_aligned_P = cosine(probe.x, probe.y_aligned)
    total["xy_aligned_cos"] = jnp.sum(cos_aligned_P * aligned_P)
    total["xy_aligned_abs_cos"] = jnp.sum(jnp.abs(cos_aligned_P) * aligned_P)
    return total | {"tokens": jnp.sum(token_P), "aligned_tokens": jnp.sum(aligned_P)}


def statistics(total: dict[str, float]) -> dict[str, float]:
    """Means from added-up `sums`, as python floats.

    cos: mean cos(X, X'); abs_cos: mean |cos|; cos_abs: |mean cos|; gated_*: the first two of
    (X, α ⊙ X'), to compare across gates; xy_*: all three of (X, mean of the usable Y);
    xy_aligned_*: of (X, Y at the token's time); parallel_share: root of the share of ‖X'‖² that
    lies along X; norms; gate_mean and gate_std over tokens and units, the second of float32
    sums, whose rounding can hide or feign up to about 0.001; what a probe has `more`, such as the
    scales of `part=split`.
    Without any token every value is nan.
    """
    total = {name: float(value) for name, value in total.items()}
    n, n_aligned = total.pop("tokens"), total.pop("aligned_tokens")
    mean = {
        name: _ratio(value, n_aligned if name.startswith("xy_aligned") else n)
        for name, value in total.items()
    }
    parallel, update = mean.pop("energy_parallel"), mean.pop("energy_update")
    gate, gate2 = mean.pop("gate"), mean.pop("gate2")
    mean |= {f"{name}_abs": abs(mean[name]) for name in ("cos", "xy_cos", "xy_aligned_cos")}
    return mean | {
        "parallel_share": math.sqrt(_ratio(parallel, update)),
        "gate_mean": gate,
        "gate_std": math.sqrt(max(gate2 - gate**2, 0.0)) if n else math.nan,
        "tokens": n,
    }


def null_abs_cos(width: int) -> float:
    """Expected |cos| of two independent random directions in `width` dimensions.

    Γ(d/2) / (√π Γ((d+1)/2)) ≈ √(2/(πd)): 0.0499 at d = 256.
    """
    return math.exp(math.lgamma(width / 2) - math.lgamma((width + 1) / 2)) / math.sqrt(math.pi)


def cosine(x: jax.Array, y: jax.Array) -> jax.Array:
    """Cosine along the last axis; 0 where a vector is 0."""
    norms = norm(x, axis=-1) * norm(y, axis=-1)
    return jnp.where(norms > 0, jnp.sum(x * y, -1) / jnp.where(norms > 0, norms, 1.0), 0.0)


def _ratio(value, count):
    return value / count if count else math.nan


def flatten(per_module: dict[str, dict[str, np.ndarray]]) -> dict[str, float]:
    """{"place/domain": sums} -> {"gca/place/domain/statistic": value}."""
    return {
        f"gca/{module}/{name}": value
        for module, total in per_module.items()
        for name, value in statistics(total).items()
    }
