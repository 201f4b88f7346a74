"""The laws of the next item are laws, and come true as often as they say."""

import numpy as np
import pytest

from oa_jax.events.oracles import item_laws, target_ranks
from oa_jax.events.world import World, generate, topic_oracles

CROWD = World(n_users=1500, n_items=(160, 200), topics=4, redundancy=0.0)


@pytest.fixture(scope="module")
def crowd():
    log = generate(CROWD)
    rows = log.offsets[1:] - 1  # the last event of each user
    return log, rows, {place: laws for place, *laws in item_laws(CROWD, log, rows)}


def test_a_law_is_one_over_what_is_left_and_sums_to_that_of_the_topic(crowd):
    log, rows, laws = crowd
    assert sorted(laws) == list(range(len(rows)))
    for place in range(0, len(rows), 50):
        row, domain = rows[place], int(log.domain[rows[place]])
        before = log.item[log.offsets[log.user[row]] : row]
        taken = before[log.domain[log.offsets[log.user[row]] : row] == domain]
        taken = taken - 1 - domain * CROWD.n_items[0]
        for law in laws[place]:
            assert law.sum() == pytest.approx(1) and len(law) == CROWD.n_items[domain]
            assert not law[taken].any() and (np.delete(law, taken) > 0).all()


def test_they_come_true_as_often_as_they_say(crowd):
    """Items among the ten likeliest: expected and counted, for both laws; five sigma. A law of the
    wrong redundancy is told apart."""
    log, rows, laws = crowd
    ranks = target_ranks(CROWD, log, rows)
    for which in (0, 1):
        expected = np.array([np.sort(laws[p][which])[-10:].sum() for p in range(len(rows))])
        sigma = np.sqrt(np.sum(expected * (1 - expected)))
        assert abs(np.sum(ranks[which] <= 10) - expected.sum()) < 5 * sigma
    wrong = World(n_users=1500, n_items=(160, 200), topics=4, redundancy=1.0)
    said = {p: both for p, _, both in item_laws(wrong, log, rows) if log.domain[rows[p]] == 0}
    expected = np.array([np.sort(law)[-10:].sum() for law in said.values()])
    found = np.sum(target_ranks(wrong, log, rows)[1][list(said)] <= 10)
    assert abs(found - expected.sum()) > 5 * np.sqrt(np.sum(expected * (1 - expected)))


def test_who_knows_more_ranks_better(crowd):
    """Only B leads here: of A's next item both histories say more, of B's no more than its own."""
    log, rows, _ = crowd
    ranks, domain = target_ranks(CROWD, log, rows), log.domain[rows]
    gain = (1 / np.log2(1 + ranks[1]) - 1 / np.log2(1 + ranks[0])).clip(-1, 1)
    assert gain[domain == 0].mean() > 0.02
    np.testing.assert_array_equal(ranks[0][domain == 1], ranks[1][domain == 1])
    assert topic_oracles(CROWD, log, 1).summary()["gain"] == pytest.approx(0)
