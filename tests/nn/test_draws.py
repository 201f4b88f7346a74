"""Draws on the device: distinct, uniform, and a pure function of stored integers."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from oa_jax.nn import draws
from oa_jax.nn.draws import Purpose

NO_ITEM = np.iinfo(np.int32).max


def keys(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def sets_p_value(draws_NxS, admitted, size):
    """Chi-square p-value of drawn sets against the uniform law over all sets of `size`."""
    sets = [tuple(sorted(row)) for row in np.asarray(draws_NxS).tolist()]
    every = list(itertools.combinations(admitted, size))
    counts = np.array([sets.count(one) for one in every])
    assert counts.sum() == len(sets), "a set that is not among the admitted ones"
    return stats.chisquare(counts).pvalue if len(every) > 1 else 1.0


@pytest.mark.parametrize(("n", "size"), [(1, 1), (7, 7), (50, 49), (1000, 64)])
def test_distinct_numbers_in_range(n, size):
    drawn = np.asarray(jax.vmap(lambda key: draws.distinct(key, n, size))(keys(200)))
    assert drawn.min() >= 0 and drawn.max() < n
    assert all(len(set(row)) == size for row in drawn.tolist())


def floyd(key, n, size):
    """R. Floyd's loop as it is written: step j draws from 0..n - size + j, and takes the largest
    of these where its draw is taken."""
    bits, chosen = np.asarray(jax.random.bits(key, (size,))), []
    for j in range(size):
        draw = int(bits[j]) % (n - size + j + 1)
        chosen.append(n - size + j if draw in chosen else draw)
    return chosen


@pytest.mark.parametrize(("n", "size"), [(1, 1), (12, 12), (13, 12), (130, 128), (10_379, 128)])
def test_distinct_is_floyds_loop(n, size):
    keys_N = keys(300 if n < 1000 else 30, seed=n)
    drawn = jax.jit(jax.vmap(lambda key: draws.distinct(key, n, size)))(keys_N)
    for row, key in zip(np.asarray(drawn).tolist(), keys_N, strict=True):
        assert row == floyd(key, n, size)


@pytest.mark.parametrize(("n", "size"), [(6, 1), (6, 3), (6, 5), (6, 6)])
def test_every_set_is_equally_likely(n, size):
    drawn = jax.vmap(lambda key: draws.distinct(key, n, size))(keys(8000, seed=size))
    assert sets_p_value(drawn, range(n), size) > 1e-3


def test_the_chi_square_notices_a_biased_set():
    """Twin: Floyd's sample is uniform as a set only; its last entries alone lean to large ones."""
    drawn = jax.vmap(lambda key: draws.distinct(key, 6, 4)[1:])(keys(8000))
    assert sets_p_value(drawn, range(6), 3) < 1e-6


def test_a_traced_n_draws_what_a_static_one_draws():
    sizes_N = jnp.asarray([5, 6, 9, 60, 61])
    keys_N = keys(len(sizes_N), seed=3)
    traced = jax.vmap(lambda key, n: draws.distinct(key, n, 5))(keys_N, sizes_N)
    for row, key, n in zip(traced, keys_N, sizes_N.tolist(), strict=True):
        np.testing.assert_array_equal(row, draws.distinct(key, n, 5))
    assert (np.asarray(traced) < np.asarray(sizes_N)[:, None]).all()
    # n counts: the last rows reach numbers that the first rows must not.
    assert np.asarray(traced)[-2:].max() >= 30


