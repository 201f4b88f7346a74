"""CDSRNP's head: a user's streams, z and candidates to logits."""

import math

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp

from oa_jax.backbones.cdsrnp.neural_process import linear
from oa_jax.nn.layers import XAVIER_NORMAL


@flax.struct.dataclass
class Encoded:
    """What scoring needs of B rows. own, merged: (B, D) states of the target's stream and of x.
    steps (B, L, D), real (B, L): the target's stream, or the end of stream x where it is empty.
    domain (B,) of the target."""

    own: jax.Array
    merged: jax.Array
    steps: jax.Array
    real: jax.Array
    domain: jax.Array


@flax.struct.dataclass
class Latent:
    """Of the directions to A and to B: z (2, Z), and r_C (2, D), which modulates the decoder."""

    z: jax.Array
    context: jax.Array


class Decoder(nn.Module):
    """Rows and candidates to logits: interest adaptive layer, then layers that r_C modulates.

    The first layer is linear in [h_δ ‖ h_{A+B} ‖ g_v ‖ e_v ‖ z_δ], of which g_v alone belongs to a
    row and a candidate, so each part is multiplied where it is small.
    """

    widths: tuple[int, ...]  # of the modulated layers
    interest: str = "film"  # film | attention | none, as of `fields.Model`
    film_from_one: bool = True

    @nn.compact
    def __call__(self, row: Encoded, latent: Latent | None, items: jax.Array) -> jax.Array:
        """-> (B, K). items: vectors (B, K, D), or (K, D) that all rows share."""
        width, first = row.own.shape[-1], self.widths[0]
        n_in = 4 * width + (0 if latent is None else latent.z.shape[-1])
        w_in = self.param("w_in", XAVIER_NORMAL, (n_in, first))
        b_in = self.param("b_in", nn.initializers.zeros, (first,))
        cuts = [2 * width, 3 * width, 4 * width]
        w_state, w_interest, w_item, w_latent = jnp.split(w_in, cuts)
        base_BxF = jnp.concatenate([row.own, row.merged], -1) @ w_state + b_in
        if latent is None:
            z_BxZ = context_BxD = None
        else:
            z_BxZ, context_BxD = latent.z[row.domain], latent.context[row.domain]
            base_BxF += z_BxZ @ w_latent
        if self.interest == "none":
            hidden = (base_BxF + row.own @ w_interest)[:, None]
        else:
            shift, hidden = self._interest(row, z_BxZ, items, w_interest)
            hidden += (base_BxF + shift)[:, None]
        hidden += items @ w_item
        for i, n_out in enumerate(self.widths):
            if i:
                hidden = linear(hidden, n_out, f"layer_{i}")
            hidden = nn.relu(self._film(hidden, context_BxD, i))
        return linear(hidden, 1, "logit")[..., 0]

    def _interest(self, row, z_BxZ, items, w_interest):
        """g_v in the first layer: what z adds, (B, F) or 0, and the rest (B, K, F)."""
        width, shift = row.own.shape[-1], 0.0
        w_a = self.param("w_attention", XAVIER_NORMAL, (width, width))
        keys_BxLxD = row.steps @ w_a
        if z_BxZ is not None and self.interest == "film":
            gamma_BxD = 1 + jnp.tanh(linear(z_BxZ, width, "gamma"))
            keys_BxLxD *= gamma_BxD[:, None]
            shift = jnp.tanh(linear(z_BxZ, width, "beta")) @ w_interest
        form = "bld,bkd->bkl" if items.ndim == 3 else "bld,kd->bkl"
        logits_BxKxL = jnp.einsum(form, keys_BxLxD, items) / math.sqrt(width)
        weights_BxKxL = nn.softmax(jnp.where(row.real[:, None], logits_BxKxL, -1e30), -1)
        weights_BxKxL *= row.real[:, None]  # a row without steps gets 0
        return shift, jnp.einsum("bkl,blf->bkf", weights_BxKxL, row.steps @ w_interest)

    def _film(self, hidden_BxKxF, context_BxD, i):
        if context_BxD is None:
            return hidden_BxKxF
        n_out = hidden_BxKxF.shape[-1]
        scale_BxF = jnp.tanh(linear(context_BxD, n_out, f"scale_{i}"))
        shift_BxF = jnp.tanh(linear(context_BxD, n_out, f"shift_{i}"))
        one = float(self.film_from_one)
        return (one + scale_BxF)[:, None] * hidden_BxKxF + shift_BxF[:, None]
