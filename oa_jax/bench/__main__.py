"""`python -m oa_jax.bench --config=FILE.py:ARGS --seeds=1,2,5`: how fast this device is at it.

Training steps for several numbers of seeds, evaluation and a checkpoint; with --softmax the forms
of the softmax over items instead. Every round measures each case once, so that ratios compare what
ran side by side; the tables show medians. On a CPU they show ratios alone, the JSON file holds the
seconds. Programs are compiled anew, not taken from the cache, as compiling is measured.
"""

from __future__ import annotations

import json
import pathlib

import jax
from absl import flags
from rich.table import Table

from oa_jax import cli
from oa_jax import experiment as experiment_lib
from oa_jax.bench import ceilings, softmax, tables
from oa_jax.bench.clock import Spread, interleaved
from oa_jax.bench.training import Training
from oa_jax.config import resolve
from oa_jax.errors import UserError
from oa_jax.train.environment import environment

flags.DEFINE_list("seeds", ["1", "2", "5", "8", "16"], "Numbers of seeds in one program.")
flags.DEFINE_integer("steps", 4, "Batches in one measurement.", lower_bound=1)
flags.DEFINE_integer("rounds", 3, "Measurements of each case.", lower_bound=1)
flags.DEFINE_integer("users", 1024, "Evaluation users in one measurement.", lower_bound=1)
flags.DEFINE_bool("softmax", False, "Compare the forms of the softmax instead.")
flags.DEFINE_list("items", ["10000", "100000", "1000000"], "With --softmax: numbers of items.")
flags.DEFINE_integer("positions", 512, "With --softmax: positions of a batch.", lower_bound=2)
flags.DEFINE_string("out", None, "JSON file for everything that was measured.")
cli.define_config()


def main(_):
    given = flags.FLAGS
    config = cli.config_value()
    resolved = resolve(config, experiment_lib.PLACES[config["backbone"]])
    jax.config.update("jax_enable_compilation_cache", False)
    device = jax.devices()[0]
    found = {"device": f"{device.platform}: {device.device_kind}", "devices": len(jax.devices())}
    absolute = device.platform != "cpu"
    if given.softmax:
        items, sizes = counts("items", given.items), softmax_sizes(resolved, given.positions)
        found |= {"config": resolved, "softmax": {}}
        for n_items in items:
            found["softmax"][str(n_items)] = softmax.compare(sizes, n_items, given.rounds)
        show(tables.of_softmax(found, absolute))
    else:
        seeds = counts("seeds", given.seeds)
        resolved["seeds"] = seeds[-1]
        experiment = experiment_lib.build(resolved)
        training = Training(experiment, given.steps, given.users)
        found |= {"environment": environment(experiment), "config": resolved}
        found |= measure(training, seeds, given.rounds)
        cli.say(summary_line(found, absolute))
        show(tables.of_training(found, absolute))
        show(tables.of_rest(found, absolute))
    if given.out:
        pathlib.Path(given.out).write_text(json.dumps(found, indent=1) + "\n")


def counts(name: str, words: list[str]) -> list[int]:
    """Ascending positive numbers of a flag. Raises UserError naming it."""
    if not words or not all(word.strip().isdecimal() and int(word) > 0 for word in words):
        raise UserError(f"--{name}={','.join(words)}: expected numbers such as 1,2,5")
    return sorted({int(word) for word in words})


def softmax_sizes(config: dict, n_positions: int) -> softmax.Sizes:
    """Sizes of the comparison, those of the configuration where it has them."""
    train, model = config["train"], config["model"]
    return softmax.Sizes(
        n_positions,
        model["length"],
        2 * train["n_negatives"],
        model["d_embed"],
        train["block_positions"],
        config["evaluate"]["block_items"],
    )


def measure(training: Training, seeds: list[int], rounds: int) -> dict:
    """Everything but the forms of the softmax."""
    rows = [{"seeds": n} | training.prepare(n) for n in seeds]
    evaluations = training.evaluations()
    cases = ceilings.cases()
    cases |= {f"seeds {n}": lambda n=n: training.steps(n) for n in seeds}
    cases |= {f"ranking {name}": case for name, case in evaluations.items()}
    measured = interleaved(cases, rounds)
    rates, step = ceilings.rates(measured), training.work()
    bfloat16 = training.experiment.config["train"].get("compute_dtype") == "bfloat16"
    least = step.least_seconds(rates["matmul bfloat16" if bfloat16 else "matmul"], rates["copy"])
    batch, n_steps = training.experiment.task.batch_size, training.n_steps
    for row in rows:
        spread = measured[f"seeds {row['seeds']}"]
        per_step = spread.median / n_steps
        row["seconds"] = list(spread.seconds)
        row["steps_per_second"] = 1 / per_step
        row["sequences_per_second"] = batch / per_step
        row["roofline_share"] = least * row["seeds"] / per_step
    return {
        "seed_axis": training.engine.axis,
        "steps": n_steps,
        "batch_size": batch,
        "capacity": list(training.capacity),
        "ceilings": rates,
        "work": {"flops": step.flops, "bytes": step.bytes, "least_seconds": least},
        "seeds": rows,
        "evaluated_users": training.n_users,
        "evaluation": {
            name: of_ranking(measured[f"ranking {name}"], training.n_users) for name in evaluations
        },
        "checkpoint": {"seeds": seeds[-1]} | training.checkpoint(seeds[-1]),
    }


def of_ranking(spread: Spread, n_users: int) -> dict:
    return {"seconds": list(spread.seconds), "users_per_second": n_users / spread.median}


def summary_line(found: dict, absolute: bool) -> str:
    work, rates = found["work"], found["ceilings"]
    line = (
        f"{found['config']['backbone']} on {found['device']}, seeds by {found['seed_axis']}, "
        f"{found['steps']} steps of {found['batch_size']} sequences; a step of one seed is "
        f"{work['flops'] / 1e9:.3g} Gflop of matrix products and {work['bytes'] / 1e9:.3g} GB"
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
