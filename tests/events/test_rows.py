"""Rows cut out of a log: places, scattering, lists, own items."""

import numpy as np
import pytest

from oa_jax.events import rows
from oa_jax.events.log import first_events, make_log
from oa_jax.events.rows import Ragged
from oa_jax.events.split import make_split

ROW = np.array([0, 0, 0, 2, 2])
VALUES = np.array([5, 6, 7, 8, 9])


def test_places_by_hand():
    place, count = rows.rank(ROW, 4)
    assert place.tolist() == [0, 1, 2, 0, 1] and count.tolist() == [3, 0, 2, 0]
    column = rows.end_columns(ROW, 4, 2)
    assert column.tolist() == [-1, 0, 1, 0, 1]
    table = rows.scatter((3, 2), (ROW, column), VALUES, fill=-1)
    assert table.tolist() == [[6, 7], [-1, -1], [8, 9]] and table.dtype == np.int32
    beyond = rows.scatter((3, 2), (ROW, column + 1), VALUES)
    assert beyond.tolist() == [[5, 6], [0, 0], [0, 8]]


def test_lists_by_hand():
    found = rows.lists("x", ROW, VALUES, 4)
    assert {name: array.tolist() for name, array in found.items()} == {
        "x": [5, 6, 7, 8, 9, 0],
        "first_x": [0, 3, 3, 5],
        "n_x": [3, 0, 2, 0],
    }
    assert {array.dtype.name for array in found.values()} == {"int32"}
    assert rows.lists("x", ROW[:0], VALUES[:0], 1)["x"].tolist() == [0]


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("kind", ["leave_one_out", "global_time"])
def test_own_items_are_the_distinct_ones_of_a_domain(random_log, kind, drop_last):
    log = random_log(4)
    split = make_split(log, kind)
    found = rows.own_items(log, split.in_training(log), drop_last=drop_last)
    dropped = 0
    for user in range(log.n_users):
        begin = log.offsets[user]
        items = log.item[begin : begin + split.n_train[user]]
        for d, name in enumerate("AB"):
            local = set(items[(items > log.n_items[0]) == bool(d)] - d * log.n_items[0] - 1)
            dropped += log.n_items[d] - 1 in local
            expected = sorted(local - ({log.n_items[d] - 1} if drop_last else set()))
            first, n = found[f"first_own_{name}"][user], found[f"n_own_{name}"][user]
            assert found[f"own_{name}"][first : first + n].tolist() == expected
    assert dropped > 0


def test_one_long_history_costs_its_own_length():
    """Lists of 100 users with 3 events and one of 1,000: not 101 rows as wide as the longest."""
    user = np.append(np.repeat(np.arange(100), 3), np.full(1000, 100))
    item = np.append(np.tile([1, 2, 1001], 100), np.arange(1, 1001))
    log = make_log(user, item, np.zeros(len(user), int), (1000, 10), "long")
    own = rows.own_items(log, np.ones(len(user), bool))
    assert sum(array.nbytes for array in own.values()) == 4 * (200 + 1000 + 100 + 2 + 4 * 101)


def test_first_events_and_logs_of_some_users(random_log):
    log = random_log(1)
    users, ends = np.array([7, 2, 7, 0]), np.array([2, 0, 3, 1])
    row, event = first_events(log, users, ends)
    assert row.tolist() == [0, 0, 2, 2, 2, 3]
    expected = [log.offsets[u] + k for u, end in zip(users, ends, strict=True) for k in range(end)]
    assert event.tolist() == expected
    some = log.take(users)
    assert some.n_users == 4 and some.user.dtype == np.int32
    for new, old in enumerate(users):
        for column in ("item", "time"):
            ours, theirs = getattr(some, column), getattr(log, column)
            part = theirs[log.offsets[old] : log.offsets[old + 1]]
            assert ours[some.offsets[new] : some.offsets[new + 1]].tolist() == part.tolist()
    assert log.take(np.arange(log.n_users)).fingerprint() == log.fingerprint()
    assert log.position[log.offsets[:-1]].tolist() == [0] * log.n_users
    assert (np.diff(log.position)[np.diff(log.user) == 0] == 1).all()
    np.testing.assert_array_equal(log.local, log.item - log.n_items[0] * log.domain)


ROWS = [[3, 1, 4], [], [1], [5, 9, 2, 6, 5, 3], [5], [], [8]]


def test_rows_of_different_lengths():
    ragged = Ragged(np.concatenate(ROWS).astype(np.int32), np.array(list(map(len, ROWS))))
    assert [row.tolist() for row in ragged] == ROWS and len(ragged) == 7
    mask = np.array([True, False, False, True, False, False, True])
    for some in (slice(2, 5), slice(0, 0), np.array([6, 3, 3]), mask, np.array([], int)):
        expected = np.arange(7)[some].tolist()
        assert [row.tolist() for row in ragged[some]] == [ROWS[i] for i in expected]
    assert ragged.row.tolist() == [i for i, row in enumerate(ROWS) for _ in row]
    again = Ragged.of(ragged.row, ragged.values, 7)
    assert [row.tolist() for row in again] == ROWS


def test_ragged_rows_in_blocks_cost_what_their_block_holds():
    ragged = Ragged(np.concatenate(ROWS).astype(np.int32), np.array(list(map(len, ROWS))))
    row, values = ragged.blocks(3)
    assert row.shape == values.shape == (3, 9)  # the seven of block 1, in multiples of 3
    for block in range(3):
        found = [values[block][row[block] == i].tolist() for i in range(3)]
        assert found == (ROWS[3 * block : 3 * block + 3] + [[], []])[:3]
        assert set(row[block]) <= {0, 1, 2, 3} and not values[block][row[block] == 3].any()
    nothing = Ragged(np.zeros(0, np.int32), np.zeros(2, int)).blocks(4)
    assert [of.shape for of in nothing] == [(1, 4)] * 2 and (nothing[0] == 4).all()
    assert Ragged(np.zeros(0, np.int32), np.zeros(0, int)).blocks(4)[0].shape == (0, 4)
