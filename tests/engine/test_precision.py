"""Products in bfloat16, everything else in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from oa_jax.engine.precision import products_in
from oa_jax.nn import losses

RNG = np.random.default_rng(0)
X, W = (jnp.asarray(RNG.normal(size=shape), jnp.float32) for shape in ((6, 5), (5, 4)))


def rounded(a):
    return a.astype(jnp.bfloat16).astype(jnp.float32)


def product(x, w):
    return x @ w


def test_operands_are_rounded_and_sums_are_not():
    got = products_in("bfloat16", product)(X, W)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, rounded(X) @ rounded(W), rtol=1e-6)
    assert np.abs(got - X @ W).max() > 1e-3  # operands were rounded
    assert np.abs(got - rounded(X @ W)).max() > 1e-4  # the result was not
    # Sums of bfloat16 would stop at 256.
    ones = jnp.ones((1, 1000))
    assert products_in("bfloat16", product)(ones, ones.T) == 1000


def test_float32_is_the_function_itself():
    assert products_in("float32", product) is product


def test_the_gradients_products_are_rounded_too():
    def loss(x, w):
        return jnp.sum(jnp.sin(jax.jit(product)(x, w)))

    got = products_in("bfloat16", jax.grad(loss, (0, 1)))(X, W)
    cotangent = rounded(jnp.cos(rounded(X) @ rounded(W)))
    np.testing.assert_allclose(got[0], cotangent @ rounded(W).T, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(got[1], rounded(X).T @ cotangent, rtol=1e-5, atol=1e-6)
    exact = jax.grad(loss, (0, 1))(X, W)
    assert np.abs(got[1] - exact[1]).max() > 1e-4


def test_results_keep_their_structure_and_other_values_their_bits():
    def fn(tree, key):
        out = {"sum": tree["x"] + 1.0, "product": tree["x"] @ tree["w"]}
        out["integers"] = jnp.arange(4) @ jnp.arange(4)
        return out | {"bits": jax.random.bits(key, (3,)), "same": tree["w"], "constant": 2.0}

    args = ({"x": X, "w": W}, jax.random.key(3))
    plain, got = fn(*args), products_in("bfloat16", fn)(*args)
    assert jax.tree.structure(plain) == jax.tree.structure(got)
    for name in ("sum", "integers", "bits", "same", "constant"):
        np.testing.assert_array_equal(got[name], plain[name])
    assert np.abs(got["product"] - plain["product"]).max() > 1e-3


@pytest.mark.parametrize("outside", [jax.jit, lambda fn: jax.vmap(fn, (0, None))])
def test_under_other_transformations(outside):
    x = X[None] if outside is not jax.jit else X
    got = outside(products_in("bfloat16", product))(x, W)
    np.testing.assert_allclose(got.reshape(6, 4), rounded(X) @ rounded(W), rtol=1e-6)


def test_the_blocks_of_the_loss_keep_their_type():
    ids = jnp.asarray(RNG.integers(1, 9, (6, 4)))
    table, weight, target = (
        jnp.asarray(RNG.normal(size=(9, 5)), jnp.float32),
        jnp.ones(6),
        ids[:, 0],
    )

    def loss(table, h):
        return losses.position_negatives(table, h, weight, target, ids, 4)[0]

    both = [f(table, X) for f in (jax.grad(loss), products_in("bfloat16", jax.grad(loss)))]
    np.testing.assert_array_equal(*both)


@pytest.mark.parametrize("given", ["default", "highest"])
def test_programs_are_traced_in_the_precision_of_the_settings(given):
    settings = toy.toy_experiment(train__matmul_precision=given).engine.settings
    with settings.precision():
        lowered = jax.jit(product).lower(X, W).as_text()
    assert ("precision = [HIGHEST, HIGHEST]" in lowered) == (given == "highest")
