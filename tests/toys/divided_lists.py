"""`python divided_lists.py WORKDIR`: lists with whole and with divided tables, two CPU devices.

Prints one JSON object {name: [items, items]}, the first with whole tables.
"""

import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np

from oa_jax.engine import mesh as mesh_lib
from oa_jax.nn import shards
from oa_jax.ranking.best import best_of_all
from oa_jax.ranking.ranks import AllItems, seen_of
from oa_jax.serving import histories, lists
from oa_jax.serving.stored import StoredModel

MESHES = ("seed:1", "table:2")


def lists_of(path, mesh, ensemble):
    model = StoredModel(path, ensemble=ensemble, mesh=mesh)
    asked = histories.of_set(model.experiment.data.log, model.names)
    assert model.experiment.engine.layout.table_size == 1 + (mesh == "table:2")
    return [item for frame in lists.lists(model, asked, 4) for item in frame["item"]]


def tied(mesh):
    """Lists of a table of few different numbers: ties run over from one device to the other."""
    layout = mesh_lib.Layout.of(mesh)
    rng, n_items = np.random.default_rng(0), (9, 14)
    table = layout.with_rows({"items": rng.integers(0, 3, (24, 1)).astype(np.float32)}, axis=0)
    seen, domain_B = rng.integers(0, 24, (8, 3)), np.arange(8) % 2

    def best(table):
        def score(ids):
            return jnp.ones((8, 1)) @ shards.block_rows(table["items"], ids).T

        return best_of_all(AllItems(score, domain_B, seen_of(seen), n_items, 3), 6).items

    where = layout.shared(table, 1)
    with jax.set_mesh(layout.mesh(1)):
        return np.asarray(jax.jit(best)(mesh_lib.place(table, where))).tolist()


if __name__ == "__main__":
    workdir = pathlib.Path(sys.argv[1])
    found = {
        name: [lists_of(workdir, m, name == "ensemble") for m in MESHES]
        for name in ("seed", "ensemble")
    }
    print(json.dumps(found | {"tied": [tied(m) for m in MESHES]}))
