"""Compile an experiment's programs for a topology, and what they need: memory, work, time."""

from __future__ import annotations

import dataclasses
import re
import time

import jax

from oa_jax.compile.hlo import Cost, Program
from oa_jax.compile.topology import GIBI, PRECISIONS, Topology
from oa_jax.engine.program import Engine
from oa_jax.engine.streaming import EVALUATION_BLOCKS, StreamingEngine

UNITS = {"K": 2**10, "M": 2**20, "G": GIBI, "": 1}


@dataclasses.dataclass(frozen=True)
class Found:
    """One program on one device of a topology.

    memory: {part: bytes}, None if it was too large to compile.  needed: bytes in all.  cost: of the
    program; of a turn of its loop over `turns` batches or blocks in `turn`, where there is one.
    """

    name: str
    memory: dict[str, float] | None
    needed: float
    cost: Cost | None = None
    turn: Cost | None = None
    seconds: float = 0.0


def engine_for(experiment, devices) -> Engine:
    """The experiment's engine, on other devices than those of this machine."""
    config, here = experiment.config, experiment.engine
    axis = "vmap" if config.seed_axis == "auto" else config.seed_axis
    feed = (here.feed,) if isinstance(here, StreamingEngine) else ()
    return type(here)(here.settings, axis, *feed, config.mesh, devices)


def examine(experiment, devices) -> list[Found]:
    """The training epoch (a chunk of it, where rows are streamed) and the last evaluation."""
    engine, seeds = engine_for(experiment, devices), experiment.seeds
    states = engine.abstract(seeds, experiment.hparams())
    arrays = _shapes(experiment.train_arrays())
    capacity = experiment.engine.capacity(seeds, 0)
    n_steps, evaluation = experiment.data.task.n_steps, experiment.evaluation
    rows = evaluation.padded(evaluation.rows["test"])
    n_blocks = len(rows["real"]) // evaluation.block_users
    if isinstance(engine, StreamingEngine):  # which does as much at a time
        n_steps = min(n_steps, engine.feed.chunk_steps)
        n_blocks = min(n_blocks, EVALUATION_BLOCKS)
    kinds, tables = tuple(evaluation.rankings), _shapes(experiment.tables)
    return [
        _found("training epoch", n_steps, lambda: engine.compile_epoch(states, arrays, capacity)),
        _found(
            "evaluation",
            n_blocks,
            lambda: engine.compile_final(states.params, rows, kinds, tables),
        ),
    ]


def _shapes(tree):
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), tree)


def _found(name, turns, compile_it) -> Found:
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
    return float(match[1]) * UNITS[match[2]] if match else float("nan")


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds that matrix units, memory and links take at least, each at its full rate."""

    compute: float
    memory: float
    links: float

    @property
    def seconds(self) -> float:
        """At least, if all three work at the same time."""
        return max(self.compute, self.memory, self.links)

    @property
    def limit(self) -> str:
        names = {"compute": "matrix units", "memory": "memory", "links": "links"}
        return names[max(names, key=lambda name: getattr(self, name))]


def roofline(cost: Cost, topology: Topology, precision: str = "default") -> Roofline:
    """An all-reduce sends what it reduces twice: once to reduce, once to spread the result."""
    device = topology.device
    sent = sum(
        size * (2 if kind == "all-reduce" else 1) for kind, (_, size) in cost.collectives.items()
    )
    return Roofline(
        cost.flops / device.flops[PRECISIONS.index(precision)],
        cost.traffic / device.bandwidth,
        sent / topology.link,
    )


def remedies(experiment, found: Found, n_devices: int) -> list[str]:
    """What would make a program smaller, the cheapest first."""
    config = experiment.config
    train, out = config.train, []
    if found.name == "evaluation":
        out += ["smaller evaluate.block_users", "smaller evaluate.block_items"]
    elif train.negatives == "per_position" and train.n_negatives > 1:
        out += ["smaller train.block_positions", "train.negatives=per_sequence"]
    if config.seeds > n_devices:
        out.append("fewer seeds or more devices, a seed each")
    elif found.name != "evaluation":
        out.append("more devices on the axis data or table, or a smaller train.batch_size")
    if config.data.resident and found.memory and found.memory["arguments"] > found.needed / 2:
        out.append("data.resident=False")
    return out
