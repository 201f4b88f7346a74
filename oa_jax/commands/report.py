"""Tables of runs: `python -m oa_jax report WORKDIR…` on the console, `--markdown` for a page.

`--groups` adds the sets of users that a backbone tells apart, below the two domains. An argument
may also be a summary.json on its own, or the file that `python -m oa_jax rules --out` wrote.
"""

from __future__ import annotations

import json
import math
import pathlib

from absl import flags
from rich.table import Table

from oa_jax.commands import cli
from oa_jax.errors import UserError

METRICS = ("ndcg@1", "ndcg@10", "hr@10", "mrr", "auc")


def show(summaries: list[dict], console, split: str = "test", groups: bool = False) -> None:
    """Print the tables of some runs: quality by domain and ranking, then GCA's angles."""
    for header, rows in tables(summaries, split, groups):
        table = Table(*header, box=None, pad_edge=False, header_style="bold")
        for row in rows:
            table.add_row(*row)
        console.print()
        console.print(table)


def markdown(summaries: list[dict], split: str = "test", groups: bool = False) -> str:
    """The same tables as Markdown."""
    blocks = []
    for header, rows in tables(summaries, split, groups):
        lines = [[c.replace("|", "\\|") for c in header], ["---"] * len(header), *rows]
        blocks.append("\n".join("| " + " | ".join(line) + " |" for line in lines))
    return "\n\n".join(blocks) + "\n"


def tables(summaries, split, groups=False):
    """[(header, rows)]: quality; and angles if any of the runs has GCA."""
    out = [_quality(summaries, split, groups)]
    angles = [row for summary in summaries for row in _angles(summary)]
    if angles:
        header = ["model", "place", "|cos(X,X')| init", "trained", "null", "|cos(X,Y)|", "gate"]
        out.append((header, angles))
    return out


def _quality(summaries, split, groups):
    header = ["model", "parameters", "epochs", "users" if groups else "domain", "ranking"]
    header += [name.upper() for name in METRICS]
    rows = []
    for summary in summaries:
        lead = [summary["label"], f"{summary['n_parameters']:,}", cell(summary, "epochs", 0)]
        for domain in _user_sets(summary, split, groups):
            for protocol in _protocols(summary, split):
                values = [cell(summary, f"{split}/{domain}/{m}/{protocol}", 4) for m in METRICS]
                rows.append([*lead, domain, protocol, *values])
                lead = ["", "", ""]
    return header, rows


def _user_sets(summary, split, groups):
    """A, B, `all` where there is such a set; with `groups` every other one that is measured."""
    found = [name.split("/") for name in summary["mean"] if name.startswith(f"{split}/")]
    named = list(dict.fromkeys(parts[1] for parts in found if parts[2:] == ["users"]))
    more = [name for name in named if name not in "AB" and (groups or name == "all")]
    return ["A", "B", *more]


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


def read(path: str) -> list[dict]:
    """The summary of a workdir or of a summary.json, or those of a list of them.

    Raises UserError naming what is wrong.
    """
    file = pathlib.Path(path)
    if file.is_dir():
        file /= "summary.json"
    try:
        content = json.loads(file.read_text())
        summaries = content if isinstance(content, list) else [content]
        missing = [
            key for key in ("label", "mean", "sd", "per_seed") for s in summaries if key not in s
        ]
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}: expected a finished run") from None
    except (ValueError, TypeError):
        raise UserError(f"{file}: not valid JSON: expected the summary of a run") from None
    if missing:
        raise UserError(f"{file}: no field {missing[0]!r}: expected the summary of a run")
    return summaries


def define_flags() -> None:
    """What `output` looks at."""
    flags.DEFINE_bool("markdown", False, "Print Markdown.")
    flags.DEFINE_enum("split", "test", ["val", "test"], "Which split's metrics.")
    flags.DEFINE_bool("groups", False, "Also the sets of users that the backbone tells apart.")


def output(summaries: list[dict]) -> None:
    """The tables in the form that the command line asks for."""
    form = flags.FLAGS.split, flags.FLAGS.groups
    if flags.FLAGS.markdown:
        print(markdown(summaries, *form), end="")
    else:
        show(summaries, cli.console, *form)


def main(paths):
    if not paths:
        raise UserError("no run given: expected WORKDIR …")
    output([summary for path in paths for summary in read(path)])


def start() -> None:
    define_flags()
    cli.run(main, positional="workdirs")
