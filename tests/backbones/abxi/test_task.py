"""Batches of the ABXI task: positions, negatives, partial batches, capacities."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from oa_jax.backbones.abxi.task import ABXITask
from oa_jax.errors import UserError
from oa_jax.events.log import make_log
from oa_jax.events.split import leave_one_out
from oa_jax.nn import draws

pytestmark = pytest.mark.slow

N_ITEMS, LENGTH, BATCH, N_NEGATIVES = (40, 50), 12, 8, 6
ROWS = jnp.asarray([3, 0, 1, 2, 29, 17, 4, 11])
PARTIAL = jnp.asarray([5, 9, 2, 30, 30, 30, 30, 30])  # 30 users: the rest is filler
WIDE = (128, 128)


@pytest.fixture(scope="module")
def make_task(random_log):
    """Function (log seed, **fields) -> a task over a random log of 30 users."""

    @functools.cache
    def log_of(seed):
        return random_log(seed, 30, N_ITEMS, 25)

    def build(seed=0, **fields):
        log = log_of(seed)
        return ABXITask(log, leave_one_out(log), LENGTH, BATCH, N_NEGATIVES, **fields)

    return build


@functools.cache
def compiled(task, capacity):
    return jax.jit(lambda arrays, rows, seed, step: task.batch(arrays, rows, seed, step, capacity))


def draw(task, rows=ROWS, seed=0, step=0, capacity=WIDE):
    batch = compiled(Hashable(task), capacity)(task.train_arrays(), rows, seed, step)
    return jax.tree.map(np.asarray, batch)


class Hashable:
    """A task as a key of the cache of compiled functions, by identity of its log and switches."""

    def __init__(self, task):
        self.task = task
        self.key = (id(task.log), task.negatives, task.pool_b_from_last_a)

    def __getattr__(self, name):
        return getattr(self.task, name)

    def __hash__(self):
        return hash(self.key)

    def __eq__(self, other):
        return self.key == other.key


def training_items(task, user, domain):
    """Items of a user's training part in a domain."""
    log = task.log
    first = log.offsets[user]
    items = log.item[first : first + task.split.n_train[user]]
    return set(items[(items > N_ITEMS[0]) == bool(domain)].tolist())


def used(at, grid_size):
    return at[at < grid_size]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("rows", [ROWS, PARTIAL], ids=["full", "partial"])
def test_positions_are_the_targets_of_each_domain(make_task, seed, rows):
    task = make_task(seed)
    batch = draw(task, rows)
    gt = task.train_arrays()["gt"]
    for row, user in enumerate(rows.tolist()):
        expected = gt[user] if user < task.n_users else np.zeros(LENGTH, int)
        np.testing.assert_array_equal(batch["gt"][row], expected)
    flat = batch["gt"].ravel()
    in_a = np.flatnonzero((flat > 0) & (flat <= N_ITEMS[0]))
    np.testing.assert_array_equal(used(batch["at_A"], flat.size), in_a)
    np.testing.assert_array_equal(used(batch["at_B"], flat.size), np.flatnonzero(flat > N_ITEMS[0]))
    for name in ("at_A", "at_B"):
        assert (batch[name][len(used(batch[name], flat.size)) :] == flat.size).all()
    assert batch["n_users"] == (np.asarray(rows) < 30).sum()


def test_filler_rows_are_empty(make_task):
    batch = draw(make_task(), PARTIAL)
    for name in ("seq_x", "seq_a", "seq_b", "gt"):
        assert not batch[name][3:].any() and batch[name][:3].any()
    for name in ("at_A", "at_B"):
        assert used(batch[name], BATCH * LENGTH).max() < 3 * LENGTH


