"""The official code beside ours: its batches, and the process, with a stand-in for PyTorch's."""

import importlib
import json
import sys

import numpy as np
import pytest

from oa_jax import config as config_lib
from oa_jax import experiment
from oa_jax.bench import tables
from oa_jax.bench.official import CODES, Official, inputs_of
from oa_jax.bench.training import Training
from oa_jax.errors import UserError

# What the interpreter with PyTorch is asked to do, without it: argv is as the worker's.
STAND_IN = """#!{python}
import json, sys
import numpy as np
name, path = sys.argv[2], sys.argv[4]
with np.load(path) as file:
    sizes, shape = json.loads(str(file["sizes"])), list(file["negatives/1"].shape)
found = dict(name=name, torch="2.0", device="2 CPU threads", n_parameters=7)
found |= dict(sizes=sizes, shape=shape)
print(json.dumps(found), flush=True)
for number, _ in enumerate(sys.stdin):
    if number == 3:
        sys.exit("Traceback\\nRuntimeError: out of memory")
    print(json.dumps(dict(seconds=1.5 + number, loss=9.0, peak_bytes=2**20)), flush=True)
"""


SMALL = {"model.d_embed": 8, "train.batch_size": 16, "data.world.n_users": 60}


def training_of(backbone, n_steps=2, **changes):
    configs = importlib.import_module(f"configs.{backbone}")
    given = configs.get_config("pair=synthetic,gca=none,runlocal")
    given.update_from_flattened_dict(SMALL | changes)
    resolved = config_lib.resolve(given, experiment.PLACES[backbone])
    return Training(experiment.build(resolved), n_steps, n_users=16)


@pytest.fixture(scope="module")
def training():
    return training_of("abxi", **{"train.negatives": "per_position"})


@pytest.fixture
def checkout(tmp_path):
    for name in CODES["abxi"][0]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


@pytest.fixture
def python(tmp_path):
    file = tmp_path / "python"
    file.write_text(STAND_IN.format(python=sys.executable))
    file.chmod(0o755)
    return str(file)


def test_batches_are_ours_position_by_position(training):
    found = inputs_of(training)
    sizes = json.loads(str(found["sizes"]))
    task, log = training.experiment.data.task, training.experiment.data.log
    assert sizes["n_batches"] == 2 and sizes["args"]["n_item"] == sum(log.n_items)
    assert sizes["args"]["n_item_a"] == log.n_items[0] and sizes["args"]["rd"] > 0
    for i in range(2):
        gt, negatives = found[f"gt/{i}"], found[f"negatives/{i}"]
        assert gt.shape == found[f"seq_x/{i}"].shape == (16, task.length)
        assert negatives.shape == (16, task.length, 2 * task.n_negatives)
        of_real = negatives[gt > 0]
        half = task.n_negatives
        assert of_real[:, :half].max() <= log.n_items[0] < of_real[:, half:].max()
        assert of_real.min() >= 1 and of_real.max() <= sum(log.n_items)
        distinct = [len(np.unique(row)) for row in of_real]
        assert min(distinct) >= 2 * half - 1  # with Q1 the two pools share A's last item
        # Twin: a user's own items are never among them, so each is at its own position.
        for row in range(16):
            own = {*found[f"seq_x/{i}"][row], *gt[row]} - {0}
            assert own
            assert not own & set(negatives[row][gt[row] > 0].ravel())
        assert (negatives[gt == 0] == 1).all()


