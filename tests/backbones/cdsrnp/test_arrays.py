"""CDSRNP's rows and streams against a plain reading of their docstrings."""

import numpy as np
import pytest

from oa_jax.backbones.cdsrnp import arrays as cdsrnp_arrays
from oa_jax.backbones.cdsrnp.arrays import Targets
from oa_jax.events.log import make_log
from oa_jax.events.split import Split, leave_one_out

LENGTH, MERGED = 5, 9


@pytest.fixture(scope="module")
def log(random_log):
    return random_log(3, n_users=40, n_items=(12, 17), longest=20)


def plain_history(log, user, place):
    """(merged, {domain: tokens as (item, place in merged)}) before a target, copies left out."""
    events = log.item[log.offsets[user] : log.offsets[user] + place]
    merged = [i for i in events if i != log.item[log.offsets[user] + place]]
    own = {d: [(i, k) for k, i in enumerate(merged) if (i > log.n_items[0]) == d] for d in (0, 1)}
    return merged, own


def test_streams_are_the_history_without_copies_of_the_target(log):
    rows = cdsrnp_arrays.training_rows(log, leave_one_out(log), "each_domain")
    arrays, copies = cdsrnp_arrays.history(log, rows, LENGTH, MERGED), 0
    for r, (user, place) in enumerate(zip(rows.user, rows.place, strict=True)):
        merged, own = plain_history(log, user, place)
        copies += place - len(merged)
        seq = arrays["seq"][r]
        assert seq[seq != 0].tolist() == merged[-MERGED:] and (seq[: -len(merged)] == 0).all()
        for d, name in enumerate("AB"):
            ids, time = arrays[f"seq_{name}"][r], arrays[f"time_{name}"][r]
            kept = own[d][-LENGTH:]
            assert ids[LENGTH - len(kept) :].tolist() == [i for i, _ in kept]
            assert (ids[: LENGTH - len(kept)] == 0).all()
            columns = [max(MERGED - len(merged) + k, -1) for _, k in kept]
            assert time[LENGTH - len(kept) :].tolist() == columns
            # A token with a column stands there in the merged stream.
            shown = time >= 0
            assert (seq[time[shown]] == ids[shown]).all()
    assert copies > 10  # the data put the rule to the test


def test_rows_of_each_domain_and_of_the_last_event(log):
    split = leave_one_out(log)
    each = cdsrnp_arrays.training_rows(log, split, "each_domain")
    last = cdsrnp_arrays.training_rows(log, split, "last")
    found = {}
    for user, place in zip(each.user, each.place, strict=True):
        domain = int(log.domain[log.offsets[user] + place])
        assert (user, domain) not in found and place < split.n_train[user]
        found[user, domain] = place
    for user in range(log.n_users):
        events = log.domain[log.offsets[user] : log.offsets[user] + split.n_train[user]]
        for domain in (0, 1):
            places = np.flatnonzero(events == domain)
            if len(places) and plain_history(log, user, places[-1])[0]:
                assert found.pop((user, domain)) == places[-1]
    assert not found
    every = cdsrnp_arrays.training_rows(log, split, "every")
    expected = [
        (user, place)
        for user in range(log.n_users)
        for place in range(split.n_train[user])
        if plain_history(log, user, place)[0]
    ]
    assert list(zip(every.user.tolist(), every.place.tolist(), strict=True)) == expected
    assert (last.place == split.n_train[last.user] - 1).all() and len(set(last.user)) == len(
        last.user
    )


def test_evaluation_rows_say_what_was_seen(log):
    split = leave_one_out(log)
    arrays = cdsrnp_arrays.evaluation_arrays(log, split, "test", LENGTH, MERGED)
    assert len(arrays["user"]) == log.n_users
    for r, user in enumerate(arrays["user"]):
        merged, own = plain_history(log, user, split.test[user])
        assert arrays["seen"][r].tolist() == sorted(set(merged))
        assert arrays["n_history"][r] == len(merged)
        assert cdsrnp_arrays.is_overlapped(arrays)[r] == (bool(own[0]) and bool(own[1]))
    overlap = cdsrnp_arrays.is_overlapped(arrays)
    assert overlap.any() and not overlap.all()
    with pytest.raises(ValueError, match="'train'"):
        cdsrnp_arrays.evaluation_arrays(log, split, "train", LENGTH, MERGED)


def test_two_sequences_of_one_person_have_one_number():
    """AMID's overlapped users: the same events with either domain last."""
    sequences = [[1, 2, 11, 12], [11, 12, 1, 2], [1, 2, 11, 13], [3, 4, 5, 6]]
    user = np.repeat(np.arange(4), 4)
    log = make_log(user, np.concatenate(sequences), np.tile(np.arange(4), 4), (10, 10), "amid")
    none = np.full(4, -1, np.int32)
    split = Split(np.full(4, 4, np.int32), none, none)
    rows = cdsrnp_arrays.training_rows(log, split, "last")
    person = cdsrnp_arrays.persons(log, split, rows)
    assert person[0] == person[1] and len(set(person.tolist())) == 3
    both = cdsrnp_arrays.persons(log, split, Targets(np.array([2, 2, 3]), np.array([1, 3, 2])))
    assert both[0] == both[1] != both[2]
