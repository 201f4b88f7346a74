import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oa_jax.data.check import split_leaks
from oa_jax.data.roles import from_end, leave_one_out_roles, user_disjoint_roles
from oa_jax.errors import UserError
from oa_jax.events.log import TRAINING, make_log
from oa_jax.events.split import (
    BOTH,
    EMPTY,
    ONLY_A,
    ONLY_B,
    Split,
    global_time,
    kinds,
    leave_one_out,
    limit_targets,
    make_split,
    published,
    roles_of,
    rule_of,
    time_cuts,
    train_on_both,
)

KINDS = ("leave_one_out", "global_time")


def assert_no_leak(log, split, kind):
    """Brute force, user by user: the training part ends before the targets, validation before
    test; under global_time also on the calendar, across all users."""
    begin = log.offsets
    trained, validated, tested = [], [], []
    for user in range(log.n_users):
        time = log.time[begin[user] : begin[user + 1]].tolist()
        n_train, val, test = (int(c[user]) for c in (split.n_train, split.val, split.test))
        assert 0 <= n_train <= len(time)
        for target in (val, test):
            assert target == -1 or max(n_train, 1) <= target < len(time)
        assert val == -1 or test == -1 or val < test
        trained += time[:n_train]
        validated += [time[val]] if val >= 0 else []
        tested += [time[test]] if test >= 0 else []
        # What the test target sees beyond the training part is not newer than the target.
        assert test == -1 or all(earlier <= time[test] for earlier in time[:test])
    if kind == "global_time":
        assert max(trained) < min(validated) and max(validated) < min(tested)
        assert max(trained) < time_cuts(log)[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(5))
def test_no_leak(random_log, kind, seed):
    log = random_log(seed)
    assert_no_leak(log, make_split(log, kind), kind)


BREAKS = {
    "training part includes the targets": ("n_train", 2, KINDS),
    "training part one longer": ("n_train", 1, KINDS),
    "validation on the test target": ("val", 1, ("leave_one_out",)),
    "test on the validation target": ("test", -1, ("leave_one_out",)),
}
BREAK_CASES = [(column, by, kind) for column, by, kinds in BREAKS.values() for kind in kinds]


@pytest.mark.parametrize(("column", "by", "kind"), BREAK_CASES)
def test_no_leak_notices_a_broken_split(random_log, column, by, kind):
    log = random_log(0)
    split = make_split(log, kind)
    broken = dataclasses.replace(split, **{column: getattr(split, column) + by})
    with pytest.raises(AssertionError):
        assert_no_leak(log, broken, kind)


def test_no_leak_on_the_calendar_notices_leave_one_out(random_log):
    log = random_log(0)
    with pytest.raises(AssertionError):
        assert_no_leak(log, leave_one_out(log), "global_time")


def test_leave_one_out_by_hand():
    log = make_log([0] * 3 + [1] * 5, [1] * 8, np.arange(8), (1, 1), "toy")
    split = leave_one_out(log)
    np.testing.assert_array_equal(split.n_train, [1, 3])
    np.testing.assert_array_equal(split.val, [1, 3])
    np.testing.assert_array_equal(split.test, [2, 4])
    assert {column.dtype for column in dataclasses.astuple(split)} == {np.dtype(np.int32)}


def test_take_is_of_the_users_asked_for_in_their_order():
    some = Split(np.arange(3), 10 + np.arange(3), 20 + np.arange(3)).take(np.array([2, 0]))
    assert [some.n_train.tolist(), some.val.tolist(), some.test.tolist()] == [
        [2, 0],
        [12, 10],
        [22, 20],
    ]


def test_leave_one_out_names_the_short_user():
    log = make_log([0] * 3 + [1] * 2, [1] * 5, np.arange(5), (1, 1), "toy")
    with pytest.raises(UserError, match=r"^toy: user 1: found 2 events, expected at least 3"):
        leave_one_out(log)


# Cuts of the next log with 20 times 0..19 and fractions 0.2 and 0.2: 8 events at or after the
# first cut, 4 at or after the second, so at 12 and at 16.
CALENDAR = {
    0: ([0, 1, 2, 12, 13, 16, 17], (3, 3, 5)),
    1: ([3, 4, 5, 6], (4, -1, -1)),
    2: ([14, 18], (0, -1, 1)),  # no event before 14, so 14 is no target; 18 has history 14
    3: ([19], (0, -1, -1)),
    4: ([7, 15], (1, 1, -1)),
    5: ([8, 9, 10, 11], (4, -1, -1)),
}


