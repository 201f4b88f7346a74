"""Item vectors of a synthetic world, and how the two domains' lie."""

import math

import numpy as np
import pytest

from oa_jax.errors import UserError
from oa_jax.events.views import embeddings, seen, turned
from oa_jax.events.world import World, latents

N_A = World().n_items[0]


def test_embeddings_of_the_synthetic_world():
    """A function of the items alone: of their topic, and of what is their own."""
    world = World()
    table, truth = embeddings(world), latents(world)
    assert table.shape == (900, 64) and table.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(table, axis=1), 1, atol=1e-6)
    alike = table @ table.T
    same = truth.item_topic[:, None] == truth.item_topic
    np.fill_diagonal(same, False)
    near = np.corrcoef((truth.item_latent @ truth.item_latent.T)[same], alike[same])[0, 1]
    assert alike[same].mean() > alike[~same & ~np.eye(900, dtype=bool)].mean() + 0.2 and near > 0.4
    other = World(redundancy=0.0, stay=0.2, taste=0.0, synergy=0.5, silence=(0.1, 0.2))
    np.testing.assert_array_equal(embeddings(other), table)
    assert (embeddings(World(seed=1)) != table).any()


def across(rows):
    """Mean cosine of an item of A and one of B, of the same topic and of others."""
    topic = latents(World()).item_topic
    same = topic[:N_A, None] == topic[N_A:]
    alike = rows[:N_A] @ rows[N_A:].T
    return alike[same].mean(), alike[~same].mean()


def test_a_rotation_keeps_what_each_domain_says_and_takes_what_they_share():
    plain = embeddings(World())
    for rotation in (0.5, 1.0):
        table = embeddings(World(rotation=rotation))
        np.testing.assert_array_equal(table[:N_A], plain[:N_A])
        a, b = table[N_A:], plain[N_A:]
        np.testing.assert_allclose(a @ a.T, b @ b.T, atol=1e-5)
        expected = math.sin(math.pi * rotation) / (math.pi * rotation)
        assert (a * b).sum(1).mean() == pytest.approx(expected, abs=0.06)
    assert across(plain)[0] > 0.3
    assert across(embeddings(World(rotation=0.5)))[0] == pytest.approx(0.64 * 0.4, abs=0.06)
    assert abs(across(embeddings(World(rotation=1.0)))[0]) < 0.06


@pytest.mark.parametrize("width", [1, 2, 5, 8])
def test_a_turn_is_orthogonal_in_every_width_and_starts_at_nothing(width):
    rows = np.random.default_rng(0).standard_normal((4, width))
    whole = turned(rows, 1.0, np.random.default_rng(1))
    np.testing.assert_allclose(whole @ whole.T, rows @ rows.T, atol=1e-12)
    np.testing.assert_allclose(turned(rows, 0.0, np.random.default_rng(1)), rows, atol=1e-12)
    half = turned(turned(rows, 0.5, np.random.default_rng(1)), 0.5, np.random.default_rng(1))
    np.testing.assert_allclose(half, whole, atol=1e-12)  # of the same planes
    assert width == 1 or np.abs(whole - rows).max() > 0.1


def test_a_gap_shifts_b_and_keeps_lengths():
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((300, 20)) * rng.uniform(1, 3, (300, 1))
    rows[7] = rows[250] = 0  # no text
    both = np.stack([rows, rows])
    for amounts in ({"gap": 2.0}, {"rotation": 0.7}, {"rotation": 0.7, "gap": 2.0}):
        found = seen(both, 100, **amounts, rng=np.random.default_rng(1))
        np.testing.assert_array_equal(found[:100], rows[:100].astype(np.float32))
        lengths = [np.linalg.norm(x, axis=1) for x in (found, rows)]
        np.testing.assert_allclose(*lengths, rtol=1e-5)
        mean = np.linalg.norm((found[100:] / np.maximum(lengths[0], 1e-9)[100:, None]).mean(0))
        assert (mean > 0.8) == ("gap" in amounts)  # 2 / sqrt(1 + 2²) = 0.89


def test_two_views_share_nothing_until_they_are_trained():
    world = World(views=2)
    plain, table = embeddings(World()), embeddings(world)
    np.testing.assert_array_equal(table[N_A:], plain[N_A:])  # B's are texts, as ever
    assert abs(across(table)[0]) < 0.06
    same_encoder = table[:N_A] @ table[:N_A].T  # but an image says as much as a text
    assert np.corrcoef(same_encoder.ravel(), (plain[:N_A] @ plain[:N_A].T).ravel())[0, 1] > 0.5


def test_training_is_given_both_views_of_all_items():
    shapes = []

    def swap(views):
        shapes.append(views.shape)
        return views[::-1]

    world = World(views=2, aligned=True)
    found, untrained = embeddings(world, align=swap), embeddings(World(views=2))
    assert shapes == [(2, 900, 64)] and (found != untrained).any()
    with pytest.raises(UserError, match="aligned True: expected `align`"):
        embeddings(world)
