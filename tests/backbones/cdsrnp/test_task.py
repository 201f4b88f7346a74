"""Batches of CDSRNP: a support set of others, negatives outside the user's items, enough room."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from oa_jax.backbones.cdsrnp.task import CDSRNPTask
from oa_jax.errors import UserError
from oa_jax.events.log import make_log
from oa_jax.events.split import leave_one_out

BATCH, SUPPORT = 8, 12


@pytest.fixture(scope="module")
def task(random_log):
    log = random_log(5, n_users=40, n_items=(12, 17), longest=14)
    return CDSRNPTask(log, leave_one_out(log), 6, BATCH, 12, support=SUPPORT)


def batches(task, n_epochs=3):
    """Batches of some epochs, stacked on the host; the rows are those of queries and support."""
    arrays = jax.tree.map(jnp.asarray, task.train_arrays())
    slots = jnp.asarray(task.slot_counts)
    room = task.capacity(np.max([task.slots_needed(slots, 0, e) for e in range(n_epochs)], 0))
    rows = jnp.concatenate([jax.jit(task.epoch_rows)(0, e) for e in range(n_epochs)])

    def one(step):
        return task.batch(arrays, rows[step], 0, step, room)

    out = jax.jit(jax.vmap(one))(jnp.arange(len(rows)))
    return np.asarray(rows), jax.device_get(out), room


@pytest.fixture(scope="module")
def drawn(task):
    return batches(task)


def shared_persons(task, rows):
    """Support rows whose person is also asked for in the same batch."""
    nobody = np.append(task.person, -1)  # of rows out of range
    asked, drawn = np.split(nobody[np.minimum(rows, task.n_users)], [BATCH], 1)
    return sum(np.isin(d[d >= 0], a[a >= 0]).sum() for a, d in zip(asked, drawn, strict=True))


def test_support_is_of_overlapped_users_that_are_not_asked_for(task, drawn):
    rows, batch, _ = drawn
    support = rows[:, BATCH:]
    assert set(support.ravel().tolist()) <= set(task.pool.tolist())
    assert shared_persons(task, rows) == 0
    # Without replacement, as many as asked for, another draw at every step.
    assert support.shape[1] == SUPPORT and all(len(set(row)) == SUPPORT for row in support.tolist())
    assert len({tuple(sorted(row)) for row in support.tolist()}) > 5
    # The batch holds the streams and targets of these rows.
    whole = task.train_arrays()
    for name in ("seq", "seq_A", "time_B", "target"):
        found = batch[name][batch["real"]]
        np.testing.assert_array_equal(found, whole[name][rows[rows < task.n_users]], name)
    overlapped = (whole["seq_A"][:, -1] != 0) & (whole["seq_B"][:, -1] != 0)
    assert np.flatnonzero(overlapped).tolist() == task.pool.tolist() != list(range(task.n_users))


def test_the_twin_without_the_rule_draws_whom_it_asks_for(task):
    other = dataclasses.replace(task, exclude_query=False)
    assert shared_persons(task, np.asarray(jax.jit(other.epoch_rows)(0, 0))) > 0


def test_a_pool_too_small_leaves_empty_rows(task):
    """Most of the pool is asked for: the places that are left stay empty."""
    wide = dataclasses.replace(task, batch_size=task.n_users - 3, support=SUPPORT)
    rows = jnp.arange(task.n_users - 3)
    drawn = np.asarray(wide.rows_of_batch(rows, 0, 0))[len(rows) :]
    real = drawn[drawn < task.n_users]
    assert len(real) < SUPPORT
    assert not set(task.person[real]) & set(task.person[np.asarray(rows)])


def test_negatives_are_new_items_of_the_target_domain(task, drawn):
    rows, batch, _ = drawn
    log, split, found = task.log, task.split, set()
    for step in range(len(rows)):
        for n, r in enumerate(rows[step]):
            if r >= task.n_users:
                continue
            user = task.rows.user[r]
            own = log.item[log.offsets[user] : log.offsets[user] + split.n_train[user]]
            target, negative = batch["target"][step, n], batch["negative"][step, n]
            assert negative not in own and target in own
            assert (negative > log.n_items[0]) == (target > log.n_items[0])
            found.add(int(negative))
    assert len(found) == sum(log.n_items)  # every item can be one


def test_all_tokens_have_room(task, drawn):
    _, batch, room = drawn
    for name, size in zip(("x", "A", "B"), room, strict=True):
        grid = batch["seq" if name == "x" else f"seq_{name}"]
        used = (batch[f"at_{name}"] < grid[0].size).sum(1)
        assert (used == (grid != 0).sum((1, 2))).all() and used.max() <= size


def test_batch_is_a_function_of_seed_and_step(task):
    first, second = (batches(task, 1)[1] for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, first, second)
    assert first["n_users"].sum() == task.n_users
    assert (first["epoch"] == np.arange(task.n_steps) / task.n_steps).all()


def test_without_support_there_are_queries_only(task):
    _, batch, _ = batches(dataclasses.replace(task, support=0), 1)
    assert batch["query"].all() and batch["seq"].shape[1] == BATCH


def test_data_that_cannot_train_are_refused():
    def log_of(sequences):
        user = np.repeat(np.arange(len(sequences)), list(map(len, sequences)))
        return make_log(user, np.concatenate(sequences), 0 * user, (4, 4), "tiny")

    apart = log_of([[1, 2, 3, 4, 1], [5, 6, 7, 8, 5]])
    with pytest.raises(UserError, match="no training user with a history in both domains"):
        CDSRNPTask(apart, leave_one_out(apart), 4, 2, 8)
    one = log_of([[1, 2, 3, 4, 1], [1, 2, 3, 1, 2]])
    with pytest.raises(UserError, match="no training target in domain B"):
        CDSRNPTask(one, leave_one_out(one), 4, 2, 8)
    whole = log_of([[5, 1, 2, 3, 4, 1, 2], [1, 5, 6, 1, 5, 6]])
    with pytest.raises(UserError, match="owns 4 of domain A's 4 items"):
        CDSRNPTask(whole, leave_one_out(whole), 4, 2, 8)