def calendar_log(times):
    user = np.concatenate([[u] * len(t) for u, t in times.items()])
    time = np.concatenate(list(times.values()))
    return make_log(user, np.ones(len(user), int), time, (1, 1), "toy")


def test_global_time_by_hand():
    log = calendar_log({user: times for user, (times, _) in CALENDAR.items()})
    assert time_cuts(log, 0.2, 0.2) == (12, 16)
    split = global_time(log, 0.2, 0.2)
    expected = np.array([row for _, row in CALENDAR.values()])
    np.testing.assert_array_equal(np.stack(dataclasses.astuple(split), 1), expected)
    assert {column.dtype for column in dataclasses.astuple(split)} == {np.dtype(np.int32)}


def test_ties_at_a_cut_belong_to_the_later_period():
    # Ten events; half of them at or after the first cut would split the four at time 5.
    log = calendar_log({0: [1, 2, 5, 5, 9], 1: [1, 3, 5, 5, 9]})
    assert time_cuts(log, 0.3, 0.2) == (5, 9)
    split = global_time(log, 0.3, 0.2)
    np.testing.assert_array_equal(split.n_train, [2, 2])
    # The second event at time 5 is part of the test target's history, but of no training part.
    np.testing.assert_array_equal(split.val, [2, 2])
    np.testing.assert_array_equal(split.test, [4, 4])


def test_cut_fractions_are_not_lost_to_rounding():
    # Distinct times: exactly a tenth of 1000 events each, although 1 - 0.1 - 0.1 < 0.8.
    log = make_log(np.zeros(1000, int), np.ones(1000, int), np.arange(1000), (1, 1), "toy")
    assert time_cuts(log) == (800, 900)


@pytest.mark.parametrize(
    ("val", "test", "field"),
    [
        (0, 0.1, "val_fraction"),
        (-0.1, 0.1, "val_fraction"),
        (float("nan"), 0.1, "val_fraction"),
        (0.1, 0, "test_fraction"),
        (0.1, 1.0, "test_fraction"),
        (0.5, 0.5, "val_fraction + test_fraction"),
        (0.9, 0.2, "val_fraction + test_fraction"),
    ],
)
def test_bad_fractions(random_log, val, test, field):
    with pytest.raises(UserError) as caught:
        global_time(random_log(0), val, test)
    assert str(caught.value).startswith(f"{field}: found ")


@pytest.mark.parametrize(
    ("times", "part"),
    [
        ({0: [5, 5, 5, 5]}, "training"),
        ({0: [1, 5, 5, 9]}, "training"),
        ({0: [1, 2, 3, 4], 1: [9, 9, 9, 9]}, "validation"),
        ({0: [1, 1, 1, 1, 2, 2], 1: [9]}, "test"),
    ],
)
def test_a_split_without_targets_is_refused(times, part):
    with pytest.raises(UserError, match=f"found no user with a {part} target"):
        global_time(calendar_log(times), 0.3, 0.1)


def test_make_split_knows_its_kinds(random_log):
    log = random_log(0)
    assert isinstance(make_split(log, "global_time"), Split)
    with pytest.raises(UserError, match="'random'.*leave_one_out, global_time, published"):
        make_split(log, "random")


# --- any log, any roles --------------------------------------------------------------------------


@st.composite
def logs(draw, least=1):
    """A log of few users with steps in time of 0 to 2."""
    lengths = draw(st.lists(st.integers(least, 9), min_size=1, max_size=8))
    n = sum(lengths)
    item = draw(st.lists(st.integers(1, 7), min_size=n, max_size=n))
    step = draw(st.lists(st.integers(0, 2), min_size=n, max_size=n))
    user = np.repeat(np.arange(len(lengths)), lengths)
    first = draw(st.lists(st.integers(0, 9), min_size=len(lengths), max_size=len(lengths)))
    starts = np.r_[0, np.cumsum(lengths)[:-1]]
    time = np.cumsum(step)
    time = time - time[starts][user] + np.array(first)[user]
    return make_log(user, item, time, (3, 4), "any")


