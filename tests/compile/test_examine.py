"""Experiments of which only sizes matter, rooflines by hand, and what the command says."""

import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from oa_jax import experiment as experiment_lib
from oa_jax.commands import cli
from oa_jax.commands import compile as command
from oa_jax.compile.examine import Found, bytes_asked, examine, remedies, roofline
from oa_jax.compile.hlo import Cost
from oa_jax.compile.sizes import PROFILE_WIDTH, Sizes, shapes_of
from oa_jax.compile.topology import PRECISIONS, Topology
from oa_jax.config import resolve
from oa_jax.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[2]
SIZES = Sizes(40, 200, 210, 403)


def resolved(spec="abxi.py:pair=synthetic,runlocal", **changes):
    config = cli.load_config(f"{ROOT / 'configs'}/{spec}")
    config.update_from_flattened_dict(changes)
    return resolve(config, experiment_lib.PLACES[config.backbone])


# --- sizes ---------------------------------------------------------------------------------------


def test_sizes_are_what_was_asked():
    found = Sizes.parse("users:40,items:200+210,events:403")
    log = found.log()
    assert found == SIZES
    assert (log.n_users, log.n_items, len(log.item)) == (40, (200, 210), 403)
    counts = np.bincount(log.user)
    assert counts.min() == 10 and counts.max() == 11
    assert log.item.min() >= 1 and log.item.max() <= 410
    of_one = log.item[log.user == 7]
    assert len(set(of_one)) == len(of_one) and set(log.domain[log.user == 7]) == {0, 1}


@pytest.mark.parametrize(
    "text", ["", "40,200,210,400", "users:40,items:200,events:400", "users:40,items:9+9,events:319"]
)
def test_other_sizes_are_refused(text):
    with pytest.raises(UserError, match=r"^--sizes=.*: expected users:U,items:A\+B,events:E"):
        Sizes.parse(text)


@pytest.mark.parametrize("backbone", ["abxi", "llm4cdsr"])
def test_rows_have_the_shapes_of_real_ones(backbone):
    config = resolved(f"{backbone}.py:pair=synthetic,runlocal")
    real, shapes = experiment_lib.build(config), shapes_of(config, None)

    def of(experiment):
        return jax.tree.map(lambda a: (a.shape, a.dtype), experiment.evaluation.rows)

    assert of(shapes) == of(real)
    assert not shapes.eval_rows["val"]["candidates"].any()  # they were not drawn
    assert real.eval_rows["val"]["candidates"].all()


def test_tables_that_are_not_at_hand_are_zeros_of_their_size():
    config = resolved("llm4cdsr.py:pair=llmcdsr_food_kitchen,size=small")
    tables = shapes_of(config, SIZES).text_tables
    assert tables.global_table.shape == (410, 128) and tables.local_b.shape == (210, 32)
    assert tables.users.shape == (40, PROFILE_WIDTH)


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
    assert found.seconds == pytest.approx(seconds) and found.limit == limit


def test_finer_products_take_longer():
    times = [roofline(Cost(197e9), CHIP, name).compute for name in PRECISIONS]
    assert times == pytest.approx([1e-3, 1e-3, 3e-3, 6e-3])
    train = {"matmul_precision": "high"}
    assert command.precision_of(train) == command.precision_of(train | {"compute_dtype": "float32"})
    assert command.precision_of(train) == "high"
    assert command.precision_of(train | {"compute_dtype": "bfloat16"}) == "bfloat16"


# --- what is too large ---------------------------------------------------------------------------


def test_how_much_a_compiler_would_have_needed():
    said = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.5G of 15.75G hbm."
    assert bytes_asked(said) == 20.5 * 2**30
    said = "the total memory required for HLO temporaries (640M) exceeds available HBM (15.75G)."
    assert bytes_asked(said) == 640 * 2**20
    assert np.isnan(bytes_asked("RESOURCE_EXHAUSTED"))


def test_remedies_fit_the_case():
    training = Found("training epoch", None, float("nan"))
    several = shapes_of(resolved(**{"train.negatives": "per_position"}), SIZES)
    assert "train.negatives=per_sequence" in remedies(several, training, 1)
    assert "fewer seeds or more devices, a seed each" in remedies(several, training, 1)
    shared = shapes_of(resolved(seeds=1), SIZES)
    said = remedies(shared, training, 1)
    assert said == ["more devices on the axis data or table, or a smaller train.batch_size"]
    resident = Found("training epoch", {"arguments": 9.0}, 10.0)
    assert "data.resident=False" in remedies(shared, resident, 1)


@pytest.mark.parametrize("needed", [3 * 2**30, 17 * 2**30, float("nan")])
def test_too_large_is_one_line(capsys, monkeypatch, needed):
    lines = []
    monkeypatch.setattr(cli, "say", lines.append)
    memory = None if np.isnan(needed) else {"arguments": needed}
    experiment = shapes_of(resolved(), SIZES)
    fits = command.say_fit(experiment, Found("training epoch", memory, needed), CHIP)
    assert fits == (needed == 3 * 2**30) and len(lines) == (not fits)
    if lines:
        assert "too large: needs " in lines[0] and "what would help: " in lines[0]


@pytest.mark.parametrize(
    ("value", "said"),
    [(0.0, "0 s"), (0.0123, "12.3 ms"), (5.0, "5 s"), (2.5e-9, "2.5 ns"), (1e-12, "0.001 ns")]
    + [(197e12, "197 Ts"), (12_345, "12.3 ks"), (3e18, "3e+03 Ps")],
)
def test_numbers_have_prefixes(value, said):
    assert command.si(value, "s") == said


def test_work_is_said_with_collectives(monkeypatch):
    lines = []
    monkeypatch.setattr(cli, "say", lines.append)
    cost = Cost(197e9, 8.19e8, {"all-reduce": (3, 1e9)}, unknown_loops=1)
    command.say_work(Found("training epoch", {}, 0.0, cost, cost), CHIP, "default")
    assert lines[0] == (
        "training epoch: 197 Gflop of matrix products, 819 MB to and from memory, "
        "collectives: 3 all-reduce, 1 GB"
    )
    assert lines[1].endswith("links 10 ms: at least 10 ms, bound by links")
    assert lines[2].strip() == "loops of unknown length, counted once: 1"
    assert lines[3].startswith("a step of it: ")


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
def test_programs_of_a_small_experiment_are_examined(capsys, quick_compile):
    changes = {"seeds": 2, "train.batch_size": 8, "seed_axis": "vmap", "gca.positions": ()}
    experiment = shapes_of(resolved(**changes), SIZES)
    epoch, evaluation = examine(experiment, jax.devices()[:1])
    assert epoch.name == "training epoch" and evaluation.name == "evaluation"
    for found in (epoch, evaluation):
        assert found.needed == sum(found.memory.values()) > 0
        assert found.cost.collectives == {} and found.cost.flops > 0
    # Five batches of 8 users an epoch, and the validation after them.
    assert 5 * epoch.turn.flops < epoch.cost.flops < 12 * epoch.turn.flops
    table = command.memory_table([epoch, evaluation], CHIP)
    assert len(table.rows) == len(epoch.memory) + 3
    assert "2 seeds, for 4 x v5e" in command.headline(experiment, CHIP)
