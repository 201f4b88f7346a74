"""`python -m oa_jax verify FIXTURE.npz …`: our model against values of the official code.

A fixture of ABXI or LLM4CDSR, known by its `meta`, holds official weights (`param/*`), training
inputs and outputs (`train/*`), gradients (`grad/*`), parameters after one optimizer step
(`step1/*`), evaluation inputs and outputs (`val/*` or `valid/*`, `test/*`) and, in `meta`, the
configuration as JSON. Sizes may be any. Errors are relative to the largest absolute value of the
expected array.
"""

from __future__ import annotations

import json
import numbers
import os
import zipfile
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags

from oa_jax.backbones.abxi import arrays as abxi_arrays
from oa_jax.backbones.abxi import official as interop
from oa_jax.backbones.abxi.model import Backbone
from oa_jax.backbones.llm4cdsr import parity as verify_llm4cdsr
from oa_jax.backbones.parity import check_offsets, largest, relative, step_error
from oa_jax.commands import cli
from oa_jax.engine.compilation import use_compilation_cache
from oa_jax.errors import UserError
from oa_jax.events.log import make_log
from oa_jax.events.split import leave_one_out
from oa_jax.ranking.ranks import among_candidates
from oa_jax.sheets import Sheet

flags.DEFINE_float("tolerance", 1e-5, "Largest relative error that passes.", lower_bound=0.0)

WHOLE, REAL = ("n_head", "n_item_a", "n_item_b"), ("temp", "lr", "weight_decay", "eps")
META = (*WHOLE, *REAL, "betas")
# Weights whose shapes give the sizes of the model.
SIZING = ("ei.weight", "ep.weight", "ffn.fc_1.weight", "dlora_x.mat_A", "ilora_a.mat_A")
# Axes of the arrays: R rows, L length, D width, N negatives, K candidates = negatives + 1.
SEQUENCES = {"seq_x": "RL", "seq_a": "RL", "seq_b": "RL"}
LOSSES = {"loss_a": "", "loss_b": ""}
EVALUATION = SEQUENCES | {"gt": "R1", "gt_mtc": "RN", "ranks": "R", "h": "RD", "logits": "RK"}
IN_BIAS = "mha.mha.in_proj_bias"
SHAPES = {
    "train": SEQUENCES | {"gt": "RL", "gt_neg": "RLN", "h": "RLD"} | LOSSES,
    "val": EVALUATION,
    "test": EVALUATION,
}
ITEM_IDS = (*SEQUENCES, "gt", "gt_neg", "gt_mtc", "flat")


def main(paths):
    if not paths:
        raise UserError("no fixture given: expected FIXTURE.npz …")
    use_compilation_cache(cli.say)
    worst = 0.0
    for path in paths:
        errors = verify(path)
        header = ["quantity", "arrays", "largest relative error"]
        rows = [[name, str(count), f"{error:.2e}"] for name, (count, error) in errors.items()]
        Sheet(str(path), header, rows).show(cli.console)
        worst = max(worst, *(error for _, error in errors.values()))
    tolerance = flags.FLAGS.tolerance
    passed = worst <= tolerance
    sign = "<=" if passed else ">"
    cli.say(f"{'passed' if passed else 'FAILED'}: largest error {worst:.2e} {sign} {tolerance:g}")
    return 0 if passed else 1


def verify(path: str) -> dict[str, tuple[int, float]]:
    """{quantity: (number of arrays, largest relative error)} of one fixture.

    Raises UserError when the file cannot be read or an array is missing or has another shape.
    """
    fixture, meta = read(path)
    if verify_llm4cdsr.MARK in meta:
        return verify_llm4cdsr.verify(path, fixture, meta)
    _check_meta(path, meta)
    weights = {k[len("param/") :]: v for k, v in fixture.items() if k.startswith("param/")}
    _check_numbers(path, {f"param/{name}": value for name, value in weights.items()})
    params = interop.from_official(weights, path)
    for name in SIZING:
        shape, least = weights[name].shape, 1 + (name == "ep.weight")  # position 0 is padding
        if len(shape) != 2 or shape[0] < least or shape[1] < 1:
            raise UserError(f"{path}: param/{name}: found shape {shape}, expected (rows, columns)")
    config = interop.sizes_of(weights, (meta["n_item_a"], meta["n_item_b"]), meta["n_head"])
    if config.d_embed % config.heads:
        raise UserError(f"{path}: meta: n_head {config.heads}: expected a divisor of the width")
    backbone = Backbone(config)
    check_arrays(path, fixture, backbone)
    errors = _preprocessing(fixture, config)
    errors |= _training(fixture, meta, backbone, params)
    for split in ("val", "test"):
        errors |= _evaluation(fixture, split, backbone, params)
    return errors


