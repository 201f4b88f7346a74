"""What test_devices asks of a process with eight CPU devices; prints one JSON object.

python devices.py meshes FOLDER | hlo | uneven FOLDER | tables BACKBONE FOLDER MESH … | rows FOLDER
"""

import json
import pathlib
import re
import sys

import jax
import numpy as np
import toy

from oa_jax.engine.mesh import is_table
from oa_jax.runs import checkpoint, loop, summary
from oa_jax.runs.workdir import Workdir

COLLECTIVES = r"\b(all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(-start)?\("
CAPACITY = (128, 128)
# (seed axis, mesh): three seeds on one device, on four with a padding slot, on all eight.
CASES = (("map", "seed:1"), ("map", "seed:4"), ("vmap", "seed:2,data:2"), ("vmap", ""))


def meshes(folder):
    """Runs that differ in their mesh only, and the ranks that each gives the first one's end."""
    out, first = {}, None
    for axis, mesh in CASES:
        path = pathlib.Path(folder) / f"{axis} {mesh}"
        experiment = toy.toy_experiment(seed_axis=axis, mesh=mesh, train__max_epochs=2)
        with Workdir(path) as workdir:
            states, _ = loop.train(experiment, workdir, lambda line: None)
        first = jax.device_get(states.best_params) if first is None else first
        rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        out[f"{axis} {mesh}"] = {
            "mesh": dict(experiment.engine.layout.mesh(3).shape),
            "rows": rows,
            "ranks": ranks(experiment, states.best_params),
            "ranks of the first": ranks(experiment, first),
        }
    return out


def ranks(experiment, params):
    found, _ = summary.rank_all(experiment, params)
    return {k: v.tolist() for k, v in found.items() if k.endswith(("/rank", "/ties", "/user"))}


def hlo():
    """Collectives in epochs over the axis of seeds, and in one over both axes."""
    return {
        "real vmap": collectives(
            toy.abxi_experiment("pair=synthetic,gca=early", seed_axis="vmap", mesh="seed:4")
        ),
        "toy map": collectives(toy.toy_experiment(seed_axis="map", mesh="seed:4")),
        "both": collectives(toy.toy_experiment(seed_axis="vmap", mesh="seed:2,data:2")),
    }


def tables(backbone, folder, *meshes):
    """Runs of a real backbone on each of `meshes`: rows, ranks of the first one's end, and what
    the compiled epoch sends."""
    out, first = {}, None
    for mesh in meshes:
        path = pathlib.Path(folder) / mesh
        experiment = table_experiment(backbone, mesh, train__max_epochs=1)
        with Workdir(path) as workdir:
            states, _ = loop.train(experiment, workdir, lambda line: None)
        if first is None:
            first = jax.device_get(states.best_params)
        rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        out[mesh] = {
            "rows": rows,
            "ranks of the first": test_ranks(experiment, first),
            "shapes": shapes_sent(experiment),
            "parts": sorted({part_of(leaf) for leaf in table_leaves(states)}),
        }
    return out


def table_experiment(backbone, mesh, **changes):
    if backbone == "llm4cdsr":
        changes |= {"model__local_llm": False}  # local tables are trained
    argument = "pair=synthetic,gca=early"
    changes |= {"seeds": 2, "seed_axis": "vmap", "mesh": mesh, "evaluate__block_items": 10}
    return toy.small_experiment(backbone, argument, **changes)


def test_ranks(experiment, params):
    """{ranking: (S, R)} of the test users."""
    rows, kinds = (
        experiment.evaluation.padded(experiment.evaluation.rows["test"]),
        tuple(experiment.evaluation.rankings),
    )
    found, _ = experiment.engine.final(params, rows, kinds, experiment.tables)
    return {kind: np.asarray(of.rank).tolist() for kind, of in found.items()}


def table_leaves(states):
    found = jax.tree_util.tree_leaves_with_path(states)
    return [leaf for path, leaf in found if is_table(path)]


