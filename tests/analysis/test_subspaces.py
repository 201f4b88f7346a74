"""Statistics of second moments against closed forms and brute force."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from analysis import subspaces
from analysis.subspaces import Moments
from oa_jax.nn.angles import null_abs_cos

D = 6
PARTS = ("fit", "choose", "test")
VECTORS = ("x", "update", "y")


def moments(x, update, y, shift=None, mask=None):
    """Moments of tokens, by the program of the device."""
    shift = np.zeros((3, x.shape[1])) if shift is None else np.asarray(shift)
    mask = np.ones(len(x), bool) if mask is None else mask
    arrays = [jnp.asarray(a, jnp.float32) for a in (x, update, y)]
    gram = subspaces.gram(arrays, jnp.asarray(mask), jnp.asarray(shift, jnp.float32))
    return Moments(np.asarray(gram, np.float64), shift.astype(np.float64))


def exact(x, update, y):
    """The same in float64, for closed forms."""
    norms = [(a**2).sum(1, keepdims=True) for a in (x, update, y)]
    z = np.concatenate([np.ones((len(x), 1)), x, update, y, *norms], 1)
    return Moments(z.T @ z, np.zeros((3, x.shape[1])))


def correlated(seed=0, n=400, width=D):
    """X, X' = part of X, part of Y and noise, Y; all with means."""
    rng = np.random.default_rng(seed)
    x, y, noise = rng.normal(size=(3, n, width)) * [[[1.0]], [[0.7]], [[0.5]]] + 0.8
    x *= np.linspace(2, 0.3, width)  # more in some directions than in others
    y[:, 0] += x[:, 1]
    map_x, map_y = np.random.default_rng(9).normal(size=(2, width, width)) / math.sqrt(width)
    return x, x @ map_x + y @ map_y + noise - 0.3, y


def split(arrays, sizes=(1, 1, 2), **more):
    """{part: Moments} of a quarter, a quarter and a half of the tokens."""
    ends = np.cumsum(sizes) * len(arrays[0]) // sum(sizes)
    pieces = [np.split(a, ends[:-1]) for a in arrays]
    return {name: moments(*of_part, **more) for name, *of_part in zip(PARTS, *pieces, strict=True)}


def everything(parts):
    return subspaces.own_statistics(parts) | subspaces.statistics(parts)


# ---- moments


def test_moments_against_numpy():
    x, update, y = correlated()
    mask = np.arange(len(x)) % 3 > 0
    found = moments(x, update, y, shift=[x[0], update[0], y[0]], mask=mask)
    assert found.n == mask.sum() and found.width == D
    for role, array in zip(VECTORS, (x, update, y), strict=True):
        np.testing.assert_allclose(found.mean(role), array[mask].mean(0), atol=1e-5)
        variance = array[mask].var(0).sum()
        assert found.variance(role) == pytest.approx(variance, rel=1e-5)
    cross = np.cov(x[mask].T, update[mask].T, bias=True)[:D, D:]
    np.testing.assert_allclose(found.covariance("x", "update"), cross, atol=1e-5)


def test_blocks_add_up_to_the_whole():
    arrays = correlated()
    whole, parts = moments(*arrays), split(arrays)
    total = subspaces.sum_of(parts)
    np.testing.assert_allclose(total.gram, whole.gram, rtol=1e-5)
    elsewhere = moments(*arrays, shift=np.ones((3, D)))
    with pytest.raises(ValueError, match="different points"):
        whole + elsewhere


def test_the_shift_changes_no_statistic():
    arrays = correlated()
    means = [a.mean(0) for a in arrays]
    plain, shifted = everything(split(arrays)), everything(split(arrays, shift=means))
    for name, value in plain.items():
        assert shifted[name] == pytest.approx(value, rel=1e-3, abs=1e-5), name
    assert plain["mean_share_x"] > 0.2
    # Near the means it keeps digits: far away, float32 blocks lose them without it.
    far = [a + 300 for a in arrays]
    true = everything(split(arrays))["cka_x_update"]
    near = everything(split(far, shift=[a.mean(0) for a in far]))["cka_x_update"]
    assert near == pytest.approx(true, abs=1e-3)
    lost = everything(split(far))["cka_x_update"]
    assert abs(lost - true) > 1e-2


# ---- CKA


