"""Rows that a feed gives make the batches that all rows make."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from oa_jax.backbones.abxi.task import Task
from oa_jax.engine.feed import Feed, places
from oa_jax.errors import UserError
from oa_jax.events import split as splits
from oa_jax.nn import draws

SEEDS = (0, 7)
CAPACITY = (128, 128)


class InMemory(list):
    """The items of every user, in the place of the files."""

    def __getitem__(self, users):
        return [super(InMemory, self).__getitem__(user) for user in users]


@pytest.fixture(scope="module")
def make_feed(random_log):
    """Function (chunk_steps, task fields) -> a feed out of records in memory."""
    log = random_log(2, n_users=29, n_items=(80, 90), longest=30)

    def make(chunk_steps=2, batch_size=8, split="leave_one_out", **fields):
        task = Task(log, splits.make_split(log, split), 12, batch_size, 4, **fields)
        return Feed(task, InMemory(np.split(log.item, log.offsets[1:-1])), chunk_steps)

    return make


def orders(task, epoch=0):
    """(S, N, B): rows of an epoch for all seeds."""
    rows = [draws.epoch_rows(s, epoch, task.n_users, task.batch_size) for s in SEEDS]
    return np.asarray(jnp.stack(rows))


@pytest.mark.parametrize("split", ["leave_one_out", "global_time"])
@pytest.mark.parametrize("q1", [True, False])
def test_arrays_of_some_users_are_rows_of_all(make_feed, split, q1):
    feed = make_feed(split=split, pool_b_from_last_a=q1)
    whole = feed.task.train_arrays()
    for rows in (np.array([[5, 0], [28, 5]]), np.array([3]), np.arange(29)):
        taken = feed.take(rows)
        assert taken.keys() == whole.keys()
        for name, array in whole.items():
            np.testing.assert_array_equal(taken[name], array[rows], err_msg=name)
            assert taken[name].dtype == array.dtype


def test_chunks_hold_all_steps_in_order(make_feed):
    feed = make_feed(chunk_steps=3)
    rows, whole = orders(feed.task), feed.task.train_arrays()
    chunks = list(feed.chunks(rows))
    assert [chunk["gt"].shape[1] for chunk in chunks] == [3, 1]  # 29 users in batches of 8
    fed = {k: np.concatenate([chunk[k] for chunk in chunks], 1) for k in whole}
    real = rows < feed.task.n_users
    for name, array in whole.items():
        np.testing.assert_array_equal(fed[name][real], array[rows[real]], err_msg=name)


# Batches that end in the middle of the users, and one that is larger than all of them.
@pytest.mark.parametrize(("batch_size", "negatives"), [(8, "per_position"), (40, "per_sequence")])
def test_fed_batches_are_the_resident_ones(make_feed, negatives, batch_size):
    """Same rows, same negatives, for every seed and step; the last batch is partial."""
    feed = make_feed(batch_size=batch_size, negatives=negatives)
    task, rows = feed.task, orders(feed.task, epoch=3)
    arrays = task.train_arrays()
    batch = jax.jit(lambda arrays, rows, seed, step: task.batch(arrays, rows, seed, step, CAPACITY))
    step, seen = 0, []
    for chunk in feed.chunks(rows):
        for k in range(chunk["gt"].shape[1]):
            for s, seed in enumerate(SEEDS):
                resident = batch(arrays, rows[s, step], seed, step)
                fed = {name: values[s, k] for name, values in chunk.items()}
                at = places(rows[s, step], task.n_users)
                streamed = batch(fed, at, seed, step)
                assert resident.keys() == streamed.keys()
                for name, value in resident.items():
                    np.testing.assert_array_equal(streamed[name], value, err_msg=name)
                seen.append(np.asarray(resident["gt"]).tobytes())
                # Twins: another step draws other negatives; a user's number is not its place.
                drawn = [name for name in resident if "negatives" in name]
                other = batch(fed, at, seed, step + 1)
                assert not any(np.array_equal(other[n], streamed[n]) for n in drawn)
                if batch_size < task.n_users:
                    wrong = batch(fed, rows[s, step], seed, step)
                    assert not np.array_equal(wrong["gt"], resident["gt"])
            step += 1
    assert step == task.n_steps and len(set(seen)) == len(seen)


def test_records_that_do_not_fit_the_log_are_one_line(make_feed):
    feed = make_feed()
    with pytest.raises(UserError, match="28 records: expected 29"):
        Feed(feed.task, InMemory(list(feed.records)[:-1]), 2)
    with pytest.raises(UserError, match="object needs all its rows .* expected resident=True"):
        Feed(object(), feed.records, 2)
    records = list(feed.records)
    records[11] = records[11][:-1]
    broken = Feed(feed.task, InMemory(records), 2)
    with pytest.raises(UserError, match="record 11: .* prepare the set again"):
        for _ in broken.chunks(orders(feed.task)):  # raised by the reading thread
            pass
