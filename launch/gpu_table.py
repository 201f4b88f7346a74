"""`python launch/gpu_table.py OUT`: tables of the benchmarks and the finished runs in OUT, also as
OUT/table.md."""

import json
import pathlib
import statistics
import sys

BENCHMARKS = (
    "benchmark | seeds | ms per step | s per epoch¹ | of the first | of roofline | "
    "official / ours, per seed | peak MiB | compile s"
)
RUNS = "run | seeds | epochs | s per epoch² | compile s | NDCG@10³ A | B"
NOTES = (
    "¹ its training steps alone. ² of all seeds together, by the epochs of the one that trained "
    "longest; with validation, without compilation. ³ among uniformly drawn items."
)


def main(folder: pathlib.Path) -> int:
    """Print and write the tables; 1 if nothing is finished."""
    found = {p.stem: json.loads(p.read_text()) for p in sorted(folder.glob("bench_*.json"))}
    paths = sorted(folder.rglob("summary.json"))
    runs = {str(p.parent.relative_to(folder)): json.loads(p.read_text()) for p in paths}
    if not found and not runs:
        print(f"error: {folder}: nothing finished: expected bench_*.json, or folders of runs")
        return 1
    benchmarks = [row for name, one in found.items() for row in benchmark(name, one)]
    rows = [run(name, summary) for name, summary in runs.items()]
    text = table(BENCHMARKS, benchmarks) + table(RUNS, rows) + f"{NOTES} {devices(folder, found)}"
    (folder / "table.md").write_text(text + "\n")
    print(text)
    return 0


def table(header: str, rows: list[list[str]]) -> str:
    columns = header.split(" | ")
    lines = [columns, ["---"] * len(columns), *rows] if rows else []
    return "".join(f"| {' | '.join(line)} |\n" for line in lines) + "\n" * bool(rows)


def benchmark(name: str, found: dict) -> list[list[str]]:
    """A row for each variant and number of seeds; medians over rounds."""
    first, official, rows = found["seeds"][0], found["official"], []
    for row in found["seeds"]:
        step = statistics.median(row["seconds"]) / found["steps"]
        over = [a / b for a, b in zip(row["seconds"], first["seconds"], strict=True)]
        theirs = ""
        if official:
            pairs = zip(official["seconds"], row["seconds"], strict=True)
            theirs = f"{row['seeds'] * statistics.median(a / b for a, b in pairs):.1f}"
        label = f"{name.removeprefix('bench_')} {row['variant']}".strip()
        line = [label, str(row["seeds"]), f"{1e3 * step:.2f}", f"{step * found['epoch_steps']:.3f}"]
        line += [f"{statistics.median(over):.2f}", f"{row['roofline_share']:.0%}", theirs]
        peak = f"{row['peak_bytes'] / 2**20:,.0f}" if row["peak_bytes"] else "–"
        rows.append([*line, peak, f"{row['compile_seconds']:.0f}"])
    return rows


def run(name: str, summary: dict) -> list[str]:
    seconds, epochs = summary["seconds"], [s["epochs"] for s in summary["per_seed"]]
    return [
        name,
        str(len(epochs)),
        f"{min(epochs)}–{max(epochs)}" if min(epochs) < max(epochs) else str(max(epochs)),
        f"{seconds['train'] / max(epochs):.3f}",
        f"{seconds.get('compile', 0):.1f}",
        *(score(summary, domain) for domain in "AB"),
    ]


def score(summary: dict, domain: str) -> str:
    """Mean and deviation of NDCG@10 among uniformly drawn items."""
    keys = [k for k in summary["mean"] if k.startswith(f"test/{domain}/ndcg@10/uni")]
    if not keys:
        return ""
    key = keys[0]
    deviation = summary["sd"][key]
    return f"{summary['mean'][key]:.4f}" + (f" ± {deviation:.4f}" if deviation else "")


def devices(folder: pathlib.Path, found: dict) -> str:
    """Where and with what it was measured."""
    environments = [json.loads(p.read_text()) for p in folder.rglob("env.json")]
    environments += [one["environment"] for one in found.values()]
    seen = {
        (", ".join(sorted(set(env["devices"]))), env["packages"]["jax"]) for env in environments
    }
    return "; ".join(f"{names}, jax {version}" for names, version in sorted(seen))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("error: expected the folder of the runs")
    sys.exit(main(pathlib.Path(sys.argv[1])))
