"""Verification of fixtures of the official LLM4CDSR code."""

from __future__ import annotations

import numbers

import jax
import jax.numpy as jnp
import numpy as np
import optax

from oa_jax.backbones.llm4cdsr import arrays as llm4cdsr_arrays
from oa_jax.backbones.llm4cdsr import official as interop
from oa_jax.backbones.llm4cdsr.model import DOMAINS, Backbone
from oa_jax.backbones.parity import check_offsets, largest, relative, step_error
from oa_jax.errors import UserError
from oa_jax.events.log import make_log
from oa_jax.events.split import leave_one_out
from oa_jax.ranking.ranks import among_candidates

Arrays = dict[str, np.ndarray]
IN_BIAS = "in_proj_bias"
MARK = "item_num_A"  # the field of `meta` by which such a fixture is known
WHOLE = ("num_heads", "item_num_A", "item_num_B")
REAL = ("alpha", "beta", "tau", "tau_reg", "lr")
STREAM_PARTS = ("seq", *(f"{part}{d}" for d in DOMAINS for part in ("seq", "pos")))
STREAMS = ("seq", "seqA", "seqB")
TRAINING = (*STREAM_PARTS, "pos", "domain_mask")
SPLITS = {"valid": "val", "test": "test"}


def verify(path: str, fixture: Arrays, meta: dict) -> dict[str, tuple[int, float]]:
    """{quantity: (number of arrays, largest relative error)}; see `commands/verify.py`."""
    _check_meta(path, meta)
    prefix = "param/"
    weights = {k[len(prefix) :]: v for k, v in fixture.items() if k.startswith(prefix)}
    params, tables = interop.from_official(weights, path)
    n_items = (meta["item_num_A"], meta["item_num_B"])
    backbone = Backbone(interop.sizes_of(weights, n_items, meta["num_heads"]), tables)
    if backbone.config.d_embed % meta["num_heads"]:
        raise UserError(f"{path}: meta: num_heads: expected a divisor of the width")
    check_arrays(path, fixture, backbone)
    errors = _preprocessing(fixture, backbone.config)
    errors |= _training(fixture, meta, backbone, params)
    for split in SPLITS:
        errors |= _evaluation(fixture, split, backbone, params)
    return errors


def _check_meta(path, meta):
    for name in (*WHOLE, *REAL):
        value = meta.get(name)
        good = isinstance(value, numbers.Real) and not isinstance(value, bool)
        if name in WHOLE:
            good = good and isinstance(value, int) and value >= 1
        if not good:
            kind = "a whole number of at least 1" if name in WHOLE else "a number"
            raise UserError(f"{path}: meta: {name} {value!r}: expected {kind}")


def check_arrays(path: str, fixture: Arrays, backbone: Backbone) -> None:
    """Raise UserError for an array that is missing, or has another shape or kind of values."""
    cfg, users = backbone.config, len(backbone.tables.users)
    shapes = jax.eval_shape(backbone.init, jax.random.key(0))
    empty = interop.to_official(jax.tree.map(lambda a: np.empty(a.shape), shapes))
    n_a, n_b = cfg.n_items
    expected = {f"{kind}/{k}": v.shape for kind in ("param", "grad", "step1") for k, v in empty.items()}  # noqa: E501  # fmt: skip
    expected["param/item_emb_llm.weight"] = (n_a + n_b + 1, None)
    expected |= {f"param/item_emb{d}.weight": (n + 1, cfg.d_embed) for d, n in zip(DOMAINS, cfg.n_items, strict=True)}  # noqa: E501  # fmt: skip
    grid = (None, cfg.length)
    rows = dict.fromkeys((*STREAM_PARTS, "neg", "negA", "negB", "domain_mask"), grid)
    rows |= {"user_id": (None,), "reg_A": (None, 1), "reg_B": (None, 1)}
    rows |= {f"feats{s}": (*grid, cfg.d_embed) for s in ("", *DOMAINS)}
    rows |= dict.fromkeys(("loss_A", "loss_B", "loss_reg", "loss_user"), ())
    expected |= {f"train/{name}": shape for name, shape in rows.items()}
    for split in SPLITS:
        expected |= {f"{split}/seq{s}": grid for s in ("", *DOMAINS)}
        expected |= {f"{split}/item_indices{s}": (None, None) for s in ("", *DOMAINS)}
        expected |= {f"{split}/logits": (None, None), f"{split}/rank0": (None,)}
        expected[f"{split}/target_domain"] = (None,)
    for name, shape in expected.items():
        _check_array(path, fixture, name, shape)
    _check_ids(path, fixture, "train/user_id", users - 1)
    for name in expected:
        most = _largest_id(name, cfg.n_items)
        if most is not None:
            _check_ids(path, fixture, name, most)
    if "raw/items" in fixture:
        check_offsets(path, fixture, fixture["raw/items"].size)


