"""Tables of runs: `python -m oa_jax.report WORKDIR…` on the console, `--markdown` for a page.

An argument may also be a summary.json on its own.
"""

from __future__ import annotations

import json
import math
import pathlib

from absl import flags
from rich.table import Table

from oa_jax import cli
from oa_jax.errors import UserError

METRICS = ("ndcg@1", "ndcg@10", "hr@10", "mrr", "auc")


def show(summaries: list[dict], console, split: str = "test") -> None:
    """Print the tables of some runs: quality by domain and ranking, then GCA's angles."""
    for header, rows in tables(summaries, split):
        table = Table(*header, box=None, pad_edge=False, header_style="bold")
        for row in rows:
            table.add_row(*row)
        console.print()
        console.print(table)


def markdown(summaries: list[dict], split: str = "test") -> str:
    """The same tables as Markdown."""
    blocks = []
    for header, rows in tables(summaries, split):
        lines = [[c.replace("|", "\\|") for c in header], ["---"] * len(header), *rows]
        blocks.append("\n".join("| " + " | ".join(line) + " |" for line in lines))
    return "\n\n".join(blocks) + "\n"


def tables(summaries, split):
    """[(header, rows)]: quality; and angles if any of the runs has GCA."""
    out = [_quality(summaries, split)]
    angles = [row for summary in summaries for row in _angles(summary)]
    if angles:
        header = ["model", "place", "|cos(X,X')| init", "trained", "null", "|cos(X,Y)|", "gate"]
        out.append((header, angles))
    return out


def _quality(summaries, split):
    header = ["model", "parameters", "epochs", "domain", "ranking"]
    header += [name.upper() for name in METRICS]
    rows = []
    for summary in summaries:
        lead = [summary["label"], f"{summary['n_parameters']:,}", cell(summary, "epochs", 0)]
        overall = ["all"] if f"{split}/all/users" in summary["mean"] else []
        for domain in ("A", "B", *overall):
            for protocol in _protocols(summary, split):
                values = [cell(summary, f"{split}/{domain}/{m}/{protocol}", 4) for m in METRICS]
                rows.append([*lead, domain, protocol, *values])
                lead = ["", "", ""]
    return header, rows


def _protocols(summary, split):
    found = [name.split("/") for name in summary["mean"] if name.startswith(f"{split}/A/mrr/")]
    return [parts[-1] for parts in found]


def _angles(summary):
    rows, lead = [], summary["label"]
    for name in summary["mean"]:
        parts = name.split("/")
        if parts[:2] != ["best", "gca"] or parts[-1] != "abs_cos":
            continue
        place, domain = parts[2], parts[3]
        key = f"gca/{place}/{domain}"
        rows.append(
            [
                lead,
                f"{place} {domain}",
                cell(summary, f"init/{key}/abs_cos", 3),
                cell(summary, f"best/{key}/abs_cos", 3),
                f"{summary['null_abs_cos']:.3f}",
                cell(summary, f"best/{key}/xy_abs_cos", 3),
                cell(summary, f"best/{key}/gate_mean", 3),
            ]
        )
        lead = ""
    return rows


def cell(summary: dict, name: str, digits: int) -> str:
    """`mean ± sd` over seeds; the mean alone for a single seed; a dash without any."""
    mean, sd = summary["mean"].get(name), summary["sd"].get(name)
    if mean is None or math.isnan(mean):
        return "–"
    if digits == 0:
        return f"{mean:.0f}" if not sd else f"{mean:.0f} ± {sd:.0f}"
    return f"{mean:.{digits}f}" + (f" ± {sd:.{digits}f}" if sd is not None else "")


def status(summary: dict, say) -> int:
    """Exit status of a run: 1 when a seed diverged, which is said."""
    bad = [entry for entry in summary["per_seed"] if entry["diverged_step"]]
    for entry in bad:
        say(
            f"seed {entry['seed']} diverged: loss or scores not finite at step "
            f"{entry['diverged_step']} (epoch {entry['epochs']}); it is left out of the means"
        )
    return 1 if bad else 0


def read(path: str) -> dict:
    """The summary of a workdir, or of a summary.json. Raises UserError naming what is wrong."""
    file = pathlib.Path(path)
    if file.is_dir():
        file /= "summary.json"
    try:
        summary = json.loads(file.read_text())
        missing = [key for key in ("label", "mean", "sd", "per_seed") if key not in summary]
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}: expected a finished run") from None
    except (ValueError, TypeError):
        raise UserError(f"{file}: not valid JSON: expected the summary of a run") from None
    if missing:
        raise UserError(f"{file}: no field {missing[0]!r}: expected the summary of a run")
    return summary


def main(paths):
    if not paths:
        raise UserError("no run given: expected WORKDIR …")
    summaries = [read(path) for path in paths]
    if flags.FLAGS.markdown:
        print(markdown(summaries, flags.FLAGS.split), end="")
    else:
        show(summaries, cli.console, flags.FLAGS.split)


if __name__ == "__main__":
    flags.DEFINE_bool("markdown", False, "Print Markdown.")
    flags.DEFINE_enum("split", "test", ["val", "test"], "Which split's metrics.")
    cli.run(main, positional="workdirs")
