"""Batches of LLM4CDSR: negatives outside the history, from the pools that the quirks say."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from oa_jax.backbones.llm4cdsr.fields import Quirks
from oa_jax.backbones.llm4cdsr.task import LLM4CDSRTask
from oa_jax.engine.step import train_step
from oa_jax.errors import UserError
from oa_jax.events.log import make_log
from oa_jax.events.split import leave_one_out, train_on_both

DOMAINS = "AB"
MIXED = [1, 9, 2, 10, 3, 11]
CORRECTED, OFFICIAL = Quirks.of("corrected"), Quirks.of("official")


@pytest.fixture(scope="module")
def log(random_log):
    return random_log(1, n_users=20, n_items=(12, 17), longest=12)


def make(log, quirks=OFFICIAL):
    return LLM4CDSRTask(log, leave_one_out(log, skip_short=True), 8, 6, quirks)


@pytest.fixture(scope="module")
def drawn(log):
    """Function (quirks) -> (task, batches of 40 steps stacked), one program each."""
    memory = {}

    def draw(quirks=OFFICIAL):
        if quirks not in memory:
            task = make(log, quirks)
            arrays = jax.tree.map(jnp.asarray, task.train_arrays())
            rows = jnp.arange(20).reshape(-1, 5)

            def one(step):
                return task.batch(arrays, rows[step % 4], 0, step, (64, 64, 64))

            memory[quirks] = task, jax.device_get(jax.jit(jax.vmap(one))(jnp.arange(40)))
        return memory[quirks]

    return draw


def tokens(batch, step, domain):
    """(slot, row, column) of the real tokens of a step."""
    at = batch[f"at_{domain}"][step]
    slot = np.flatnonzero(at < batch["seq"][step].size)
    return slot, *np.divmod(at[slot], batch["seq"].shape[-1])


def all_draws(task, batch):
    """{(domain, joint id of the input, local negative, joint negative)} with each token's row."""
    n_a = task.log.n_items[0]
    for step in range(len(batch["seq"])):
        for d in DOMAINS:
            for slot, row, column in zip(*tokens(batch, step, d), strict=True):
                user = 5 * (step % 4) + row
                pair = batch[f"pair_{d}"][step, row, column]
                source = batch["seq"][step, row, pair]
                local = batch[f"neg_{d}"][step, slot] + n_a * (d == "B")
                yield d, user, source, local, batch[f"neg_x_{d}"][step, slot]


@pytest.mark.parametrize("quirks", [OFFICIAL, CORRECTED], ids=["official", "corrected"])
def test_negatives_avoid_the_history(drawn, quirks):
    task, batch = drawn(quirks)
    log, n_a, n_all = task.log, task.log.n_items[0], sum(task.log.n_items)
    seen_last = set()
    for d, user, source, local, joint in all_draws(task, batch):
        own = log.item[log.offsets[user] : log.offsets[user] + task.split.n_train[user]]
        assert joint not in own and local not in own[-9:]
        assert (local > n_a) == (d == "B") and 1 <= joint <= n_all
        if quirks == CORRECTED:
            assert local == joint  # Q6 corrected: one item for both streams
        else:
            assert (joint > n_a) == (source > n_a)  # Q5: of the input's domain
        seen_last |= {joint, local} & {n_a, n_all}
    assert seen_last == (set() if quirks == OFFICIAL else {n_a, n_all})  # Q7


def test_two_negatives_differ_and_q5_crosses_domains(drawn):
    task, batch = drawn()
    draws = list(all_draws(task, batch))
    assert np.mean([local == joint for *_, local, joint in draws]) < 0.2
    n_a = task.log.n_items[0]
    crossed = [(joint > n_a) != (d == "B") for d, *_, joint in draws]
    assert 0.2 < np.mean(crossed) < 0.8
    task, batch = drawn(dataclasses.replace(OFFICIAL, q5_negative_of_input_domain=False))
    draws = all_draws(task, batch)
    assert not any((joint > n_a) != (d == "B") for d, *_, joint in draws)


def test_every_free_item_is_drawn_about_as_often(drawn):
    task, batch = drawn(CORRECTED)
    counts = {}
    for d, user, _, local, _ in all_draws(task, batch):
        if d == "A" and user == 3:
            counts[local] = counts.get(local, 0) + 1
    own = task.log.item[task.log.offsets[3] : task.log.offsets[3] + task.split.n_train[3]]
    assert set(counts) <= set(range(1, 13)) - set(own.tolist())


