"""`python launch/gpu_table.py OUT`: one table of the finished runs in OUT, also as OUT/table.md.

Runs named time_BACKBONE_SEEDS are compared with the one of a single seed.
"""

import json
import pathlib
import sys

HEADER = "run | seeds | epochs | s per epoch¹ | of one seed | compile s | NDCG@10² A | B"

NOTES = (
    "¹ of all seeds together, by the epochs of the one that trained longest; with validation, "
    "without compilation. ² among uniformly drawn items."
)


def main(folder: pathlib.Path) -> int:
    """Print and write the table; 1 if no run is finished."""
    runs = {p.parent.name: json.loads(p.read_text()) for p in folder.glob("*/summary.json")}
    if not runs:
        print(f"error: {folder}: no finished run: expected folders with summary.json")
        return 1
    columns = HEADER.split(" | ")
    lines = [columns, ["---"] * len(columns), *(row(name, runs) for name in sorted(runs))]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    text += f"\n\n{NOTES} {device(folder)}"
    (folder / "table.md").write_text(text + "\n")
    print(text)
    return 0


def row(name: str, runs: dict) -> list[str]:
    summary = runs[name]
    seconds, epochs = summary["seconds"], [s["epochs"] for s in summary["per_seed"]]
    backbone, is_timed = name.rpartition("_")[0], name.startswith("time_")
    one = runs.get(f"{backbone}_1") if is_timed else None
    ratio = f"{per_epoch(summary) / per_epoch(one):.2f}" if one else ""
    quality = ["", ""] if is_timed else [score(summary, domain) for domain in "AB"]
    return [
        name,
        str(len(epochs)),
        f"{min(epochs)}–{max(epochs)}" if min(epochs) < max(epochs) else str(max(epochs)),
        f"{per_epoch(summary):.3f}",
        ratio,
        f"{seconds.get('compile', 0):.1f}",
        *quality,
    ]


def per_epoch(summary: dict) -> float:
    """Seconds of training for an epoch of the seed that trained longest."""
    return summary["seconds"]["train"] / max(s["epochs"] for s in summary["per_seed"])


def score(summary: dict, domain: str) -> str:
    """Mean and deviation of NDCG@10 among uniformly drawn items."""
    keys = [k for k in summary["mean"] if k.startswith(f"test/{domain}/ndcg@10/uni")]
    if not keys:
        return ""
    key = keys[0]
    deviation = summary["sd"][key]
    return f"{summary['mean'][key]:.4f}" + (f" ± {deviation:.4f}" if deviation else "")


def device(folder: pathlib.Path) -> str:
    """Where and with what the runs were made."""
    found = {
        (", ".join(sorted(set(env["devices"]))), env["packages"]["jax"])
        for env in (json.loads(p.read_text()) for p in folder.glob("*/env.json"))
    }
    return "; ".join(f"{devices}, jax {version}" for devices, version in sorted(found))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("error: expected the folder of the runs")
    sys.exit(main(pathlib.Path(sys.argv[1])))
