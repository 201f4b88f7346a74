import jax
import jax.numpy as jnp
import numpy as np
import pytest

from oa_jax.nn.layers import (
    Dropout,
    LayerNorm,
    MultiHeadAttention,
    Packing,
    Stream,
    _cut_halves,
    _own_halves,
    chunks_pay,
    in_chunks,
    own_view,
)


def drop(h, rate, seed=0):
    return Dropout().apply({}, h, rate, rngs={"dropout": jax.random.key(seed)})


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_keeps_the_mean_at_a_traced_rate(rate):
    n = 200_001  # odd: half of the last random word is not used
    dropped = jax.jit(drop)(jnp.ones(n), jnp.float32(rate))
    kept = dropped > 0
    five_sigma = 5 * np.sqrt(rate * (1 - rate) / n)
    assert abs(kept.mean() - (1 - rate)) < five_sigma
    assert abs(dropped.mean() - 1) < five_sigma / (1 - rate)
    np.testing.assert_allclose(dropped[kept], 1 / (1 - rate), rtol=1e-6)


@pytest.mark.parametrize("size", [1, 2, 4097])
def test_the_form_for_tpus_draws_the_same_halves(size):
    for seed in range(3):
        cut, own = (form(jax.random.key(seed), size) for form in (_cut_halves, _own_halves))
        assert cut.dtype == own.dtype == jnp.uint16
        np.testing.assert_array_equal(own, cut)


def test_dropout_without_rescaling_would_be_noticed():
    dropped = drop(jnp.ones(200_001), 0.5)
    assert abs((dropped > 0).mean() - 1) > 0.4


def test_dropout_of_rate_0_and_none_is_the_identity():
    h = jax.random.normal(jax.random.key(3), (7, 5))
    np.testing.assert_array_equal(drop(h, jnp.float32(0)), h)
    np.testing.assert_array_equal(Dropout().apply({}, h, None), h)
    assert (drop(h, 0.5) != h).any()


def test_dropout_masks_follow_the_key():
    h = jnp.ones((40, 25))
    np.testing.assert_array_equal(drop(h, 0.5, seed=1), drop(h, 0.5, seed=1))
    one, other = drop(h, 0.5, seed=1) > 0, drop(h, 0.5, seed=2) > 0
    assert 0.4 < (one == other).mean() < 0.6  # independent masks agree half of the time


def test_dropout_units_are_independent():
    kept = np.asarray(drop(jnp.ones((20_000, 2)), 0.5)) > 0
    # Two neighbours share a random word: they must not share its bits.
    assert abs((kept[:, 0] == kept[:, 1]).mean() - 0.5) < 0.02


def test_dropout_gradient_is_its_mask():
    h = jnp.arange(1.0, 101.0)
    gradient = jax.grad(lambda h: drop(h, 0.25).sum())(h)
    np.testing.assert_allclose(gradient, drop(h, 0.25) / h, rtol=1e-6)


GRID = jnp.arange(1.0, 1 + 3 * 4 * 2).reshape(3, 4, 2)
AT = jnp.array([5, 0, 11, 12, 7, 12])  # 12 = 3 * 4: an unused slot


def test_packing_takes_and_puts_back():
    packing = Packing(AT, (3, 4))
    packed = packing.pack(GRID)
    np.testing.assert_array_equal(packed[0], GRID[1, 1])
    np.testing.assert_array_equal(packed[2], GRID[2, 3])
    np.testing.assert_array_equal(packed[jnp.array([3, 5])], 0)
    chosen = np.zeros(12, bool)
    chosen[[5, 0, 11, 7]] = True
    np.testing.assert_array_equal(packing.unpack(packed), GRID * chosen.reshape(3, 4, 1))
    np.testing.assert_array_equal(packing.pack(packing.unpack(packed)), packed)


def test_unused_slots_are_dropped_on_the_way_back():
    packing = Packing(AT, (3, 4))
    packed = packing.pack(GRID)
    garbage = packed.at[jnp.array([3, 5])].set(99.0)
    np.testing.assert_array_equal(packing.unpack(garbage), packing.unpack(packed))
    # A used slot is not: its value arrives.
    assert packing.unpack(packed.at[4].set(99.0))[1, 3, 0] == 99.0


def test_packing_of_ids_masks_and_of_nothing():
    packing = Packing(AT, (3, 4))
    mask = packing.pack(GRID[..., 0] > 8)
    assert mask.dtype == bool
    np.testing.assert_array_equal(mask, [True, False, True, False, True, False])
    empty = Packing(jnp.full(2, 12), (3, 4))
    np.testing.assert_array_equal(empty.unpack(jnp.ones((2, 5))), jnp.zeros((3, 4, 5)))


