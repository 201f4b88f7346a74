"""Principal components, profiles without held-out events, the synthetic world's embeddings."""

import numpy as np
import pytest

from oa_jax.data import embeddings, synthetic
from oa_jax.data.log import make_log
from oa_jax.data.splits import Split, leave_one_out
from oa_jax.errors import UserError


def test_components_keep_distances_and_order_of_variance():
    rows = np.random.default_rng(0).normal(size=(40, 6)) * [5, 1, 3, 0.1, 2, 0.5]
    found = embeddings.principal_components(rows, 6)
    assert (np.diff(found.var(0)) < 0).all() and np.abs(found.mean(0)).max() < 1e-6
    apart = np.linalg.norm(rows[:, None] - rows, axis=-1)
    np.testing.assert_allclose(np.linalg.norm(found[:, None] - found, axis=-1), apart, atol=1e-5)
    np.testing.assert_allclose(embeddings.principal_components(rows, 2), found[:, :2], atol=1e-6)
    # Unique: a rotated copy of the cloud has the same components up to the signs' rule.
    turned = embeddings.principal_components(rows @ np.linalg.qr(np.eye(6)[::-1])[0], 6)
    np.testing.assert_allclose(np.abs(turned), np.abs(found), atol=1e-4)
    with pytest.raises(UserError, match=r"--config.model.d_embed=7: expected at most 6"):
        embeddings.principal_components(rows, 7, "model.d_embed")


@pytest.fixture(scope="module")
def small():
    log = make_log([0, 0, 0, 0, 1, 1, 1], [1, 2, 3, 4, 4, 1, 2], np.zeros(7, int), (2, 2), "small")
    return log, np.eye(4, dtype=np.float32)


def test_profiles_are_means_of_the_history(small):
    log, items = small
    found = embeddings.mean_profiles(items, log, np.array([3, 0]))
    np.testing.assert_allclose(found, [[1 / 3, 1 / 3, 1 / 3, 0], [0, 0, 0, 0]])


def test_no_target_is_in_a_profile(small):
    """Q12: the official profile knows the validation target. The test target nobody knows."""
    log, items = small
    split = leave_one_out(log)
    for q12, n_history in ((False, [2, 1]), (True, [3, 2])):
        assert embeddings.history_lengths(split, q12).tolist() == n_history
    tables = embeddings.make_tables(items, log, split, 1, 3)
    assert tables.users[:, 2:].max() == 0 or tables.users[0, 2] == 0
    assert embeddings.make_tables(items, log, split, 1, 3, True).users[0, 2] > 0
    assert tables.local_a.shape == (2, 1) and tables.global_table.shape == (4, 3)


def test_users_that_are_only_evaluated(small):
    split = Split(*(np.array(c, np.int32) for c in ([4, 0], [-1, 2], [-1, -1])))
    for q12 in (False, True):
        assert embeddings.history_lengths(split, q12).tolist() == [4, 2]


def test_embeddings_of_the_synthetic_world():
    """A function of the items alone: of their topic, and of what is their own."""
    world = synthetic.World()
    table, truth = synthetic.embeddings(world), synthetic.latents(world)
    assert table.shape == (900, 64) and table.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(table, axis=1), 1, atol=1e-6)
    alike = table @ table.T
    same = truth.item_topic[:, None] == truth.item_topic
    np.fill_diagonal(same, False)
    near = np.corrcoef((truth.item_latent @ truth.item_latent.T)[same], alike[same])[0, 1]
    assert alike[same].mean() > alike[~same & ~np.eye(900, dtype=bool)].mean() + 0.2 and near > 0.4
    other = synthetic.World(redundancy=0.0, stay=0.2, taste=0.0)
    np.testing.assert_array_equal(synthetic.embeddings(other), table)
    assert (synthetic.embeddings(synthetic.World(seed=1)) != table).any()
