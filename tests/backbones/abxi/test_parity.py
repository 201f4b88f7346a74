"""The command that holds our model against values of the official code."""

import json
import pathlib
import pickle

import jax
import numpy as np
import pytest
from absl import flags

from oa_jax.backbones.abxi.parity import SHAPES
from oa_jax.backbones.parity import Fixture, relative
from oa_jax.commands import verify
from oa_jax.errors import UserError

pytestmark = pytest.mark.slow

GOLDEN = pathlib.Path(__file__).resolve().parents[2] / "golden" / "abxi_small.npz"


def status(path, capsys):
    flags.FLAGS(["verify"])
    found = verify.main([path])
    return found, capsys.readouterr().out


def test_the_golden_fixture_passes(capsys):
    found, out = status(str(GOLDEN), capsys)
    assert found == 0 and "passed: largest error" in out
    assert "parameters after a step" in out and "ranks, test (differing)" in out


def test_no_device_rounds_the_products(golden, save, monkeypatch):
    """A GPU's default, TF32, is 1e-3 off."""
    seen = []

    def evaluation(self, split):
        seen.append(jax.config.jax_default_matmul_precision)
        return {}

    monkeypatch.setattr(Fixture, "_training", lambda self: evaluation(self, "train"))
    monkeypatch.setattr(Fixture, "_evaluation", evaluation)
    verify.verify(save())
    assert seen == ["highest"] * 3


def test_a_disturbed_weight_fails(golden, save, capsys):
    disturbed = golden["param/ei.weight"].copy()
    disturbed[3, 0] += 0.01
    found, out = status(save(changed={"param/ei.weight": disturbed}), capsys)
    assert found == 1 and "FAILED: largest error" in out


def test_disturbed_expectations_fail_where_they_belong(golden, save):
    belongs = {
        "train/h": "hidden states, training",
        "train/loss_b": "losses",
        "grad/ffn.fc_2.weight": "gradients",
        "step1/ei.weight": "parameters after a step",
        "val/seq_a": "sequences (differing elements)",
        "test/logits": "scores, test",
        "test/ranks": "ranks, test (differing)",
    }
    changed = {name: golden[name].copy() for name in belongs}
    for value in changed.values():
        value[(-1,) * value.ndim] += -1 if value.dtype.kind == "i" else 0.01
    errors = verify.verify(save(changed=changed))
    # val/seq_a is an input as well: what follows from it is off, too.
    off = {*belongs.values(), "hidden states, val", "scores, val", "ranks, val (differing)"}
    assert {k for k in belongs.values() if errors[k][1] <= 1e-5} == set()
    assert {k for k, (_, error) in errors.items() if error > 1e-5} <= off
    assert errors["hidden states, test"][1] <= 1e-5


def test_one_bad_quantity_of_many_fails(monkeypatch, capsys):
    for error, expected in ((1e-5, 0), (1.1e-5, 1), (float("inf"), 1)):
        errors = {"x": (1, 0.0), "y": (2, error), "z": (1, 0.0)}
        monkeypatch.setattr(verify, "verify", lambda path, errors=errors: errors)
        assert status("any", capsys)[0] == expected


def test_relative_errors():
    assert relative([1.0, -4.0], [1.0, -3.0]) == pytest.approx(1 / 3)
    assert relative([0.0], [0.0]) == 0
    bad = ([np.nan], [1.0]), ([1.0], [np.nan]), ([np.inf], [np.inf]), ([1.0], [[1.0]])
    assert [relative(ours, expected) for ours, expected in bad] == [np.inf] * 4


def message(path):
    with pytest.raises(UserError) as caught:
        verify.verify(path)
    text = str(caught.value)
    assert text.startswith(path) and "\n" not in text
    return text[len(path) + 2 :]


def of_each_kind(golden):
    """Names of all inputs and outputs, and of some weights, gradients and stepped weights."""
    groups = tuple(f"{group}/" for group in SHAPES)
    names = [k for k in golden if k.startswith(groups) and k.split("/")[1][:6] != "ranks_"]
    weights = ("ep.weight", "ei.weight", "proj_i.fc_1.weight", "norm_b2b.bias")
    return names + [f"{kind}/{name}" for kind in ("param", "grad", "step1") for name in weights]


