"""Fusions that are not GCA: by cross-attention, and those that do not attend, with one Y for each
token (`gca.pool`), the newest that it may use or the mean of all. And a mixture of any of them.

`width` is that of the hidden layer, or the inner width of the attention, all heads together, unless
the class says otherwise; D if it is 0.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from oa_jax.nn.fusion import Fusion, Taken, fields_for, kind_of
from oa_jax.nn.layers import LayerNorm, MultiHeadAttention, parallel_part


class CrossAttention(Fusion):
    """X' = MHA(X, Y, Y), without a gate (Vaswani et al., arXiv 1706.03762)."""

    def take(self, query, source, view):
        return self.attend(query, source, view.allowed_BxTxS)

    def attend(self, query, source, allowed, change=None, name="attention") -> Taken:
        attention = MultiHeadAttention(self.heads, self.initial, self.width, name=name)
        return Taken(*attention(query, source, allowed, change=change))


class Flamingo(Fusion):
    """H = X + tanh(a) MHA(LN(X), Y, Y), then H + tanh(b) FFN(LN(H)): Alayrac et al., arXiv
    2204.14198. Both gates are scalars that begin at 0; with `layer_norm=False` the module begins
    as the baseline. `width` is that of the FFN, 4D if it is 0."""

    def take(self, query, source, view):
        attention = MultiHeadAttention(self.heads, self.initial, name="attention")
        normed = query.map(LayerNorm(name="norm_attention"))
        return Taken(*attention(normed, source, view.allowed_BxTxS))

    def alpha(self, x, update, y_aligned):
        return jnp.broadcast_to(jnp.tanh(self.param("gate", nn.initializers.zeros, ())), x.shape)

    def last(self, h):
        width = h.shape[-1]
        hidden = self.dense(self.width or 4 * width, "ffn_in")(LayerNorm(name="norm_ffn")(h))
        gate = jnp.tanh(self.param("gate_ffn", nn.initializers.zeros, ()))
        return h + gate * self.dense(width, "ffn_out")(nn.gelu(hidden))


class HeadGate(CrossAttention):
    """Each head's output times sigmoid(w_h X + b_h), before the heads are mixed: arXiv 2505.06708.
    As it does not act on X', the probe has α = 1, and the mean as `head_gate`."""

    def take(self, query, source, view):
        gate_PxH = nn.sigmoid(self.dense(self.heads, "gate")(query.h_PxD))
        gate_BxHxTx1 = query.packing.unpack(gate_PxH).swapaxes(1, 2)[..., None]
        taken = self.attend(query, source, view.allowed_BxTxS, lambda h, own: h * gate_BxHxTx1)
        return taken._replace(more={"head_gate": gate_PxH.mean(-1)})


class OrthogonalResidual(CrossAttention):
    """X' less what lies along X, so that only the rest is added: arXiv 2505.11881."""

    def take(self, query, source, view):
        taken = super().take(query, source, view)
        return taken._replace(update=taken.update - parallel_part(taken.update, query.h_PxD))


class Exclusive(CrossAttention):
    """Each head's output less what lies along the token's own value: exclusive attention
    (arXiv 2603.09078, by its title and abstract), here across streams: X has a value too."""

    def take(self, query, source, view):
        def exclude(h_BxHxTxE, own):
            return h_BxHxTxE - parallel_part(h_BxHxTxE, own())

        return self.attend(query, source, view.allowed_BxTxS, exclude)


class CoAttention(CrossAttention):
    """Both ways: Y' = Y + MHA(Y, X, X), X' = MHA(X, Y', Y') (after Lu et al., arXiv 1908.02265).

    The source's stream itself is not changed, as by no fusion: what comes back is felt by X alone.
    """

    by_token = False

    def take(self, query, source, view):
        back = self.attend(source, query, view.back_BxSxT, name="attention_back").update
        source = source.map(lambda h: h + back)
        return self.attend(query, source, view.allowed_BxTxS)