def _largest_id(name, n_items):
    """The largest id that may stand in an array of items, None for other arrays."""
    group, _, part = name.partition("/")
    if group not in ("train", *SPLITS) or not part.startswith(
        ("seq", "pos", "neg", "item_", "reg")
    ):
        return None
    local = part[-1] in DOMAINS and not part.startswith("reg")
    return n_items[DOMAINS.index(part[-1])] if local else sum(n_items)


def _check_ids(path, fixture, name, most):
    values = fixture[name]
    bad = values[(values < 0) | (values > most)]
    if values.dtype.kind == "f" or bad.size:
        found = bad[0] if bad.size else values.dtype
        raise UserError(f"{path}: {name}: found {found}, expected whole numbers in 0..{most}")


def _check_array(path, fixture, name, shape):
    if name not in fixture:
        raise UserError(f"{path}: no array {name!r}: expected it in a fixture")
    found = fixture[name]
    if len(found.shape) != len(shape) or any(
        size not in (None, there) for size, there in zip(shape, found.shape, strict=True)
    ):
        wanted = tuple("any" if s is None else s for s in shape)
        raise UserError(f"{path}: {name}: found shape {found.shape}, expected {wanted}")
    if found.dtype.kind not in "iuf":
        raise UserError(f"{path}: {name}: found {found.dtype}, expected numbers")


def training_batch(fixture: Arrays, n_items: tuple[int, int]) -> dict[str, jax.Array]:
    """The fixture's training batch in our packed form, every real position in it."""
    grid = {name: fixture[f"train/{name}"] for name in (*STREAM_PARTS, "neg", "negA", "negB")}
    rows, length = grid["seq"].shape
    batch = {"seq": grid["seq"], "at_x": np.flatnonzero(grid["seq"])}
    for d, name in enumerate(DOMAINS):
        at = np.flatnonzero(grid[f"seq{name}"])
        # The k-th token of the domain goes with the k-th position of its mask, row by row.
        paired = np.flatnonzero(fixture["train/domain_mask"] == d)
        pair, time = np.full(rows * length, -1), np.full(rows * length, -1)
        pair[at] = paired % length
        batch |= {f"seq_{name}": grid[f"seq{name}"], f"pos_{name}": grid[f"pos{name}"]}
        batch |= {f"at_{name}": at, f"time_{name}": time.reshape(rows, length)}
        batch[f"pair_{name}"] = pair.reshape(rows, length)
        batch[f"neg_{name}"] = grid[f"neg{name}"].ravel()[at]
        batch[f"neg_x_{name}"] = grid["neg"].ravel()[paired]
        batch[f"reg_{name}"] = fixture[f"train/reg_{name}"][:, 0]
    batch |= {"profile": fixture["train/user_id"], "real": np.ones(rows, bool)}
    return jax.tree.map(jnp.asarray, batch | {"n_users": np.float32(rows)})


