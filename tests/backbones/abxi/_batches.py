"""Tiny ABXI models, parameters and batches for the tests of this folder.

Batches are built here word by word, independently of the tasks. Every item
occurs once in all histories, so a row of the item table stands for one input.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from oa_jax.backbones.abxi.fields import Model, Quirks
from oa_jax.backbones.abxi.model import Backbone
from oa_jax.nn.known import GCAConfig
from oa_jax.nn.layers import Packing

LENGTH = 8
# Fills the row and starts in A; starts in B; B only, so stream a is empty; one pair.
PATTERNS = ("ABBAABABA", "BBABAB", "BBBBB", "AA")


def one_row_a_step():
    """Every pattern once for each of its steps (a step is the position of an input).

    -> histories, the step of each, items of the two domains.
    """
    rows = [(pattern, step) for pattern in PATTERNS for step in range(len(pattern) - 1)]
    n_items = tuple(sum(pattern.count(d) for pattern, _ in rows) for d in "AB")
    fresh = {"A": itertools.count(1), "B": itertools.count(n_items[0] + 1)}
    histories = [[next(fresh[d]) for d in pattern] for pattern, _ in rows]
    return histories, np.array([step for _, step in rows]), n_items


HISTORIES, STEP, N_ITEMS = one_row_a_step()
SHORT = [items[:LENGTH] for items in HISTORIES]  # what fits into an evaluation row
CORRECTED, OFFICIAL = Quirks.of("corrected"), Quirks.of("official")
SUBSETS = tuple(itertools.chain(*(itertools.combinations((0, 1, 2), n) for n in range(4))))
HPARAMS = {"temperature": 0.75, "dropout": 0.0, "ortho_weight": 0.0}


def backbone(gca=None, quirks=CORRECTED, length=LENGTH, n_items=N_ITEMS) -> Backbone:
    """d = 8, two heads; `gca`: fields of GCAConfig."""
    config = Model(d_embed=8, heads=2, d_ffn=12, rank_domain=2, rank_invariant=3, length=length)
    return Backbone(n_items, config, GCAConfig(**gca or {}), quirks, block=5)


def random_params(model: Backbone, seed=0, scale=0.4):
    """Every leaf drawn far from its initial value: no branch is zero, no norm is the identity."""
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0, scale, leaf.shape), leaf.dtype), shapes
    )


def forward(model: Backbone, params, batch, last_only=False):
    """({"A": h, "B": h}, probes), without dropout.

    Not jitted: configurations share their compiled operations, which is much the fastest here.
    """
    return model.net.apply({"params": params}, batch, last_only=last_only)


def pad(values, length, fill=0):
    """Left-padded to `length`, its last entries where there are more."""
    return ([fill] * length + list(values))[-length:]


def training_batch(histories=HISTORIES, length=LENGTH, n_items=N_ITEMS, spare=2):
    """All arrays of a training batch but the negatives; `spare` unused slots in each domain."""
    rows = {"seq_x": [], "seq_a": [], "seq_b": [], "gt": []}
    for items in histories:
        x, gt = items[:-1], items[1:]
        rows["seq_x"].append(pad(x, length))
        rows["gt"].append(pad(gt, length))
        for name, domain in (("seq_a", 0), ("seq_b", 1)):
            stream = []
            for p, target in enumerate(gt):
                mine = [i for i in x[: p + 1] if (i > n_items[0]) == domain]
                stream.append(mine[-1] if mine and (target > n_items[0]) == domain else 0)
            rows[name].append(pad(stream, length))
    batch = {name: np.array(values, np.int32) for name, values in rows.items()}
    flat = batch["gt"].ravel()
    unused = np.full(spare, flat.size)
    batch["at_A"] = np.r_[np.flatnonzero((flat > 0) & (flat <= n_items[0])), unused]
    batch["at_B"] = np.r_[np.flatnonzero(flat > n_items[0]), unused]
    return jax.tree.map(jnp.asarray, batch | {"n_users": np.float32(len(histories))})


def with_negatives(batch, n_items=N_ITEMS, seed=0, n=3):
    """The batch with n negatives of each domain for every row, repeats and targets included."""
    rng = np.random.default_rng(seed)
    n_rows = len(batch["gt"])
    from_a = rng.integers(1, n_items[0] + 1, (n_rows, n))
    from_b = rng.integers(n_items[0] + 1, sum(n_items) + 1, (n_rows, n))
    return batch | {"shared_negatives": jnp.asarray(np.c_[from_a, from_b], jnp.int32)}


def evaluation_batch(histories=SHORT, length=LENGTH, n_items=N_ITEMS):
    """Streams and horizons of histories that fit into `length`; targets in A and B by turns."""
    rows = {"seq_x": [], "seq_a": [], "seq_b": [], "until_a": [], "until_b": []}
    for items in histories:
        assert len(items) <= length
        rows["seq_x"].append(pad(items, length))
        for letter, domain in (("a", 0), ("b", 1)):
            places = [p for p, i in enumerate(items) if (i > n_items[0]) == domain]
            until = [q - 1 for q in places[1:]] + [len(items) - 1] if places else []
            rows[f"seq_{letter}"].append(pad([items[p] for p in places], length))
            shift = length - len(items)
            rows[f"until_{letter}"].append(pad([u + shift for u in until], length, fill=-1))
    batch = {name: np.array(values, np.int32) for name, values in rows.items()}
    return jax.tree.map(
        jnp.asarray, batch | {"domain": np.arange(len(histories), dtype=np.int8) % 2}
    )


def on_grid(hidden, batch):
    """{"A", "B"} at the slots of a training batch -> (B, L, D)."""
    shape = batch["gt"].shape
    return sum(Packing(batch[f"at_{d}"], shape).unpack(hidden[d]) for d in "AB")
