"""LLM4CDSR (Applied-Machine-Learning-Lab/LLM4CDSR-pytorch) with gated cross-attention.

Three SASRec streams: x (everything, item vectors from the frozen global text table through a
linear adapter), A and B (one domain each, without gaps, frozen local tables). An item is scored by
the sum of two products: stream x with its adapted global vector, its domain's stream with its
local vector. The frozen tables are no parameters: `Backbone.on` puts them beside the data.
"""

import dataclasses
import math
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp

from oa_jax.backbones.llm4cdsr.fields import Model, Quirks
from oa_jax.nn import histories, losses, shards
from oa_jax.nn.fusion import DOMAINS, Probe
from oa_jax.nn.known import GCAConfig
from oa_jax.nn.layers import XAVIER_NORMAL, Packing, linear_bias
from oa_jax.nn.streams import STREAMS, OnTables, Rate, StreamNet, dropout_of

Batch = dict[str, jax.Array]


@flax.struct.dataclass
class Tables:
    """Frozen inputs, row 0 of item tables is padding. items: (nA+nB+1, E) by joint id; local_A,
    local_B: (nA+1, D), (nB+1, D) by the domain's own id; users: (profiles, V)."""

    items: Any
    local_A: Any
    local_B: Any
    users: Any


class Adapter(nn.Module):
    """Linear E -> E/2 -> D without activation (Q14), so both steps are one matrix."""

    width: int

    @nn.compact
    def __call__(self, rows_PxE):
        wide = rows_PxE.shape[-1]
        half = wide // 2
        w_in = self.param("w_in", XAVIER_NORMAL, (wide, half))
        b_in = self.param("b_in", linear_bias(wide), (half,))
        w_out = self.param("w_out", XAVIER_NORMAL, (half, self.width))
        b_out = self.param("b_out", linear_bias(half), (self.width,))
        return rows_PxE @ (w_in @ w_out) + (b_in @ w_out + b_out)


class LLM4CDSR(StreamNet):
    """The network: a batch to the hidden states of its streams."""

    quirks: Quirks

    def setup(self):
        cfg = self.config
        self.add_layers(XAVIER_NORMAL, dict.fromkeys(STREAMS, cfg.length + 1))
        if cfg.global_llm:
            self.adapter = Adapter(cfg.d_embed)
        else:
            table_init = shards.with_spare_rows(XAVIER_NORMAL)
            self.items = self.param("items", table_init, (sum(self.n_items) + 1, cfg.d_embed))
        if cfg.beta > 0:
            self.user_adapter = Adapter(cfg.d_embed)

    def items_of(self, tables: Tables, ids: jax.Array | None = None) -> jax.Array:
        """Vectors of joint ids for stream x, (…, D), by default of all rows. The adapter gives
        padding its bias."""
        if self.config.global_llm:
            table = tables.items
        else:
            table = jax.lax.stop_gradient(self.items) if self.config.freeze else self.items
        vectors = table if ids is None else shards.rows(table, ids)
        return self.adapter(vectors) if self.config.global_llm else vectors

    def vectors(self, stream: str, ids_P: jax.Array, tables: Tables) -> jax.Array:
        width = self.config.d_embed
        if stream != "x":
            return shards.rows(getattr(tables, f"local_{stream}"), ids_P) * math.sqrt(width)
        if self.config.global_llm and self.quirks.q13_scale_by_table_width:
            width = tables.items.shape[1]
        return self.items_of(tables, ids_P) * math.sqrt(width)

    def place(self, real_BxL: jax.Array) -> jax.Array:
        """1, 2, … along a row's tokens; padding has position 0."""
        return jnp.cumsum(real_BxL, axis=1) * real_BxL

    def users_of(self, tables: Tables, rows: jax.Array) -> jax.Array:
        """Vectors of user profiles, (…, D)."""
        return self.user_adapter(shards.rows(tables.users, rows))

    @nn.compact
    def __call__(
        self,
        tables: Tables,
        batch: Batch,
        rate: Rate = None,
        last_only: bool = False,
        names: tuple[str, ...] = STREAMS,
    ) -> tuple[dict[str, jax.Array], dict[str, Probe]]:
        """-> ({stream: h}, probes {"place/domain": Probe}).

        Packed batches (with `at_x`, `at_A`, `at_B`) give h at those slots, others at every
        position; `last_only` gives the last position of each row. names: the streams to run.
        """
        masks = not self.quirks.q1_no_causal_mask, not self.quirks.q4_attend_to_padding
        out, probes = self.run(batch, rate, names, *masks, last_only, tables)
        # Not masked: an empty position has the norm's shift as its state (Q17).
        return {name: self.norm[name](stream.h_PxD) for name, stream in out.items()}, probes