def part_of(leaf):
    """(rows of the array, rows of a device)"""
    return leaf.shape[1], leaf.sharding.shard_shape(leaf.shape)[1]


def rows(folder):
    """A run that begins with divided tables and goes on without, and one the other way round."""
    out = {}
    for name, meshes in (("joined", ("table:4", "seed:1")), ("divided", ("seed:1", "table:2"))):
        path = pathlib.Path(folder) / name
        for mesh, last in zip(meshes, (2, None), strict=True):
            experiment = toy.toy_experiment(seeds=2, seed_axis="vmap", mesh=mesh)
            with Workdir(path) as workdir:
                ended = train(experiment, workdir, last)
        initial = jax.vmap(experiment.engine.settings.backbone.init)
        shapes = jax.eval_shape(initial, jax.random.split(jax.random.key(0)))
        read, _ = checkpoint.read(path / "checkpoints", 3, shapes, best=False)
        abstract = experiment.engine.abstract(experiment.seeds, experiment.hparams())
        out[name] = {
            "ended": ended,
            "rows": [json.loads(e) for e in (path / "metrics.jsonl").read_text().splitlines()],
            "items": read["items"].tolist(),
            "n_rows": abstract.params["items"].shape[1],
        }
    return out


def collectives(experiment):
    text, lines = sending(experiment)
    groups = {re.search(r"(replica_groups|source_target_pairs)=(\S+), ", e)[2] for e in lines}
    return {
        "partitions": int(re.search(r"num_partitions=(\d+)", text)[1]),
        "kinds": sorted({re.search(COLLECTIVES, line)[1] for line in lines}),
        "groups": sorted(groups),
    }


def shapes_sent(experiment):
    """Shapes of the float arrays that an epoch sends, as [[seeds, …], …]."""
    found = re.findall(r"f32\[([\d,]+)\]", " ".join(sending(experiment)[1]))
    return [[int(size) for size in shape.split(",")] for shape in sorted(set(found))]


def sending(experiment):
    """The compiled epoch's text, and its lines with collectives."""
    engine, arrays = experiment.engine, experiment.train_arrays()
    abstract = engine.abstract(experiment.seeds, experiment.hparams())
    capacity = engine.capacity(experiment.seeds, 0)
    text = engine.compile_epoch(abstract, arrays, capacity).as_text()
    return text, [line for line in text.splitlines() if re.search(COLLECTIVES, line)]


def uneven(folder):
    """Seeds that stop at different epochs, on two devices, interrupted, and then on three."""
    changes = {"train__stop_patience": 0, "train__plateau_patience": 0, "train__max_epochs": 8}
    changes |= {"seeds": 4, "train__learning_rate": 0.03, "train__compaction": True}
    out = {}
    for part, last, mesh in (("begun", 3, "seed:2"), ("whole", None, "seed:3")):
        experiment = toy.toy_experiment(seed_axis="map", mesh=mesh, **changes)
        with Workdir(folder) as workdir:
            out[part] = train(experiment, workdir, last)
    names = [name for name in experiment.engine._programs if name[0] == ("epoch", CAPACITY)]
    return out | {"slots": sorted(shapes[0][0][0] for _, shapes in names)}


class Interrupted(Exception):
    pass


def train(experiment, workdir, last):
    """Epoch in which each seed ended, or which line interrupted the run."""

    def say(line):
        if last is not None and line.startswith(f"epoch {last:3d}"):
            raise Interrupted

    try:
        states, _ = loop.train(experiment, workdir, say)
    except Interrupted:
        return "interrupted"
    except Exception as error:
        return f"{type(error).__name__}: {error}".splitlines()[0][:300]
    return np.asarray(states.epoch).tolist()


if __name__ == "__main__":
    asked = {f.__name__: f for f in (meshes, hlo, uneven, tables, rows)}
    print(json.dumps(asked[sys.argv[1]](*sys.argv[2:])))