def test_every_array_is_missed(golden, save):
    for name in of_each_kind(golden):
        assert name.removeprefix("param/") in message(save(drop=name))


def test_every_shape_is_checked(golden, save):
    for name in of_each_kind(golden):
        text = message(save(changed={name: golden[name][None]}))
        assert "found shape" in text and "expected (" in text


META = {
    "n_head": (3, "meta: n_head 3: expected a divisor of the width"),
    "n_item_a": ("40", "meta: n_item_a '40': expected a whole number of at least 1"),
    "n_item_b": (0, "meta: n_item_b 0: expected a whole number of at least 1"),
    "temp": (None, "meta: temp None: expected a number"),
    "betas": ([0.9], "meta: betas [0.9]: expected two numbers"),
    "eps": (True, "meta: eps True: expected a number"),
}


@pytest.mark.parametrize("field", META)
def test_meta_is_checked(golden, save, field):
    value, expected = META[field]
    meta = json.loads(str(golden["meta"]))
    assert message(save(changed={"meta": np.array(json.dumps(meta | {field: value}))})) == expected
    meta.pop(field)
    text = message(save(changed={"meta": np.array(json.dumps(meta))}))
    if field == "n_item_a":  # by which the fixture is known
        assert text.startswith(f"meta: no field '{field}' (abxi) or ")
    else:
        assert text.startswith(f"meta: no field '{field}': expected n_head, ")


@pytest.mark.parametrize("meta", ["", "{", "[1, 2]", "3"])
def test_meta_that_is_no_object(save, meta):
    assert message(save(changed={"meta": np.array(meta)})).startswith("no `meta` in it: expected")


VALUES = {
    "text": ("val/h", lambda a: a.astype(str), "found <U32, expected numbers"),
    "fractions": ("train/seq_x", lambda a: a + 0.5, "found float64, expected whole numbers"),
    "no item": ("val/gt_mtc", lambda a: a + 100, "expected an id in 0..100"),
    "negative": ("train/gt", lambda a: a - 1, "found -1, expected an id in 0..100"),
    "history": ("raw/flat", lambda a: a + 100, "expected an id in 0..100"),
    "offsets": ("raw/offsets", lambda a: a[::-1], "expected ascending whole numbers 0..68"),
    "item count": ("param/ei.weight", lambda a: a[1:], "found shape (100, 32), expected (101, 32)"),
}


@pytest.mark.parametrize("case", VALUES)
def test_values_are_checked(golden, save, case):
    name, change, expected = VALUES[case]
    text = message(save(changed={name: change(golden[name])}))
    assert text.startswith(f"{name}: ") and text.endswith(expected)


def damaged(golden, kind, path):
    whole = GOLDEN.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 3] ^= 255
    contents = {
        "text": b"hello\n",
        "empty": b"",
        "pickle": pickle.dumps({"a": 1}),
        "truncated": whole[: len(whole) // 2],
        "flipped": bytes(flipped),
    }
    if kind == "objects":
        np.savez(path, **golden | {"val/h": np.array([{"a": 1}], object)})
    elif kind == "single":
        np.save(path.open("wb"), np.ones(3))
    elif kind == "folder":
        path.mkdir()
    elif kind != "missing":
        path.write_bytes(contents[kind])


DAMAGES = {
    "missing": "no such file: expected a fixture",
    "folder": "damaged: ",
    "text": "damaged: ",
    "empty": "damaged: ",
    "pickle": "damaged: ",
    "single": "damaged: a single array: expected a fixture",
    "truncated": "damaged: ",
    "flipped": "damaged: ",
    "objects": "damaged: Object arrays cannot be loaded",
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_files_that_are_no_fixture(golden, tmp_path, kind):
    path = tmp_path / "damaged.npz"
    damaged(golden, kind, path)
    assert message(str(path)).startswith(DAMAGES[kind])
