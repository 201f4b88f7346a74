"""Verification of fixtures of the official ABXI code."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax

from oa_jax.backbones.abxi import arrays as abxi_arrays
from oa_jax.backbones.abxi import official as interop
from oa_jax.backbones.abxi.model import Backbone
from oa_jax.backbones.parity import (
    Arrays,
    Errors,
    check_arrays,
    check_ids,
    check_meta,
    check_offsets,
    differing,
    largest,
    of_step,
    relative,
)
from oa_jax.errors import UserError
from oa_jax.events.log import make_log
from oa_jax.events.split import leave_one_out
from oa_jax.ranking.ranks import among_candidates

WHOLE, REAL = ("n_head", "n_item_a", "n_item_b"), ("temp", "lr", "weight_decay", "eps")
MARK = "n_item_a"  # the field of `meta` by which such a fixture is known
# Weights whose shapes give the sizes of the model.
SIZING = ("ei.weight", "ep.weight", "ffn.fc_1.weight", "dlora_x.mat_A", "ilora_a.mat_A")
# Axes of the arrays: R rows, L length, D width, N negatives, K candidates = negatives + 1.
SEQUENCES = {"seq_x": "RL", "seq_a": "RL", "seq_b": "RL"}
LOSSES = {"loss_a": "", "loss_b": ""}
EVALUATION = SEQUENCES | {"gt": "R1", "gt_mtc": "RN", "ranks": "R", "h": "RD", "logits": "RK"}
SHAPES = {
    "train": SEQUENCES | {"gt": "RL", "gt_neg": "RLN", "h": "RLD"} | LOSSES,
    "val": EVALUATION,
    "test": EVALUATION,
}
ITEM_IDS = (*SEQUENCES, "gt", "gt_neg", "gt_mtc", "flat")


def verify(path: str, fixture: Arrays, meta: dict) -> Errors:
    """{quantity: (number of arrays, largest relative error)}; see `commands/verify.py`."""
    check_meta(path, meta, WHOLE, REAL)
    betas = meta.get("betas")
    if not isinstance(betas, list) or [type(b) in (int, float) for b in betas] != [True, True]:
        raise UserError(f"{path}: meta: betas {betas!r}: expected two numbers")
    weights = {k[len("param/") :]: v for k, v in fixture.items() if k.startswith("param/")}
    check_arrays(path, fixture, {f"param/{k}": v.shape for k, v in weights.items()})
    params = interop.from_official(weights, path)
    for name in SIZING:
        shape, least = weights[name].shape, 1 + (name == "ep.weight")  # position 0 is padding
        if len(shape) != 2 or shape[0] < least or shape[1] < 1:
            raise UserError(f"{path}: param/{name}: found shape {shape}, expected (rows, columns)")
    config = interop.sizes_of(weights, (meta["n_item_a"], meta["n_item_b"]), meta["n_head"])
    if config.d_embed % config.heads:
        raise UserError(f"{path}: meta: n_head {config.heads}: expected a divisor of the width")
    backbone = Backbone(config)
    _check_arrays(path, fixture, backbone)
    errors = _preprocessing(fixture, config)
    errors |= _training(fixture, meta, backbone, params)
    for split in ("val", "test"):
        errors |= _evaluation(fixture, split, backbone, params)
    return errors


def _check_arrays(path, fixture, backbone):
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
    check_arrays(path, fixture, expected)
    names = [*expected]
    if "raw/flat" in fixture:
        check_offsets(path, fixture, fixture["raw/flat"].size)
        names.append("raw/flat")
    for name in names:
        if name.split("/")[-1] in ITEM_IDS:
            check_ids(path, fixture, name, sum(config.n_items))


def training_batch(fixture: Arrays, n_items: tuple[int, int]) -> dict[str, jax.Array]:
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
    counts = [
        differing(arrays[f"seq_{stream}"], fixture[f"{which}/seq_{stream}"])
        for which, arrays in built.items()
        for stream in "xab"
    ]
    return {"sequences (differing elements)": (len(counts), max(counts))}


def _training(fixture, meta, backbone, params):
    batch = training_batch(fixture, backbone.config.n_items)
    hparams = {"temperature": meta["temp"], "dropout": 0.0, "ortho_weight": 0.0}
    hidden, _ = backbone.net.apply({"params": params}, batch)
    expected_h = fixture["train/h"].reshape(-1, fixture["train/h"].shape[-1])
    found = {d: relative(hidden[d], expected_h[batch[f"at_{d}"]]) for d in "AB"}
    errors = {"hidden states, training": largest(found)}
    value_and_grad = jax.value_and_grad(backbone.loss, has_aux=True)
    (_, aux), grads = jax.jit(value_and_grad)(params, batch, None, hparams)
    losses = {name: relative(aux[name], fixture[f"train/{name}"]) for name in LOSSES}
    errors["losses"] = largest(losses)
    b1, b2 = meta["betas"]
    optimizer = optax.adamw(meta["lr"], b1, b2, meta["eps"], weight_decay=meta["weight_decay"])
    return errors | of_step(fixture, params, grads, optimizer, interop.to_official)


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