def test_pairs_of_the_regulariser(drawn):
    task, batch = drawn()
    n_a, found = task.log.n_items[0], set()
    for step in range(40):
        for row in range(5):
            user = 5 * (step % 4) + row
            begin = task.log.offsets[user]
            items = task.log.item[begin : begin + task.split.n_train[user] - 1]
            a, b = batch["reg_A"][step, row], batch["reg_B"][step, row]
            of_a, of_b = items[items <= n_a], items[items > n_a]
            if len(of_a) and len(of_b):
                assert a in of_a and b in of_b
                found |= {(user, a), (user, b)}
            else:
                assert a == b == 0
    assert len(found) > 40  # not always the same one


def test_rows_out_of_range_are_empty(log):
    task = make(log)
    arrays = jax.tree.map(jnp.asarray, task.train_arrays())
    batch = jax.jit(lambda rows: task.batch(arrays, rows, 0, 0, (16, 16, 16)))(jnp.array([3, 20]))
    assert batch["real"].tolist() == [True, False] and batch["n_users"] == 1
    assert batch["seq"][0].any() and not batch["seq"][1].any()
    assert batch["reg_A"][1] == batch["reg_B"][1] == 0


def test_draws_do_not_depend_on_the_room_of_the_batch(log):
    task = make(log)
    arrays = jax.tree.map(jnp.asarray, task.train_arrays())

    @functools.partial(jax.jit, static_argnums=0)
    def batch(room, step):
        return task.batch(arrays, jnp.arange(4), 5, step, (room,) * 3)

    small, large = batch(40, 9), batch(60, 9)
    for d in DOMAINS:
        n = int((np.asarray(small[f"at_{d}"]) < 32).sum())
        for name in (f"neg_{d}", f"neg_x_{d}"):
            np.testing.assert_array_equal(small[name][:n], large[name][:n])
    other = batch(40, 10)
    assert (np.asarray(other["neg_A"]) != np.asarray(small["neg_A"])).any()


def test_profiles_by_row_and_by_user():
    """Q10: a user that is left out shifts the official rows of all that follow."""
    user = np.repeat(np.arange(4), [6, 2, 6, 6])
    item = np.tile([1, 9, 2, 10, 1, 9, 3, 4], 3)[:20]
    log = make_log(user, item, np.zeros(20, int), (8, 8), "q10")
    assert make(log).train_arrays()["profile"].tolist() == [0, 1, 2]
    assert make(log, CORRECTED).train_arrays()["profile"].tolist() == [0, 2, 3]


def test_users_that_do_not_train_shift_no_profile():
    """Q10 counts users with 3 events, also those that `data.users=overlap` leaves out: 0 and 3."""
    user = np.repeat(np.arange(6), [4, 6, 2, 5, 6, 6])
    item = np.concatenate([[1, 2, 3, 4], MIXED, [1, 9], [9, 10, 11, 12, 13], MIXED, MIXED])
    log = make_log(user, item, np.zeros(29, int), (8, 8), "overlap")
    split = train_on_both(log, leave_one_out(log, skip_short=True))
    for quirks, expected in ((OFFICIAL, [1, 3, 4]), (CORRECTED, [1, 4, 5])):
        task = LLM4CDSRTask(log, split, 8, 6, quirks)
        assert task.train_arrays()["profile"].tolist() == expected
        assert task.arrays_of_rows(np.array([2]))["profile"] == expected[2]


@pytest.mark.parametrize("freeze", [True, False])
def test_a_frozen_random_table_does_not_decay(freeze):
    fields = {"model.global_llm": False, "model.freeze": freeze, "train.weight_decay": 0.5}
    found = toy.small_experiment("llm4cdsr", "pair=synthetic", **fields)
    engine, arrays = found.engine, found.train_arrays()["train"]
    state = jax.tree.map(lambda a: a[0], engine.create(found.seeds, found.hparams()))
    one = functools.partial(train_step, engine.settings, (64, 64, 64))
    after = jax.jit(one)(state, jnp.arange(4), arrays)[0]
    same = jax.tree.map(lambda a, b: bool((a == b).all()), state.params, after.params)["net"]
    assert same.pop("items") == freeze and not any(jax.tree.leaves(same))


def test_no_target_in_a_domain():
    log = make_log([0, 0, 0, 0], [1, 2, 3, 1], np.zeros(4, int), (4, 4), "only A")
    with pytest.raises(UserError, match="only A: no training target in domain B"):
        make(log)


def test_a_user_that_owns_everything():
    item = [1, 2, 1, 3, 4, 3, 1, 1]
    log = make_log([0] * 8, item, np.zeros(8, int), (2, 3), "greedy")
    with pytest.raises(UserError, match="a user of greedy owns"):
        make(log)
