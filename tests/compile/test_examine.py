"""Experiments of which only sizes matter, rooflines by hand, and what the command says."""

import dataclasses
import functools
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
import toy

from oa_jax import experiment as experiment_lib
from oa_jax import presets
from oa_jax.backbones import known
from oa_jax.backbones.llm4cdsr.parts import PROFILE_WIDTH
from oa_jax.commands import compile as command
from oa_jax.compile.examine import Found, bytes_asked, examine, remedies, roofline
from oa_jax.compile.hlo import Cost
from oa_jax.compile.sizes import made_up, shapes_of
from oa_jax.compile.topology import PRECISIONS, Topology
from oa_jax.configuration import Train
from oa_jax.engine import step as step_lib
from oa_jax.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[2]
SIZES = "users:40,items:200+210,events:403"


def resolved(spec="abxi.py:pair=synthetic,runlocal", **changes):
    config = presets.load(f"configs/{spec}")
    config.update_from_flattened_dict(changes)
    return known.resolve(config)


# --- sizes ---------------------------------------------------------------------------------------


def test_sizes_are_what_was_asked():
    log = made_up(SIZES)
    assert (log.n_users, log.n_items, len(log.item)) == (40, (200, 210), 403)
    counts = np.bincount(log.user)
    assert counts.min() == 10 and counts.max() == 11
    assert log.item.min() >= 1 and log.item.max() <= 410
    of_one = log.item[log.user == 7]
    assert len(set(of_one)) == len(of_one) and set(log.domain[log.user == 7]) == {0, 1}


@pytest.mark.parametrize(
    "text",
    ["", "40,200,210,400", "users:40,items:200,events:400", "users:40,items:9+9,events:319"]
    + ["users:0,items:9+9,events:99", "users:9,items:0+9,events:99"],
)
def test_other_sizes_are_refused(text):
    with pytest.raises(UserError, match=r"^--sizes=.*: expected users:U,items:A\+B,events:E"):
        made_up(text)


@pytest.mark.slow
@pytest.mark.parametrize("backbone", known.NAMES)
def test_the_epoch_of_sizes_alone_is_traced(backbone):
    """What the command compiles without data, of every backbone: with tables that are made up."""
    config = known.resolve(toy.small_config(backbone, "pair=synthetic", data__global_width=12))
    experiment = shapes_of(config, made_up(SIZES))
    assert experiment.data.log.n_users == 40
    assert not experiment.evaluation.rows["val"]["candidates"].any()  # they were not drawn
    engine, arrays = experiment.engine, experiment.train_arrays()
    capacity = engine.capacity(experiment.seeds, 0)
    states = engine.abstract(experiment.seeds, experiment.hparams())
    one = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), states)
    epoch = functools.partial(step_lib.epoch, engine.settings, capacity)
    state, report = jax.eval_shape(epoch, one, arrays)
    assert jax.tree.structure(state) == jax.tree.structure(one)
    assert report["ranks"].rank.shape[0] >= 40


def test_rows_have_the_shapes_of_real_ones():
    """LLM4CDSR has rankings of both shapes, and so the candidates."""
    config = known.resolve(toy.small_config("llm4cdsr", "pair=synthetic"))
    real, shapes = experiment_lib.build(config), shapes_of(config)

    def of(experiment):
        rows = {
            split: experiment.evaluation.padded(of)
            for split, of in experiment.evaluation.rows.items()
        }
        return jax.tree.map(lambda a: (a.shape, a.dtype), rows)

    assert of(shapes) == of(real)
    assert real.evaluation.rows["val"]["candidates"].all()
    assert not shapes.evaluation.rows["val"]["candidates"].any()


def test_tables_that_are_not_at_hand_are_zeros_of_their_size():
    config = resolved("llm4cdsr.py:pair=llmcdsr_food_kitchen,size=small")
    tables = shapes_of(config, made_up(SIZES)).data.tables
    width = config.data.global_width
    assert tables.global_table.shape == (410, width) and tables.local_b.shape == (210, 32)
    assert tables.users.shape == (40, PROFILE_WIDTH) and not tables.users.any()


# --- rooflines -----------------------------------------------------------------------------------

CHIP = Topology.parse("v5e:2x2")  # 197e12 flops, 819e9 bytes of memory and 200e9 sent, a second


@pytest.mark.parametrize(
    ("cost", "seconds", "limit"),
    [
        (Cost(197e9, 8.19e8), 1e-3, "matrix units"),
        (Cost(197e9, 8.19e9), 1e-2, "memory"),
        (Cost(197e9, 8.19e8, {"all-gather": (3, 1e9)}), 5e-3, "links"),
        (Cost(197e9, 8.19e8, {"all-reduce": (3, 1e9)}), 1e-2, "links"),  # sent twice
    ],
)
def test_roofline_by_hand(cost, seconds, limit):
    found = roofline(cost, CHIP)
    assert max(found.values()) == pytest.approx(seconds) and max(found, key=found.get) == limit


def test_finer_products_take_longer():
    times = [roofline(Cost(197e9), CHIP, name)["matrix units"] for name in PRECISIONS]
    assert times == pytest.approx([1e-3, 1e-3, 3e-3, 6e-3])
    assert command.precision_of(Train(matmul_precision="high")) == "high"
    both = Train(matmul_precision="high", compute_dtype="bfloat16")
    assert command.precision_of(both) == "bfloat16"


# --- what is too large ---------------------------------------------------------------------------


