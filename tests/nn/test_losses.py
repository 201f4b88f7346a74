import pathlib
import subprocess
import sys

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from oa_jax.nn import losses
from oa_jax.nn.fusion import Probe
from oa_jax.nn.layers import Packing
from oa_jax.nn.losses import (
    mean_cos2,
    position_negatives,
    shared_negatives,
)

P, K, D, ITEMS = 13, 6, 8, 10  # fewer items than negatives in all: ids repeat everywhere
RNG = np.random.default_rng(0)
TABLE = jnp.asarray(RNG.normal(size=(ITEMS, D)), jnp.float32)
H = jnp.asarray(RNG.normal(size=(P, D)), jnp.float32)
WEIGHT = jnp.asarray(RNG.random(P), jnp.float32).at[-2:].set(0)  # unused slots weigh nothing
TARGET = jnp.asarray(RNG.integers(1, ITEMS, P)).at[-2:].set(0)
NEGATIVES = jnp.asarray(RNG.integers(1, ITEMS, (P, K))).at[0, 0].set(TARGET[0])
NEGATIVES = NEGATIVES.at[1].set(NEGATIVES[1, 0])  # one item six times
BLOCKS = (1, 2, 5, 13, 64)  # dividing 13 or not, and larger


def naive_terms(table, h_PxD, target_P=TARGET, negatives_PxK=NEGATIVES):
    ids = jnp.concatenate([target_P[:, None], negatives_PxK], 1)
    scores = jnp.einsum("pd,pkd->pk", h_PxD, table[ids])
    return -WEIGHT * jax.nn.log_softmax(scores)[:, 0]


def by_position(table, h, block, negatives=NEGATIVES, form="auto"):
    return position_negatives(table, h, WEIGHT, TARGET, negatives, block, form)


@pytest.mark.parametrize("form", ["gather", "products", "counts"])
@pytest.mark.parametrize("block", BLOCKS)
def test_position_negatives(block, form):
    terms = naive_terms(TABLE, H)
    total, terms_P = by_position(TABLE, H, block, form=form)
    np.testing.assert_allclose(total, terms.sum(), rtol=1e-5)
    np.testing.assert_allclose(terms_P, terms, atol=1e-6)

    # A factor outside: the cotangent is not always 1.
    expected = jax.grad(lambda t, h: 3 * naive_terms(t, h).sum(), (0, 1))(TABLE, H)

    def tripled(table, h):
        return 3 * by_position(table, h, block, form=form)[0]

    got = jax.grad(tripled, (0, 1))(TABLE, H)
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    np.testing.assert_array_equal(got[1][-2:], 0)
    assert np.abs(expected[0]).max() > 0.1 and np.abs(expected[1]).max() > 0.1


