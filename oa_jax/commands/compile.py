"""`python -m oa_jax compile --config=FILE.py:ARGS --topology=v5e:2x2`: does it fit, how fast?

Compiles the training epoch and the evaluation for devices that are not at hand and prints what one
of them would hold, do and send. Nothing is trained. Without the data, --sizes says how large it is.
"""

import math

import jax
from absl import flags

from oa_jax.commands import cli
from oa_jax.compile.examine import EPOCH, Found, examine, remedies, roofline
from oa_jax.compile.sizes import made_up, shapes_of
from oa_jax.compile.topology import EXPECTED, GIBI, Topology
from oa_jax.configuration import Train
from oa_jax.experiment import Experiment
from oa_jax.sheets import Sheet

flags.DEFINE_string("topology", None, f"Devices to compile for: {EXPECTED}.")
flags.DEFINE_string("sizes", None, "users:U,items:A+B,events:E of a data set that is not at hand.")
cli.define_config()
LARGEST = 8  # parts of the model that move the most bytes


def main(_):
    topology = Topology.parse(cli.given("topology", f"one such as {EXPECTED}"))
    log = made_up(flags.FLAGS.sizes) if flags.FLAGS.sizes else None
    config = cli.config_value()
    jax.config.update("jax_platforms", "cpu")  # this machine's own devices are not asked
    devices = topology.devices()
    experiment = shapes_of(config, log)
    cli.say(headline(experiment, topology))
    with cli.working("compiling two programs: one to ten minutes"):
        programs = examine(experiment, devices)
    memory_sheet(programs, topology).show(cli.console)
    too_large = [line for found in programs if (line := misfit(experiment, found, topology))]
    for line in too_large:
        cli.say(line)
    for found in programs:
        for line in work_lines(found, topology, precision_of(config.train)):
            cli.say(line)
    return 1 if too_large else 0


def precision_of(train: Train) -> str:
    """How matrix products are computed."""
    return "bfloat16" if train.compute_dtype == "bfloat16" else train.matmul_precision


def headline(experiment: Experiment, topology: Topology) -> str:
    log = experiment.data.log
    return (
        f"{experiment.label} on {log.name} ({log.n_users} users, {log.n_items[0]}+"
        f"{log.n_items[1]} items): {experiment.engine.n_parameters:,} parameters, "
        f"{len(experiment.seeds)} seeds, for {topology.n_devices} x {topology.kind}"
    )


def memory_sheet(programs: list[Found], topology: Topology) -> Sheet:
    """Parts of each program's memory beside what a device has."""
    parts = next((found.memory for found in programs if found.memory), {})
    rows = [[p, *(gibi(f.memory[p]) if f.memory else "" for f in programs)] for p in parts]
    rows.append(["sum", *(gibi(f.needed) for f in programs)])
    rows.append([f"a {topology.kind} has", *(gibi(topology.device.memory) for _ in programs)])
    rows.append(["compiled in, s", *(f"{f.seconds:.0f}" if f.memory else "" for f in programs)])
    return Sheet("", ["memory of a device, GiB", *(found.name for found in programs)], rows)


def gibi(size: float) -> str:
    return "?" if math.isnan(size) else f"{size / GIBI:.3f}"


def si(value: float, unit: str) -> str:
    """Three digits and a prefix: 0.0123 s is 12.3 ms."""
    value = float(f"{value:.3g}")  # 999,999 B are 1 MB
    exponent = math.floor(math.log10(value) / 3) if value > 0 else 0
    exponent = min(max(exponent, -3), 5)
    return f"{value / 1000**exponent:.3g} {('n', 'µ', 'm', '', *'kMGTP')[exponent + 3]}{unit}"


def misfit(experiment: Experiment, found: Found, topology: Topology) -> str:
    """One line where a program is too large, with what would help; "" where it fits."""
    if found.memory is not None and found.needed <= topology.device.memory:
        return ""
    return (
        f"{found.name}: too large: needs {gibi(found.needed)} of {gibi(topology.device.memory)} "
        f"GiB: what would help: {', '.join(remedies(experiment, found, topology.n_devices))}"
    )


def work_lines(found: Found, topology: Topology, precision: str) -> list[str]:
    """Work, collectives and the roofline of the program and of a turn of its loop."""
    turn, lines = "a step" if found.name == EPOCH else "a block of users", []
    for name, cost in ((found.name, found.cost), (f"{turn} of it", found.turn)):
        if cost is None:
            continue
        sent = [f"{n:,} {kind}, {si(size, 'B')}" for kind, (n, size) in cost.collectives.items()]
        least = roofline(cost, topology, precision)
        limit, parts = max(least, key=least.get), [f"{k} {si(s, 's')}" for k, s in least.items()]
        lines += [
            f"{name}: {si(cost.flops, 'flop')} of matrix products, {si(cost.traffic, 'B')} to and "
            f"from memory, collectives: {'; '.join(sent) or 'none'}",
            f"  roofline: {', '.join(parts)}: at least {si(least[limit], 's')}, bound by {limit}",
        ]
        places = sorted(cost.places.items(), key=lambda item: -item[1])[:LARGEST]
        if largest := "; ".join(f"{si(n, 'B')} {at}" for at, n in places):
            lines.append(f"  bytes by place: {largest}")
        if cost.cycles:
            clock = topology.device.clock
            takes = si(cost.cycles / clock, "s") if clock else si(cost.cycles, " cycles")
            lines.append(
                f"  the compiler expects {takes}, without {cost.unestimated:,} kernels (gathers, "
                "scatters) of which it says nothing"
            )
        if cost.unknown_loops:
            lines.append(f"  loops of unknown length, counted once: {cost.unknown_loops}")
    return lines
