"""Aggregation is a mean over a set; KL against its closed form and against Monte Carlo."""

import jax
import jax.numpy as jnp
import numpy as np

from oa_jax.backbones.cdsrnp import neural_process
from oa_jax.backbones.cdsrnp.neural_process import Gaussian


def users(n=9, pairs=2, width=5, seed=0):
    return jax.random.normal(jax.random.key(seed), (n, pairs, width))


def test_mean_does_not_depend_on_the_order_of_users_or_pairs():
    r, every = users(), jnp.ones((1, 9), bool)
    order = np.random.default_rng(0).permutation(9)
    expected = neural_process.sums(r, every).mean
    for other in (r[order], r[:, ::-1]):
        np.testing.assert_allclose(neural_process.sums(other, every).mean, expected, atol=1e-6)


def test_mean_does_not_depend_on_doubling_the_set_and_a_sum_does():
    r, every = users(), jnp.ones((1, 9), bool)
    once = neural_process.sums(r, every)
    twice = neural_process.sums(jnp.concatenate([r, r]), jnp.ones((1, 18), bool))
    np.testing.assert_allclose(twice.mean, once.mean, atol=1e-6)
    assert np.abs(twice.total - once.total).max() > 0.1


def test_only_the_chosen_count_and_an_empty_set_is_zero():
    r = users()
    chosen = jnp.array([[True, False, True] + [False] * 6, [False] * 9])
    mean = neural_process.sums(r, chosen).mean
    np.testing.assert_allclose(mean[0], r[jnp.array([0, 2])].mean((0, 1)), atol=1e-6)
    np.testing.assert_array_equal(mean[1], 0)


def gaussians():
    """q = N(1, 0.5²) x N(-0.3, 0.2²), p = N(0, 1) x N(0.1, 0.6²)."""
    q = Gaussian(jnp.array([1.0, -0.3]), jnp.array([0.5, 0.2]))
    return q, Gaussian(jnp.array([0.0, 0.1]), jnp.array([1.0, 0.6]))


def test_kl_by_hand():
    q, p = gaussians()
    # ln(1/0.5) + (0.25 + 1)/2 - 1/2 = 0.818147;  ln(0.6/0.2) + (0.04 + 0.16)/0.72 - 1/2 = 0.876390
    np.testing.assert_allclose(neural_process.kl_divergence(q, p), 0.818147 + 0.876390, atol=1e-5)
    assert neural_process.kl_divergence(q, q) == 0


def test_kl_by_monte_carlo():
    q, p = gaussians()

    def log_density(at, z):
        return jnp.sum(-jnp.log(at.sd) - (z - at.mean) ** 2 / (2 * at.sd**2), -1)

    z = jax.vmap(q.draw)(jax.random.split(jax.random.key(0), 200_000))
    terms = log_density(q, z) - log_density(p, z)
    error = 4 * float(terms.std()) / np.sqrt(len(terms))
    assert abs(float(terms.mean() - neural_process.kl_divergence(q, p))) < error < 0.02


def test_draws_have_the_mean_and_spread_asked_for():
    q, _ = gaussians()
    z = jax.vmap(q.draw)(jax.random.split(jax.random.key(1), 50_000))
    np.testing.assert_allclose(z.mean(0), q.mean, atol=0.01)
    np.testing.assert_allclose(z.std(0), q.sd, rtol=0.02)


def test_spread_of_the_head_is_bounded():
    head = neural_process.LatentHead(6)
    r = 100 * users()[:, 0]
    gaussian = head.apply(head.init(jax.random.key(0), r), r)
    assert gaussian.mean.shape == gaussian.sd.shape == (9, 6)
    assert 0.1 <= gaussian.sd.min() < 0.2 and 0.9 < gaussian.sd.max() <= 1.0