def brute_hsic(x, y):
    """Song et al. 2012, Eq. 5, with n×n matrices."""
    n = len(x)
    k, m = x @ x.T, y @ y.T
    np.fill_diagonal(k, 0), np.fill_diagonal(m, 0)
    one = np.ones(n)
    total = np.trace(k @ m) + (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
    return (total - 2 / (n - 2) * (one @ k @ m @ one)) / (n * (n - 3))


@pytest.mark.parametrize("n", [5, 30])
def test_unbiased_hsic_and_cka_against_brute_force(n):
    arrays = dict(zip(VECTORS, correlated(3, n), strict=True))
    found = exact(*arrays.values())
    hsic = {}
    for a in VECTORS:
        for b in VECTORS:
            hsic[a, b] = brute_hsic(arrays[a], arrays[b])
            assert found.hsic(a, b) == pytest.approx(hsic[a, b], rel=1e-9, abs=1e-12)
    expected = hsic["x", "y"] / math.sqrt(hsic["x", "x"] * hsic["y", "y"])
    assert subspaces.cka(found, "x", "y") == pytest.approx(expected, rel=1e-8)


def test_cka_of_a_rotation_is_1_and_of_independent_vectors_0():
    rng = np.random.default_rng(4)
    x, y = rng.normal(size=(2, 40, D))
    turned = 3 * x @ np.linalg.qr(rng.normal(size=(D, D)))[0] - 2
    assert subspaces.cka(exact(x, turned, y), "x", "update") == pytest.approx(1, abs=1e-9)
    draws = [np.random.default_rng(s).normal(size=(2, 40, D)) for s in range(200)]
    found = np.array([subspaces.cka(exact(x, y, y), "x", "y") for x, y in draws])
    error = found.std() / math.sqrt(len(found))
    assert abs(found.mean()) < 4 * error and error < 0.01

    def biased(x, y):
        x, y = x - x.mean(0), y - y.mean(0)
        own = np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)
        return np.linalg.norm(x.T @ y) ** 2 / own

    # With so few tokens the usual estimate is far from 0.
    assert np.mean([biased(x, y) for x, y in draws]) > 0.1


def test_known_cka_of_some_coordinates():
    """k of D independent coordinates: ‖C_xy‖² = k, so CKA = √(k / D)."""
    x = np.random.default_rng(5).normal(size=(40_000, D))
    some = x * (np.arange(D) < 2)
    assert subspaces.cka(exact(x, some, x), "x", "update") == pytest.approx(
        math.sqrt(2 / D), abs=0.01
    )


# ---- spectrum and subspaces


def cross_polytope(lengths):
    """±l_i e_i: mean 0, covariance diag(l²) / D exactly."""
    half = np.diag(lengths)
    return np.concatenate([half, -half])


def test_spectrum_of_known_variances():
    lengths = np.sqrt([8, 4, 2, 1, 1, 0])
    found = exact(*[cross_polytope(lengths)] * 3)
    shares, directions = subspaces.spectrum(found, "update")
    np.testing.assert_allclose(shares, np.array([8, 4, 2, 1, 1, 0]) / 16, atol=1e-12)
    np.testing.assert_allclose(np.abs(directions[:, 0]), np.eye(D)[0], atol=1e-9)
    assert subspaces.participation(shares) == pytest.approx(16**2 / (64 + 16 + 4 + 1 + 1))
    assert subspaces.leading(shares) == 4  # 8 + 4 + 2 = 0.875, with 1 more 0.9375
    assert subspaces.leading(np.array([0.9, 0.1])) == 1  # exactly 90 %
    assert subspaces.participation(np.full(D, 1 / D)) == pytest.approx(D)
    assert subspaces.leading(np.full(10, 0.1)) == 9


@pytest.mark.parametrize("angle", [0.0, 0.4, 1.2, math.pi / 2])
def test_known_principal_angles(angle):
    """X spans e1, e2; X' spans e2 and e1 turned towards e3: cosines 1 and cos(angle)."""
    turned = np.eye(D)
    turned[0] = math.cos(angle) * np.eye(D)[0] + math.sin(angle) * np.eye(D)[2]
    x = cross_polytope([2, 1, 0, 0, 0, 0])
    update = cross_polytope([1, 2, 0, 0, 0, 0]) @ turned
    found = exact(x, update, x)
    out = subspaces.subspace_statistics(*(subspaces.spectrum(found, r) for r in ("x", "update")))
    assert out["subspace_cos"] == pytest.approx((1 + math.cos(angle)) / 2, abs=1e-7)
    assert out["subspace_cos2"] == pytest.approx((1 + math.cos(angle) ** 2) / 2, abs=1e-7)
    assert out["subspace_cos_max"] == pytest.approx(1)
    assert out["subspace_cos2_null"] == pytest.approx(2 / D)


def test_null_of_random_subspaces():
    mean, square, most = subspaces.random_subspaces(20, 1, 1)
    assert mean == most == pytest.approx(null_abs_cos(20), abs=0.06) and square == 1 / 20
    assert subspaces.random_subspaces(D, D, 2) == pytest.approx((1, 1, 1))
    draws = []
    for s in range(300):
        rng = np.random.default_rng(s)
        a, b = (np.linalg.qr(rng.normal(size=(12, k)))[0] for k in (3, 5))
        draws.append(np.mean(subspaces.principal_cosines(a, b) ** 2))
    found = subspaces.random_subspaces(12, 3, 5)
    assert np.mean(draws) == pytest.approx(found[1], rel=0.05) and found[1] == 5 / 12
    assert found[0] < math.sqrt(found[1]) < found[2]


