"""The measurements as tables. On a CPU times are shown as ratios within the run alone."""

from __future__ import annotations

from oa_jax.bench.clock import Ratio, Spread

MEBI = 2**20


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


def of_training(found: dict, absolute: bool) -> tuple[list[str], list[list[str]]]:
    """A row for every variant and number of seeds; the first is the unit of time."""
    one = found["seeds"][0]
    field = [found["vary"].partition("=")[0]] if found["vary"] else []
    header = [*field, "seeds", "time / first", "smallest to largest", "per seed"]
    header += ["of roofline", "program MiB", "peak MiB", "compile"]
    header += ["official / ours, per seed"] if found["official"] else []
    header += ["steps/s", "sequences/s per seed"] if absolute else []
    rows = []
    for row in found["seeds"]:
        n, ratio = row["seeds"], ratio_of(row["seconds"], one["seconds"])
        per_seed = ratio.median * one["seeds"] / n
        line = [row["variant"]] if field else []
        line += [str(n), f"{ratio.median:.2f}", _range(ratio), f"{per_seed:.2f}"]
        line += [f"{row['roofline_share']:.0%}", _mebi(row.get("program_bytes"))]
        line += [_mebi(row["peak_bytes"]), _time(row["compile_seconds"], found, absolute)]
        if found["official"]:
            theirs = ratio_of(found["official"]["seconds"], row["seconds"])
            line.append(f"{n * theirs.median:.1f}")
        if absolute:
            line += [f"{row['steps_per_second']:.3g}", f"{row['sequences_per_second']:.4g}"]
        rows.append(line)
    return header, rows


def official_line(found: dict, absolute: bool) -> str:
    """What the official code did with the same batches."""
    theirs = found["official"]
    seconds = Spread(tuple(theirs["seconds"])).median / found["steps"]
    return (
        f"official code, PyTorch {theirs['torch']} on {theirs['device']}: "
        f"{theirs['n_parameters']:,} parameters, a step of one seed takes "
        f"{_time(seconds, found, absolute)}, peak {_mebi(theirs['peak_bytes'])} MiB"
    )


def of_rest(found: dict, absolute: bool) -> tuple[list[str], list[list[str]]]:
    """Evaluation and checkpoints."""
    header = ["evaluation and checkpoint", "seconds" if absolute else "in steps of one seed"]
    header += ["users/s"] if absolute else []
    rows = []
    for name, value in found["evaluation"].items():
        line = [f"{name}, {found['evaluated_users']} users, one seed"]
        line.append(_time(Spread(tuple(value["seconds"])).median, found, absolute))
        rows.append(line + ([f"{value['users_per_second']:.4g}"] if absolute else []))
    saved = found["checkpoint"]
    name = f"checkpoint of {saved['seeds']} seeds, {_mebi(saved['bytes'])} MiB"
    rows.append([name, _time(saved["seconds"], found, absolute)] + ([""] if absolute else []))
    return header, rows


def ratio_of(seconds, other) -> Ratio:
    """Of two lists of seconds, round by round."""
    return Spread(tuple(seconds)).over(Spread(tuple(other)))


def _time(seconds, found, absolute):
    """Seconds, or on a CPU steps of one seed."""
    if absolute:
        return f"{seconds:.3g} s"
    first = found["seeds"][0]
    step = Spread(tuple(first["seconds"])).median / found["steps"] / first["seeds"]
    return f"{seconds / step:.3g} steps"


def _range(ratio):
    low, high = ratio.spread
    return f"{low:.2f} to {high:.2f}"


def _mebi(size):
    return "" if size is None else f"{size / MEBI:,.0f}"
