"""The contract of oa_jax/backbones/base.py as functions that raise AssertionError.

They know a backbone by its contract alone: parameters, evaluation rows, batches of its task.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from oa_jax import experiment as experiment_lib
from oa_jax.backbones import base
from oa_jax.events.log import make_log

CLOSE = {"rtol": 2e-4, "atol": 2e-5}


class Case:
    """A backbone on the data of a small experiment, its functions compiled once."""

    def __init__(self, experiment, backbone=None):
        self.experiment, self.task = experiment, experiment.data.task
        self.backbone = backbone or experiment.engine.settings.on(experiment.tables).backbone
        # Random parameters at the start are so small that a mistake could hide in rounding.
        params = jax.jit(self.backbone.init)(jax.random.key(0))
        self.params = jax.tree.map(lambda a: 3 * a, params)
        self.rows = experiment.evaluation.rows["test"]
        self.encode, self.score = jax.jit(self.backbone.encode), jax.jit(self.backbone.score)
        self.index, self.probe = jax.jit(self.backbone.index), jax.jit(self.backbone.probe)

    def batch(self, capacity, rows=None):
        arrays = self.task.train_arrays()
        rows = jnp.arange(self.task.batch_size) if rows is None else rows
        return jax.jit(lambda a: self.task.batch(a, rows, 0, 0, capacity))(arrays)

    def loss(self, batch):
        hparams = {name: values[0] for name, values in self.experiment.hparams().items()}
        return jax.jit(lambda p, b: self.backbone.loss(p, b, None, hparams))(self.params, batch)

    @property
    def capacity(self):
        return self.experiment.engine.capacity(self.experiment.seeds, 0)


def has_the_functions_of_the_contract(case):
    for protocol, found in ((base.Backbone, case.backbone), (base.Task, case.task)):
        missing = [name for name in base.members(protocol) if not hasattr(found, name)]
        assert not missing, f"{type(found).__name__} has no {missing}"


def no_token_sees_a_later_event(case):
    """The last event of every history becomes another item of its domain: what fusions see and do
    at earlier tokens stays, bit for bit."""
    data = case.experiment.data
    log, place = data.log, data.task.split.test
    event = (log.offsets[:-1] + place - 1)[place > 0]
    item = log.item.copy()
    n_a, n_all = log.n_items[0], sum(log.n_items)
    in_a = item[event] <= n_a
    item[event] = np.where(
        in_a, item[event] % n_a + 1, (item[event] - n_a) % (n_all - n_a) + n_a + 1
    )
    other = make_log(log.user, item, log.time, log.n_items, log.name)
    task = experiment_lib.task(case.experiment.config, other, data.split)
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
    found = [case.loss(case.batch(capacity)) for capacity in (small, large)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **CLOSE), *found)


def an_epochs_last_batch_may_have_empty_rows(case):
    rows = jnp.arange(case.task.batch_size)
    half = jnp.where(rows < len(rows) // 2, rows, case.task.n_users)
    loss, _ = case.loss(case.batch(case.capacity, half))
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
    assert np.ptp(every, axis=1).min() > 0, "all items have one score"


def seeds_are_alone(case):
    """Two seeds in one program are what each is alone: by `map` bit for bit, by `vmap` closely."""
    experiment = case.experiment
    arrays = {k: v for k, v in experiment.train_arrays().items() if k in ("train", "tables")}
    seeds, hparams = experiment.seeds[:2], jax.tree.map(lambda a: a[:2], experiment.hparams())
    found = {}
    for axis, groups in (("map", (slice(0, 2), slice(1, 2))), ("vmap", (slice(0, 2),))):
        engine = type(experiment.engine)(
            dataclasses.replace(experiment.engine.settings, quick_compile=True), axis
        )
        for group in groups:
            of = jax.tree.map(lambda a, group=group: a[group], hparams)
            states = engine.create(seeds[group], of)
            states, losses = engine.steps(states, arrays, case.capacity, 2)
            found[axis, group.start] = jax.device_get((states.params, losses))
    both, alone, vmapped = found["map", 0], found["map", 1], found["vmap", 0]
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[1:], b), both, alone)
    np.testing.assert_allclose(both[1], vmapped[1], rtol=1e-4)


CHECKS = (
    has_the_functions_of_the_contract,
    no_token_sees_a_later_event,
    room_for_tokens_changes_no_loss,
    an_epochs_last_batch_may_have_empty_rows,
    rows_do_not_know_each_other,
    candidates_are_scored_as_in_full_ranking,
    seeds_are_alone,
)