@dataclasses.dataclass(frozen=True, eq=False)
class Backbone(OnTables):
    """LLM4CDSR to the rest of the house, see `base.Backbone`. tables: the frozen inputs.

    The losses L_reg and L_user are there where `config` gives them a weight (alpha, beta).
    """

    n_items: tuple[int, int]
    config: Model
    tables: Tables
    gca: GCAConfig = GCAConfig()
    quirks: Quirks = Quirks.of("official")
    dtype: str = "float32"  # of activations

    @property
    def net(self) -> LLM4CDSR:
        return LLM4CDSR(self.n_items, self.config, self.gca, self.dtype, self.quirks)

    @property
    def frozen(self) -> tuple[str, ...]:
        """A random table in the text table's stead stays as it was drawn, too."""
        return ("net/items",) if self.config.freeze and not self.config.global_llm else ()

    def init(self, key: jax.Array) -> dict:
        """-> {"net": …} and the tables that are trained."""
        cfg, (net_key, *keys) = self.config, jax.random.split(key, 3)
        batch = self.rows(*histories.ONE)
        empty = jax.tree.map(lambda a: jnp.zeros((2, a.shape[1])), self.tables)

        def touch(net):
            net(empty, batch)
            if cfg.beta > 0:
                net.users_of(empty, batch["domain"])

        params = {"net": nn.init(touch, self.net)(net_key)["params"]}
        for domain, n_items, one in zip(DOMAINS, self.n_items, keys, strict=True):
            if not cfg.local_llm:
                params[f"local_{domain}"] = XAVIER_NORMAL(one, (n_items + 1, cfg.d_embed))
            elif not cfg.freeze:
                params[f"local_{domain}"] = jnp.asarray(getattr(self.tables, f"local_{domain}"))
        if cfg.global_llm and not cfg.freeze:
            params["items"] = jnp.asarray(self.tables.items)
        return params

    def _tables(self, params) -> Tables:
        """The tables, those that are trained from the parameters."""
        trained = {k: v for k, v in params.items() if k != "net"}
        return jax.tree.map(jnp.asarray, self.tables.replace(**trained))

    def apply(self, params: dict, *args: Any, **options: Any) -> Any:
        """The network with the tables as they are now."""
        return self.net.apply({"params": params["net"]}, self._tables(params), *args, **options)

    def loss(self, params: dict, batch: Batch, key: jax.Array | None, hparams: dict) -> losses.Loss:
        """Training loss of one batch -> (scalar, aux of scalars): L_A + L_B + α L_reg + β L_user
        of the official code, and λ mean cos²(X, X').

        batch: of `task.py`. key: None for no dropout.
        hparams: dropout, alpha, beta, tau, tau_reg, ortho_weight.
        """
        hidden, probes = self.apply(params, batch, **dropout_of(key, hparams))
        aux = {f"loss_{d}": self._pair_loss(params, batch, hidden, d) for d in DOMAINS}
        total = aux["loss_A"] + aux["loss_B"]
        nan = self.quirks.q8_empty_mean_is_nan
        if self.config.alpha > 0:
            pair = [self.apply(params, batch[f"reg_{d}"], method="items_of") for d in DOMAINS]
            both_B = (batch["reg_A"] != 0) & (batch["reg_B"] != 0)
            aux["loss_reg"] = losses.contrastive(*pair, hparams["tau_reg"], both_B, nan)
            total += hparams["alpha"] * aux["loss_reg"]
        if self.config.beta > 0:
            aux["loss_user"] = self._user_loss(params, batch, hidden, key, hparams)
            total += hparams["beta"] * aux["loss_user"]
        return losses.penalised(total, aux, probes, hparams["ortho_weight"], self.gca.part_of)

    def _pair_loss(self, params, batch, hidden, domain):
        """L_A or L_B: every token of the domain's stream together with its position in stream x."""
        shape, local = batch["seq"].shape, getattr(self._tables(params), f"local_{domain}")
        of_domain = Packing(batch[f"at_{domain}"], shape)
        x_BxLxD = Packing(batch["at_x"], shape).unpack(hidden["x"])
        row_P = batch[f"at_{domain}"] // shape[1]
        flat_P = row_P * shape[1] + of_domain.pack(batch[f"pair_{domain}"])
        x_PxD = x_BxLxD.reshape(-1, x_BxLxD.shape[-1]).at[flat_P].get(mode="fill", fill_value=0)
        positive_P = of_domain.pack(batch[f"pos_{domain}"])
        offset = self.n_items[0] * (domain == "B")

        def score(local_P, joint_P):
            items = self.apply(params, joint_P, method="items_of")
            own_P = jnp.sum(hidden[domain] * shards.rows(local, local_P), -1)
            return own_P + jnp.sum(x_PxD * items, -1)

        return losses.pairwise(
            score(positive_P, positive_P + offset),
            score(batch[f"neg_{domain}"], batch[f"neg_x_{domain}"]),
            of_domain.pack(batch[f"seq_{domain}"]) != 0,
            self.quirks.q8_empty_mean_is_nan,
        )

    def _user_loss(self, params, batch, hidden, key, hparams):
        """L_user: profiles against the last position of stream x."""
        if key is None or not self.quirks.q16_second_pass:
            x_BxLxD = Packing(batch["at_x"], batch["seq"].shape).unpack(hidden["x"])
            shift = params["net"]["norm_x"]["norm"]["bias"]
            last_BxD = jnp.where(batch["seq"][:, -1:] != 0, x_BxLxD[:, -1], shift)
        else:
            again = {"dropout": jax.random.fold_in(key, 1)}
            options = {"last_only": True, "names": ("x",), "rngs": again}
            last_BxD = self.apply(params, batch, hparams["dropout"], **options)[0]["x"]
        chosen_B = batch["real"]
        if not self.quirks.q17_users_without_input:
            chosen_B &= batch["seq"][:, -1] != 0
        profiles_BxD = self.apply(params, batch["profile"], method="users_of")
        nan = self.quirks.q8_empty_mean_is_nan
        return losses.contrastive(profiles_BxD, last_BxD, hparams["tau"], chosen_B, nan)

    def index(self, params: dict) -> jax.Array:
        """Vectors of all items by joint id, (nA+nB+1, 2D): adapted global and local side by side,
        so that one product of width 2D is the sum of both."""
        tables, (n_a, n_b) = self._tables(params), self.n_items
        of_x = self.apply(params, method="items_of")
        local = jnp.concatenate([tables.local_A[: n_a + 1], tables.local_B[1 : n_b + 1]])
        # Tables that are divided among devices have more rows than items.
        local = jnp.pad(local, [(0, len(of_x) - len(local)), (0, 0)])
        return jnp.concatenate([of_x, local], -1)

    def rows(self, history_BxH: jax.Array, domain_B: jax.Array) -> Batch:
        length, n_a = self.config.length, self.n_items[0]
        seq = histories.last(history_BxH, length)
        out = {"seq": seq, "domain": domain_B}
        for d, name in enumerate(DOMAINS):
            own = histories.of_domain(seq, d, self.n_items)
            if self.quirks.drop_last_of_other:
                column = jnp.where(own, jnp.arange(length), -1)
                is_last = column == column.max(1, keepdims=True)
                own &= ~(is_last & (domain_B != d)[:, None])
            local, column = jnp.where(own, seq - n_a * d, 0), jnp.arange(length)
            found = histories.chosen_last(own, length, (local, 0), (column, -1))
            out |= dict(zip((f"seq_{name}", f"time_{name}"), found, strict=True))
        return out

    def encode(self, params: dict, batch: Batch) -> jax.Array:
        """-> (B, 2D), stream x and that of the target."""
        hidden, _ = self.apply(params, batch, last_only=True)
        own = jnp.where((batch["domain"] == 0)[:, None], hidden["A"], hidden["B"])
        return jnp.concatenate([hidden["x"], own], -1)

    def score(
        self, index_IxE: jax.Array, encoded_BxE: jax.Array, candidates: jax.Array
    ) -> jax.Array:
        """Candidates (B, 2, K) are the official ones (Q2): column j adds stream x's score of item
        [0, j] to the domain stream's of item [1, j]."""
        if candidates.ndim < 3:
            return shards.scores(index_IxE, encoded_BxE, candidates)
        halves = (jnp.split(array, 2, 1) for array in (index_IxE, encoded_BxE))
        return sum(map(shards.products, *halves, candidates.swapaxes(0, 1)))
