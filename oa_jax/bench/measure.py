"""One run of the benchmark: every variant and number of seeds, evaluation and a checkpoint."""

from __future__ import annotations

import contextlib
import functools

import jax

from oa_jax.bench import ceilings
from oa_jax.bench.clock import Spread, interleaved
from oa_jax.bench.official import Official
from oa_jax.bench.training import Training
from oa_jax.errors import UserError
from oa_jax.runs.environment import environment


def measure(configs, build, seeds: list[int], n_steps, n_users, rounds, say, official=()) -> dict:
    """Training for every variant and number of seeds; the rest of the first variant.

    configs: {variant: resolved configuration}, of which `build` makes an experiment.
    n_steps, n_users: as in `Training`.  official: (checkout, python) of `Official`, which then
    takes the first variant's steps.
    """
    trainings, rows, cases, theirs = {}, [], ceilings.cases(), None
    for variant, config in configs.items():
        experiment = build(config.replace(seeds=seeds[-1]))
        training = trainings[variant] = Training(experiment, n_steps, n_users)
        if official and not theirs:
            theirs = Official(training, *official)
        for row in prepare(training, variant, seeds, say):
            rows.append(row)
            cases[f"{variant}/{row['seeds']}"] = functools.partial(training.steps, row["seeds"])
    variant, first = next(iter(trainings.items()))
    most = max(row["seeds"] for row in rows if row["variant"] == variant)
    evaluations = first.evaluations()
    cases |= {f"ranking {name}": case for name, case in evaluations.items()}
    if theirs:
        cases["official"] = theirs.steps
    with theirs or contextlib.nullcontext():
        measured = interleaved(cases, rounds)
    rates = ceilings.rates(measured)
    for row in rows:
        spread = measured[f"{row['variant']}/{row['seeds']}"]
        row |= of_steps(trainings[row["variant"]], row["seeds"], spread, rates)
    rankings = {name: measured[f"ranking {name}"] for name in evaluations}
    return of_first(first) | {
        "ceilings": rates,
        "seeds": rows,
        "evaluation": {name: of_ranking(one, first.n_users) for name, one in rankings.items()},
        "checkpoint": {"seeds": most} | first.checkpoint(most),
        "official": theirs and theirs.found | {"seconds": list(measured["official"].seconds)},
    }


def prepare(training: Training, variant: str, seeds: list[int], say) -> list[dict]:
    """Rows of the numbers of seeds, ascending, that fit on the device."""
    rows = []
    for n in seeds:
        try:
            rows.append({"variant": variant, "seeds": n} | training.prepare(n))
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            if not rows:
                raise UserError(
                    f"--seeds={n}: out of memory: expected a smaller train.batch_size"
                ) from None
            say(f"{n} seeds: out of memory: left out, and more than these")
            break
    return rows


def of_first(training: Training) -> dict:
    experiment = training.experiment
    return {
        "environment": environment(experiment),
        "config": experiment.config.to_dict(),
        "seed_axis": training.engine.axis,
        "steps": training.n_steps,
        "batch_size": training.task.batch_size,
        "capacity": list(training.capacity),
        "evaluated_users": training.n_users,
    }


def of_steps(training: Training, n_seeds: int, spread: Spread, rates: dict) -> dict:
    """What follows from the seconds of the steps. roofline_share: least time, on all devices at
    their ceilings, over the measured one."""
    step, train = training.work, training.experiment.config.train
    matmul = "matmul bfloat16" if train.compute_dtype == "bfloat16" else "matmul"
    least = step.least_seconds(rates[matmul], rates["copy"]) / jax.device_count()
    per_step = spread.median / training.n_steps
    return {
        "seconds": list(spread.seconds),
        "steps_per_second": 1 / per_step,
        "sequences_per_second": training.task.batch_size / per_step,
        "step_flops": step.flops,
        "step_bytes": step.bytes,
        "roofline_share": least * n_seeds / per_step,
    }


def of_ranking(spread: Spread, n_users: int) -> dict:
    return {"seconds": list(spread.seconds), "users_per_second": n_users / spread.median}
