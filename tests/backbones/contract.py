"""The contract of oa_jax/backbones/base.py as functions that raise AssertionError.

They know a backbone by its contract alone: parameters, evaluation rows, batches of its task.
"""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxprs_in_params

from oa_jax import experiment as experiment_lib
from oa_jax.backbones import base
from oa_jax.events.log import make_log
from oa_jax.nn.draws import Purpose, key_of

CLOSE = {"rtol": 2e-4, "atol": 2e-5}


class Case:
    """A backbone on the data of a small experiment, its functions compiled once.

    learner: function of the backbone -> what makes losses, if not the backbone itself.
    """

    def __init__(self, experiment, learner=lambda backbone: backbone):
        self.experiment, self.task = experiment, experiment.data.task
        self.rows = experiment.evaluation.rows["test"]
        self.arrays = jax.tree.map(jnp.asarray, self.task.train_arrays())
        self.capacity = experiment.engine.capacity(experiment.seeds, 0)
        self.hparams = {name: values[0] for name, values in experiment.hparams().items()}
        self.batch = jax.jit(self.task.batch, static_argnums=4)
        whole = experiment.engine.settings.on(experiment.tables).backbone
        self.replace_backbone(whole, learner(whole))
        # Random parameters at the start are so small that a mistake could hide in rounding.
        self.params = jax.tree.map(lambda a: 3 * a, jax.jit(self.backbone.init)(jax.random.key(0)))

    def replace_backbone(self, backbone, learner=None):
        """learner: what makes losses; the backbone itself, if it is not given."""
        self.backbone, self.learner = backbone, learner or backbone
        self.encode, self.score = jax.jit(backbone.encode), jax.jit(backbone.score)
        self.index, self.probe = jax.jit(backbone.index), jax.jit(backbone.probe)
        self.run = jax.jit(self.step)

    def step(self, params, batch, key=None):
        return self.learner.loss(params, batch, key, self.hparams)

    def loss(self, capacity, rows=None):
        """(loss, aux) of a batch without dropout."""
        rows = jnp.arange(self.task.batch_size) if rows is None else rows
        rows = self.task.rows_of_batch(rows, 0, 0)
        return self.run(self.params, self.batch(self.arrays, rows, 0, 0, capacity))


def members(protocol):
    """Names of the functions and attributes that a Protocol asks for."""
    functions = {name for name in vars(protocol) if not name.startswith("_")}
    return sorted(functions | set(protocol.__annotations__))


def has_the_functions_of_the_contract(case):
    asked = ["log", "split", "batch_size", "n_users", "n_steps", "slot_counts", "row_users"]
    asked += ["train_arrays", "arrays_of", "eval_arrays", "batch", "capacity", "slots_needed"]
    for names, found in ((members(base.Backbone), case.backbone), (asked, case.task)):
        missing = [name for name in names if not hasattr(found, name)]
        assert not missing, f"{type(found).__name__} has no {missing}"


def no_token_sees_a_later_event(case):
    """The last event of every history becomes another item of its domain: what fusions see and do
    at earlier tokens stays, bit for bit."""
    data = case.experiment.data
    log, place = data.log, data.task.split.test
    event = (log.offsets[:-1] + place - 1)[place > 0]
    item, target = log.item.copy(), log.item[event + 1]
    n_a, n_all = log.n_items[0], sum(log.n_items)

    def following(ids):
        return np.where(ids <= n_a, ids % n_a + 1, (ids - n_a) % (n_all - n_a) + n_a + 1)

    # A copy of the target may be left out of a history: none comes, none goes.
    new = following(item[event])
    new = np.where(new == target, following(new), new)
    item[event] = np.where(item[event] == target, target, new)
    other = make_log(log.user, item, log.time, log.n_items, log.name)
    task = experiment_lib.build_task(case.experiment.config, other, data.split)
    changed = task.eval_arrays("test")
    before = case.probe(case.params, {k: v for k, v in case.rows.items() if k in changed})
    after = case.probe(case.params, changed)
    assert before, "no fusion: expected a configuration with one at each place"
    n_rows, seen = len(case.rows["target"]), 0
    for name, probe in before.items():
        for field in ("x", "update", "gate"):
            old, new = (
                np.asarray(getattr(of, field)).reshape(n_rows, -1, probe.x.shape[-1])[:, :-1]
                for of in (probe, after[name])
            )
            np.testing.assert_array_equal(old, new, err_msg=f"{name}: {field}")
        last = np.asarray(probe.x).reshape(n_rows, -1, probe.x.shape[-1])[:, -1]
        moved = np.asarray(after[name].x).reshape(n_rows, -1, probe.x.shape[-1])[:, -1]
        seen += int((last != moved).any(1).sum())
    assert seen, "the changed events are nowhere in what the fusions see"


def room_for_tokens_changes_no_loss(case):
    small, large = case.capacity, tuple(2 * n for n in case.capacity)
    found = [case.loss(capacity) for capacity in (small, large)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **CLOSE), *found)


