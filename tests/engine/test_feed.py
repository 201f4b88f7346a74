"""Rows that a feed gives make the batches that all rows make, for every backbone's task."""

import functools

import jax
import numpy as np
import pytest

from oa_jax.backbones.abxi.task import ABXITask
from oa_jax.backbones.cdsrnp.task import CDSRNPTask
from oa_jax.backbones.llm4cdsr.fields import Quirks
from oa_jax.backbones.llm4cdsr.task import LLM4CDSRTask
from oa_jax.engine.feed import Feed, places
from oa_jax.errors import UserError
from oa_jax.events import split as splits

SEEDS = (0, 7)
CORRECTED = Quirks.of("corrected")
# Batches that end in the middle of the rows, and one that is larger than all of them. global_time
# leaves users without a training row: rows are not users then.
TASKS = {
    "abxi": (ABXITask, "leave_one_out", (12, 8, 4)),
    "abxi corrected": (ABXITask, "global_time", (12, 40, 4, "per_sequence", False)),
    "llm4cdsr": (LLM4CDSRTask, "global_time", (12, 8)),
    "llm4cdsr corrected": (LLM4CDSRTask, "global_time", (12, 40, CORRECTED)),
    "cdsrnp": (CDSRNPTask, "leave_one_out", (6, 8, 12, "each_domain", 12)),
    "cdsrnp every": (CDSRNPTask, "global_time", (6, 200, 12, "every", 12, False)),
    "cdsrnp alone": (CDSRNPTask, "leave_one_out", (6, 8, 12, "last", 0)),
}
each_task = pytest.mark.parametrize("name", TASKS)


class InMemory(list):
    """The items of every user, in the place of the files."""

    def __getitem__(self, users):
        return [super(InMemory, self).__getitem__(user) for user in users]


@pytest.fixture(scope="module")
def make_feed(random_log):
    """Function (name in TASKS, chunk_steps) -> a feed out of records in memory."""
    log = random_log(2, n_users=29, n_items=(80, 90), longest=30)

    @functools.cache
    def make(name, chunk_steps=2):
        kind, split, sizes = TASKS[name]
        task = kind(log, splits.make_split(log, split), *sizes)
        return Feed(task, InMemory(np.split(log.item, log.offsets[1:-1])), chunk_steps)

    return make


def orders(task, epoch=0):
    """(S, T, N): rows of an epoch's batches for all seeds."""
    return np.stack([jax.jit(task.epoch_rows)(seed, epoch) for seed in SEEDS])


def lists_of(arrays, name, rows):
    """The entries of each row of a list."""
    bounds = zip(arrays[f"first_{name}"][rows], arrays[f"n_{name}"][rows], strict=True)
    return [arrays[name][first : first + n].tolist() for first, n in bounds]


def is_column(task, name):
    """Whether an array has a value for each row, whatever the other rows are."""
    return not any(name in (one, f"first_{one}") for one in task.list_sizes)


@each_task
def test_arrays_of_some_rows_are_rows_of_all(make_feed, name):
    task = make_feed(name).task
    whole, last = task.train_arrays(), task.n_users - 1
    for rows in (np.array([5, 0, last, 5]), np.array([3]), np.arange(min(task.batch_size, last))):
        for taken in (make_feed(name).take(rows), task.arrays_of_rows(rows)):
            assert taken.keys() == whole.keys()
            for key, array in whole.items():
                assert taken[key].dtype == array.dtype
                if is_column(task, key):
                    np.testing.assert_array_equal(taken[key], array[rows], err_msg=key)
            for one, sizes in task.list_sizes.items():
                of_rows = lists_of(taken, one, np.arange(len(rows)))
                assert of_rows == lists_of(whole, one, rows)
                assert [len(entries) for entries in of_rows] == sizes[rows].tolist()


@each_task
def test_chunks_have_the_shapes_foretold_and_room(make_feed, name):
    feed = make_feed(name, 3)
    task, rows = feed.task, orders(feed.task)
    chunks = list(feed.chunks(rows))
    assert len(chunks) == -(-task.n_steps // 3)
    numbers, shapes = feed.shapes(len(SEEDS))
    first = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), chunks[0])
    assert numbers.shape == rows[:, :3].shape and shapes == first
    for one in task.list_sizes:
        most = max(int(chunk[f"n_{one}"].sum(-1).max()) for chunk in chunks)
        assert 0 < most <= task.list_room(one) == chunks[0][one].shape[-1]


@pytest.mark.slow
@each_task
def test_fed_batches_are_the_resident_ones(make_feed, name):
    """Same rows, same negatives, for every seed and step; the last batch is partial."""
    feed = make_feed(name)
    task, rows = feed.task, orders(feed.task, epoch=3)
    arrays = task.train_arrays()
    capacity = tuple(int(n) for n in np.minimum(task.slot_counts.sum(1) + 1, 512))
    batch = jax.jit(lambda arrays, rows, seed, step: task.batch(arrays, rows, seed, step, capacity))
    step, seen = 0, []
    for chunk in feed.chunks(rows):
        for k in range(chunk[f"n_{next(iter(task.list_sizes))}"].shape[1]):
            for s, seed in enumerate(SEEDS):
                resident = batch(arrays, rows[s, step], seed, step)
                fed = {key: values[s, k] for key, values in chunk.items()}
                at = places(rows[s, step], task.n_users)
                streamed = batch(fed, at, seed, step)
                assert resident.keys() == streamed.keys()
                for key, value in resident.items():
                    np.testing.assert_array_equal(streamed[key], value, err_msg=key)
                drawn = [key for key in resident if "neg" in key]
                seen.append(b"".join(np.asarray(resident[key]).tobytes() for key in drawn))
                # Twins: another step draws other negatives; a row's number is not its place.
                other = batch(fed, at, seed, step + 1)
                assert drawn and not any(np.array_equal(other[n], streamed[n]) for n in drawn)
                if task.batch_size < task.n_users:
                    wrong = batch(fed, rows[s, step], seed, step)
                    assert not np.array_equal(wrong[drawn[0]], resident[drawn[0]])
            step += 1
    assert step == task.n_steps and len(set(seen)) == len(seen)


def test_records_that_do_not_fit_the_log_are_one_line(make_feed):
    feed = make_feed("abxi")
    with pytest.raises(UserError, match="28 records: expected 29"):
        Feed(feed.task, InMemory(list(feed.records)[:-1]), 2)
    records = list(feed.records)
    records[11] = records[11][:-1]
    broken = Feed(feed.task, InMemory(records), 2)
    with pytest.raises(UserError, match="record 11: .* prepare the set again"):
        for _ in broken.chunks(orders(feed.task)):  # raised by the reading thread
            pass
