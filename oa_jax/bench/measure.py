"""One run of the benchmark: every variant and number of seeds, evaluation and a checkpoint."""

import contextlib
import functools
from collections.abc import Callable
from statistics import median

import jax

from oa_jax.bench import rounds as rounds_lib
from oa_jax.bench.cases import Cases
from oa_jax.bench.official import Official
from oa_jax.configuration import Config, value_of
from oa_jax.errors import UserError
from oa_jax.runs.run import environment


def variants(config: Config, text: str | None) -> dict[str, Config]:
    """{value: configuration} of --vary=FIELD=VALUE,VALUE, checked; without it {"": config}."""
    if not text:
        return {"": config}
    field, _, values = text.partition("=")
    try:
        kind = type(value_of(config, field))
    except AttributeError:
        kind = None
    if kind not in (int, float, str):
        raise UserError(f"--vary={text}: expected FIELD=VALUE,… of a field with a value")
    out = {}
    for value in values.split(","):
        try:
            out[value] = config.replace(**{field: kind(value)})
        except ValueError:
            expected = "a whole number" if kind is int else "a number"
            raise UserError(f"--vary={text}: {value!r}: expected {expected}") from None
    return out


def counts(words: list[str]) -> list[int]:
    """Ascending numbers of seeds. Raises UserError."""
    if not words or not all(word.strip().isdecimal() and int(word) > 0 for word in words):
        raise UserError(f"--seeds={','.join(words)}: expected numbers such as 1,2,5")
    return sorted({int(word) for word in words})


def measure(
    configs: dict[str, Config],
    cases_of: Callable[[Config], Cases],
    seeds: list[int],
    rounds: int,
    say: Callable[[str], None],
    official: tuple[str, str] | None = None,
) -> dict:
    """Training for every variant and number of seeds; the rest of the first variant.

    configs: {variant: configuration}.  seeds: numbers of them, ascending.  official: (checkout,
    python) of `Official`, which then takes the first variant's steps.
    """
    of_variant, rows, cases, theirs = {}, [], {}, None
    for variant, config in configs.items():
        one = of_variant[variant] = cases_of(config.replace(seeds=seeds[-1]))
        if official and not theirs:
            theirs = Official(one, *official)
        for row in prepare(one, variant, seeds, say):
            if len(of_variant) > 1:
                row["peak_bytes"] = None  # that of the process, and so of a variant before
            rows.append(row)
            cases[f"{variant}/{row['seeds']}"] = functools.partial(one.steps, row["seeds"])
    variant, first = next(iter(of_variant.items()))
    most = max(row["seeds"] for row in rows if row["variant"] == variant)
    evaluations = first.evaluations()
    cases |= rounds_lib.ceilings()  # large arrays: after the peaks are known
    cases |= {f"ranking {name}": case for name, case in evaluations.items()}
    if theirs:
        cases["official"] = theirs.steps
    with theirs or contextlib.nullcontext():
        measured = rounds_lib.interleaved(cases, rounds)
    rates = rounds_lib.rates(measured)
    for row in rows:
        seconds = measured[f"{row['variant']}/{row['seeds']}"]
        row |= of_steps(of_variant[row["variant"]], row["seeds"], seconds, rates)
    rankings = {name: {"seconds": measured[f"ranking {name}"]} for name in evaluations}
    for ranking in rankings.values():
        ranking["users_per_second"] = first.n_users / median(ranking["seconds"])
    return of_first(first) | {
        "ceilings": rates,
        "seeds": rows,
        "evaluation": rankings,
        "checkpoint": {"seeds": most} | first.checkpoint(most),
        "official": theirs and theirs.found | {"seconds": measured["official"]},
    }


def of_first(cases: Cases) -> dict:
    """What the measurements are of."""
    return {
        "environment": environment(cases.experiment),
        "config": cases.experiment.config.to_dict(),
        "seed_axis": cases.engine.axis,
        "steps": cases.n_steps,
        "epoch_steps": cases.task.n_steps,
        "batch_size": cases.task.batch_size,
        "capacity": list(cases.capacity),
        "evaluated_users": cases.n_users,
    }


def prepare(cases: Cases, variant: str, seeds: list[int], say: Callable[[str], None]) -> list[dict]:
    """Rows of the numbers of seeds, ascending, that fit on the device; UserError if none does."""
    rows = []
    for n in seeds:
        try:
            rows.append({"variant": variant, "seeds": n} | cases.prepare(n))
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


def of_steps(cases: Cases, n_seeds: int, seconds: list[float], rates: dict[str, float]) -> dict:
    """What follows from the seconds of the steps. roofline_share: least time, on all devices at
    their ceilings, over the measured one."""
    step, dtype = cases.work, cases.experiment.config.train.compute_dtype
    matmul = "matmul bfloat16" if dtype == "bfloat16" else "matmul"
    least = step.least_seconds(rates[matmul], rates["copy"])
    least /= len(cases.engine.layout.devices)
    per_step = median(seconds) / cases.n_steps
    return {
        "seconds": seconds,
        "steps_per_second": 1 / per_step,
        "sequences_per_second": cases.task.batch_size / per_step,
        "step_flops": step.flops,
        "step_bytes": step.bytes,
        "roofline_share": least * n_seeds / per_step,
    }