def test_how_much_a_compiler_would_have_needed():
    said = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.5G of 15.75G hbm."
    assert bytes_asked(said) == 20.5 * 2**30
    said = "the total memory required for HLO temporaries (640M) exceeds available HBM (15.75G)."
    assert bytes_asked(said) == 640 * 2**20
    assert np.isnan(bytes_asked("RESOURCE_EXHAUSTED"))


@pytest.fixture(scope="module")
def experiment():
    return shapes_of(resolved(**{"train.negatives": "per_position"}), made_up(SIZES))


def test_remedies_fit_the_case(experiment):
    training = Found("training epoch", None, float("nan"))
    assert "train.negatives=per_sequence" in remedies(experiment, training, 1)
    assert "fewer seeds or more devices, a seed each" in remedies(experiment, training, 1)
    changes = {"seeds": 1, "train.negatives": "per_sequence"}
    shared = dataclasses.replace(experiment, config=experiment.config.replace(**changes))
    said = remedies(shared, training, 1)
    assert said == ["more devices on the axis data or table, or a smaller train.batch_size"]
    resident = Found("training epoch", {"arguments": 9.0}, 10.0)
    assert "data.resident=False" in remedies(shared, resident, 1)
    evaluation = remedies(shared, Found("evaluation", None, float("nan")), 1)
    assert evaluation == ["smaller evaluate.block_users", "smaller evaluate.block_items"]


@pytest.mark.parametrize("needed", [3 * 2**30, 17 * 2**30, float("nan")])
def test_too_large_is_one_line(experiment, needed):
    memory = None if np.isnan(needed) else {"arguments": needed}
    line = command.misfit(experiment, Found("training epoch", memory, needed), CHIP)
    assert (line == "") == (needed == 3 * 2**30) and "\n" not in line
    if line:
        assert "too large: needs " in line and "what would help: " in line


@pytest.mark.parametrize(
    ("value", "said"),
    [(0.0, "0 s"), (0.0123, "12.3 ms"), (5.0, "5 s"), (2.5e-9, "2.5 ns"), (1e-12, "0.001 ns")]
    + [(197e12, "197 Ts"), (12_345, "12.3 ks"), (3e18, "3e+03 Ps"), (999_999, "1 Ms")],
)
def test_numbers_have_prefixes(value, said):
    assert command.si(value, "s") == said


def test_work_is_said_with_collectives():
    places = {"gca": 2e8, "ffn up, backward": 6.19e8}
    cost = Cost(197e9, 8.19e8, {"all-reduce": (3, 1e9)}, unknown_loops=1, places=places)
    lines = command.work_lines(Found("training epoch", {}, 0.0, cost, cost), CHIP, "default")
    assert lines[0] == (
        "training epoch: 197 Gflop of matrix products, 819 MB to and from memory, "
        "collectives: 3 all-reduce, 1 GB"
    )
    assert lines[1].endswith("links 10 ms: at least 10 ms, bound by links")
    assert lines[2].strip() == "bytes by place: 619 MB ffn up, backward; 200 MB gca"
    assert lines[3].strip() == "loops of unknown length, counted once: 1"
    assert lines[4].startswith("a step of it: ")
    cost = Cost(197e9, 8.19e8, cycles=1.503e6, unestimated=3)
    lines = command.work_lines(Found("training epoch", {}, 0.0, cost), CHIP, "default")
    said = "the compiler expects 1 ms, without 3 kernels (gathers, scatters) of which it says"
    assert lines[2].strip().startswith(said)


# --- the command ---------------------------------------------------------------------------------


def run(*argv):
    command_line = [sys.executable, "-m", "oa_jax.compile", *argv]
    return subprocess.run(command_line, capture_output=True, text=True, cwd=ROOT)


CONFIG = "--config=configs/abxi.py:pair=synthetic,runlocal"


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([CONFIG], "--topology: missing: expected one such as v5e:2x2"),
        ([CONFIG, "--topology=x1"], "--topology=x1: expected one such as v5e:2x2"),
        ([CONFIG, "--topology=v5e", "--sizes=9"], "--sizes=9: expected users:U,items:A+B"),
    ],
)
def test_a_mistake_is_one_line(argv, said):
    result = run(*argv)
    assert result.returncode == 2 and result.stderr.startswith(f"error: {said}")
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.slow
def test_programs_of_a_small_experiment_are_examined():
    changes = {"seeds": 2, "seed_axis": "vmap", "train__batch_size": 8}
    config = known.resolve(toy.abxi_config(train__quick_compile=True, **changes))
    found = shapes_of(config, made_up(SIZES))
    parts = config, found.data, found.evaluation
    # The toy in the model's place, whose programs compile in a second.
    engine = experiment_lib.build_engine(*parts, toy.Toy(sum(found.data.log.n_items)))
    experiment = experiment_lib.Experiment(*parts, engine)
    epoch, evaluation = examine(experiment, jax.devices()[:1])
    assert epoch.name == "training epoch" and evaluation.name == "evaluation"
    for found in (epoch, evaluation):
        assert found.needed == sum(found.memory.values()) > 0
        assert found.cost.collectives == {} and found.cost.flops > 0
    # Five batches of 8 users an epoch, and the validation after them.
    assert 5 * epoch.turn.flops < epoch.cost.flops
    sheet = command.memory_sheet([epoch, evaluation], CHIP)
    assert len(sheet.rows) == len(epoch.memory) + 3
    assert "2 seeds, for 4 x v5e" in command.headline(experiment, CHIP)
