"""The official code beside ours: its batches, and the process, with a stand-in for PyTorch's."""

import ast
import json
import pathlib
import subprocess
import sys
import textwrap
import types

import numpy as np
import pytest
import toy

from oa_jax import experiment
from oa_jax.backbones import known
from oa_jax.backbones.abxi import official_step
from oa_jax.bench import tables
from oa_jax.bench.cases import Cases
from oa_jax.bench.official import WORKER, Official, inputs_of
from oa_jax.errors import UserError
from oa_jax.events.log import make_log
from oa_jax.events.world import World, generate

# What the interpreter with PyTorch is asked to do, without it: argv is as the worker's.
STAND_IN = """#!{python}
import json, sys
import numpy as np
name, path = sys.argv[2].split("/")[-2], sys.argv[4]
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


def cases_of(backbone, n_steps=2, log=None, **changes):
    config = toy.small_config(backbone, "pair=synthetic", **changes)
    return Cases(experiment.build(known.resolve(config), log), n_steps, n_users=16)


@pytest.fixture(scope="module")
def cases():
    return cases_of("abxi", train__negatives="per_position")


@pytest.fixture
def checkout(tmp_path):
    for name in official_step.FILES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


@pytest.fixture
def python(tmp_path):
    file = tmp_path / "python"
    file.write_text(STAND_IN.format(python=sys.executable))
    file.chmod(0o755)
    return str(file)


def test_batches_are_ours_position_by_position(cases):
    found = inputs_of(cases)
    sizes = json.loads(str(found["sizes"]))
    task, log = cases.task, cases.task.log
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
            own = {*found[f"seq_x/{i}"][row], *gt[row]} - {0, log.n_items[0]}  # but for Q1
            assert own
            assert not own & set(negatives[row][gt[row] > 0].ravel())
        assert (negatives[gt == 0] == 1).all()


def test_rows_of_llm4cdsr_are_as_its_loss_pairs_them():
    cases = cases_of("llm4cdsr", 4, model__blocks=3)
    task, (n_a, n_b) = cases.task, cases.task.log.n_items
    assert 3 * 16 < task.n_users < 4 * 16  # the last batch is not full
    found = inputs_of(cases)
    sizes = json.loads(str(found["sizes"]))
    assert sizes["n_items"] == [n_a, n_b] and sizes["args"]["hidden_size"] == 8
    assert sizes["args"]["trm_num"] == 3 and sizes["n_batches"] == 4
    width = cases.experiment.tables.items.shape[1]
    assert found["table/items_all"].shape == (n_a + n_b, width)
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
    n_real = task.n_users - 3 * 16
    assert found["pos/3"][:n_real].any(1).all() and not found["pos/3"][n_real:].any()
    assert (found["domain_mask/3"][n_real:] == -1).all()


def test_rows_of_llm4cdsr_are_those_of_the_tasks_users():
    """What is predicted follows what is read, in the history of the row's own user. With
    `data.users=overlap` users of one domain have no training part: they stand first here, so that
    the rows of the task are not the first of the data's."""
    sizes = {"n_items": (24, 30), "topics": 2, "min_length": 8, "max_length": 12}
    log = generate(World(n_users=20, single=(20, 20), **sizes))
    order = np.argsort(-log.user, kind="stable")
    user, item, time = log.n_users - 1 - log.user[order], log.item[order], log.time[order]
    log = make_log(user, item, time, log.n_items, log.name)
    cases = cases_of("llm4cdsr", 2, log, data__users="overlap")
    task, log = cases.task, cases.task.log
    users = np.flatnonzero(task.split.n_train >= 1)
    assert len(users) == task.n_users < np.sum(cases.experiment.data.split.n_train >= 1)
    windows = set()
    for user in users:
        begin = log.offsets[user]
        history = log.item[begin : begin + task.split.n_train[user]]
        windows.add(tuple(history[-task.length - 1 :].tolist()))
    found, n_seen = inputs_of(cases), 0
    for i in range(2):
        for seq, pos in zip(found[f"seq/{i}"], found[f"pos/{i}"], strict=True):
            if not pos.any():
                continue
            window = [*seq[seq > 0].tolist(), int(pos[-1])]
            np.testing.assert_array_equal(pos[:-1], seq[1:] * (pos[:-1] > 0))
            assert tuple(window) in windows
            n_seen += 1
    assert n_seen == task.n_users


def test_the_process_is_asked_and_ends(cases, checkout, python):
    with Official(cases, str(checkout), python) as official:
        assert [official.steps(), official.steps()] == [2.5, 3.5]  # 1.5 has been
        found = official.found
        assert found["name"] == "abxi"
        assert found["peak_bytes"] == 2**20 and found["sizes"]["args"]["d_embed"] == 8
        assert found["shape"][-1] == 2 * cases.task.n_negatives
        process = official._process
    assert process.returncode is not None


