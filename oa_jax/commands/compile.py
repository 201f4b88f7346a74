"""`python -m oa_jax compile --config=FILE.py:ARGS --topology=v5e:2x2`: does it fit, how fast?

Compiles the training epoch and the evaluation for devices that are not at hand and prints what one
of them would hold, do and send. Nothing is trained. Without the data, --sizes says how large it is.
"""

from __future__ import annotations

import math

import jax
from absl import flags
from rich.table import Table

from oa_jax.commands import cli
from oa_jax.compile.examine import Found, examine, remedies, roofline
from oa_jax.compile.sizes import Sizes, shapes_of
from oa_jax.compile.topology import EXPECTED, GIBI, Topology
from oa_jax.config import Train
from oa_jax.errors import UserError

flags.DEFINE_string("topology", None, f"Devices to compile for: {EXPECTED}.")
flags.DEFINE_string("sizes", None, "users:U,items:A+B,events:E of a data set that is not at hand.")
cli.define_config()


def main(_):
    if not flags.FLAGS.topology:
        raise UserError(f"--topology: missing: expected one such as {EXPECTED}")
    topology = Topology.parse(flags.FLAGS.topology)
    sizes = Sizes.parse(flags.FLAGS.sizes) if flags.FLAGS.sizes else None
    config = cli.config_value()
    jax.config.update("jax_platforms", "cpu")  # this machine's own devices are not asked
    devices = topology.devices()
    experiment = shapes_of(config, sizes)
    cli.say(headline(experiment, topology))
    with cli.working("compiling"):
        programs = examine(experiment, devices)
    cli.console.print(memory_table(programs, topology))
    fits = [say_fit(experiment, found, topology) for found in programs]
    for found in programs:
        if found.cost:
            say_work(found, topology, precision_of(config.train))
    return 0 if all(fits) else 1


def precision_of(train: Train) -> str:
    """How matrix products are computed."""
    return "bfloat16" if train.compute_dtype == "bfloat16" else train.matmul_precision


def headline(experiment, topology) -> str:
    log = experiment.data.log
    return (
        f"{experiment.label} on {log.name} ({log.n_users} users, {log.n_items[0]}+"
        f"{log.n_items[1]} items): {experiment.engine.n_parameters:,} parameters, "
        f"{len(experiment.seeds)} seeds, for {topology.n_devices} x {topology.kind}"
    )


def memory_table(programs: list[Found], topology) -> Table:
    table = Table("memory of a device, GiB", *(found.name for found in programs), box=None)
    parts = next((found.memory for found in programs if found.memory), {})
    for part in parts:
        table.add_row(part, *(gibi(f.memory[part]) if f.memory else "" for f in programs))
    table.add_row("sum", *(gibi(f.needed) for f in programs))
    table.add_row(f"a {topology.kind} has", *(gibi(topology.device.memory) for _ in programs))
    table.add_row("compiled in, s", *(f"{f.seconds:.0f}" if f.memory else "" for f in programs))
    for column in table.columns[1:]:
        column.justify = "right"
    return table


def gibi(size: float) -> str:
    return "?" if math.isnan(size) else f"{size / GIBI:.3f}"


def si(value: float, unit: str) -> str:
    """Three digits and a prefix: 0.0123 s is 12.3 ms."""
    prefixes = ["n", "µ", "m", "", "k", "M", "G", "T", "P"]
    exponent = math.floor(math.log10(value) / 3) if value > 0 else 0
    exponent = min(max(exponent, -3), len(prefixes) - 4)
    return f"{value / 1000**exponent:.3g} {prefixes[exponent + 3]}{unit}"


def say_fit(experiment, found: Found, topology) -> bool:
    """One line where a program is too large, with what would help."""
    fits = found.memory is not None and found.needed <= topology.device.memory
    if not fits:
        help_ = ", ".join(remedies(experiment, found, topology.n_devices))
        cli.say(
            f"{found.name}: too large: needs {gibi(found.needed)} of "
            f"{gibi(topology.device.memory)} GiB: what would help: {help_}"
        )
    return fits


def say_work(found: Found, topology, precision: str) -> None:
    """Work, collectives and the roofline of the program and of a turn of its loop."""
    turn_name = "step" if found.name == "training epoch" else "block of users"
    for name, cost in ((found.name, found.cost), (f"a {turn_name} of it", found.turn)):
        if cost is None:
            continue
        line = roofline(cost, topology, precision)
        sent = [f"{n:,} {kind}, {si(size, 'B')}" for kind, (n, size) in cost.collectives.items()]
        cli.say(
            f"{name}: {si(cost.flops, 'flop')} of matrix products, {si(cost.traffic, 'B')} to and "
            f"from memory, collectives: {'; '.join(sent) or 'none'}"
        )
        cli.say(
            f"  roofline: matrix units {si(line.compute, 's')}, memory {si(line.memory, 's')}, "
            f"links {si(line.links, 's')}: at least {si(line.seconds, 's')}, bound by {line.limit}"
        )
        if cost.unknown_loops:
            cli.say(f"  loops of unknown length, counted once: {cost.unknown_loops}")


def start() -> None:
    cli.run(main)