def owner_rows(task, batch):
    """(users, negatives) of the used slots, whatever the form of the draw."""
    if task.negatives == "per_sequence":
        return list(zip(ROWS.tolist(), batch["shared_negatives"], strict=True))
    at = np.concatenate([batch["at_A"], batch["at_B"]])
    real = at < BATCH * LENGTH
    users = np.asarray(ROWS)[at[real] // LENGTH]
    return list(zip(users.tolist(), batch["negatives"][real], strict=True))


@pytest.mark.parametrize("q1", [False, True])
@pytest.mark.parametrize("negatives", ["per_position", "per_sequence"])
@pytest.mark.parametrize("seed", range(2))
def test_negatives_are_distinct_and_never_owned(make_task, seed, negatives, q1):
    task = make_task(seed, negatives=negatives, pool_b_from_last_a=q1)
    lowest_b = N_ITEMS[0] + 1 - q1
    for step in range(4):
        for user, ids in owner_rows(task, draw(task, seed=5, step=step)):
            of_a, of_b = ids[:N_NEGATIVES], ids[N_NEGATIVES:]
            assert len(set(of_a.tolist())) == len(set(of_b.tolist())) == N_NEGATIVES == len(of_b)
            assert of_a.min() >= 1 and of_a.max() <= N_ITEMS[0]
            assert lowest_b <= of_b.min() and of_b.max() <= sum(N_ITEMS)
            assert not set(of_a.tolist()) & training_items(task, user, 0)
            assert not set(of_b.tolist()) & training_items(task, user, 1)


def test_the_check_notices_another_users_negatives(make_task):
    """Twin: rows shifted by one user do meet owned items."""
    task = make_task(0, negatives="per_sequence")
    batch = draw(task)
    users = np.roll(np.asarray(ROWS), 1).tolist()
    meets = [
        set(ids.tolist()) & (training_items(task, user, 0) | training_items(task, user, 1))
        for user, ids in zip(users, batch["shared_negatives"], strict=True)
    ]
    assert any(meets)


@pytest.mark.parametrize("negatives", ["per_position", "per_sequence"])
def test_all_admitted_items_are_drawn(make_task, negatives):
    task = make_task(0, negatives=negatives, pool_b_from_last_a=False)
    seen = {user: set() for user in ROWS.tolist()}
    for step in range(60):
        for user, ids in owner_rows(task, draw(task, step=step)):
            seen[user] |= set(ids.tolist())
    user = 2
    everything = set(range(1, sum(N_ITEMS) + 1))
    owned = training_items(task, user, 0) | training_items(task, user, 1)
    assert owned and seen[user] == everything - owned


def own_last_a(n_users=8):
    """A log in which every user owns A's last item, and enough of both domains."""
    rng = np.random.default_rng(0)
    items = [[N_ITEMS[0], *rng.integers(1, sum(N_ITEMS) + 1, 9), 1, 41] for _ in range(n_users)]
    user = np.repeat(np.arange(n_users), 12)
    return make_log(user, np.ravel(items), np.tile(np.arange(12), n_users), N_ITEMS, "owners")


@pytest.mark.parametrize("q1", [True, False])
def test_q1_pool_of_b_holds_the_last_item_of_a_even_when_owned(q1):
    log = own_last_a()
    task = ABXITask(log, leave_one_out(log), LENGTH, BATCH, N_NEGATIVES, "per_position", q1)
    of_b = [draw(task, jnp.arange(8), step=step)["negatives"] for step in range(8)]
    at = draw(task, jnp.arange(8))
    real = np.concatenate([at["at_A"], at["at_B"]]) < BATCH * LENGTH
    of_a = np.stack(of_b)[:, real, :N_NEGATIVES]
    of_b = np.stack(of_b)[:, real, N_NEGATIVES:]
    assert not (of_a == N_ITEMS[0]).any()
    share = (of_b == N_ITEMS[0]).mean()
    # One of about 46 admitted ids of the pool, if it is in the pool at all.
    assert 0.01 < share < 0.04 if q1 else share == 0


def test_positions_and_steps_draw_their_own(make_task):
    task = make_task()
    first, again, later = (draw(task, step=step)["negatives"] for step in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    n_used = [(draw(task)[name] < BATCH * LENGTH).sum() for name in ("at_A", "at_B")]
    real = np.r_[: n_used[0], 128 : 128 + n_used[1]]
    assert len({row.tobytes() for row in first[real]}) == len(real)
    assert not (first[real] == later[real]).all(1).any()
    assert not np.array_equal(first, draw(task, seed=1)["negatives"])


def test_a_sequence_shares_one_draw(make_task):
    batch = draw(make_task(0, negatives="per_sequence"))
    assert "negatives" not in batch
    assert batch["shared_negatives"].shape == (BATCH, 2 * N_NEGATIVES)
    assert len({row.tobytes() for row in batch["shared_negatives"]}) == BATCH


def test_draws_do_not_depend_on_the_capacity(make_task):
    task = make_task()
    small, large = draw(task, capacity=(96, 80)), draw(task, capacity=(128, 112))
    for name, start in (("at_A", (0, 0)), ("at_B", (96, 128))):
        count = (small[name] < BATCH * LENGTH).sum()
        assert count == (large[name] < BATCH * LENGTH).sum()
        parts = [b["negatives"][s : s + count] for b, s in zip((small, large), start, strict=True)]
        np.testing.assert_array_equal(*parts)


@pytest.mark.parametrize("negatives", ["per_position", "per_sequence"])
def test_unused_slots_hold_ids_of_the_table(make_task, negatives):
    """Empty rows and unused slots have weight 0, but their ids must still be inside the table."""
    task = make_task(0, negatives=negatives)
    batch = draw(task, PARTIAL)
    ids = batch.get("shared_negatives", batch.get("negatives"))
    assert ids.min() >= 0 and ids.max() <= sum(N_ITEMS)


def brute_force_need(task, seed, epoch):
    rows = np.asarray(draws.epoch_rows(seed, epoch, task.n_users, task.batch_size))
    gt = task.train_arrays()["gt"]
    need = np.zeros(2, int)
    for batch in rows:
        targets = gt[batch[batch < task.n_users]]
        in_a = ((targets > 0) & (targets <= N_ITEMS[0])).sum()
        need = np.maximum(need, [in_a, (targets > N_ITEMS[0]).sum()])
    return need


@pytest.mark.parametrize("seed", range(3))
def test_slots_needed_is_the_maximum_over_the_batches(make_task, seed):
    task = make_task(seed)
    for epoch in range(4):
        found = task.slots_needed(jnp.asarray(task.slot_counts), seed, epoch)
        np.testing.assert_array_equal(found, brute_force_need(task, seed, epoch))


def dropped(task, capacity, seed=0, epoch=0):
    """Targets of an epoch that no slot holds."""
    rows = draws.epoch_rows(seed, epoch, task.n_users, task.batch_size)
    lost = 0
    for step, users in enumerate(rows):
        batch = draw(task, users, seed, step, capacity)
        held = sum((batch[name] < BATCH * LENGTH).sum() for name in ("at_A", "at_B"))
        lost += (batch["gt"] > 0).sum() - held
    return lost


def test_capacity_drops_no_position_and_one_multiple_less_does(make_task, monkeypatch):
    monkeypatch.setattr("oa_jax.nn.task.SLOT_MULTIPLE", 4)
    task = make_task()
    need = np.asarray(task.slots_needed(jnp.asarray(task.slot_counts), 0, 0))
    assert dropped(task, task.capacity(need)) == 0
    tight = tuple(-(-need // 4) * 4)
    assert dropped(task, tight) == 0
    for smaller in ((tight[0] - 4, tight[1]), (tight[0], tight[1] - 4)):
        assert dropped(task, smaller) > 0


def test_capacity_is_the_usual_one_unless_an_epoch_needs_more(make_task, monkeypatch):
    monkeypatch.setattr("oa_jax.nn.task.SLOT_MULTIPLE", 4)
    task = make_task()
    usual = task.capacity((0, 0))
    assert all(c % 4 == 0 and 0 <= c - n < 4 for c, n in zip(usual, task.usual_slots, strict=True))
    # The seed and the epoch do not choose the program …
    counts = jnp.asarray(task.slot_counts)
    for seed in range(20):
        assert task.capacity(task.slots_needed(counts, seed, 0)) == usual
    # … and a batch that needs more gets it.
    assert task.capacity((usual[0] + 1, 0)) == (usual[0] + 4, usual[1])


def test_usual_slots_by_hand(make_task):
    task = make_task()
    counts, users, size = task.slot_counts, task.n_users, task.batch_size
    for d in (0, 1):
        variance = size * counts[d].var() * (users - size) / (users - 1)
        most = np.sort(counts[d])[-size:].sum()
        usual = min(size * counts[d].mean() + 5 * variance**0.5, most)
        assert task.usual_slots[d] == pytest.approx(usual)


def test_target_counts_and_steps(make_task):
    task = make_task()
    gt = task.train_arrays()["gt"]
    np.testing.assert_array_equal(task.slot_counts.sum(0), (gt > 0).sum(1))
    np.testing.assert_array_equal(task.slot_counts[1], (gt > N_ITEMS[0]).sum(1))
    assert (task.n_users, task.n_steps) == (30, 4)


def test_more_negatives_than_items_is_refused(make_task):
    task = make_task()
    most = [
        N_ITEMS[domain] - max(len(training_items(task, user, domain)) for user in range(30))
        for domain in (0, 1)
    ]
    tighter = int(most[1] < most[0])
    dataclasses.replace(task, n_negatives=most[tighter])  # the very last one fits
    expected = f"{most[tighter] + 1}: expected at most {most[tighter]}: a user .* owns .* of domain"
    with pytest.raises(UserError, match=f"train.n_negatives: {expected} {'AB'[tighter]}"):
        dataclasses.replace(task, n_negatives=most[tighter] + 1)


@pytest.mark.parametrize(("item", "empty"), [(1, "B"), (41, "A")])
def test_a_domain_without_training_targets_is_refused(item, empty):
    # The other domain occurs in the held-out events and as the first input only.
    other = 41 if item == 1 else 1
    log = make_log([0] * 6, [other] + [item] * 3 + [other] * 2, np.arange(6), N_ITEMS, "lop")
    with pytest.raises(UserError, match=f"lop: no training target in domain {empty}"):
        ABXITask(log, leave_one_out(log), LENGTH, BATCH, N_NEGATIVES)


def test_users_that_train_nothing_take_no_place_in_a_batch(make_task):
    """Of `data.users=overlap`, and of published sets whose test users have rows of their own."""
    whole = make_task()
    n_train = whole.split.n_train.copy()
    n_train[::3] = 0
    task = dataclasses.replace(whole, split=dataclasses.replace(whole.split, n_train=n_train))
    assert whole.n_users == 30 and whole.n_steps == 4
    assert task.n_users == 20 and task.n_steps == 3
    np.testing.assert_array_equal(task.row_users, [u for u in range(30) if u % 3])
    np.testing.assert_array_equal(task.slot_counts, whole.slot_counts[:, task.row_users])
    arrays, expected = task.train_arrays(), whole.train_arrays()
    for name in ("seq_x", "seq_a", "seq_b", "gt"):
        np.testing.assert_array_equal(arrays[name], expected[name][task.row_users])
    # Every row of an epoch's batches has targets, so that their mean is over users that train.
    rows_TxB = np.asarray(task.epoch_rows(0, 0))
    assert (arrays["gt"][rows_TxB[rows_TxB < task.n_users]] > 0).any(1).all()
    batch = task.batch(jax.tree.map(jnp.asarray, arrays), jnp.arange(8), 0, 0, WIDE)
    assert batch["n_users"] == 8 == len(np.unique(np.nonzero(batch["gt"])[0]))
