"""Tiny LLM4CDSR models, parameters and batches. Every item occurs once in all histories, so a row
of an item table stands for one input."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from oa_jax.backbones.llm4cdsr.arrays import evaluation_arrays
from oa_jax.backbones.llm4cdsr.fields import Model, Quirks
from oa_jax.backbones.llm4cdsr.model import Backbone, Tables
from oa_jax.backbones.llm4cdsr.task import LLM4CDSRTask
from oa_jax.events.log import make_log
from oa_jax.events.split import Split
from oa_jax.nn.known import GCAConfig

LENGTH, WIDTH, N_USERS = 8, 8, 30
PATTERNS = ("ABBAABABA", "BBABAB", "AABBA", "BAAB")
CORRECTED, OFFICIAL = Quirks.of("corrected"), Quirks.of("official")
HPARAMS = {"alpha": 0.1, "beta": 0.2, "tau": 1.0, "tau_reg": 1.0}
HPARAMS |= {"dropout": 0.0, "ortho_weight": 0.0}
SUBSETS = tuple(itertools.chain(*(itertools.combinations((0, 1, 2), n) for n in range(4))))


def histories(patterns):
    """A history of each pattern of domains, every item new -> (histories, n_items)."""
    n_items = tuple(sum(p.count(d) for p in patterns) for d in "AB")
    fresh = {"A": itertools.count(1), "B": itertools.count(n_items[0] + 1)}
    return [[next(fresh[d]) for d in p] for p in patterns], n_items


def log_of(items, n_items):
    user = np.repeat(np.arange(len(items)), list(map(len, items)))
    return make_log(user, np.concatenate(items), np.zeros(len(user), int), n_items, "tiny")


def all_train(log):
    """A split whose every event trains."""
    none = np.full(log.n_users, -1, np.int32)
    return Split(np.diff(log.offsets).astype(np.int32), none, none)


def all_test(log):
    """A split whose users are tested on their last event."""
    none = np.full(log.n_users, -1, np.int32)
    return Split(0 * none, none, (np.diff(log.offsets) - 1).astype(np.int32))


def training_batch(items, n_items, length=LENGTH):
    """A batch of all histories, wholly trained on."""
    log = log_of(items, n_items)
    task = LLM4CDSRTask(log, all_train(log), length, len(items))
    arrays = jax.tree.map(jnp.asarray, task.train_arrays())
    room = tuple(int(n) + 3 for n in task.slot_counts.sum(1))
    return task.batch(arrays, jnp.arange(len(items)), 0, 0, room)


def grid_of(batch):
    """The batch without its lists of slots: every position of every stream."""
    return {k: v for k, v in batch.items() if not k.startswith("at_")}


def evaluation_batch(items, n_items, length=LENGTH):
    log = log_of(items, n_items)
    rows = evaluation_arrays(log, all_test(log), "test", length, drop_last_of_other=False)
    rows.pop("seen")
    return jax.tree.map(jnp.asarray, rows)


def random_tables(n_items, seed=0, width=WIDTH):
    rng = np.random.default_rng(seed)
    sizes = {"items": (sum(n_items) + 1, 12), "local_A": (n_items[0] + 1, width)}
    sizes |= {"local_B": (n_items[1] + 1, width), "users": (N_USERS, 10)}
    rows = {k: rng.normal(0, 0.5, size).astype(np.float32) for k, size in sizes.items()}
    for name in ("items", "local_A", "local_B"):
        rows[name][0] = 0
    return Tables(**rows)


def blocks_for(gca):
    """As few blocks as there can be with fusions at these places."""
    return max([1, *(gca or {}).get("positions", ())])


def backbone(n_items, gca=None, quirks=CORRECTED, length=LENGTH, **config):
    sizes = {"d_embed": WIDTH, "heads": 2, "length": length, "blocks": blocks_for(gca)} | config
    return Backbone(n_items, Model(**sizes), random_tables(n_items), GCAConfig(**gca or {}), quirks)


def random_params(model, seed=0, scale=0.4):
    """Every leaf drawn far from its initial value."""
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: jnp.asarray(rng.normal(0, scale, a.shape), a.dtype), shapes)


def forward(model, params, batch):
    return model.net.apply({"params": params["net"]}, model.tables, batch)[0]