def test_packing_the_whole_grid_is_a_reshape():
    packing = Packing(None, (3, 4))
    np.testing.assert_array_equal(packing.pack(GRID), GRID.reshape(12, 2))
    np.testing.assert_array_equal(packing.unpack(packing.pack(GRID)), GRID)
    np.testing.assert_array_equal(Packing(jnp.arange(12), (3, 4)).pack(GRID), packing.pack(GRID))


def test_packing_gradients_reach_used_slots_only():
    packing = Packing(AT, (3, 4))
    gradient = jax.grad(lambda p: packing.unpack(p).sum())(jnp.ones((6, 2)))
    np.testing.assert_array_equal(gradient[:, 0], [1, 1, 1, 0, 1, 0])


def test_stream_keeps_padding_at_zero_and_cuts_the_last_position():
    h, real = GRID.reshape(12, 2), jnp.arange(12) % 4 > 0
    stream = Stream(h, real, Packing(None, (3, 4)))
    mapped = stream.map(lambda h: h + 1)
    np.testing.assert_array_equal(mapped.h_PxD[~real], 0)
    np.testing.assert_array_equal(mapped.h_PxD[real], h[real] + 1)
    np.testing.assert_array_equal(stream.last().h_PxD, GRID[:, 3])
    np.testing.assert_array_equal(stream.last().real_P, [True] * 3)