def an_epochs_last_batch_may_have_empty_rows(case):
    rows = jnp.arange(case.task.batch_size)
    half = jnp.where(rows < len(rows) // 2, rows, case.task.n_users)
    loss, _ = case.loss(case.capacity, half)
    assert np.isfinite(loss) and loss > 0


def rows_do_not_know_each_other(case):
    order = np.random.default_rng(0).permutation(len(case.rows["target"]))
    shuffled = {name: values[order] for name, values in case.rows.items()}
    index = case.index(case.params)
    scores = case.score(index, case.encode(case.params, case.rows), case.rows["candidates"])
    again = case.score(index, case.encode(case.params, shuffled), shuffled["candidates"])
    np.testing.assert_allclose(np.asarray(scores)[order], again, **CLOSE)


def candidates_are_scored_as_in_full_ranking(case):
    ids = np.arange(1, sum(case.experiment.data.log.n_items) + 1, dtype=np.int32)
    index, encoded = case.index(case.params), case.encode(case.params, case.rows)
    every = np.asarray(case.score(index, encoded, ids))
    some = case.score(index, encoded, case.rows["candidates"])
    expected = np.take_along_axis(every, case.rows["candidates"] - 1, 1)
    np.testing.assert_allclose(some, expected, **CLOSE)
    # Of a few rows all items may have one score, where every unit of the last layer is 0.
    assert np.mean(np.ptp(every, axis=1) > 0) > 0.5, "all items have one score"


def rows_of_histories_are_the_tasks(case):
    """Of users whose target is not in their history, where some backbones leave copies out."""
    log, place = case.experiment.data.log, case.task.split.test
    users = case.rows["user"]
    histories = [log.item[log.offsets[u] : log.offsets[u] + place[u]] for u in users]
    new = np.array([t not in h for t, h in zip(case.rows["target"], histories, strict=True)])
    assert new.sum() > 20
    for more in (0, 9):  # empty columns before the longest
        width = more + max(map(len, histories))
        grid = np.stack([np.pad(h, (width - len(h), 0)) for h in histories])[new]
        found = jax.jit(case.backbone.rows)(grid.astype(np.int32), case.rows["domain"][new])
        for name, values in found.items():
            np.testing.assert_array_equal(values, case.rows[name][new], err_msg=name)
    scores = case.score(case.index(case.params), case.encode(case.params, found), np.arange(1, 9))
    assert np.isfinite(scores).all(), "rows have what `encode` reads"


def seeds_are_alone(case):
    """Seeds in one program do not know each other: in another order they are the same, by `map`
    bit for bit; `vmap` is that up to rounding."""
    rows = jnp.arange(case.task.batch_size)

    def one(seed):
        chosen = case.task.rows_of_batch(rows, seed, 0)
        batch = case.task.batch(case.arrays, chosen, seed, 0, case.capacity)
        params = jax.tree.map(lambda leaf: leaf * (1 + seed / 8), case.params)
        value_and_grad = jax.value_and_grad(case.step, has_aux=True)
        return value_and_grad(params, batch, key_of(seed, Purpose.DROPOUT, 0))

    mapped = jax.jit(lambda seeds: jax.lax.map(one, seeds))
    seeds = jnp.arange(2)
    (loss, _), grads = both = mapped(seeds)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[::-1], b), both, mapped(seeds[::-1]))
    (of_vmap, _), grads_of_vmap = jax.jit(jax.vmap(one))(seeds)
    np.testing.assert_allclose(of_vmap, loss, rtol=1e-4)
    for a, b in zip(*map(jax.tree.leaves, (grads_of_vmap, grads)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 + 1e-3 * np.abs(b).max())
    assert abs(loss[0] - loss[1]) > 1e-4, "two seeds have one loss"


def activations_of_bfloat16_are_rounded_and_nothing_else(case):
    rows = case.task.rows_of_batch(jnp.arange(case.task.batch_size), 0, 0)
    batch = case.batch(case.arrays, rows, 0, 0, case.capacity)

    def loss_in(dtype):
        learner = dataclasses.replace(case.learner, dtype=dtype)
        return lambda params: learner.loss(params, batch, None, case.hparams)[0]

    exact, rounded = (jax.jit(loss_in(dtype))(case.params) for dtype in ("float32", "bfloat16"))
    assert 0 < abs(rounded - exact) < 0.03 * abs(exact)
    assert exact.dtype == rounded.dtype == jnp.float32
    gradient = jax.grad(loss_in("bfloat16"))
    of_parameters = jax.tree.leaves(jax.eval_shape(gradient, case.params))
    assert {leaf.dtype for leaf in of_parameters} == {jnp.dtype("float32")}
    assert products_of_layers(jax.make_jaxpr(gradient)(case.params).jaxpr) == {"bfloat16"}


def products_of_layers(jaxpr):
    """Types of the operands of all products in attention, feed-forward layers and fusions."""
    found = set()
    for equation in jaxpr.eqns:
        within = str(equation.source_info.name_stack)
        if equation.primitive.name == "dot_general" and re.search("attention|ffn|gca", within):
            found |= {str(operand.aval.dtype) for operand in equation.invars}
        for inner in jaxprs_in_params(equation.params):
            found |= products_of_layers(inner)
    return found


def a_penalty_adds_its_weight_times_cos2(case):
    rows = case.task.rows_of_batch(jnp.arange(case.task.batch_size), 0, 0)
    batch = case.batch(case.arrays, rows, 0, 0, case.capacity)

    def with_weight(weight):
        hparams = case.hparams | {"ortho_weight": weight}
        return case.learner.loss(case.params, batch, None, hparams)

    (plain, _), (total, aux) = map(jax.jit(with_weight), (0.0, 100.0))
    assert aux["cos2"] > 1e-4
    np.testing.assert_allclose(total - plain, 100 * aux["cos2"], rtol=1e-3, atol=1e-3)


CHECKS = (
    has_the_functions_of_the_contract,
    no_token_sees_a_later_event,
    room_for_tokens_changes_no_loss,
    an_epochs_last_batch_may_have_empty_rows,
    rows_do_not_know_each_other,
    candidates_are_scored_as_in_full_ranking,
    rows_of_histories_are_the_tasks,
    seeds_are_alone,
    activations_of_bfloat16_are_rounded_and_nothing_else,
    a_penalty_adds_its_weight_times_cos2,
)