def read(path: str) -> tuple[dict[str, np.ndarray], dict]:
    """Arrays and `meta` of a fixture."""
    if not os.path.isfile(path):
        raise UserError(f"{path}: no such file: expected a fixture (.npz)")
    try:
        if not zipfile.is_zipfile(path):
            raise UserError(f"{path}: not a whole .npz file: expected a fixture")
        with np.load(path, allow_pickle=False) as archive:
            fixture = {name: archive[name] for name in archive.files}
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path}: not a readable .npz of plain arrays: {error}") from None
    try:
        meta = dict(json.loads(str(fixture["meta"])))
    except (KeyError, ValueError, TypeError):
        raise UserError(f"{path}: no `meta` in it: expected the configuration as JSON") from None
    return fixture, meta


def _check_meta(path, meta):
    missing = [name for name in META if name not in meta]
    if missing:
        raise UserError(f"{path}: meta: no field {missing[0]!r}: expected {', '.join(META)}")
    kinds = dict.fromkeys(WHOLE, "a whole number of at least 1") | dict.fromkeys(REAL, "a number")
    for name, expected in (kinds | {"betas": "two numbers"}).items():
        values = meta[name] if name == "betas" and isinstance(meta[name], list) else [meta[name]]
        good = all(isinstance(v, numbers.Real) and not isinstance(v, bool) for v in values)
        if name in WHOLE:
            good = good and isinstance(values[0], int) and values[0] >= 1
        if not good or len(values) != 1 + (name == "betas"):
            raise UserError(f"{path}: meta: {name} {meta[name]!r}: expected {expected}")


def check_arrays(path: str, fixture, backbone) -> None:
    """Raise UserError for an array that is missing, or has another shape or kind of values."""
    config = backbone.config
    shapes = jax.eval_shape(backbone.init, jax.random.key(0))
    empty = interop.to_official(jax.tree.map(lambda a: np.empty(a.shape), shapes))
    expected = {f"{kind}/{k}": v.shape for kind in ("param", "grad", "step1") for k, v in empty.items()}  # noqa: E501  # fmt: skip
    for group, arrays in SHAPES.items():
        sizes = {"L": config.length, "D": config.d_embed, "1": 1}
        for name, axes in arrays.items():
            found = np.shape(fixture.get(f"{group}/{name}", np.empty([0] * len(axes))))
            for axis, size in zip(axes, found, strict=False):
                sizes.setdefault(axis, size)
                if axis == "N":
                    sizes.setdefault("K", size + 1)
            expected[f"{group}/{name}"] = tuple(sizes.get(axis, 0) for axis in axes)
    for name, shape in expected.items():
        if name not in fixture:
            raise UserError(f"{path}: no array {name!r}: expected it in a fixture")
        if fixture[name].shape != shape:
            raise UserError(f"{path}: {name}: found shape {fixture[name].shape}, expected {shape}")
    _check_numbers(path, {name: fixture[name] for name in expected})
    if "raw/flat" in fixture:
        check_offsets(path, fixture, fixture["raw/flat"].size)
        expected["raw/flat"] = None
    _check_items(path, {name: fixture[name] for name in expected}, sum(config.n_items))


def _check_numbers(path, arrays):
    for name, values in arrays.items():
        if values.dtype.kind not in "iuf":
            raise UserError(f"{path}: {name}: found {values.dtype}, expected numbers")


def _check_items(path, arrays, n_items):
    for name, values in arrays.items():
        if name.split("/")[-1] not in ITEM_IDS:
            continue
        if values.dtype.kind == "f":
            raise UserError(f"{path}: {name}: found {values.dtype}, expected whole numbers")
        bad = values[(values < 0) | (values > n_items)]
        if bad.size:
            raise UserError(f"{path}: {name}: found item {bad[0]}, expected an id in 0..{n_items}")


