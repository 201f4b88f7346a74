"""What test_devices and test_tables ask of a process with eight CPU devices.

`python devices.py FOLDER QUESTION…` prints one JSON object: an answer to each question. A question
is the name of a function, with its arguments behind slashes.
"""

import json
import pathlib
import re
import sys

import jax
import numpy as np
import toy

from oa_jax.backbones import known
from oa_jax.engine.mesh import is_table
from oa_jax.nn import task
from oa_jax.runs import checkpoint, loop, summary
from oa_jax.runs.workdir import Workdir

COLLECTIVES = r"\b(all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(-start)?\("
task.SLOT_MULTIPLE = 128  # so that no list of slots, nor a device's part, is as long as a table
CAPACITY = (128, 128)
N_STEPS = 3
# (seed axis, mesh): three seeds on one device, on four with a padding slot, on all eight.
CASES = (("map", "seed:1"), ("map", "seed:4"), ("vmap", "seed:2,data:2,table:2"), ("vmap", ""))


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


def hlo(_):
    """Collectives in epochs over the axis of seeds, and in one over both axes."""
    epochs = {}
    for axis, mesh in (("map", "seed:4"), ("vmap", "seed:2,data:2")):
        experiment = toy.toy_experiment(seed_axis=axis, mesh=mesh)
        epochs[mesh] = collectives(*sending("epoch", experiment, *arguments(experiment)))
    return epochs


def tables(folder, backbone, *meshes):
    """Steps of a real backbone on each of `meshes`, from the first one's start: losses, ranks of
    the first one's end, and what the compiled steps send."""
    out, begin, first = {}, None, None
    for mesh in meshes:
        experiment = table_experiment(backbone, mesh)
        engine, arrays = experiment.engine, experiment.train_arrays()
        capacity = engine.capacity(experiment.seeds, 0)
        if begin is None:
            begin = jax.device_get(engine.create(experiment.seeds, experiment.hparams()))
        states, losses = engine.steps(begin, arrays, capacity, N_STEPS)
        if first is None:
            first = jax.device_get(states.params)
        _, lines = sending("steps", experiment, states, arrays, capacity, N_STEPS)
        out[mesh] = {
            "losses": np.asarray(losses).tolist(),
            "ranks of the first": test_ranks(experiment, first),
            "shapes": shapes_of(lines),
            "parts": sorted({part_of(leaf) for leaf in table_leaves(states)}),
        }
    return out


def table_experiment(backbone, mesh):
    changes = {"seeds": 2, "seed_axis": "vmap", "mesh": mesh, "evaluate__block_items": 10}
    if backbone == "llm4cdsr":
        changes |= {"model__local_llm": False}  # local tables are trained
    if backbone == "sasrec":
        changes |= {"model__tied": False}
    gca = "early" if backbone == "abxi" else "none"  # which has no table
    return toy.small_experiment(backbone, f"pair=synthetic,gca={gca}", **changes)


def test_ranks(experiment, params):
    """{ranking: (S, R)} of the test users, among the watched candidates and among all items."""
    evaluation = experiment.evaluation
    rows, kinds = evaluation.padded(evaluation.rows["test"]), (evaluation.watched, "full")
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


def collectives(text, lines):
    groups = {re.search(r"(replica_groups|source_target_pairs)=(\S+), ", e)[2] for e in lines}
    return {
        "partitions": int(re.search(r"num_partitions=(\d+)", text)[1]),
        "kinds": sorted({re.search(COLLECTIVES, line)[1] for line in lines}),
        "groups": sorted(groups),
    }


def shapes_of(lines):
    """Shapes of the float arrays that are sent, as [[seeds, …], …]."""
    found = re.findall(r"f32\[([\d,]+)\]", " ".join(lines))
    return [[int(size) for size in shape.split(",")] for shape in sorted(set(found))]


def arguments(experiment):
    """Of an epoch: shapes of states, arrays, capacity."""
    engine, seeds = experiment.engine, experiment.seeds
    abstract = engine.abstract(seeds, experiment.hparams())
    return abstract, experiment.train_arrays(), engine.capacity(seeds, 0)


def sending(program, experiment, *arguments):
    """A compiled program's text, and its lines with collectives."""
    text = experiment.engine.compiled(program, *arguments).as_text()
    return text, [line for line in text.splitlines() if re.search(COLLECTIVES, line)]


def uneven(folder):
    """Seeds that stop at different epochs, on two devices, interrupted, and then on three."""
    changes = {"train__stop_patience": 0, "train__plateau_patience": 0, "train__max_epochs": 8}
    changes |= {"seeds": 4, "train__learning_rate": 0.03, "train__compaction": True}
    out = {}
    for part, last, mesh in (("begun", 3, "seed:2"), ("whole", None, "seed:3")):
        config = known.resolve(toy.abxi_config(seed_axis="map", mesh=mesh, **changes))
        experiment = toy.with_toy(config)  # whose programs are its own: they are counted
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
    known_questions = {f.__name__: f for f in (meshes, hlo, uneven, tables, rows)}
    answers = {}
    for question in sys.argv[2:]:
        name, *rest = question.split("/")
        folder = pathlib.Path(sys.argv[1]) / "-".join([name, *rest[:1]])
        answers[question] = known_questions[name](folder, *rest)
    print(json.dumps(answers))
