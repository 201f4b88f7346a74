"""Our model against values of an official code: what a fixture must hold, and how far we are off.

A fixture (.npz) holds official weights (`param/*`), training inputs and outputs (`train/*`),
gradients (`grad/*`), parameters after one optimizer step (`step1/*`), inputs and outputs of each
evaluation split and, in `meta`, the configuration as JSON. Sizes may be any.
"""

import collections
import json
import numbers

import jax
import jax.numpy as jnp
import numpy as np
import optax

from oa_jax import files
from oa_jax.errors import UserError
from oa_jax.events.log import make_log
from oa_jax.ranking.ranks import among_candidates

WHOLE, REAL, PAIR = "a whole number of at least 1", "a number", "two numbers"  # values of `meta`
Arrays = dict[str, np.ndarray]
Errors = dict[str, tuple[int, float]]  # {quantity: (number of arrays, largest relative error)}


def read(path: str) -> tuple[Arrays, dict]:
    """Arrays and `meta` of a fixture. Raises UserError for a file that is none."""
    arrays = files.read_npz(path, "a fixture (.npz)")
    try:
        return arrays, dict(json.loads(str(arrays["meta"])))
    except (KeyError, ValueError, TypeError, RecursionError):
        raise UserError(f"{path}: no `meta` in it: expected the configuration as JSON") from None


def relative(ours: np.ndarray, expected: np.ndarray) -> float:
    """Largest absolute difference over the largest absolute expected value; inf if not finite."""
    ours, expected = np.asarray(ours, np.float64), np.asarray(expected, np.float64)
    if ours.shape != expected.shape or not (np.isfinite(ours) & np.isfinite(expected)).all():
        return float("inf")
    return float(np.max(np.abs(ours - expected)) / max(np.max(np.abs(expected)), 1e-30))


