"""Seeds in one program against seeds alone; slots, rates and repeats."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from oa_jax.backbones import known
from oa_jax.engine import mesh as mesh_lib
from oa_jax.engine import program as engine_lib
from oa_jax.engine.program import take_seeds

pytestmark = pytest.mark.slow

CAPACITY = (128, 128)


@pytest.fixture(scope="module")
def by_axis():
    """An experiment of three seeds per seed axis, same in all else; compiled as users have it."""
    configs = {a: known.resolve(toy.abxi_config(seed_axis=a)) for a in ("map", "vmap")}
    return {axis: toy.as_users(toy.with_toy(config)) for axis, config in configs.items()}


@pytest.fixture(scope="module")
def arrays(by_axis):
    return by_axis["map"].train_arrays()


def train(experiment, arrays, seeds=(0, 1, 2), epochs=2, capacity=CAPACITY, **hparams):
    """States and last report of `seeds` after some epochs; hparams are lists, one per seed."""
    engine = experiment.engine
    values = {name: jnp.full(len(seeds), v[0]) for name, v in experiment.hparams().items()}
    values |= {name: jnp.asarray(v, jnp.float32) for name, v in hparams.items()}
    states = engine.create(seeds, values)
    for _ in range(epochs):
        states, report = engine.epoch(states, arrays, capacity)
    return states, report


@pytest.fixture(scope="module")
def trained(by_axis, arrays):
    return {axis: train(experiment, arrays) for axis, experiment in by_axis.items()}


def test_seeds_by_map_are_separate_runs_bitwise(by_axis, arrays, trained, bitwise):
    """From the first draw to the final ranks. Steps of real backbones: backbones/contract.py."""
    states, report = trained["map"]
    evaluation, engine = by_axis["map"].evaluation, by_axis["map"].engine
    final = evaluation.padded(evaluation.rows["test"]), ("candidates", "full")
    ranks = engine.final(states.params, *final)
    for slot in range(3):
        alone = train(by_axis["map"], arrays, seeds=(slot,))
        assert bitwise(take_seeds((states, report), [slot]), alone)
        assert bitwise(take_seeds(ranks, [slot]), engine.final(alone[0].params, *final))
        # Twin: another seed's run is another one.
        assert not bitwise(take_seeds(states.params, [(slot + 1) % 3]), alone[0].params)


def test_a_seed_alone_takes_the_same_capacities_and_others_train_alike(
    by_axis, arrays, monkeypatch
):
    """A program's capacity follows from the data, not from its seeds; more room changes no draw."""
    monkeypatch.setattr("oa_jax.nn.task.SLOT_MULTIPLE", 4)
    engine = by_axis["map"].engine
    together = [engine.capacity((0, 1, 2), epoch) for epoch in range(3)]
    alone = [engine.capacity((1,), epoch) for epoch in range(3)]
    assert together == alone and together[0] != (128, 128)
    states = [train(by_axis["map"], arrays, (1,), 1, c)[0] for c in (together[0], (128, 128))]
    for one, other in zip(*(jax.tree.leaves(s.params) for s in states), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)


def test_vmap_is_map_to_rounding(trained):
    by_map, by_vmap = trained["map"][0], trained["vmap"][0]
    np.testing.assert_array_equal(by_map.step, by_vmap.step)
    for name, value in by_map.params.items():
        np.testing.assert_allclose(by_vmap.params[name], value, atol=2e-4, err_msg=name)
        # Twin: seeds differ by far more than that.
        assert np.abs(value[0] - value[1]).max() > 0.05


def test_seeds_side_by_side_share_the_data(by_axis, arrays):
    """No step of the program has a copy of a data array for each seed."""
    engine, seeds = by_axis["vmap"].engine, np.arange(3)
    states = engine.abstract(seeds, by_axis["vmap"].hparams())
    grids = [a.shape for part in arrays.values() for a in jax.tree.leaves(part) if a.ndim > 1]

    def copies(epoch):
        text = str(jax.make_jaxpr(jax.vmap(epoch, (0, None)))(states, arrays))
        return [shape for shape in grids if f"[{','.join(map(str, (3, *shape)))}]" in text]

    _, epoch, *_ = engine._epoch(states, arrays, CAPACITY)
    assert grids and not copies(epoch)
    # Twin: under vmap both branches of a `cond` get operands of each seed.
    branch = lambda state, arrays: jax.lax.cond(  # noqa: E731
        state.done, lambda state, arrays: state, lambda *of: epoch(*of)[0], state, arrays
    )
    assert copies(branch) == grids


def test_vmap_is_map_in_double_precision(by_axis):
    """Rounding is all that separates them: 30 steps in float64 agree to 1e-9."""
    ends = {}
    with jax.enable_x64(True):
        for axis in by_axis:
            experiment = toy.with_toy(known.resolve(toy.abxi_config(seed_axis=axis)))
            arrays = experiment.train_arrays()
            hparams = {k: v.astype(jnp.float64) for k, v in experiment.hparams().items()}
            states = experiment.engine.create((0, 1, 2), hparams)
            for _ in range(8):
                states, _ = experiment.engine.epoch(states, arrays, CAPACITY)
            ends[axis] = jax.device_get(states.params)
    for name, value in ends["map"].items():
        assert value.dtype == np.float64
        np.testing.assert_allclose(ends["vmap"][name], value, rtol=0, atol=1e-9, err_msg=name)


