"""Every fusion of the list keeps the rules of `Fusion`, and has the size that is said of it."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from oa_jax.errors import UserError
from oa_jax.nn import known
from oa_jax.nn.fusion import Times, fuse, in_columns, kind_of, make, matched_width, n_parameters
from oa_jax.nn.known import GCAConfig
from oa_jax.nn.layers import Packing, Stream
from tests.backbones.abxi import _batches as abxi
from tests.nn.test_gca import (
    AT,
    HEADS,
    Q_TIME,
    QUERY_REAL,
    S_TIME,
    B,
    D,
    S,
    T,
    allowed_keys,
    streams,
    without_key,
)

NAMES = tuple(known.FUSIONS)
ONE_Y = ("add", "concat_mlp", "film", "bilinear")


class Case:
    """A fusion with random parameters; one compiled function says all that is asked of it."""

    def __init__(self, **fields):
        self.module = make(GCAConfig(**fields), HEADS)
        args = *streams(), Q_TIME, S_TIME
        shapes = jax.eval_shape(self.module.init, jax.random.key(0), *args)["params"]
        rng = np.random.default_rng(3)
        self.params = jax.tree.map(lambda a: jnp.asarray(rng.normal(0, 0.4, a.shape)), shapes)
        self.run = jax.jit(self._run)

    def _run(self, query, source, hidden=None):
        """(stream, probe, how much the stream's slots depend on those of the query and of the
        source, the gradient of all by the parameters)."""

        def out(query_h, source_h, params):
            both = query.replace(h_PxD=query_h), source.replace(h_PxD=source_h)
            return self.module.apply({"params": params}, *both, Q_TIME, S_TIME, hidden)

        args = query.h_PxD, source.h_PxD, self.params
        h, back = jax.vjp(lambda *args: out(*args)[0].h_PxD, *args)
        basis = jnp.eye(len(h))[:, :, None] * jax.random.normal(jax.random.key(1), h.shape)
        on_query, on_source, _ = jax.vmap(back)(basis)
        depends = [jnp.abs(gradient).max(-1) for gradient in (on_query, on_source)]
        return *out(*args), *depends, back(jnp.ones_like(h))[2]

    def __call__(self, query=None, source=None, hidden=None):
        default_query, default_source = streams()
        return self.run(query or default_query, source or default_source, hidden)


@functools.cache
def case(name):
    return Case(fusion=name)


def row_and_time(slot):
    return int(AT[slot]) // T, int(Q_TIME.ravel()[AT[slot]])


@pytest.mark.parametrize("name", NAMES)
def test_a_token_depends_on_what_it_may_see(name):
    _, _, on_query, on_source, _ = case(name)()
    with_keys = {row_and_time(slot)[0] for slot in np.flatnonzero(QUERY_REAL & ~without_key())}
    assert len(with_keys) > 1
    assert kind_of(name).attends is (name not in ONE_Y)  # else its weights follow from the mask
    for slot in np.flatnonzero(QUERY_REAL):
        row, time = row_and_time(slot)
        keys = allowed_keys(slot)
        seen = np.asarray(on_source[slot]).reshape(B, S) > 0
        assert not seen[np.arange(B) != row].any() and not seen[row][~keys].any()
        if name in ONE_Y:
            assert list(np.flatnonzero(seen[row])) == list(np.flatnonzero(keys)[-1:])
        else:
            assert seen[row][keys].all()
        # Of its own stream itself alone; or those whose news the source may have.
        others = np.flatnonzero(np.asarray(on_query[slot]) > 0)
        assert slot in others
        for other in set(others) - {slot}:
            assert not case(name).module.by_token and keys.any() and row_and_time(other)[0] == row
            assert 0 <= row_and_time(other)[1] <= time


@pytest.mark.parametrize("name", NAMES)
def test_padding_and_what_is_missing(name):
    query, source = streams()
    out, probe, *_ = case(name)()
    np.testing.assert_array_equal(out.h_PxD, case(name)(source=streams(garbage=5.0)[1])[0].h_PxD)
    np.testing.assert_array_equal(out.h_PxD[~QUERY_REAL], 0)
    np.testing.assert_array_equal(probe.update[without_key()], 0)
    assert np.abs(probe.update[~without_key()]).max(-1).min() > 1e-4
    for leaf in jax.tree.leaves(probe):
        assert leaf.shape in ((len(AT), D), (len(AT),), (len(AT), S))
    np.testing.assert_allclose(probe.weights_PxS.sum(-1)[:10], ~without_key()[:10], atol=1e-5)
    for slot in range(10):
        assert not np.asarray(probe.weights_PxS[slot])[~allowed_keys(slot)].any()
    no_source = source.replace(h_PxD=source.h_PxD * 0, real_P=source.real_P & False)
    no_query = query.replace(h_PxD=query.h_PxD * 0, real_P=query.real_P & False)
    for q, s in ((query, source), (query, no_source), (no_query, source), (no_query, no_source)):
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(case(name)(q, s)))


def packed(there_BxL, seed, spare):
    """A stream with a token at each of some places of a grid, and unused slots."""
    at_P = np.r_[np.flatnonzero(there_BxL), np.full(spare, there_BxL.size)]
    real_P = at_P < there_BxL.size
    h_PxD = np.random.default_rng(seed).normal(size=(len(at_P), D)) * real_P[:, None]
    return Stream(jnp.asarray(h_PxD), jnp.asarray(real_P), Packing(jnp.asarray(at_P), (B, 6)))


@pytest.mark.parametrize(
    ("name", "pool", "ordered"),
    [(name, "newest", True) for name in NAMES if kind_of(name).by_token]
    + [(name, "mean", True) for name in ONE_Y]
    + [("gca", "newest", False)],
)
def test_a_fusion_in_chunks_is_that_of_rows(name, pool, ordered):
    """Rows of all numbers of tokens; tokens of the domain without a gap, at columns of their own,
    one of them older than the merged stream. The merged stream's slots in order or in two parts."""
    rng = np.random.default_rng(7)
    there_BxL = np.arange(6) >= 6 - rng.integers(0, 7, B)[:, None]
    there_BxL[0] = True
    of_domain = there_BxL & (rng.random((B, 6)) < 0.5)
    time_BxT = np.sort(np.where(of_domain, np.arange(6), -1), 1)
    query_BxT = time_BxT >= 0
    query_BxT[0] = True  # and what stood before
    query, source = packed(query_BxT, 1, 4), packed(there_BxL, 2, 3)
    if not ordered:
        order = rng.permutation(len(source.real_P))
        parts = Packing(source.packing.at_P[order], (B, 6), (4, len(order) - 4))
        source = Stream(source.h_PxD[order], source.real_P[order], parts)
    module, params = make(GCAConfig(fusion=name, pool=pool), HEADS), case(name).params

    def rows(query_h, source_h):
        both = query.replace(h_PxD=query_h), source.replace(h_PxD=source_h)
        column_BxL = jnp.broadcast_to(jnp.arange(6), (B, 6))
        return module.apply({"params": params}, *both, jnp.asarray(time_BxT), column_BxL)

    def chunks(query_h, source_h):
        both = query.replace(h_PxD=query_h), source.replace(h_PxD=source_h)
        view = in_columns(*both, jnp.asarray(time_BxT))
        return module.apply({"params": params}, *view, method=module.fused)

    expected, found = (jax.jit(of)(query.h_PxD, source.h_PxD) for of in (rows, chunks))
    np.testing.assert_allclose(found[0].h_PxD, expected[0].h_PxD, atol=1e-5)
    for said in ("update", "y_pooled", "y_aligned", "gate", "has_key_P", "has_aligned_P"):
        one, other = (getattr(of[1], said) for of in (found, expected))
        np.testing.assert_allclose(one, other, atol=1e-5, err_msg=said)
    assert 0 < expected[1].has_key_P.sum() < query.real_P.sum()
    gradients = (
        jax.jit(jax.grad(lambda *h, of=of: jnp.sum(of(*h)[0].h_PxD ** 2), (0, 1)))
        for of in (rows, chunks)
    )
    for one, other in zip(*(of(query.h_PxD, source.h_PxD) for of in gradients), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


class Meeting(nn.Module):
    """`fuse` at place 0."""

    gca: GCAConfig
    form: str
    last_only: bool = False

    @nn.compact
    def __call__(self, streams):
        column_BxL = jnp.broadcast_to(jnp.arange(6), (B, 6))
        times = Times(*[dict.fromkeys(streams, column_BxL)] * 3)
        how = {"form": self.form, "last_only": self.last_only}
        return fuse(self.gca, 0, streams, times, HEADS, **how)[0]


@pytest.mark.parametrize(
    "fields",
    [{"source": "other"}, {"source": "self"}, {"source": "shuffled"}, {"own_item": "hidden"}]
    + [{"causal": False}, {"key_mask": False}, {"fusion": "co_attention"}]
    + [{"fusion": "experts", "experts": ("film", "co_attention")}],
)
def test_what_has_other_keys_is_fused_by_rows(fields):
    there = np.arange(6) >= np.arange(B)[:, None]
    streams = {"x": packed(there, 0, 1), "A": packed(there, 1, 0), "B": packed(there, 2, 0)}

    def program(form, **fields):
        net = Meeting(GCAConfig(positions=(0,), **fields), form)
        return str(jax.make_jaxpr(lambda: net.init_with_output(jax.random.key(0), streams)[0])())

    assert program("rows", **fields) == program("chunks", **fields)
    assert program("rows") != program("chunks")


@pytest.mark.parametrize("experts", [("gca", "film"), ("film", "co_attention")], ids=str)
def test_the_last_token_alone_is_that_of_all(experts):
    """Unless one of the experts wants the others of its stream, it is asked alone."""
    there = np.arange(6) >= np.arange(B)[:, None]
    streams = {name: packed(there, seed, 0) for seed, name in enumerate(("x", "A", "B"))}
    gca = GCAConfig(fusion="experts", experts=experts, positions=(0,))
    whole, params = Meeting(gca, "rows").init_with_output(KEY, streams)
    alone = Meeting(gca, "rows", last_only=True).apply(params, streams)
    for name in "AB":
        np.testing.assert_allclose(alone[name].h_PxD, whole[name].last().h_PxD, atol=1e-6)


def test_a_fusion_that_looks_ahead_is_found_out():
    """The twin of causality: with all keys allowed later ones count."""
    _, _, _, on_source, _ = Case(fusion="experts", causal=False)()
    seen = np.asarray(on_source).reshape(len(AT), B, S) > 0
    later = [seen[slot, row_and_time(slot)[0]] & ~allowed_keys(slot) for slot in range(10)]
    assert np.any(later)


def test_the_mean_of_all_y():
    _, probe, _, on_source, _ = Case(fusion="film", pool="mean")()
    for slot in range(10):
        seen = np.asarray(on_source[slot]).reshape(B, S)[row_and_time(slot)[0]] > 0
        np.testing.assert_array_equal(seen, allowed_keys(slot))


def counts(name, w):
    """By hand: parameters of a module of inner width w, 0 its own, with its last norm."""
    norm, latents, e, g = 2 * D, 4, w or D, w or 4 * D
    attention = 3 * (D * e + e) + (e * D + D)

    def mlp(given, made):
        hidden = w or given
        return (given * hidden + hidden) + (hidden * made + made)

    found = {
        "gca": 4 * (D * D + D) + (2 * D * g + g) + (g * D + D),
        "add": mlp(D, D),
        "concat_mlp": mlp(2 * D, D),
        "film": mlp(D, 2 * D),
        "bilinear": 2 * (D * e + e) + e * D + D,
        "cross_attention": attention,
        "flamingo": 4 * (D * D + D) + (D * g + g) + (g * D + D) + 2 * 2 * D + 2,
        "head_gate": attention + D * HEADS + HEADS,
        "orthogonal_residual": attention,
        "exclusive": attention,
        "co_attention": 2 * attention,
        "bottleneck": latents * e + 3 * (D * e + e) + (e * D + D),
        "experts": 2 * D * 3 + 3 + attention + mlp(D, 2 * D) + mlp(D, D),
    }
    return found[name] + norm


@pytest.mark.parametrize("name", NAMES)
def test_numbers_of_parameters(name):
    for width in (0, 6, 12):
        gca = GCAConfig(fusion=name, width=width)
        assert n_parameters(gca, D, HEADS) == counts(name, width)
    assert sum(a.size for a in jax.tree.leaves(case(name).params)) == counts(name, 0)
    fields = {"fusion": name, "positions": (0, 2)}
    sizes = [
        sum(a.size for a in jax.tree.leaves(jax.eval_shape(abxi.backbone(of).init, KEY)))
        for of in (fields, {})
    ]
    assert sizes[0] - sizes[1] == 4 * counts(name, 0)  # two places, two domains


KEY = jax.random.key(0)


@pytest.mark.parametrize("name", NAMES)
def test_a_width_that_matches_gca(name):
    gca, d, heads = GCAConfig(fusion=name), 32, 4
    target = n_parameters(GCAConfig(), d, heads)
    width = matched_width(gca, d, heads)
    widths = (width - heads, width, width + heads)
    near = {w: n_parameters(GCAConfig(fusion=name, width=w), d, heads) for w in widths}
    assert width % heads == 0 and abs(near[width] - target) == min(
        abs(size - target) for size in near.values()
    )
    assert abs(near[width] / target - 1) < 0.02


def test_a_size_that_no_width_changes_matches_none():
    with pytest.raises(UserError, match="gca.fusion=gca: its size does not depend on gca.width"):
        matched_width(GCAConfig(gate="none"), 32, 4)
    with pytest.raises(UserError, match=r"gca.fusion=flamingo: has at least \d+ .*, expected \d+"):
        matched_width(GCAConfig(fusion="flamingo", gate="none"), 32, 4)


def test_flamingo_begins_as_the_baseline():
    module = make(GCAConfig(fusion="flamingo", layer_norm=False), HEADS)
    query, source = streams()
    out, probe = jax.jit(lambda: module.init_with_output(KEY, query, source, Q_TIME, S_TIME)[0])()
    np.testing.assert_array_equal(out.h_PxD, query.h_PxD)
    assert np.abs(probe.update).max() > 0


def test_what_is_left_out_is_left_out():
    """Of the update what lies along X; of each head what lies along the token's own value."""
    _, probe, *_ = case("orthogonal_residual")()
    np.testing.assert_allclose(jnp.sum(probe.update * probe.x, -1), 0, atol=1e-4)
    _, plain, *_ = case("cross_attention")()
    assert np.abs(jnp.sum(plain.update * plain.x, -1)).max() > 0.1
    # One head, values and the last product as they are: X' lies across X.
    module = make(GCAConfig(fusion="exclusive", heads=1), 1)
    params = jax.tree.map(jnp.zeros_like, module.init(KEY, *streams(), Q_TIME, S_TIME))["params"]
    attention = params["attention"]
    attention["w_in"] = attention["w_in"].at[:, 2 * D :].set(jnp.eye(D))
    attention["out"]["kernel"] = jnp.eye(D)
    _, probe = module.apply({"params": params}, *streams(), Q_TIME, S_TIME)
    np.testing.assert_allclose(jnp.sum(probe.update * probe.x, -1), 0, atol=1e-4)
    assert np.abs(probe.update[~without_key()]).max(-1).min() > 0.01


def test_experts_are_weighed():
    _, probe, *_ = case("experts")()
    weights = [probe.more[f"weight_{name}"] for name in GCAConfig().experts]
    np.testing.assert_allclose(sum(weights), 1, atol=1e-5)
    assert 0 <= probe.more["weight_film"].min() < probe.more["weight_film"].max() <= 1


def test_an_expert_alone_is_the_fusion_with_its_fields():
    own = {"gate": "scalar", "gate_input": "source", "gate_act": "tanh", "gate_inner": "linear"}
    own |= {"gate_hidden": 3}
    alone, gca = Case(fusion="experts", experts=("gca",), **own), Case(**own)
    gca.params = alone.params["gca"] | {"norm": alone.params["norm"]}
    np.testing.assert_allclose(alone()[0].h_PxD, gca()[0].h_PxD, atol=1e-5)


def test_gates_are_in_the_probe():
    """α where it acts on X', a statistic where it acts on something else."""
    flamingo, params = case("flamingo")()[1], case("flamingo").params
    np.testing.assert_allclose(flamingo.gate, jnp.tanh(params["gate"]), atol=1e-6)
    heads = case("head_gate")()[1]
    np.testing.assert_array_equal(heads.gate, 1)
    assert 0 < heads.more["head_gate"].min() < heads.more["head_gate"].max() < 1


@pytest.mark.parametrize("name", NAMES)
def test_states_of_bfloat16_stay_of_it(name):
    query, source = (
        one.replace(h_PxD=one.h_PxD.astype(jnp.bfloat16).astype(jnp.float32)) for one in streams()
    )
    exact, *_, exact_gradient = case(name)(query, source)
    half = [one.replace(h_PxD=one.h_PxD.astype(jnp.bfloat16)) for one in (query, source)]

    def out(params):
        return case(name).module.apply({"params": params}, *half, Q_TIME, S_TIME)[0].h_PxD

    rounded, back = jax.vjp(out, case(name).params)
    gradient = back(jnp.ones_like(rounded))[0]
    assert rounded.dtype == jnp.bfloat16
    np.testing.assert_allclose(rounded.astype(jnp.float32), exact.h_PxD, atol=0.1)
    for found, leaf in zip(*map(jax.tree.leaves, (gradient, exact_gradient)), strict=True):
        assert found.dtype == jnp.float32
        assert jnp.linalg.norm(found - leaf) < 0.1 * jnp.linalg.norm(leaf) + 0.05