def naive_attention(params, q_TxD, s_SxD, allowed_TxS, heads):
    """Loops over heads and queries, in float64."""
    params = jax.tree.map(lambda p: np.asarray(p, np.float64), params)
    width = q_TxD.shape[1]
    q, k, v = (
        x @ params["w_in"][:, i * width : (i + 1) * width]
        + params["b_in"][i * width : (i + 1) * width]
        for i, x in enumerate((q_TxD, s_SxD, s_SxD))
    )
    out = np.zeros_like(q)
    for t, allowed in enumerate(allowed_TxS):
        if not allowed.any():
            continue
        for e in np.split(np.arange(width), heads):
            logits = k[allowed][:, e] @ q[t, e] / np.sqrt(width / heads)
            weight = np.exp(logits - logits.max())
            out[t, e] = weight / weight.sum() @ v[allowed][:, e]
        out[t] = out[t] @ params["out"]["kernel"] + params["out"]["bias"]
        assert np.abs(out[t]).max() > 0
    return out


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_attention_against_loops(heads):
    rng = np.random.default_rng(heads)
    allowed = rng.random((2, 5, 6)) < 0.4
    allowed[0, 2] = False
    query = Stream(jnp.asarray(rng.normal(size=(10, 8))), jnp.ones(10, bool), Packing(None, (2, 5)))
    at = jnp.array([0, 1, 3, 6, 9, 11, 12])  # places 2, 4, 5 and 7, 8, 10 are empty
    source = Stream(jnp.asarray(rng.normal(size=(7, 8))), jnp.ones(7, bool), Packing(at, (2, 6)))
    module = MultiHeadAttention(heads)
    params = module.init(jax.random.key(0), query, source, jnp.asarray(allowed))["params"]
    params = jax.tree.map(lambda p: jnp.asarray(rng.normal(0, 0.5, p.shape)), params)
    got, _ = module.apply({"params": params}, query, source, jnp.asarray(allowed))
    got = got.reshape(2, 5, 8)
    grids = query.packing.unpack(query.h_PxD), source.packing.unpack(source.h_PxD)
    for row in range(2):
        q, s = (np.asarray(grid[row], np.float64) for grid in grids)
        expected = naive_attention(params, q, s, allowed[row], heads)
        np.testing.assert_allclose(got[row], expected, atol=1e-5)
        wrong = naive_attention(params, q, s, allowed[row], 8 // heads if heads != 2 else 8)
        assert np.abs(got[row] - wrong).max() > 1e-2
    np.testing.assert_array_equal(got[0, 2], 0)  # no allowed key: exactly 0, not the bias


# Geometry: LN(x + ηu) - LN(x) = η √d/‖x̃‖ ũ_⊥ + O(η²).
RNG = np.random.default_rng(5)
X, U = RNG.normal(size=(2, 6, 16)) * [[[3.0]], [[1.0]]]
ETAS = (0.4, 0.2, 0.1)


def rows_and_chunks(n_slots, causal, key_mask):
    """-> (two functions (states of queries and keys, key of dropout) -> attention, states, which
    slots are real): rows of every number of tokens, from none to all, at the end of the window or
    not."""
    lengths, n, d = (6, 0, 1, 6, 3, 5, 2), 6, 8
    real_BxL = np.arange(n) >= n - np.array(lengths)[:, None]
    real_BxL[5] = np.arange(n) < 5
    at_P = jnp.nonzero(real_BxL.ravel(), size=n_slots, fill_value=real_BxL.size)[0]
    real_P = at_P < real_BxL.size
    states = np.random.default_rng(0).normal(size=(2, n_slots, d))
    attention, packing = MultiHeadAttention(2), Packing(at_P, real_BxL.shape)

    def both(states):
        return [Stream(jnp.asarray(h * real_P[:, None]), real_P, packing) for h in states]

    allowed = own_view(*both(states), causal, key_mask, chunks=False)[2]
    params = attention.init(jax.random.key(0), *both(states), allowed)
    params = jax.tree.map(lambda p: p + 0.3 * (p.ndim == 1), params)  # empty places have the biases

    def apply(view, key):
        how = {} if key is None else {"rate": 0.5, "rngs": {"dropout": key}}
        return attention.apply(params, *view, **how)[0] * real_P[:, None]

    def rows(states, key=None):
        return apply([*both(states), allowed], key)

    def chunks(states, key=None):
        return apply(in_chunks(*both(states), empty=not key_mask, causal=causal), key)

    return rows, chunks, states, real_P


@pytest.mark.parametrize(
    ("n_slots", "causal", "key_mask"),  # of 23 tokens, in chunks of 6
    [(23, True, True), (24, True, True), (31, True, True)]
    + [(31, True, False), (23, False, True), (24, False, False)],
)
def test_attention_in_chunks_is_that_of_rows(n_slots, causal, key_mask):
    rows, chunks, states, real_P = rows_and_chunks(n_slots, causal, key_mask)
    weight_PxD = np.random.default_rng(1).normal(size=states[0].shape)
    expected, found = rows(states), chunks(states)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert (np.abs(expected)[real_P].max(1) > 1e-3).all()
    gradients = (
        jax.grad(lambda h, of=of: jnp.sum(of(h) * weight_PxD))(states) for of in (rows, chunks)
    )
    np.testing.assert_allclose(*gradients, atol=1e-5)
    other = rows_and_chunks(n_slots, not causal, not key_mask)[0](states)
    assert np.abs(other - expected).max() > 1e-2  # twin: the masks count


@pytest.mark.parametrize(("causal", "key_mask"), [(True, False), (False, False)])
def test_dropout_in_chunks_has_the_distribution_of_rows(causal, key_mask):
    """Also of empty places, of which one key stands for all: each is dropped by itself."""
    rows, chunks, states, real_P = rows_and_chunks(24, causal, key_mask)
    keys, draws = jax.random.split(jax.random.key(1), 1500), []
    for form in (rows, chunks):
        draws.append(jax.jit(jax.vmap(lambda key, form=form: form(states, key)[real_P]))(keys))
    mean, std = (np.array([of(one, 0) for one in draws]) for of in (np.mean, np.std))
    assert std.min() > 1e-4
    assert (np.abs(mean[0] - mean[1]) < 6 * std.max(0) * (2 / 1500) ** 0.5).all()
    np.testing.assert_allclose(*std, rtol=0.15)


@pytest.mark.parametrize(
    ("form", "n_slots", "expected"),
    [("auto", 30, True), ("auto", 31, False), ("rows", 1, False), ("chunks", 60, True)]
    + [("auto", None, False), ("chunks", None, False)],
)
def test_chunks_where_they_pay(form, n_slots, expected):
    at_P = None if n_slots is None else jnp.arange(n_slots)
    assert chunks_pay(form, Packing(at_P, (10, 6))) is expected


def layer_norm(x):
    """The project's own norm at its initialisation, that is without affine part."""
    params = {"params": {"norm": {"scale": jnp.ones(x.shape[-1]), "bias": jnp.zeros(x.shape[-1])}}}
    return np.asarray(LayerNorm().apply(params, jnp.asarray(x, jnp.float32)))


def centred(x):
    return x - x.mean(-1, keepdims=True)


def perpendicular(u, x):
    return u - (u * x).sum(-1, keepdims=True) / (x * x).sum(-1, keepdims=True) * x


def step_errors(direction):
    """Largest distance from the first-order term along `direction`, for each η."""
    norm = np.linalg.norm(centred(X), axis=-1, keepdims=True)
    first_order = np.sqrt(X.shape[-1]) / norm * direction
    return [np.abs(layer_norm(X + e * U) - layer_norm(X) - e * first_order).max() for e in ETAS]


def test_layer_norm_moves_along_the_orthogonal_part():
    errors = step_errors(perpendicular(centred(U), centred(X)))
    ratios = np.divide(errors[:-1], errors[1:])
    np.testing.assert_allclose(ratios, 4, rtol=0.15)  # half the step, a quarter of the error


def test_layer_norm_does_not_move_along_the_whole_update():
    errors = step_errors(centred(U))
    ratios = np.divide(errors[:-1], errors[1:])
    np.testing.assert_allclose(ratios, 2, rtol=0.15)  # an error of first order


def test_parallel_updates_vanish():
    parallel = layer_norm(X + 0.4 * centred(X)) - layer_norm(X)
    assert np.abs(parallel).max() < 1e-5
    assert np.abs(layer_norm(X + 0.4 * U) - layer_norm(X)).max() > 1e-2
