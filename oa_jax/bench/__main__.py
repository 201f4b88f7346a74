"""`python -m oa_jax.bench --config=FILE.py:ARGS --seeds=1,2,5`: how fast this device is at it.

Training steps for several numbers of seeds, evaluation and a checkpoint; with --vary of several
values of a field (`--vary=train.compute_dtype=float32,bfloat16`); with --softmax the forms of the
softmax over items instead. Every round measures each case once, so that ratios compare what
ran side by side; the tables show medians. On a CPU they show ratios alone, the JSON file holds the
seconds. Programs are compiled anew, not taken from the cache, as compiling is measured.
"""

from __future__ import annotations

import functools
import json
import pathlib

import jax
from absl import flags
from rich.table import Table

from oa_jax import cli
from oa_jax import experiment as experiment_lib
from oa_jax.bench import ceilings, softmax, tables
from oa_jax.bench.arguments import counts, softmax_sizes, variants
from oa_jax.bench.clock import Spread, interleaved
from oa_jax.bench.training import Training
from oa_jax.config import resolve
from oa_jax.train.environment import environment

flags.DEFINE_list("seeds", ["1", "2", "5", "8", "16"], "Numbers of seeds in one program.")
flags.DEFINE_integer(
    "steps", 0, "Batches in one measurement; 0: 4 on a CPU, an epoch elsewhere.", lower_bound=0
)
flags.DEFINE_integer("rounds", 3, "Measurements of each case.", lower_bound=1)
flags.DEFINE_integer("users", 1024, "Evaluation users in one measurement.", lower_bound=1)
flags.DEFINE_string("vary", None, "FIELD=VALUE,VALUE of the configuration: side by side.")
flags.DEFINE_bool("softmax", False, "Compare the forms of the softmax instead.")
flags.DEFINE_list("items", ["10000", "100000", "1000000"], "With --softmax: numbers of items.")
flags.DEFINE_integer("positions", 512, "With --softmax: positions of a batch.", lower_bound=2)
flags.DEFINE_string("out", None, "JSON file for everything that was measured.")
cli.define_config()


def main(_):
    given, config = flags.FLAGS, cli.config_value()
    places = experiment_lib.PLACES[config["backbone"]]
    resolved = {k: resolve(one, places) for k, one in variants(config, given.vary).items()}
    jax.config.update("jax_enable_compilation_cache", False)
    device = jax.devices()[0]
    found = {"device": f"{device.platform}: {device.device_kind}", "devices": len(jax.devices())}
    absolute = device.platform != "cpu"
    if given.softmax:
        first, items = next(iter(resolved.values())), counts("items", given.items)
        sizes = softmax_sizes(first, given.positions)
        found |= {"config": first, "softmax": {}}
        for n_items in items:
            found["softmax"][str(n_items)] = softmax.compare(sizes, n_items, given.rounds)
        show(tables.of_softmax(found, absolute))
    else:
        found |= measure(resolved, counts("seeds", given.seeds), given)
        cli.say(summary_line(found, absolute))
        show(tables.of_training(found, absolute))
        show(tables.of_rest(found, absolute))
    if given.out:
        pathlib.Path(given.out).write_text(json.dumps(found, indent=1) + "\n")


def measure(configs: dict[str, dict], seeds: list[int], given) -> dict:
    """Training for every variant and number of seeds; the rest of the first variant."""
    trainings, rows, cases = {}, [], ceilings.cases()
    for variant, config in configs.items():
        experiment = experiment_lib.build(config | {"seeds": seeds[-1]})
        training = trainings[variant] = Training(experiment, given.steps, given.users)
        for n in seeds:
            rows.append({"variant": variant, "seeds": n} | training.prepare(n))
            cases[f"{variant}/{n}"] = functools.partial(training.steps, n)
    first = next(iter(trainings.values()))
    evaluations = first.evaluations()
    cases |= {f"ranking {name}": case for name, case in evaluations.items()}
    measured = interleaved(cases, given.rounds)
    rates = ceilings.rates(measured)
    for row in rows:
        spread = measured[f"{row['variant']}/{row['seeds']}"]
        row |= of_steps(trainings[row["variant"]], row["seeds"], spread, rates)
    return {
        "environment": environment(first.experiment),
        "config": first.experiment.config,
        "vary": given.vary,
        "seed_axis": first.engine.axis,
        "steps": first.n_steps,
        "batch_size": first.experiment.task.batch_size,
        "capacity": list(first.capacity),
        "ceilings": rates,
        "seeds": rows,
        "evaluated_users": first.n_users,
        "evaluation": {
            name: of_ranking(measured[f"ranking {name}"], first.n_users) for name in evaluations
        },
        "checkpoint": {"seeds": seeds[-1]} | first.checkpoint(seeds[-1]),
    }


def of_steps(training: Training, n_seeds: int, spread: Spread, rates: dict) -> dict:
    """What follows from the seconds of the steps. roofline_share: least time over measured."""
    step, train = training.work, training.experiment.config["train"]
    matmul = "matmul bfloat16" if train["compute_dtype"] == "bfloat16" else "matmul"
    least = step.least_seconds(rates[matmul], rates["copy"])
    per_step = spread.median / training.n_steps
    return {
        "seconds": list(spread.seconds),
        "steps_per_second": 1 / per_step,
        "sequences_per_second": training.experiment.task.batch_size / per_step,
        "step_flops": step.flops,
        "step_bytes": step.bytes,
        "roofline_share": least * n_seeds / per_step,
    }


def of_ranking(spread: Spread, n_users: int) -> dict:
    return {"seconds": list(spread.seconds), "users_per_second": n_users / spread.median}


def summary_line(found: dict, absolute: bool) -> str:
    first, rates = found["seeds"][0], found["ceilings"]
    flops, moved = first["step_flops"] / 1e9, first["step_bytes"] / 1e9
    line = (
        f"{found['config']['backbone']} on {found['device']}, seeds by {found['seed_axis']}, "
        f"{found['steps']} steps of {found['batch_size']} sequences; a step of one seed is "
        f"{flops:.3g} Gflop of matrix products and {moved:.3g} GB"
    )
    if absolute:
        line += (
            f"; measured ceilings: {rates['matmul'] / 1e12:.3g} Tflop/s, bfloat16 "
            f"{rates['matmul bfloat16'] / 1e12:.3g} Tflop/s, copy {rates['copy'] / 1e9:.4g} GB/s"
        )
    return line


def show(table) -> None:
    header, rows = table
    out = Table(*header, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        out.add_row(*row)
    cli.console.print(out)


if __name__ == "__main__":
    cli.run(main)
