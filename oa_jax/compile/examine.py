"""Compile an experiment's programs for a topology, and what they need: memory, work, time."""

import dataclasses
import re
import time
from collections.abc import Callable

import jax

from oa_jax.compile.hlo import Cost, Program
from oa_jax.compile.topology import GIBI, PRECISIONS, Topology
from oa_jax.configuration import SteadyTrain
from oa_jax.engine.streaming import EVALUATION_BLOCKS, StreamingEngine
from oa_jax.experiment import Experiment

EPOCH, EVALUATION = "training epoch", "evaluation"  # the programs


@dataclasses.dataclass(frozen=True)
class Found:
    """One program on one device of a topology.

    memory: {part: bytes}, None if it was too large to compile.  needed: bytes in all.  cost: of the
    program; of a turn of its loop over batches or blocks of users in `turn`, where there is one.
    """

    name: str
    memory: dict[str, float] | None
    needed: float
    cost: Cost | None = None
    turn: Cost | None = None
    seconds: float = 0.0


def examine(experiment: Experiment, devices: tuple) -> list[Found]:
    """The training epoch (a chunk of it, where rows are streamed) and the last evaluation."""
    config, here, seeds = experiment.config, experiment.engine, experiment.seeds
    n_steps, evaluation = experiment.data.task.n_steps, experiment.evaluation
    rows = evaluation.padded(evaluation.rows["test"])
    n_blocks, feed = len(rows["real"]) // evaluation.block_users, ()
    if isinstance(here, StreamingEngine):  # which does as much at a time
        feed = (here.feed,)
        n_steps, n_blocks = min(n_steps, here.feed.chunk_steps), min(n_blocks, EVALUATION_BLOCKS)
    axis = "vmap" if config.seed_axis == "auto" else config.seed_axis
    engine = type(here)(here.settings, axis, *feed, config.mesh, devices)
    states = engine.abstract(seeds, experiment.hparams())
    arrays, tables = jax.eval_shape(lambda *of: of, experiment.train_arrays(), experiment.tables)
    # The draws of batches are asked on this machine, as the devices are not there.
    epoch = (states, arrays, engine.layout.even(here.capacity(seeds, 0), len(seeds)))
    final = (states.params, rows, tuple(evaluation.rankings), tables)
    return [
        _found(EPOCH, n_steps, lambda: engine.compiled("epoch", *epoch)),
        _found(EVALUATION, n_blocks, lambda: engine.compiled("final", *final)),
    ]


def _found(name: str, turns: int, compile_it: Callable) -> Found:
    begin = time.perf_counter()
    try:
        compiled = compile_it()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return Found(name, None, bytes_asked(str(error)))
    seconds = time.perf_counter() - begin
    stats, program = compiled.memory_analysis(), Program(compiled.as_text())
    memory = {
        "arguments": stats.argument_size_in_bytes,
        "results beside them": stats.output_size_in_bytes - stats.alias_size_in_bytes,
        "temporaries": stats.temp_size_in_bytes,
        "program": stats.generated_code_size_in_bytes,
    }
    needed = sum(memory.values())
    return Found(name, memory, needed, program.cost(), program.loop(turns), seconds)


def bytes_asked(message: str) -> float:
    """What a compiler that ran out of memory wanted at least, NaN if it does not say."""
    match = re.search(r"(?:[Uu]sed |required[^(]*\()([\d.]+)([KMG]?)", message)
    units = {"": 1, "K": 2**10, "M": 2**20, "G": GIBI}
    return float(match[1]) * units[match[2]] if match else float("nan")


def roofline(cost: Cost, topology: Topology, precision: str = "default") -> dict[str, float]:
    """{what: seconds that it takes at least, at its full rate}; the largest is the least that the
    program takes. An all-reduce sends what it reduces twice: to reduce, and to spread the result.
    """
    device = topology.device
    sent = sum(
        size * (2 if kind == "all-reduce" else 1) for kind, (_, size) in cost.collectives.items()
    )
    return {
        "matrix units": cost.flops / device.flops[PRECISIONS.index(precision)],
        "memory": cost.traffic / device.bandwidth,
        "links": sent / topology.link,
    }


def remedies(experiment: Experiment, found: Found, n_devices: int) -> list[str]:
    """What would make a program smaller, the cheapest first."""
    config, is_epoch, out = experiment.config, found.name == EPOCH, []
    if not is_epoch:
        out += ["smaller evaluate.block_users", "smaller evaluate.block_items"]
    elif isinstance(config.train, SteadyTrain):
        pass  # without the sampled softmax
    elif config.train.negatives == "per_position" and config.train.n_negatives > 1:
        out += ["train.softmax=gather", "smaller train.block_positions"]
        out += ["train.negatives=per_sequence"]
    if config.seeds > n_devices:
        out.append("fewer seeds or more devices, a seed each")
    elif is_epoch:
        out.append("more devices on the axis data or table, or a smaller train.batch_size")
    if config.data.resident and found.memory and found.memory["arguments"] > found.needed / 2:
        out.append("data.resident=False")
    return out
