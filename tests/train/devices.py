"""What test_devices asks of a process with four CPU devices; prints one JSON object.

python devices.py numbers | hlo | uneven FOLDER
"""

import json
import re
import sys

import jax
import numpy as np
import toy

from oa_jax.train import engine as engine_lib
from oa_jax.train import loop
from oa_jax.train.workdir import Workdir

COLLECTIVES = r"\b(all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(-start)?\("
CAPACITY = (128, 128)


def numbers():
    """Three epochs of four seeds on four devices and on one, in two programs."""
    ends, meshes = [], [engine_lib.seed_mesh, one_device]
    for mesh in meshes:
        engine_lib.seed_mesh = mesh
        experiment = toy.toy_experiment(seeds=4, seed_axis="vmap")
        states = experiment.engine.create(experiment.seeds, experiment.hparams())
        for _ in range(3):
            states, _ = experiment.engine.epoch(states, experiment.train_arrays(), CAPACITY)
        shards = {s.device.id for s in states.params["items"].addressable_shards}
        ends.append((len(shards), jax.device_get(states)))
    pairs = list(zip(*(jax.tree.leaves(end) for _, end in ends), strict=True))
    params = ends[0][1].params["items"]
    return {
        "devices": [count for count, _ in ends],
        "bitwise": all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs),
        "largest": float(max(np.abs(np.float64(a) - np.float64(b)).max() for a, b in pairs)),
        "between_seeds": float(np.abs(params[0] - params[1]).max()),
    }


def one_device(_):
    types = (jax.sharding.AxisType.Auto,) * 2
    return jax.make_mesh((1, 1), ("seed", "data"), axis_types=types, devices=jax.devices()[:1])


def hlo():
    """Collectives in the sharded epoch of the real backbone, and in a program that needs one."""
    experiment = toy.abxi_experiment("pair=synthetic,gca=early", seeds=4, seed_axis="vmap")
    engine, arrays = experiment.engine, experiment.train_arrays()
    abstract = engine.abstract(experiment.seeds, experiment.hparams())
    text = engine.compile_epoch(abstract, arrays, CAPACITY).as_text()
    by_seed, everywhere = engine._shardings((abstract,))
    mean = jax.jit(lambda a: a.mean(0), in_shardings=by_seed, out_shardings=everywhere)
    other = mean.lower(jax.ShapeDtypeStruct((4, 8), "float32")).compile().as_text()
    return {
        "partitions": int(re.search(r"num_partitions=(\d+)", text).group(1)),
        "epoch": re.findall(COLLECTIVES, text),
        "mean": re.findall(COLLECTIVES, other),
    }


def uneven(folder):
    """The loop with seeds that stop at different epochs: four devices, then fewer."""
    changes = {"train__stop_patience": 0, "train__plateau_patience": 0, "train__max_epochs": 8}
    changes |= {"seeds": 4, "train__learning_rate": 0.03, "train__compaction": True}
    out = {}
    for axis in ("vmap", "map"):
        for part, last in (("begun", 3), ("whole", None)):
            experiment = toy.toy_experiment(seed_axis=axis, **changes)
            with Workdir(f"{folder}/{axis}") as workdir:
                out[f"{axis} {part}"] = train(experiment, workdir, last)
    return out


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
    return states.epoch.tolist()


if __name__ == "__main__":
    print(
        json.dumps({"numbers": numbers, "hlo": hlo, "uneven": uneven}[sys.argv[1]](*sys.argv[2:]))
    )
