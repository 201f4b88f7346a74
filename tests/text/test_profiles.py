"""Profiles against a loop; no held-out event reaches them."""

import numpy as np
import pytest

from oa_jax.events import split as splits
from oa_jax.text import vectors as profiles


@pytest.fixture(scope="module")
def case(random_log):
    log = random_log(3)
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(sum(log.n_items), 5)).astype(np.float32)
    has_vector = np.ones(len(vectors), bool)
    has_vector[[0, 7]] = False
    return log, splits.leave_one_out(log).n_train, vectors, has_vector


def by_loop(log, n_history, vectors, has_vector):
    out = np.zeros((log.n_users, vectors.shape[1]))
    for user, begin in enumerate(log.offsets[:-1]):
        items = log.item[begin : begin + n_history[user]]
        taken = [vectors[i - 1].astype(np.float64) for i in items if has_vector[i - 1]]
        if taken:
            out[user] = np.mean(taken, 0)
    return out


def test_mean_of_the_history_repeats_counted(case, monkeypatch):
    monkeypatch.setattr(profiles, "USERS_AT_ONCE", 7)  # several blocks, the last one partial
    found = profiles.mean_profiles(*case)
    np.testing.assert_allclose(found, by_loop(*case), rtol=1e-6, atol=1e-7)
    assert found.dtype == np.float32


def test_a_user_without_history_has_a_zero_vector(case):
    log, n_history, vectors, has_vector = case
    shorter = np.where(np.arange(log.n_users) == 2, 0, n_history)
    found = profiles.mean_profiles(log, shorter, vectors, has_vector)
    assert not found[2].any() and found[3].any()
    nothing = profiles.mean_profiles(log, n_history, vectors, np.zeros(len(vectors), bool))
    assert not nothing.any()


def test_held_out_events_do_not_reach_a_profile(case):
    """Changing the items of both targets changes nothing; with one more event, it does."""
    log, n_history, vectors, has_vector = case
    held_out = np.concatenate([log.offsets[1:] - 1, log.offsets[1:] - 2])
    item = log.item.copy()
    item[held_out] = item[held_out] % len(vectors) + 1
    other = log.__class__(log.user, item, log.time, log.n_items, log.name)
    same = [profiles.mean_profiles(a, n_history, vectors, has_vector) for a in (log, other)]
    np.testing.assert_array_equal(*same)
    # Twin: the official profile, which holds the validation target (Q12).
    leaky = [profiles.mean_profiles(a, n_history + 1, vectors, has_vector) for a in (log, other)]
    assert (leaky[0] != leaky[1]).any(1).sum() > log.n_users / 2