def test_rows_of_llm4cdsr_are_as_its_loss_pairs_them():
    training = training_of("llm4cdsr", n_steps=4)
    assert 3 * 16 < training.experiment.data.task.n_users < 4 * 16  # the last batch is not full
    found, (n_a, n_b) = inputs_of(training), training.experiment.data.log.n_items
    sizes = json.loads(str(found["sizes"]))
    assert sizes["n_items"] == [n_a, n_b] and sizes["args"]["hidden_size"] == 8
    assert found["table/items_all"].shape == (n_a + n_b, training.experiment.tables.items.shape[1])
    for d, n in (("A", n_a), ("B", n_b)):
        assert found[f"table/items_{d}_pca128"].shape == (n, 8)
    for i in range(sizes["n_batches"]):
        one = {name: found[f"{name}/{i}"] for name in ("seq", "pos", "neg", "domain_mask")}
        mask = one["domain_mask"]
        # Its loss adds scores of stream x to a domain's in the order of the rows.
        for number, d in enumerate("AB"):
            own = found[f"pos{d}/{i}"]
            assert (mask == number).sum() == (own > 0).sum() > 0
            offset = n_a * number
            np.testing.assert_array_equal(one["pos"][mask == number], own[own > 0] + offset)
            assert found[f"neg{d}/{i}"][own > 0].min() >= 1
            assert found[f"neg{d}/{i}"].max() <= (n_a, n_b)[number]
        assert (one["neg"][mask >= 0] > 0).all() and not one["neg"][mask < 0].any()
        seen = one["seq"] > 0
        np.testing.assert_array_equal(found[f"positions/{i}"] > 0, seen)
        # With Q5 a negative is of its input's domain.
        assert ((one["neg"] > n_a) == (one["seq"] > n_a))[mask >= 0].all()
    n_real = training.experiment.data.task.n_users - 3 * 16
    assert found["pos/3"][:n_real].any(1).all() and not found["pos/3"][n_real:].any()
    assert (found["domain_mask/3"][n_real:] == -1).all()


def test_the_process_is_asked_and_ends(training, checkout, python):
    with Official(training, str(checkout), python) as official:
        assert [official.steps(), official.steps()] == [2.5, 3.5]  # 1.5 has been
        found = official.found
        assert found["name"] == "abxi"
        assert found["peak_bytes"] == 2**20 and found["sizes"]["args"]["d_embed"] == 8
        assert found["shape"][-1] == 2 * training.experiment.data.task.n_negatives
        process = official._process
    assert process.returncode is not None


def test_its_failure_is_one_line(training, checkout, python):
    with (
        pytest.raises(UserError, match="^--official: the official code failed: Run.*out of memory"),
        Official(training, str(checkout), python) as official,
    ):
        [official.steps() for _ in range(3)]


def test_what_is_no_checkout_no_python_or_no_abxi(training, checkout, tmp_path):
    with pytest.raises(UserError, match=r"^--official=.*: no trainer.py: expected a checkout"):
        Official(training, str(tmp_path / "none"), sys.executable)
    with pytest.raises(UserError, match="^--official_python=/no/python: No such file"):
        Official(training, str(checkout), "/no/python").__enter__()
    shared = training_of("abxi", **{"train.negatives": "per_sequence"})
    with pytest.raises(UserError, match="^--official: expected --config.train.negatives=per_pos"):
        Official(shared, str(checkout), sys.executable)
    with pytest.raises(UserError, match="^--official: cdsrnp has none: expected abxi or llm4cdsr"):
        Official(training_of("cdsrnp"), str(checkout), sys.executable)


def test_the_tables_by_hand():
    row = {"seeds": 5, "variant": "", "seconds": [10.0, 10.0], "roofline_share": 1.0}
    row |= {"peak_bytes": 2**20, "compile_seconds": 1.0}
    theirs = {"torch": "2.0", "device": "gpu", "n_parameters": 7000, "seconds": [16.0, 20.0]}
    found = {"seeds": [row], "official": theirs | {"peak_bytes": 2**21}, "vary": None, "steps": 2}
    header, rows = tables.of_training(found, absolute=False)
    assert header[-1] == "official / ours, per seed" and rows[0][-1] == "9.0"
    assert "7,000 parameters, a step of one seed takes 9 steps, peak 2 MiB" in (
        tables.official_line(found, absolute=False)
    )
