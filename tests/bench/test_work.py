import jax
import jax.numpy as jnp
import pytest

from oa_jax.bench.work import Work, count

X, W = jnp.ones((5, 3)), jnp.ones((3, 7))
FLOPS = 2 * 5 * 3 * 7
BYTES = 4 * (15 + 21 + 35)  # operands and result


def test_a_product_by_hand():
    """Its operands and result count as the product's, and again as what the function is given."""
    assert count(lambda x, w: x @ w, X, W) == Work(FLOPS, 2 * BYTES)


def test_loops_count_as_often_as_they_turn():
    def looped(x, w):
        return jax.lax.scan(lambda total, _: (total + x @ w, None), jnp.zeros((5, 7)), None, 11)[0]

    assert count(looped, X, W) == Work(11 * FLOPS, 11 * BYTES + BYTES)


def test_of_a_branch_the_larger_counts():
    def branch(x, w):
        return jax.lax.cond(x[0, 0] > 0, lambda: x @ w, lambda: jnp.zeros((5, 7)))

    assert count(branch, X, W).flops == FLOPS


def test_of_branches_by_platform_this_device_s_counts():
    """The softmax gathers on a CPU and multiplies with all items elsewhere."""

    def branch(x, w):
        by_platform = {"cpu": lambda x, w: x @ w, "tpu": lambda x, w: (x @ w) * (x @ w)}
        return jax.lax.platform_dependent(x, w, **by_platform, default=lambda x, w: x @ w @ w.T @ w)

    assert jax.default_backend() == "cpu" and count(branch, X, W).flops == FLOPS


def test_products_inside_other_transformations():
    def loss(w):
        return jnp.sum(jax.nn.relu(jax.jit(lambda x: x @ w)(X)))

    assert count(loss, W).flops == FLOPS
    # Backwards once more, for W alone.
    assert count(jax.grad(loss), W).flops == 2 * FLOPS
    batched = count(jax.vmap(lambda x: x @ W), jnp.ones((4, 5, 3)))
    assert batched.flops == 4 * FLOPS


def test_rows_that_are_gathered_and_scattered():
    ids = jnp.array([0, 2])
    rows = 4 * 2 * 7
    ends = 4 * (21 + 2)  # the table and the ids; results follow
    assert count(lambda w, i: w[i], W, ids).bytes >= 2 * rows + ends + rows
    added = count(lambda w, i: w.at[i].add(1.0), W, ids).bytes
    assert added >= 3 * rows + ends + 4 * 21
    assert added - count(lambda w, i: w + i[0], W, ids).bytes == 3 * rows


@pytest.mark.parametrize(("flops", "moved", "least"), [(10.0, 1.0, 5.0), (1.0, 10.0, 2.5)])
def test_the_slower_of_both_decides(flops, moved, least):
    assert Work(flops, moved).least_seconds(2.0, 4.0) == least