def _preprocessing(fixture, config):
    """Differing elements of the arrays that we build from the fixture's raw histories."""
    if "raw/items" not in fixture or "ds_train/seq" not in fixture:
        return {}
    offsets = fixture["raw/offsets"]
    user = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    items = fixture["raw/items"] + config.n_items[0] * (fixture["raw/domains"] == 1)
    log = make_log(user, items, np.arange(len(items)), config.n_items, "raw")
    split = leave_one_out(log, skip_short=True)
    built = {"ds_train": llm4cdsr_arrays.training_arrays(log, split, config.length)}
    for theirs, ours in SPLITS.items():
        built[theirs] = llm4cdsr_arrays.evaluation_arrays(log, split, ours, config.length)
    differing = []
    for which, arrays in built.items():
        for name in TRAINING if which == "ds_train" else STREAMS:
            ours = arrays[name if name[-1] not in DOMAINS else f"{name[:-1]}_{name[-1]}"]
            expected = fixture[f"{which}/{name}"]
            same_shape = ours.shape == expected.shape
            differing.append(np.sum(ours != expected) if same_shape else np.inf)
    return {"sequences (differing elements)": (len(differing), float(max(differing)))}


def _training(fixture, meta, backbone, params):
    batch = training_batch(fixture, backbone.config.n_items)
    hparams = {name: meta[name] for name in ("alpha", "beta", "tau", "tau_reg")}
    hparams |= {"dropout": 0.0, "ortho_weight": 0.0}
    grid = {k: v for k, v in batch.items() if not k.startswith("at_")}
    variables = {"params": params["net"]}
    hidden, _ = backbone.net.apply(variables, backbone.tables, grid)
    features = {
        s: relative(np.reshape(hidden[s or "x"], fixture[f"train/feats{s}"].shape), fixture[f"train/feats{s}"])  # noqa: E501
        for s in ("", *DOMAINS)
    }  # fmt: skip
    errors = {"features, training": largest(features)}
    value_and_grad = jax.value_and_grad(backbone.loss, has_aux=True)
    (total, aux), grads = jax.jit(value_and_grad)(params, batch, None, hparams)
    losses = {name: relative(value, fixture[f"train/{name}"]) for name, value in aux.items()}
    if "train/loss" in fixture:
        losses["loss"] = relative(total, fixture["train/loss"])
    errors["losses"] = largest(losses)
    ours = interop.to_official(grads)
    errors["gradients"] = largest({k: relative(v, fixture[f"grad/{k}"]) for k, v in ours.items()})
    optimizer = optax.adam(meta["lr"])
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    stepped = interop.to_official(optax.apply_updates(params, updates))
    errors["parameters after a step"] = largest(
        {
            k: step_error(v, fixture[f"step1/{k}"], fixture[f"grad/{k}"], k.endswith(IN_BIAS))
            for k, v in stepped.items()
        }
    )
    return errors


def _evaluation(fixture, split, backbone, params):
    group = {name.split("/")[1]: v for name, v in fixture.items() if name.startswith(f"{split}/")}
    none = np.zeros_like(group["seq"])
    batch = {"seq": group["seq"], "domain": group["target_domain"], "time_A": none, "time_B": none}
    batch |= {f"seq_{d}": group[f"seq{d}"] for d in DOMAINS}
    encoded = backbone.encode(params, jax.tree.map(jnp.asarray, batch))
    offset = backbone.config.n_items[0]
    in_b = group["target_domain"][:, None] == 1
    own = np.where(in_b, group["item_indicesB"] + offset, group["item_indicesA"])
    candidates = jnp.asarray(np.stack([group["item_indices"], own], 1))
    scores = backbone.score(backbone.index(params), encoded, candidates)
    ranks = np.asarray(among_candidates(scores).rank) - 1
    wrong = float(np.sum(ranks != group["rank0"]))
    return {
        f"scores, {split}": (1, relative(scores, group["logits"])),
        f"ranks, {split} (differing)": (1, wrong),
    }
