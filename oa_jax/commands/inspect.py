"""`python -m oa_jax inspect --config=FILE.py:ARGS`: parameters, and predicted memory of the step.

Nothing is trained or allocated: the epoch is compiled for this machine's device and its buffer
sizes are read off the compiled program.
"""

from __future__ import annotations

import dataclasses
import math

import jax
from absl import flags

from oa_jax import experiment as experiment_lib
from oa_jax.commands import cli
from oa_jax.engine.compilation import use_compilation_cache
from oa_jax.nn.known import GCAConfig
from oa_jax.sheets import Sheet

flags.DEFINE_bool("memory", True, "Compile the epoch and print its predicted memory.")
cli.define_config()

MEBI = 2**20


def main(_):
    experiment = experiment_lib.build(cli.config_value())
    show_parameters(experiment)
    if flags.FLAGS.memory:
        use_compilation_cache(cli.say)
        show_memory(experiment)


def show_parameters(experiment) -> None:
    """The parameter table: path, shape, number, and the total."""
    backbone = experiment.engine.settings.backbone
    shapes = jax.eval_shape(backbone.init, jax.random.key(0))
    rows = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
        name = "/".join(part.key for part in path)
        rows.append([name, "x".join(map(str, leaf.shape)), f"{leaf.size:,}"])
    Sheet("", ["parameter", "shape", "number"], rows, words=2).show(cli.console)
    total, places = experiment.engine.n_parameters, experiment.config.gca.positions
    cli.say(f"{experiment.label}: {total:,} parameters")
    if places:
        plain = dataclasses.replace(backbone, gca=GCAConfig())
        base = sum(a.size for a in jax.tree.leaves(jax.eval_shape(plain.init, jax.random.key(0))))
        each = (total - base) // len(places)
        cli.say(f"of these {base:,} without GCA and {each:,} for each of {len(places)} places")


def show_memory(experiment) -> None:
    """Buffers of the compiled epoch over all seeds, in MiB."""
    engine, seeds = experiment.engine, experiment.seeds
    states = engine.abstract(seeds, experiment.hparams())
    arrays = jax.eval_shape(lambda a: a, experiment.train_arrays())
    capacity = engine.capacity(seeds, 0)
    with cli.working("compiling an epoch, for the memory that it takes"):
        memory = engine.compile_epoch(states, arrays, capacity).memory_analysis()
    if memory is None:
        cli.say("this device's compiler does not say how much memory the program takes")
        return
    parts = {
        "state (parameters, moments, best)": size_in_bytes(states),
        "data on the device": size_in_bytes(engine.on_device(arrays, len(seeds))),
        "results not in place of arguments": memory.output_size_in_bytes
        - memory.alias_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
    }
    cli.say(
        f"predicted memory of an epoch, {len(seeds)} seeds by {engine.axis}, capacity {capacity}"
    )
    for name, size in (parts | {"sum": sum(parts.values())}).items():
        cli.say(f"  {name:36s}{size / MEBI:10.1f} MiB")


def size_in_bytes(tree) -> int:
    return sum(math.prod(a.shape) * a.dtype.itemsize for a in jax.tree.leaves(tree))


def start() -> None:
    cli.run(main)