def pieces(log, split):
    """Rows of the log by what the split makes of them, as sets, user by user in plain Python."""
    parts = {"train": set(), "val": set(), "test": set()}
    for user, start in enumerate(log.offsets[:-1].tolist()):
        parts["train"] |= set(range(start, start + int(split.n_train[user])))
        for name in ("val", "test"):
            place = int(getattr(split, name)[user])
            parts[name] |= {start + place} if place >= 0 else set()
    return parts


def assert_disjoint_and_honest(log, split):
    parts = pieces(log, split)
    assert not parts["train"] & parts["val"] and not parts["train"] & parts["test"]
    assert not parts["val"] & parts["test"]
    for target in parts["val"] | parts["test"]:
        user = log.user[target]
        inputs = range(log.offsets[user], target)
        assert all(log.time[i] <= log.time[target] for i in inputs)
        assert not any(i >= target and log.user[i] == user for i in parts["train"])
    assert not split_leaks(log, split)


@settings(max_examples=60, deadline=None)
@given(logs(least=3))
def test_leave_one_out_of_any_log(log):
    split = leave_one_out(log)
    assert_disjoint_and_honest(log, split)
    role = roles_of(log, split)
    np.testing.assert_array_equal(role, leave_one_out_roles(log.user.astype(int)))
    again = published(dataclasses.replace(log, role=role))
    for mine, theirs in zip(dataclasses.astuple(split), dataclasses.astuple(again), strict=True):
        np.testing.assert_array_equal(mine, theirs)


@settings(max_examples=60, deadline=None)
@given(logs())
def test_global_time_of_any_log(log):
    try:
        split = global_time(log, 0.3, 0.2)
    except UserError:
        return  # nobody has a target of some kind
    assert_disjoint_and_honest(log, split)
    assert_no_leak(log, split, "calendar of its own cuts")
    cut = time_cuts(log, 0.3, 0.2)[0]
    assert all(log.time[row] < cut for row in pieces(log, split)["train"])


@settings(max_examples=60, deadline=None)
@given(logs(), st.data())
def test_published_roles_of_any_log(log, data):
    part = np.array(
        data.draw(st.lists(st.integers(0, 2), min_size=log.n_users, max_size=log.n_users))
    )
    role = user_disjoint_roles(log.user.astype(int), part)
    log = make_log(log.user, log.item, log.time, log.n_items, "any", role)
    split = make_split(log, "published")
    assert rule_of(log, "own") == "published" and rule_of(log, "global_time") == "global_time"
    np.testing.assert_array_equal(make_split(log, "own").test, split.test)
    np.testing.assert_array_equal(roles_of(log, split), role)
    last = np.diff(log.offsets) - 1
    np.testing.assert_array_equal(split.n_train, np.where(part == TRAINING, last + 1, 0))
    for kind, column in ((1, split.val), (2, split.test)):
        np.testing.assert_array_equal(column, np.where(part == kind, last, -1))
    # A target alone has no inputs; all others are honest.
    if (last[part != TRAINING] > 0).all():
        assert_disjoint_and_honest(log, split)


def test_a_log_without_roles_has_no_published_split(random_log):
    with pytest.raises(UserError, match="random: came without a split of its own"):
        make_split(random_log(0), "published")
    assert rule_of(random_log(0), "own") == "leave_one_out"


def test_leaks_are_found():
    """Twin: each rule of `split_leaks` broken once."""
    log = make_log([0] * 4 + [1] * 4, [1] * 8, [0, 1, 2, 3, 0, 1, 2, 3], (1, 1), "toy")
    good = leave_one_out(log)
    assert not split_leaks(log, good, roles_of(log, good))

    def broken(**columns):
        return split_leaks(log, dataclasses.replace(good, **columns))

    assert broken(n_train=np.array([2, 3])) == [
        "split: 1 users, the first 1: validation target among its own inputs"
    ]
    assert "test target beyond the sequence" in broken(test=np.array([4, 3]))[0]
    assert broken(val=good.test, test=good.val) == [
        "split: 2 users, the first 0: validation target not before the test target"
    ]
    backwards = dataclasses.replace(log, time=np.array([0, 9, 2, 3, 0, 1, 2, 3]))
    assert len(split_leaks(backwards, good)) == 2
    role = roles_of(log, good)
    role[0] = 1
    assert split_leaks(log, good, role) == ["split: roles of the events are not those of the split"]
    assert from_end(log.user).tolist() == [3, 2, 1, 0] * 2


