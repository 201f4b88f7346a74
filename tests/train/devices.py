"""What test_devices asks of a process with eight CPU devices; prints one JSON object.

python devices.py meshes FOLDER | hlo | uneven FOLDER
"""

import json
import pathlib
import re
import sys

import jax
import numpy as np
import toy

from oa_jax.train import finish, loop
from oa_jax.train.workdir import Workdir

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
    found, _ = finish.rank_all(experiment, params)
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


def collectives(experiment):
    engine, arrays = experiment.engine, experiment.train_arrays()
    abstract = engine.abstract(experiment.seeds, experiment.hparams())
    text = engine.compile_epoch(abstract, arrays, CAPACITY).as_text()
    lines = [line for line in text.splitlines() if re.search(COLLECTIVES, line)]
    groups = {re.search(r"(replica_groups|source_target_pairs)=(\S+), ", e)[2] for e in lines}
    return {
        "partitions": int(re.search(r"num_partitions=(\d+)", text)[1]),
        "kinds": sorted({re.search(COLLECTIVES, line)[1] for line in lines}),
        "groups": sorted(groups),
    }


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
    print(json.dumps({"meshes": meshes, "hlo": hlo, "uneven": uneven}[sys.argv[1]](*sys.argv[2:])))