def test_its_failure_is_one_line(cases, checkout, python):
    with (
        pytest.raises(UserError, match="^--official: the official code failed: Run.*out of memory"),
        Official(cases, str(checkout), python) as official,
    ):
        [official.steps() for _ in range(3)]


def test_what_is_no_checkout_no_python_or_no_abxi(cases, checkout, tmp_path):
    with pytest.raises(UserError, match=r"^--official=.*: no trainer.py: expected a checkout"):
        Official(cases, str(tmp_path / "none"), sys.executable)
    with pytest.raises(UserError, match="^--official_python=/no/python: No such file"):
        Official(cases, str(checkout), "/no/python").__enter__()
    for backbone, changes, expected in (
        ("abxi", {"train__negatives": "per_sequence"}, "expected --config.train.negatives=per_pos"),
        ("cdsrnp", {}, "cdsrnp has none: expected abxi or llm4cdsr"),
    ):
        config = known.resolve(toy.small_config(backbone, "pair=synthetic", **changes))
        other = types.SimpleNamespace(experiment=types.SimpleNamespace(config=config))
        with pytest.raises(UserError, match=f"^--official: {expected}"):
            Official(other, str(checkout), sys.executable)


# PyTorch and ABXI's code as far as the other process needs them.
STUBS = {
    "torch/__init__.py": """
        import types
        __version__, get_num_threads, manual_seed = "9", lambda: 2, lambda seed: None
        cuda = types.SimpleNamespace(is_available=lambda: False)
        device = lambda kind: types.SimpleNamespace(type=kind)
        set_float32_matmul_precision, from_numpy = lambda name: None, lambda array: array
        get_float32_matmul_precision = lambda: "high"
        class optim:
            class AdamW:
                def __init__(self, parameters, lr, weight_decay):
                    assert (lr, weight_decay) == (0.5, 0.25)
                def zero_grad(self): pass
        """,
    "models/ABXI.py": """
        import types
        class ABXI:
            def __init__(self, args): assert args.n_item_a == 3
            def to(self, device): return self
            def train(self): return self
            def parameters(self):
                return [types.SimpleNamespace(requires_grad=r, numel=lambda: 7) for r in (1, 0)]
        """,
    "trainer.py": """
        class Trainer:
            def train_batch(self, batch): return self.n_item_a, sum(a.sum() for a in batch)
        """,
}


def test_the_worker_runs_the_file_of_a_backbone(tmp_path):
    for name, text in STUBS.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(textwrap.dedent(text))
    names = ("seq_x", "seq_a", "seq_b", "gt", "negatives")
    batches = {f"{name}/{i}": np.full(2, float(i)) for name in names for i in (0, 1)}
    sizes = {"args": {"n_item_a": 3}, "n_batches": 2, "learning_rate": 0.5, "weight_decay": 0.25}
    np.savez(tmp_path / "batches.npz", sizes=np.array(json.dumps(sizes)), **batches)
    code = pathlib.Path(official_step.__file__).with_name("official_torch.py")
    done = subprocess.run(
        [sys.executable, WORKER, code, tmp_path, tmp_path / "batches.npz"],
        input="\n\n", capture_output=True, text=True, env={"PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    first, *steps = map(json.loads, done.stdout.splitlines())
    expected = {"torch": "9", "device": "2 CPU threads", "n_parameters": 7}
    assert first == expected | {"matmul_precision": "high"}, done.stderr
    assert [step["loss"] for step in steps] == [13.0, 13.0] and steps[0]["seconds"] > 0


def test_what_is_of_a_backbone_lies_in_its_folder():
    folder = pathlib.Path(known.__file__).parent
    found = known.having("official_step")
    assert set(found) == {path.parent.name for path in folder.glob("*/official_step.py")}
    assert all((folder / name / "official_torch.py").is_file() for name in found)
    for room in ("bench", "compile", "commands"):
        for path in (folder.parent / room).glob("*.py"):
            nodes = ast.walk(ast.parse(path.read_text()))
            words = [node.value for node in nodes if isinstance(node, ast.Constant)]
            assert not set(known.NAMES) & {word for word in words if isinstance(word, str)}, path


def test_the_tables_by_hand():
    row = {"seeds": 5, "variant": "", "seconds": [10.0, 10.0], "roofline_share": 1.0}
    row |= {"peak_bytes": 2**20, "compile_seconds": 1.0}
    theirs = {"torch": "2.0", "device": "gpu", "n_parameters": 7000, "seconds": [16.0, 20.0]}
    theirs |= {"peak_bytes": 2**21, "matmul_precision": "highest"}
    found = {"seeds": [row], "official": theirs, "vary": None, "steps": 2}
    sheet = tables.of_training(found, absolute=False)
    assert sheet.header[-1] == "official / ours, per seed" and sheet.rows[0][-1] == "9.0"
    assert tables.official_line(found, absolute=False).endswith(
        "7,000 parameters, matmul precision highest, a step of one seed takes 9 steps, peak 2 MiB"
    )