@pytest.mark.parametrize("axis", ["map", "vmap"])
def test_repeat_runs_are_bitwise(by_axis, arrays, trained, bitwise, axis):
    assert bitwise(train(by_axis[axis], arrays), trained[axis])


@pytest.mark.parametrize("axis", ["map", "vmap"])
def test_slots_may_be_permuted_bitwise(by_axis, arrays, trained, bitwise, axis):
    order = (2, 0, 1)
    permuted = train(by_axis[axis], arrays, seeds=order)
    assert bitwise(permuted, take_seeds(trained[axis], order))
    assert not bitwise(permuted, trained[axis])


@pytest.mark.parametrize("axis", ["map", "vmap"])
@pytest.mark.parametrize("name", ["learning_rate", "weight_decay", "dropout", "temperature"])
def test_hparams_act_on_their_slot_without_another_program(
    by_axis, arrays, trained, bitwise, axis, name
):
    experiment = by_axis[axis]
    usual = float(experiment.hparams()[name][0])
    n_programs, seconds = len(experiment.engine._programs), experiment.engine.compile_seconds
    states, _ = train(experiment, arrays, **{name: [usual, 0.8 * usual, usual]})
    assert len(experiment.engine._programs) == n_programs
    assert experiment.engine.compile_seconds == seconds
    same = [bitwise(*(take_seeds(s.params, i) for s in (states, trained[axis][0]))) for i in (0, 2)]
    assert all(same)
    assert not bitwise(*(take_seeds(s.params, 1) for s in (states, trained[axis][0])))


def test_the_slots_of_fewer_seeds_are_counted_by_the_same_program(by_axis, monkeypatch):
    engine, shapes = by_axis["map"].engine, set()
    program = engine._program

    def spied(name, function, args):
        shapes.add((name, args[1].shape))
        return program(name, function, args)

    monkeypatch.setattr(engine, "_program", spied)
    assert len({engine.capacity(range(n), 0, n_slots=3) for n in (3, 2, 1)}) == 1
    assert shapes == {("slots", (3,))}


def test_another_capacity_or_number_of_seeds_is_another_program(arrays):
    """Twin of the count: it does grow."""
    experiment = toy.with_toy(known.resolve(toy.abxi_config(seeds=2)))
    engine, counts = experiment.engine, []
    for seeds, capacity in (((0, 1), (128, 128)), ((0,), (128, 128)), ((0, 1), (112, 128))):
        hparams = {name: v[: len(seeds)] for name, v in experiment.hparams().items()}
        engine.compiled("epoch", engine.abstract(seeds, hparams), arrays, capacity)
        counts.append(len(engine._programs))
    assert counts == [1, 2, 3] and engine.compile_seconds > 0


def test_abstract_is_the_shape_of_create(by_axis):
    experiment = by_axis["vmap"]
    seeds, hparams = experiment.seeds, experiment.hparams()
    abstract = experiment.engine.abstract(seeds, hparams)
    states = experiment.engine.create(seeds, hparams)
    shapes = [jax.tree.map(lambda a: (a.shape, a.dtype), tree) for tree in (abstract, states)]
    assert shapes[0] == shapes[1]


def test_capacity_holds_every_seed(by_axis):
    engine, task = by_axis["vmap"].engine, by_axis["vmap"].data.task
    counts = jnp.asarray(task.slot_counts)
    needed = np.array([task.slots_needed(counts, seed, 2) for seed in range(3)])
    assert engine.capacity((0, 1, 2), 2) == task.capacity(needed.max(0))


def test_capacity_fits_the_slots_and_not_the_seeds_that_are_left(by_axis, monkeypatch):
    """Of three devices a seed alone would get all, and another program, beside two idle slots."""
    asked = []
    monkeypatch.setattr(mesh_lib.Layout, "even", lambda self, found, n: asked.append(n) or found)
    for n_slots in (0, 3):
        by_axis["vmap"].engine.capacity((0,), 2, n_slots)
    assert asked == [1, 3]


def test_assess_is_the_report_without_training(by_axis, arrays, trained, bitwise):
    states, report = trained["vmap"]
    found = by_axis["vmap"].engine.assess(states, arrays)
    assert bitwise(found, {name: report[name] for name in found})


def test_take_and_join_are_inverse(bitwise):
    tree = {"a": jnp.arange(10).reshape(5, 2), "b": jnp.arange(5.0)}
    parts = [take_seeds(tree, [0, 1]), take_seeds(tree, [2]), take_seeds(tree, [3, 4])]
    assert bitwise(engine_lib.join_seeds(parts), tree)
    alone = engine_lib.join_seeds([tree])
    assert bitwise(alone, tree)
    places = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves((alone, tree))]
    assert len(set(places)) == 4  # buffers of its own: others are given up


def test_auto_axis_is_by_device(monkeypatch):
    assert [engine_lib.resolve_axis(a) for a in ("auto", "map", "vmap")] == ["map", "map", "vmap"]
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert engine_lib.resolve_axis("auto") == "vmap"