class Fixture:
    """A checked fixture; a backbone's subclass says what is its own.

    mark: the field of `meta` by which its fixtures are known.  fields: those of `meta` that must
    be there, each with its kind.  heads, items: the fields with the attention heads and with the
    items of A and of B.  sizing: {weight that gives sizes of the model: rows at least}.
    hparams: {ours: field of `meta`}.  states: what the code calls hidden states.  raw: arrays
    without which no sequences are compared, the raw items first.  splits: of evaluation.
    model(weights) -> (the backbone, its parameters) of official weights.
    to_official(params): parameters or gradients under their official names.
    shapes() -> {array: its axes} beside weights: numbers, and letters that mean one size in a
        group. L is the model's length, D its width, K is N + 1.
    largest_id(array): the largest id that may stand in an array of ids; None for other arrays.
    built(log) -> {array of the fixture: the same made by us from the raw histories}.
    batch(): the training batch in our packed form, every real position in it.
    hidden(batch) -> {name: (ours, expected)}: hidden states of the training batch.
    evaluation(split) -> (rows, candidates, {"ranks", "scores", and hidden states: expected}).
    """

    def __init__(self, path: str, arrays: Arrays, meta: dict):
        """Raises UserError when an array or a field is missing, or has another form."""
        self.path, self.arrays, self.meta = path, arrays, meta
        self._check_meta()
        self.n_items = tuple(meta[name] for name in self.items)
        weights = {k.removeprefix("param/"): v for k, v in arrays.items() if k[:6] == "param/"}
        for name in weights:
            self._check_numbers(f"param/{name}")
        self.backbone, self.params = self.model(weights)
        if self.backbone.config.d_embed % meta[self.heads]:
            self._refuse(f"meta: {self.heads} {meta[self.heads]}: expected a divisor of the width")
        self._check_arrays()

    def raw_items(self) -> np.ndarray:
        """The raw histories' items as joint ids."""
        return self.arrays[self.raw[0]]

    def errors(self) -> Errors:
        """How far our numbers are from the fixture's, with products that no device rounds."""
        with jax.default_matmul_precision("highest"):
            errors = self._sequences() | self._training()
            for split in self.splits:
                errors |= self._evaluation(split)
        return errors

    def _refuse(self, text):
        raise UserError(f"{self.path}: {text}")

    def _check_meta(self):
        for name, kind in self.fields.items():
            if name not in self.meta:
                self._refuse(f"meta: no field {name!r}: expected {', '.join(self.fields)}")
            value = self.meta[name]
            values = value if kind == PAIR and isinstance(value, list) else [value]
            good = all(isinstance(v, numbers.Real) and not isinstance(v, bool) for v in values)
            if kind == WHOLE:
                good = good and isinstance(value, int) and value >= 1
            if not good or len(values) != 1 + (kind == PAIR):
                self._refuse(f"meta: {name} {value!r}: expected {kind}")

    def check_sizing(self, weights: Arrays) -> None:
        """Raise UserError for a weight whose shape cannot give sizes."""
        for name, least in self.sizing.items():
            shape = weights[name].shape
            if len(shape) != 2 or shape[0] < least or shape[1] < 1:
                self._refuse(f"param/{name}: found shape {shape}, expected (rows, columns)")

    def _check_arrays(self):
        model, shapes = self.backbone.config, self.shapes()
        leaves = jax.eval_shape(self.backbone.init, jax.random.key(0))
        weights = self.to_official(jax.tree.map(lambda leaf: np.empty(leaf.shape), leaves))
        for group in ("param", "grad", "step1"):
            shapes |= {f"{group}/{name}": value.shape for name, value in weights.items()}
        bound = collections.defaultdict(lambda: {"L": model.length, "D": model.d_embed})
        for name, axes in shapes.items():
            if name not in self.arrays:
                self._refuse(f"no array {name!r}: expected it in a fixture")
            sizes, found = bound[name.split("/")[0]], self.arrays[name].shape
            for axis, size in zip(axes, found, strict=False):
                sizes.setdefault(axis, size)
                if axis == "N":
                    sizes.setdefault("K", size + 1)
            expected = tuple(a if isinstance(a, int) else sizes.get(a, 0) for a in axes)
            if found != expected:
                self._refuse(f"{name}: found shape {found}, expected {expected}")
            self._check_numbers(name)
            self._check_ids(name)
        if self.raw[0] in self.arrays:
            self._check_ids(self.raw[0])
            self._check_offsets(self.arrays[self.raw[0]].size)

    def _check_numbers(self, name):
        if self.arrays[name].dtype.kind not in "iuf":
            self._refuse(f"{name}: found {self.arrays[name].dtype}, expected numbers")

    def _check_ids(self, name):
        values, most = self.arrays[name], self.largest_id(name)
        if most is None:
            return
        if values.dtype.kind not in "iu":
            self._refuse(f"{name}: found {values.dtype}, expected whole numbers")
        bad = values[(values < 0) | (values > most)]
        if bad.size:
            self._refuse(f"{name}: found {bad[0]}, expected an id in 0..{most}")

    def _check_offsets(self, n_events):
        offsets = self.arrays.get("raw/offsets", np.zeros(0))
        good = offsets.ndim == 1 and offsets.size and offsets.dtype.kind in "iu"
        if not good or offsets[0] != 0 or offsets[-1] != n_events or (np.diff(offsets) < 1).any():
            self._refuse(f"raw/offsets: expected ascending whole numbers 0..{n_events}")

    def _sequences(self) -> Errors:
        """Differing elements of the arrays that we build from the raw histories."""
        if any(name not in self.arrays for name in self.raw):
            return {}
        sizes = np.diff(self.arrays["raw/offsets"])
        user, items = np.repeat(np.arange(len(sizes)), sizes), self.raw_items()
        log, differing = make_log(user, items, np.arange(len(user)), self.n_items, "raw"), []
        for name, ours in self.built(log).items():
            expected = self.arrays.get(name, np.zeros(0))
            same_shape = ours.shape == expected.shape
            differing.append(np.sum(ours != expected) if same_shape else np.inf)
        return {"sequences (differing elements)": (len(differing), float(max(differing)))}

    def _training(self) -> Errors:
        batch = jax.tree.map(jnp.asarray, self.batch())
        hparams = {name: self.meta[field] for name, field in self.hparams.items()}
        hparams |= {"dropout": 0.0, "ortho_weight": 0.0}
        value_and_grad = jax.jit(jax.value_and_grad(self.backbone.loss, has_aux=True))
        (total, losses), grads = value_and_grad(self.params, batch, None, hparams)
        if "train/loss" in self.arrays:
            losses = losses | {"loss": total}
        meta = {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0} | self.meta
        decay = meta["weight_decay"]
        optimizer = optax.adamw(meta["lr"], *meta["betas"], meta["eps"], weight_decay=decay)
        updates, _ = optimizer.update(grads, optimizer.init(self.params), self.params)
        stepped = self.to_official(optax.apply_updates(self.params, updates))
        of_group = {
            f"{self.states}, training": [relative(*pair) for pair in self.hidden(batch).values()],
            "losses": [relative(v, self.arrays[f"train/{k}"]) for k, v in losses.items()],
            "gradients": [
                relative(v, self.arrays[f"grad/{k}"]) for k, v in self.to_official(grads).items()
            ],
            "parameters after a step": [self._step_error(k, v) for k, v in stepped.items()],
        }
        return {name: (len(values), max(values)) for name, values in of_group.items()}

    def _step_error(self, name, ours):
        """`relative` of parameters after an Adam step, where its direction is sure.

        Adam divides by |g|: where a gradient is rounding noise, so is the direction of the step.
        The middle third of an in-projection's bias is the keys', whose true gradient is 0.
        """
        gradient = self.arrays[f"grad/{name}"]
        sure = (np.abs(gradient) > 1e-6) | (gradient == 0)
        if name.endswith("in_proj_bias"):
            third = len(ours) // 3
            sure[third : 2 * third] = False
        return relative(np.where(sure, ours, 0), np.where(sure, self.arrays[f"step1/{name}"], 0))

    def _evaluation(self, split) -> Errors:
        rows, candidates, expected = self.evaluation(split)
        encoded = self.backbone.encode(self.params, jax.tree.map(jnp.asarray, rows))
        index = self.backbone.index(self.params)
        scores = self.backbone.score(index, encoded, jnp.asarray(candidates))
        wrong = np.sum(np.asarray(among_candidates(scores).rank) != expected.pop("ranks"))
        ours = {self.states: encoded, "scores": scores}
        errors = {f"{k}, {split}": (1, relative(ours[k], v)) for k, v in expected.items()}
        return errors | {f"ranks, {split} (differing)": (1, float(wrong))}


def unpacked(values_P: np.ndarray, at_P: np.ndarray, shape: tuple[int, int], empty=0) -> np.ndarray:
    """(B, L, …): packed values at their places of a grid of that shape, `empty` elsewhere. at_P
    names places outside for slots without one."""
    grid = np.full((shape[0] * shape[1], *values_P.shape[1:]), empty, values_P.dtype)
    used = at_P < len(grid)
    grid[at_P[used]] = values_P[used]
    return grid.reshape(*shape, *values_P.shape[1:])