@pytest.mark.parametrize("allowed", [1, 3 * (K + 1) * D * 4, 5 * (K + 1) * D * 4 + 1])
def test_the_block_of_a_cpu_changes_nothing(allowed, monkeypatch):
    """Blocks of 1, 3 and 5 positions where 13 are asked for; other platforms keep those."""

    def both(h):
        def loss(h):
            return by_position(TABLE, h, 13, form="gather")

        return jax.value_and_grad(loss, has_aux=True)(h)

    monkeypatch.setattr(losses, "CPU_BLOCK_BYTES", 2**30)
    expected = both(H)
    monkeypatch.setattr(losses, "CPU_BLOCK_BYTES", allowed)
    for one, other in zip(jax.tree.leaves(both(H)), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    exported = jax.export.export(jax.jit(both), platforms=["tpu"])(H).mlir_module()
    block = max(allowed // ((K + 1) * D * 4), 1)
    blocks = f"tensor<{-(-13 // block)}x{block}x{D}xf32>"
    here = jax.jit(both).lower(H).as_text()
    assert blocks in here and blocks not in exported


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_accelerators_make_products_while_that_is_the_smaller_array(platform):
    """Seeds side by side on a GPU, in a third of the positions each; in turn on a TPU."""

    def text(table, form="auto"):
        def loss(table, h):
            return by_position(table, h, 13, form=form)[0]

        lowered = jax.export.export(jax.jit(jax.vmap(jax.grad(loss))), platforms=[platform])
        seeds = (jnp.stack([a, a]) for a in (table, H))
        return lowered(*seeds).mlir_module()

    many = jnp.tile(TABLE, (6, 1))  # 60 items, 7 · 8 numbers of a position's drawn ones
    vectors = f"tensor<2x13x{K + 1}x{D}xf32>"
    scores = {"cuda": f"tensor<2x5x{ITEMS}xf32>", "tpu": f"tensor<{losses.TPU_BLOCK}x{ITEMS}xf32>"}
    assert vectors not in text(TABLE) and scores[platform] in text(TABLE)
    assert vectors in text(TABLE, "gather") and vectors in text(many)
    assert vectors not in text(many, "products") and vectors not in text(many, "counts")
    assert "gather" not in text(many, "counts") and "scatter" not in text(many, "counts")


def test_all_forms_on_a_divided_table():
    script = pathlib.Path(__file__).parent / "divided_losses.py"
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    errors = [float(line) for line in done.stdout.split()]
    assert len(errors) == 6 and max(errors) < 1e-5


def test_the_comparison_notices_one_wrong_negative_and_a_lost_repeat():
    other = NEGATIVES.at[3, 2].set(NEGATIVES[3, 2] % (ITEMS - 1) + 1)
    total, terms_P = by_position(TABLE, H, 5, other)
    assert abs(total - naive_terms(TABLE, H).sum()) > 1e-3
    np.testing.assert_array_equal(np.abs(terms_P - naive_terms(TABLE, H)) > 1e-4, np.arange(P) == 3)
    # Each repeat of an item counts: without the six of position 1 its gradient is another.
    once = NEGATIVES.at[1, 1:].set(0)
    gradients = [
        jax.grad(lambda t, n=n: by_position(t, H, 5, n)[0])(TABLE) for n in (NEGATIVES, once)
    ]
    assert np.abs(gradients[0] - gradients[1]).max() > 1e-3


def test_target_among_the_negatives_counts_twice():
    ids = jnp.full((P, K), TARGET[:, None])
    _, terms_P = by_position(TABLE, H, 4, ids)
    np.testing.assert_allclose(terms_P, WEIGHT * np.log(K + 1), rtol=1e-5)
    gradient = jax.grad(lambda h: by_position(TABLE, h, 4, ids)[0])(H)
    np.testing.assert_allclose(gradient, 0, atol=1e-5)  # nothing to tell apart


# Rows of 5 columns; the slots of P in no order, two unused.
SHAPE = (3, 5)
PACKING = Packing(jnp.asarray(np.r_[RNG.permutation(15)[:11], 15, 15]), SHAPE)
SHARED = jnp.asarray(RNG.integers(1, ITEMS, (3, K)))
OF_SLOT = SHARED[jnp.minimum(PACKING.at_P // 5, 2)]


def by_row(table, h, negatives=SHARED):
    return shared_negatives(table, h, WEIGHT, TARGET, PACKING, negatives)


def test_shared_negatives():
    terms = naive_terms(TABLE, H, negatives_PxK=OF_SLOT)
    total, terms_P = by_row(TABLE, H)
    np.testing.assert_allclose(total, terms.sum(), rtol=1e-5)
    np.testing.assert_allclose(terms_P, terms, atol=1e-6)
    expected = jax.grad(lambda t, h: naive_terms(t, h, negatives_PxK=OF_SLOT).sum(), (0, 1))(
        TABLE, H
    )
    got = jax.grad(lambda t, h: by_row(t, h)[0], (0, 1))(TABLE, H)
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    assert abs(by_row(TABLE, H, SHARED[::-1])[0] - total) > 1e-3


FORMS = (by_row, lambda t, h: by_position(t, h, 4))


@pytest.mark.parametrize("form", [lambda h, form=form: form(TABLE, h) for form in FORMS])
def test_terms_are_for_reading_only(form):
    np.testing.assert_array_equal(jax.grad(lambda h: form(h)[1].sum())(H), 0)
    assert np.abs(jax.grad(lambda h: form(h)[0])(H)).max() > 0.01


def test_large_scores_stay_finite():
    forms = (
        lambda t, h, form=form: by_position(t, h, 4, form=form) for form in ("products", "counts")
    )
    for form in (*FORMS, *forms):
        value, gradient = jax.value_and_grad(lambda h, form=form: form(TABLE, h)[0])(1e4 * H)
        assert np.isfinite(value) and np.isfinite(gradient).all() and value > 1e3


def probe(seed, n=9):
    rng = np.random.default_rng(seed)
    x, update = jnp.asarray(rng.normal(size=(2, n, D)), jnp.float32)
    has_key = jnp.asarray(rng.random(n) < 0.6).at[0].set(True)
    update = update * has_key[:, None]
    return Probe(x, update, x, x, x, jnp.ones(n, bool), has_key, has_key)


def naive_cos2(probe):
    x, update = np.asarray(probe.x), np.asarray(probe.update)
    norms = np.linalg.norm(x, axis=1) * np.linalg.norm(update, axis=1)
    chosen = np.asarray(probe.has_key_P)
    return np.mean(((x * update).sum(1)[chosen] / norms[chosen]) ** 2)


def test_mean_cos2_is_a_mean_over_tokens_then_modules():
    one, other = probe(1), probe(2, n=30)
    both = mean_cos2({"0/A": one, "0/B": other})
    expected = (naive_cos2(one) + naive_cos2(other)) / 2
    np.testing.assert_allclose(both, expected, rtol=1e-5)
    # Not the mean over all tokens of both.
    n = np.array([p.has_key_P.sum() for p in (one, other)])
    assert abs(both - n @ [naive_cos2(one), naive_cos2(other)] / n.sum()) > 1e-3


def test_mean_cos2_of_nothing_is_0_and_so_is_its_gradient():
    empty = probe(3)
    empty = empty.replace(update=empty.update * 0, has_key_P=empty.has_key_P & False)

    def value(x, update):
        return mean_cos2({"0/A": empty.replace(x=x, update=update)})

    assert value(empty.x, empty.update) == 0
    for gradient in jax.grad(value, (0, 1))(empty.x * 0, empty.update):
        np.testing.assert_array_equal(gradient, 0)


def test_mean_cos2_takes_a_short_direction_for_one_until_it_is_rounding():
    one = probe(6, n=1)
    for length, expected in ((1e-8, 1), (1e-10, 0)):
        x = jnp.zeros_like(one.x).at[0, 0].set(1)
        found = mean_cos2({"0/A": one.replace(x=x, update=length * x)})
        assert float(found) == pytest.approx(expected)


@pytest.mark.parametrize("scale", [1e-12, 1e-18, 1e-30])
def test_mean_cos2_of_tiny_updates_keeps_its_gradient_finite(scale):
    """Right after the initialisation X' may be as good as 0; the penalty may not blow up then."""
    tiny = probe(4)

    def value(x, update):
        return mean_cos2({"0/A": tiny.replace(x=x, update=update)})

    for x_scale in (1.0, scale):
        gradients = jax.grad(value, (0, 1))(x_scale * tiny.x, scale * tiny.update)
        assert all(np.isfinite(gradient).all() for gradient in gradients)
