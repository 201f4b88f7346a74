"""Tiny CDSRNP models, parameters and batches, cut from patterns of domains."""

import jax
import jax.numpy as jnp
import numpy as np

from oa_jax.backbones.cdsrnp import arrays as cdsrnp_arrays
from oa_jax.backbones.cdsrnp.fields import Model
from oa_jax.backbones.cdsrnp.model import Backbone
from oa_jax.nn.known import GCAConfig
from oa_jax.nn.task import FILLS
from tests.backbones.llm4cdsr._batches import all_test, blocks_for, log_of

LENGTH, MERGED, WIDTH = 6, 10, 8
HPARAMS = {"dropout": 0.0, "kl_weight": 0.5, "ortho_weight": 0.0}


def backbone(n_items, gca=None, tables=None, **config):
    sizes = {"d_embed": WIDTH, "heads": 2, "length": LENGTH, "merged_length": MERGED}
    sizes |= {"decoder_widths": (8, 4), "blocks": blocks_for(gca)}
    return Backbone(n_items, Model(**sizes | config), tables, GCAConfig(**gca or {}))


def random_params(model, seed=0, scale=0.4):
    """Every leaf drawn far from its initial value."""
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: jnp.asarray(rng.normal(0, scale, a.shape), a.dtype), shapes)


def evaluation_rows(items, n_items, length=LENGTH, merged=MERGED):
    """Each history but its last item, which is the target."""
    log = log_of(items, n_items)
    arrays = cdsrnp_arrays.evaluation_arrays(log, all_test(log), "test", length, merged)
    arrays.pop("seen")
    return jax.tree.map(jnp.asarray, arrays)


def batch_of(items, n_items, query, seed=0):
    """A training batch of these histories; query: (N,) bool."""
    rows = evaluation_rows(items, n_items)
    rng = np.random.default_rng(seed)
    first = np.where(np.asarray(rows["domain"]) == 0, 0, n_items[0])
    most = np.where(np.asarray(rows["domain"]) == 0, *n_items)
    batch = {name: rows[name] for name in (*FILLS, "target")}
    return batch | {
        "domain": rows["domain"].astype(jnp.int32),
        "negative": jnp.asarray(1 + first + rng.integers(0, most)),
        "real": jnp.ones(len(items), bool),
        "query": jnp.asarray(query),
        "epoch": jnp.asarray(20.0),
        "n_users": jnp.asarray(float(np.sum(query))),
    }


def support_of(items, n_items):
    """These histories as the support set of evaluation."""
    batch = batch_of(items, n_items, np.zeros(len(items), bool), seed=7)
    return {k: batch[k] for k in (*FILLS, "target", "negative", "domain", "real")}