OUTSIDE = {
    "none": (6, []),
    "both ends": (7, [0, 6]),
    "a block": (8, [2, 3, 4]),
    "all but the number asked for": (9, [0, 2, 3, 5, 7, 8]),
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_outside_is_uniform_over_the_admitted(name):
    n, excluded = OUTSIDE[name]
    padded = jnp.asarray(excluded + [NO_ITEM] * 3, jnp.int32)

    def draw(key):
        return draws.distinct_outside(key, n, padded, len(excluded), 3)

    drawn = jax.vmap(draw)(keys(6000, seed=n))
    admitted = [i for i in range(n) if i not in excluded]
    assert set(np.asarray(drawn).ravel().tolist()) == set(admitted)
    assert sets_p_value(drawn, admitted, 3) > 1e-3


def test_the_check_notices_an_exclusion_list_out_of_order():
    """Twin: the shift needs ascending numbers; otherwise excluded ones are drawn."""
    wrong = jnp.asarray([6, 0, 3], jnp.int32)
    drawn = jax.vmap(lambda key: draws.distinct_outside(key, 8, wrong, 3, 3))(keys(2000))
    admitted = [1, 2, 4, 5, 7]
    assert set(np.asarray(drawn).ravel().tolist()) != set(admitted)


def test_outside_with_a_different_list_in_every_row():
    rng = np.random.default_rng(0)
    n, width = 40, 20
    lists = [np.sort(rng.choice(n, count, replace=False)) for count in rng.integers(0, 21, 300)]
    padded = np.full((300, width), NO_ITEM, np.int32)
    for row, values in zip(padded, lists, strict=True):
        row[: len(values)] = values
    counts = jnp.asarray([len(values) for values in lists])
    draw = jax.vmap(lambda k, e, c: draws.distinct_outside(k, n, e, c, 20))
    for row, values in zip(np.asarray(draw(keys(300), padded, counts)), lists, strict=True):
        assert len(set(row.tolist())) == 20
        assert not set(row.tolist()) & set(values.tolist())
        assert row.min() >= 0 and row.max() < n


@pytest.mark.parametrize(("n_users", "batch_size"), [(10, 4), (12, 4), (3, 8), (1, 1)])
def test_every_user_once_an_epoch_and_filler_last(n_users, batch_size):
    for epoch in range(5):
        rows = np.asarray(draws.epoch_rows(7, epoch, n_users, batch_size))
        assert rows.shape == (-(-n_users // batch_size), batch_size)
        assert sorted(rows.ravel()[:n_users].tolist()) == list(range(n_users))
        assert (rows.ravel()[n_users:] == n_users).all()


def test_the_order_is_a_function_of_seed_and_epoch():
    def order(seed, epoch):
        return draws.epoch_rows(seed, epoch, 50, 8).tobytes()

    drawn = {(seed, epoch): order(seed, epoch) for seed in range(4) for epoch in range(4)}
    assert all(order(*which) == rows for which, rows in drawn.items())
    assert len(set(drawn.values())) == len(drawn)


def test_every_place_of_an_epoch_is_equally_likely():
    rows = jax.vmap(lambda seed: draws.epoch_rows(seed, 0, 5, 3).ravel()[:5])(jnp.arange(4000))
    for column in np.asarray(rows).T:
        assert stats.chisquare(np.bincount(column, minlength=5)).pvalue > 1e-3


def test_streams_of_seed_purpose_and_index_are_apart():
    triples = itertools.product(range(3), Purpose, range(3))
    data = {tuple(np.asarray(jax.random.key_data(draws.key_of(*t))).tolist()) for t in triples}
    assert len(data) == 3 * len(Purpose) * 3


def one_seed(seed):
    """Everything that is drawn for a seed."""
    key = draws.key_of(seed, Purpose.NEGATIVES, 5)
    excluded = jnp.asarray([1, 4, 9, NO_ITEM], jnp.int32)
    return {
        "rows": draws.epoch_rows(seed, 3, 30, 8),
        "distinct": draws.distinct(key, 40, 12),
        "outside": draws.distinct_outside(key, 40, excluded, 3, 12),
    }


@pytest.mark.parametrize("over", [jax.vmap, lambda f: lambda s: jax.lax.map(f, s)])
def test_draws_are_the_same_under_vmap_map_and_alone(over):
    seeds = jnp.asarray([0, 5, 11], jnp.int32)
    together = jax.jit(over(one_seed))(seeds)
    for slot, seed in enumerate(seeds.tolist()):
        alone = jax.jit(one_seed)(seed)
        for name, values in alone.items():
            np.testing.assert_array_equal(together[name][slot], values, err_msg=name)
        other = one_seed(seed + 1)  # twin: another seed is noticed
        assert not any(np.array_equal(together[k][slot], v) for k, v in other.items())
