"""LLM4CDSR against values of the official code, by the same command as ABXI."""

import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest

from oa_jax.backbones.llm4cdsr import official as interop
from oa_jax.backbones.llm4cdsr.parity import Fixture
from oa_jax.backbones.parity import read, relative
from oa_jax.commands import verify
from oa_jax.errors import UserError

pytestmark = pytest.mark.slow

GOLDEN = pathlib.Path(__file__).resolve().parents[2] / "golden" / "llm4cdsr_small.npz"
EXPECTED = {
    "sequences (differing elements)": 13,
    "features, training": 3,
    "losses": 5,
    "gradients": 89,
    "parameters after a step": 89,
    "scores, valid": 1,
    "ranks, valid (differing)": 1,
    "scores, test": 1,
    "ranks, test (differing)": 1,
}


def test_the_golden_fixture_passes():
    errors = verify.verify(str(GOLDEN))
    assert {name: count for name, (count, _) in errors.items()} == EXPECTED
    assert max(error for _, error in errors.values()) < 1e-5
    assert errors["ranks, test (differing)"][1] == 0


def test_disturbed_expectations_fail_where_they_belong(golden, save):
    belongs = {
        "train/featsA": "features, training",
        "train/loss_user": "losses",
        "grad/user_adapter.0.weight": "gradients",
        "step1/pos_emb.weight": "parameters after a step",
        "ds_train/posB": "sequences (differing elements)",
        "test/logits": "scores, test",
        "valid/rank0": "ranks, valid (differing)",
    }
    changed = {name: golden[name].copy() for name in belongs}
    for value in changed.values():
        value[(-1,) * value.ndim] += 1 if value.dtype.kind == "i" else 0.01
    errors = verify.verify(save(changed=changed))
    assert {name for name, (_, error) in errors.items() if error > 1e-5} == set(belongs.values())


def deepened(golden):
    """The fixture with a third block in every stream that adds nothing: its attention and feed
    forward end in 0, and a LayerNorm of a LayerNorm is that LayerNorm. So the official values of
    two blocks are those of three, but for gradients of what is new."""
    out = dict(golden)
    for name, value in golden.items():
        group, _, part = name.partition("/")
        if group in ("param", "grad", "step1") and ".1." in part and part.startswith("backbone"):
            is_norm, is_last = "layernorms" in part, "out_proj" in part or "conv2" in part
            new = np.full_like(value, is_norm and part.endswith("weight"))
            out[f"{group}/{part.replace('.1.', '.2.')}"] = new if is_norm or is_last else value
    return out


def test_a_fixture_of_three_blocks(golden, save):
    changed = deepened(golden)
    assert len(changed) == len(golden) + 3 * 36
    errors = verify.verify(save(changed=changed))
    assert errors["gradients"][0] == errors["parameters after a step"][0] == 89 + 36
    of_new = {"gradients", "parameters after a step"}
    assert max(error for name, (_, error) in errors.items() if name not in of_new) < 1e-5
    # The twin: a block that does something.
    some = "param/backboneA.forward_layers.2.conv2.weight"
    other = verify.verify(save(changed=changed | {some: golden[some.replace(".2.", ".1.")]}))
    assert other["features, training"][1] > 1e-3
    with pytest.raises(UserError, match="missing backboneB.attention_layernorms.2.bias"):
        verify.verify(save("param/backboneB.attention_layernorms.2.bias", changed))


@pytest.fixture(scope="module")
def official():
    fixture = Fixture(str(GOLDEN), *read(str(GOLDEN)))
    return fixture.backbone, fixture.params, fixture.batch()


def test_weights_go_there_and_back(golden, official):
    _, params, _ = official
    back = interop.to_official(params)
    assert len(back) == 89
    for name, value in back.items():
        np.testing.assert_array_equal(value, golden[f"param/{name}"])


@pytest.mark.parametrize(
    "quirk", ["q1_no_causal_mask", "q4_attend_to_padding", "q13_scale_by_table_width"]
)
def test_every_quirk_of_the_streams_is_needed(golden, official, quirk):
    model, params, batch = official
    other = dataclasses.replace(model, quirks=dataclasses.replace(model.quirks, **{quirk: False}))
    hidden = {}
    grid = {k: v for k, v in batch.items() if not k.startswith("at_")}
    for name, one in (("with", model), ("without", other)):
        out, _ = jax.jit(one.net.apply)({"params": params["net"]}, one.tables, grid)
        hidden[name] = np.reshape(out["x"], golden["train/feats"].shape)
    assert relative(hidden["with"], golden["train/feats"]) < 1e-5
    assert relative(hidden["without"], golden["train/feats"]) > 1e-3


def test_missing_and_misshapen_arrays(golden, save):
    for name in ("grad/adapter.1.bias", "train/seqB", "valid/item_indicesA", "test/logits"):
        with pytest.raises(UserError, match=f"no array '{name}'"):
            verify.verify(save(drop=name))
        with pytest.raises(UserError, match=f"{name}: found shape"):
            verify.verify(save(changed={name: golden[name][None]}))
    with pytest.raises(UserError, match="missing pos_embA.weight"):
        verify.verify(save(drop="param/pos_embA.weight"))
    with pytest.raises(UserError, match="unknown extra"):
        verify.verify(save(changed={"param/extra": np.zeros(3)}))


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("num_heads", 3, "expected a divisor of the width"),
        ("item_num_B", 0, "item_num_B 0: expected a whole number of at least 1"),
        ("tau", "1", "tau '1': expected a number"),
    ],
)
def test_meta_is_checked(golden, save, field, value, expected):
    meta = json.loads(str(golden["meta"])) | {field: value}
    with pytest.raises(UserError, match=expected):
        verify.verify(save(changed={"meta": np.array(json.dumps(meta))}))