class Bottleneck(Fusion):
    """Y reaches X through `latents` learnt tokens only (Nagrani et al., arXiv 2107.00135): each
    gathers what a token may see of Y, and the token attends to these. One head."""

    latents: int = 4

    def take(self, query, source, view):
        width = query.h_PxD.shape[-1]
        inner = self.width or width
        latent_KxE = self.param("latents", nn.initializers.normal(), (self.latents, inner))
        key_BxSxE, value_BxSxE = (
            source.packing.unpack(self.dense(inner, name)(source.h_PxD))
            for name in ("key", "value")
        )
        logits_BxKxS = latent_KxE @ key_BxSxE.swapaxes(1, 2) * inner**-0.5
        allowed_BxTx1xS = view.allowed_BxTxS[:, :, None]
        weights_BxTxKxS = nn.softmax(
            jnp.where(allowed_BxTx1xS, logits_BxKxS[:, None], -1e30), axis=-1
        )
        gathered_BxTxKxE = jnp.einsum("btks,bse->btke", weights_BxTxKxS, value_BxSxE)
        gathered_PxKxE = query.packing.pack(gathered_BxTxKxE)
        query_PxE = self.dense(inner, "query")(query.h_PxD)
        logits_PxK = jnp.einsum("pe,pke->pk", query_PxE, gathered_PxKxE) * inner**-0.5
        share_PxK = nn.softmax(logits_PxK, -1)
        mixed_PxE = jnp.einsum("pk,pke->pe", share_PxK, gathered_PxKxE)
        looks_PxKxS = query.packing.pack(weights_BxTxKxS * allowed_BxTx1xS)
        looks_PxS = jnp.einsum("pk,pks->ps", share_PxK, looks_PxKxS)
        return Taken(self.dense(width, "out")(mixed_PxE), looks_PxS)


class Add(Fusion):
    """X' = MLP(Y), so that X'' is a sum: the simplest that has parameters, of no paper."""

    attends = False

    def take(self, query, source, view):
        y, weights = self.one_y(query, source, view)
        return Taken(self.mlp(y, y.shape[-1]), weights)

    def mlp(self, h: jax.Array, width: int) -> jax.Array:
        """W2 relu(W1 h + b1) + b2."""
        hidden = self.dense(self.width or h.shape[-1], "in")(h)
        return self.dense(width, "out")(nn.relu(hidden))


class ConcatMLP(Add):
    """X' = MLP([X; Y]), as neural collaborative filtering joins its two (He et al., arXiv
    1708.05031)."""

    def take(self, query, source, view):
        y, weights = self.one_y(query, source, view)
        both = jnp.concatenate([query.h_PxD, y], -1)
        return Taken(self.mlp(both, y.shape[-1]), weights)


class FiLM(Add):
    """X' = γ(Y) ⊙ X + β(Y): feature-wise modulation (Perez et al., arXiv 1709.07871)."""

    def take(self, query, source, view):
        y, weights = self.one_y(query, source, view)
        scale, shift = jnp.split(self.mlp(y, 2 * y.shape[-1]), 2, -1)
        return Taken(scale * query.h_PxD + shift, weights)


class Bilinear(Fusion):
    """X' = W (tanh(U X) ⊙ tanh(V Y)): low-rank bilinear pooling (Kim et al., arXiv 1610.04325)."""

    attends = False

    def take(self, query, source, view):
        x, (y, weights) = query.h_PxD, self.one_y(query, source, view)
        rank = self.width or x.shape[-1]
        both = jnp.tanh(self.dense(rank, "of_x")(x)) * jnp.tanh(self.dense(rank, "of_y")(y))
        return Taken(self.dense(x.shape[-1], "out")(both), weights)


class Experts(Fusion):
    """X' = Σ w_i α_i ⊙ X'_i, w = softmax(W [X; Y]): a mixture whose experts are other fusions, all
    of them for every token (Jacobs et al. 1991; sparsely: Shazeer et al., arXiv 1701.06538).

    `width` is that of each expert. Their mean weights are statistics, `weight_NAME`.
    """

    experts: tuple[str, ...] = ()
    # Fields of single experts.
    latents: int = 4
    gate: str = "vector"
    gate_input: str = "update"
    gate_act: str = "sigmoid"
    gate_inner: str = "relu"
    gate_hidden: int = 4

    def take(self, query, source, view):
        both = jnp.concatenate([query.h_PxD, self.one_y(query, source, view)[0]], -1)
        weight_PxN = nn.softmax(self.dense(len(self.experts), "router")(both), -1)
        bare = {"residual": False, "layer_norm": False, "part": "full"}
        total, looks, more = 0.0, 0.0, {}
        for name, weight_P in zip(self.experts, weight_PxN.T, strict=True):
            kind = kind_of(name)
            expert = kind(**fields_for(kind, self) | bare, name=name)
            added, probe = expert.fused(query, source, view)
            total += weight_P[:, None] * added.h_PxD
            looks += weight_P[:, None] * probe.weights_PxS
            more[f"weight_{name}"] = weight_P
        return Taken(total, looks, more)