# ---- regression


def test_known_share_explained():
    """X' = X A + Y B + noise with orthogonal A, B: the shares are those of the variances."""
    rng = np.random.default_rng(6)
    x, y, noise = rng.normal(size=(3, 20_000, D))
    turn_x, turn_y = (np.linalg.qr(rng.normal(size=(D, D)))[0] for _ in range(2))
    parts = split((x, 2 * x @ turn_x + y @ turn_y + noise + 7, y))
    assert subspaces.explained(parts, ("x",)) == pytest.approx(4 / 6, abs=0.02)
    assert subspaces.explained(parts, ("y",)) == pytest.approx(1 / 6, abs=0.02)
    assert subspaces.explained(parts, ("x", "y")) == pytest.approx(5 / 6, abs=0.02)


def test_r2_against_least_squares():
    x, update, y = correlated(7, 800)
    parts = split((x, update, y))
    train, test = slice(0, 400), slice(400, 800)
    design = np.column_stack([np.ones(800), x, y])
    weights = np.linalg.lstsq(design[train], update[train], rcond=None)[0]
    residual = update[test] - design[test] @ weights
    expected = 1 - (residual**2).sum() / (update[test] - update[test].mean(0)).var(0).sum() / 400
    both = parts["fit"] + parts["choose"]
    found = subspaces.ridge(both, ("x", "y"))(1e-6)
    assert subspaces.r2(parts["test"], *found, ("x", "y")) == pytest.approx(expected, abs=1e-3)
    assert subspaces.explained(parts, ("x", "y")) == pytest.approx(expected, abs=0.01)


def test_held_out_share_of_independent_vectors_is_not_above_0():
    width = 40
    arrays = np.random.default_rng(8).normal(size=(3, 240, width))
    parts = split(arrays)
    assert subspaces.explained(parts, ("x", "y")) < 0.02
    # On the tokens that it was fitted to, the same regression explains a lot.
    fitted = subspaces.ridge(parts["fit"], ("x", "y"))(1e-6)
    assert subspaces.r2(parts["fit"], *fitted, ("x", "y")) > 0.5
    # Here a strong ridge is the better one, and it is the one that is chosen.
    weak = subspaces.ridge(parts["fit"] + parts["choose"], ("x", "y"))(1e-6)
    assert subspaces.r2(parts["test"], *weak, ("x", "y")) < subspaces.explained(parts, ("x", "y"))


# ---- invariance


def rotation(seed):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(D, D)))[0]


OF_BOTH = ("subspace_cos", "subspace_cos2", "subspace_cos_max")


def test_rotation_and_scale_of_each_change_nothing_but_the_angles_between_them():
    x, update, y = correlated()
    before = everything(split((x, update, y)))
    together = rotation(1)
    after = everything(split((3 * x @ together, 0.1 * update @ together, 20 * y @ rotation(2))))
    for name, value in before.items():
        assert after[name] == pytest.approx(value, rel=2e-3, abs=1e-4), name
    apart = everything(split((x @ rotation(3), update, y)))
    for name in set(before) - set(OF_BOTH):
        assert apart[name] == pytest.approx(before[name], rel=2e-3, abs=1e-4), name
    assert all(abs(apart[name] - before[name]) > 1e-3 for name in OF_BOTH[:2])
    # What is not a rotation does change them.
    bent = everything(split((x * np.arange(1, D + 1), update, y)))
    for name in ("cka_x_update", "participation_x", "mean_share_x"):
        assert abs(bent[name] - before[name]) > 3e-3, name


# ---- undefined


def test_what_does_not_vary_has_no_spectrum_no_cka_and_no_share():
    x, _, y = correlated()
    for constant in (np.zeros_like(x), np.full_like(x, 0.37)):
        found = everything(split((x, constant, y), shift=[x[0], constant[0], y[0]]))
        undefined = {name for name, value in found.items() if math.isnan(value)}
        assert {"participation_update", "rank90_update", "cka_x_update", "r2_x"} <= undefined
        assert {"subspace_cos", "subspace_cos_null", "spectrum_update/0001"} <= undefined
        assert not undefined & {"participation_x", "cka_x_y", "rank90_x", "mean_share_x"}
    assert found["mean_share_update"] == pytest.approx(1)


def test_without_tokens_everything_is_nan():
    arrays = correlated()
    found = everything(split(arrays))
    empty = {name: moments(*arrays, mask=np.zeros(len(arrays[0]), bool)) for name in PARTS}
    values = everything(empty)
    assert all(math.isnan(value) for value in values.values())
    assert not any(math.isnan(value) for value in found.values())