def training_batch(fixture, n_items) -> dict[str, jax.Array]:
    """The fixture's training batch in our packed form, every real position in it."""
    gt = fixture["train/gt"]
    flat = gt.ravel()
    at = {"A": np.flatnonzero((flat > 0) & (flat <= n_items[0]))}
    at["B"] = np.flatnonzero(flat > n_items[0])
    negatives = fixture["train/gt_neg"].reshape(flat.size, -1)
    batch = {name: fixture[f"train/{name}"] for name in ("seq_x", "seq_a", "seq_b", "gt")}
    batch |= {"at_A": at["A"], "at_B": at["B"], "n_users": np.float32(len(gt))}
    batch["negatives"] = negatives[np.concatenate([at["A"], at["B"]])]
    return jax.tree.map(jnp.asarray, batch)


def _preprocessing(fixture, config):
    """Differing elements of the arrays that we build from the fixture's raw histories."""
    if "raw/flat" not in fixture:
        return {}
    flat, offsets = fixture["raw/flat"], fixture["raw/offsets"]
    user = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    log = make_log(user, flat, np.arange(len(flat)), config.n_items, "raw")
    split = leave_one_out(log)
    built = {"train": abxi_arrays.training_arrays(log, split, config.length)}
    for which in ("val", "test"):
        built[which] = abxi_arrays.evaluation_arrays(log, split, which, config.length)
    names = [f"{which}/seq_{stream}" for which in built for stream in "xab"]
    differing = []
    for which, name in (name.split("/") for name in names):
        ours, expected = built[which][name], fixture[f"{which}/{name}"]
        differing.append(np.sum(ours != expected) if ours.shape == expected.shape else np.inf)
    return {"sequences (differing elements)": (len(names), float(max(differing)))}


def _training(fixture, meta, backbone, params):
    batch = training_batch(fixture, backbone.config.n_items)
    hparams = {"temperature": meta["temp"], "dropout": 0.0, "ortho_weight": 0.0}
    hidden, _ = backbone.net.apply({"params": params}, batch)
    expected_h = fixture["train/h"].reshape(-1, fixture["train/h"].shape[-1])
    errors = {"hidden states, training": (2, 0.0)}
    for domain in "AB":
        error = relative(hidden[domain], expected_h[batch[f"at_{domain}"]])
        errors["hidden states, training"] = (2, max(error, errors["hidden states, training"][1]))
    value_and_grad = jax.value_and_grad(backbone.loss, has_aux=True)
    (_, aux), grads = jax.jit(value_and_grad)(params, batch, None, hparams)
    losses = [relative(aux[name], fixture[f"train/{name}"]) for name in ("loss_a", "loss_b")]
    errors["losses"] = (2, max(losses))
    ours = interop.to_official(grads)
    errors["gradients"] = largest({k: relative(v, fixture[f"grad/{k}"]) for k, v in ours.items()})
    b1, b2 = meta["betas"]
    optimizer = optax.adamw(meta["lr"], b1, b2, meta["eps"], weight_decay=meta["weight_decay"])
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    stepped = interop.to_official(optax.apply_updates(params, updates))
    errors["parameters after a step"] = largest(
        {
            k: step_error(v, fixture[f"step1/{k}"], fixture[f"grad/{k}"], k == IN_BIAS)
            for k, v in stepped.items()
        }
    )
    return errors


def _evaluation(fixture, split, backbone, params):
    target = fixture[f"{split}/gt"][:, 0]
    batch = {name: fixture[f"{split}/{name}"] for name in ("seq_x", "seq_a", "seq_b")}
    batch["until_a"] = batch["until_b"] = np.zeros_like(batch["seq_x"])  # for GCA, absent here
    batch["domain"] = (target > backbone.config.n_items[0]).astype(np.int8)
    hidden = backbone.encode(params, jax.tree.map(jnp.asarray, batch))
    candidates = np.concatenate([target[:, None], fixture[f"{split}/gt_mtc"]], 1)
    scores = backbone.score(params, hidden, jnp.asarray(candidates))
    ranks = among_candidates(scores).rank
    wrong = float(np.sum(np.asarray(ranks) != fixture[f"{split}/ranks"]))
    return {
        f"hidden states, {split}": (1, relative(hidden, fixture[f"{split}/h"])),
        f"scores, {split}": (1, relative(scores, fixture[f"{split}/logits"])),
        f"ranks, {split} (differing)": (1, wrong),
    }


def start() -> None:
    cli.run(main, positional="fixtures")
