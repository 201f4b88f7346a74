"""The measurements as tables. On a CPU times are shown as ratios within the run alone."""

from statistics import median

from oa_jax.bench.rounds import ratios
from oa_jax.sheets import Sheet


def summary_line(found: dict, absolute: bool) -> str:
    """What was measured, and where. absolute: with times, not ratios alone."""
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


def of_training(found: dict, absolute: bool) -> Sheet:
    """A row for every variant and number of seeds; the first is the unit of time."""
    one, theirs = found["seeds"][0], found["official"]
    field = [found["vary"].partition("=")[0]] if found["vary"] else []
    header = [*field, "seeds", "time / first", "smallest to largest", "per seed"]
    header += ["of roofline", "program MiB", "peak MiB", "compile"]
    header += ["official / ours, per seed"] if theirs else []
    header += ["steps/s", "sequences/s per seed"] if absolute else []
    rows = []
    for row in found["seeds"]:
        n, over = row["seeds"], ratios(row["seconds"], one["seconds"])
        line = [row["variant"]] if field else []
        line += [str(n), f"{median(over):.2f}", f"{min(over):.2f} to {max(over):.2f}"]
        line += [f"{median(over) * one['seeds'] / n:.2f}", f"{row['roofline_share']:.0%}"]
        line += [_mebi(row.get("program_bytes")), _mebi(row["peak_bytes"])]
        line.append(_time(row["compile_seconds"], found, absolute))
        if theirs:
            line.append(f"{n * median(ratios(theirs['seconds'], row['seconds'])):.1f}")
        if absolute:
            line += [f"{row['steps_per_second']:.3g}", f"{row['sequences_per_second']:.4g}"]
        rows.append(line)
    return Sheet("", header, rows, words=len(field))


def official_line(found: dict, absolute: bool) -> str:
    """What the official code did with the same batches."""
    theirs = found["official"]
    step = _time(median(theirs["seconds"]) / found["steps"], found, absolute)
    return (
        f"official code, PyTorch {theirs['torch']} on {theirs['device']}: "
        f"{theirs['n_parameters']:,} parameters, matmul precision {theirs['matmul_precision']}, "
        f"a step of one seed takes {step}, peak {_mebi(theirs['peak_bytes'])} MiB"
    )


def of_rest(found: dict, absolute: bool) -> Sheet:
    """Evaluation and checkpoints."""
    header = ["evaluation and checkpoint", "seconds" if absolute else "in steps of one seed"]
    rows = []
    for name, value in found["evaluation"].items():
        time = _time(median(value["seconds"]), found, absolute)
        line = [f"{name}, {found['evaluated_users']} users, one seed", time]
        rows.append(line + [f"{value['users_per_second']:.4g}"] * absolute)
    saved = found["checkpoint"]
    name = f"checkpoint of {saved['seeds']} seeds, {_mebi(saved['bytes'])} MiB"
    rows.append([name, _time(saved["seconds"], found, absolute)] + [""] * absolute)
    return Sheet("", header + ["users/s"] * absolute, rows)


def _time(seconds, found, absolute):
    """Seconds, or on a CPU steps of one seed."""
    if absolute:
        return f"{seconds:.3g} s"
    first = found["seeds"][0]
    step = median(first["seconds"]) / found["steps"] / first["seeds"]
    return f"{seconds / step:.3g} steps"


def _mebi(size):
    return "" if size is None else f"{size / 2**20:,.0f}"