def test_training_on_users_of_both_domains_alone():
    """User 0 trains in both domains; of user 1 only a held-out event is in B; user 2 is in B."""
    item = [1, 3, 2, 4, 1, 2, 3, 4, 3, 4, 3, 4]
    log = make_log(np.repeat([0, 1, 2], 4), item, np.zeros(12, int), (2, 2), "both")
    split = leave_one_out(log)
    found = train_on_both(log, split)
    assert split.n_train.tolist() == [2, 2, 2] and found.n_train.tolist() == [2, 0, 0]
    assert found.val.tolist() == split.val.tolist() and found.test.tolist() == split.test.tolist()


def test_short_users_are_skipped_where_asked():
    log = make_log([0, 0, 1, 1, 1], [1, 2, 1, 2, 1], np.zeros(5, int), (1, 1), "short")
    found = make_split(log, "leave_one_out", skip_short=True)
    assert [c.tolist() for c in (found.n_train, found.val, found.test)] == [
        [0, 1],
        [-1, 1],
        [-1, 2],
    ]


# --- kinds of users, and fewer targets


def kinds_log(n_users=90, seed=0):
    """Users with events of A only, of B only and of both, in turn; 5 to 9 events, 7 items each."""
    rng, columns = np.random.default_rng(seed), []
    for user in range(n_users):
        count = int(rng.integers(5, 10))
        item = rng.integers(1, 8, count) + np.array([0, 7, 0])[user % 3]
        if user % 3 == 2:
            item[::2] += 7
        columns.append((np.full(count, user), item, np.arange(count)))
    return make_log(*map(np.concatenate, zip(*columns, strict=True)), (7, 7), "kinds")


def test_kinds_by_hand():
    log = make_log([0] * 3 + [1] * 2 + [2] * 3, [1, 1, 2, 2, 2, 2, 1, 1], range(8), (1, 1), "toy")
    expected = {
        (3, 2, 3): [BOTH, ONLY_B, BOTH],
        (2, 1, 1): [ONLY_A, ONLY_B, ONLY_B],
        (0, -1, 2): [EMPTY, EMPTY, BOTH],
    }
    for end, found in expected.items():
        np.testing.assert_array_equal(kinds(log, np.array(end)), found)


@pytest.mark.parametrize("most", [1, 4, 29, 1000])
def test_limited_targets_are_so_many_of_each_kind(most):
    log = kinds_log()
    split = leave_one_out(log)
    limited = limit_targets(split, log, most)
    np.testing.assert_array_equal(limited.n_train, split.n_train)
    for name in ("val", "test"):
        place, before = getattr(limited, name), getattr(split, name)
        kept = place >= 0
        np.testing.assert_array_equal(place[kept], before[kept])
        all_kinds = kinds(log, before)
        for kind in (ONLY_A, ONLY_B, BOTH):
            there = (all_kinds == kind).sum()
            assert (all_kinds[kept] == kind).sum() == min(most, there) and there >= 20


def test_no_limit_keeps_all_targets():
    log = kinds_log()
    split = leave_one_out(log)
    assert limit_targets(split, log, 0) is split


def targeted(split):
    return [set(np.flatnonzero(column >= 0)) for column in (split.val, split.test)]


def test_limited_users_are_nested_and_owe_nothing_to_the_others():
    log = kinds_log()
    few, more = (targeted(limit_targets(leave_one_out(log), log, n)) for n in (5, 12))
    assert few[0] < more[0] and few[1] < more[1]
    # Without the users that were left out of the larger choice, the smaller one is the same.
    split, at_least = leave_one_out(log), limit_targets(leave_one_out(log), log, 12)
    thinned = Split(split.n_train, at_least.val, at_least.test)
    assert targeted(limit_targets(thinned, log, 5)) == few
    # The choice spreads over the users: it is not the first ones.
    assert max(few[1]) > 45 and few[1] != set(range(15))


def test_targets_without_a_history_are_limited_too():
    log = make_log(range(20), [1] * 20, range(20), (1, 1), "toy")
    none = np.full(20, -1)
    split = Split(np.zeros(20), none, np.zeros(20, np.int32))
    limited = limit_targets(split, log, 3)
    assert (limited.test >= 0).sum() == 3 and (limited.val == -1).all()
