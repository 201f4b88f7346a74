"""Tables of runs: `python -m oa_jax report RUN...` on the console, --markdown or --csv for others.

RUN is the workdir of a run, a folder of workdirs, a summary.json on its own, or the file that
`python -m oa_jax rules --out` wrote. `--groups` adds the sets of users that a backbone tells apart,
below the two domains.
"""

from __future__ import annotations

import json
import math
import os
import pathlib
import sys
from collections.abc import Callable

from absl import flags

from oa_jax import files
from oa_jax.commands import cli
from oa_jax.errors import UserError
from oa_jax.sheets import Sheet

METRICS = ("ndcg@1", "ndcg@10", "hr@10", "mrr", "auc")
EXPECTED = "the summary of a run"
FIELDS = {"label": str, "n_parameters": int, "mean": dict, "sd": dict, "per_seed": list}
LEAD = {"run": "run", "model": "label", "data": "data", "protocol": "protocol"}


def show(summaries: list[dict], split: str = "test", groups: bool = False) -> None:
    """Print the tables of some runs; what all rows of one have in common stands above it."""
    for sheet in sheets(summaries, split, groups):
        columns = list(zip(*sheet.rows, strict=True))
        same = [i for i in range(sheet.words) if len(set(columns[i])) == 1]
        title = ", ".join(f"{sheet.header[i]} {columns[i][0]}" for i in same)
        kept = [i for i in range(len(sheet.header)) if i not in same]
        rows = [[row[i] for i in kept] for row in sheet.rows]
        header = [sheet.header[i] for i in kept]
        cli.console.print()
        Sheet(title, header, rows, sheet.words - len(same)).show(cli.console)


def sheets(summaries: list[dict], split: str, groups: bool = False) -> list[Sheet]:
    """Quality by domain and ranking; and GCA's angles if any of the runs has it."""
    out = [_quality(summaries, split, groups)]
    angles = [row for summary in summaries for row in _angles(summary)]
    if angles:
        header = [*LEAD, "place", "|cos(X,X')| init", "trained", "null", "|cos(X,Y)|", "gate"]
        out.append(Sheet("", header, angles, words=len(LEAD) + 1))
    return out


def _quality(summaries, split, groups):
    header = [*LEAD, "parameters", "epochs", "users" if groups else "domain", "ranking"]
    rows = []
    for summary in summaries:
        lead = [*_lead(summary), f"{summary['n_parameters']:,}", cell(summary, "epochs", 0)]
        for domain in _user_sets(summary, split, groups):
            for ranking in _rankings(summary, split):
                values = [cell(summary, f"{split}/{domain}/{m}/{ranking}", 4) for m in METRICS]
                rows.append([*lead, domain, ranking, *values])
    return Sheet("", header + [name.upper() for name in METRICS], rows, words=len(header))


def _lead(summary):
    return [str(summary.get(field, "–")) for field in LEAD.values()]


def _user_sets(summary, split, groups):
    """A, B, `all` where there is such a set; with `groups` every other one that is measured."""
    found = [name.split("/") for name in summary["mean"] if name.startswith(f"{split}/")]
    named = list(dict.fromkeys(parts[1] for parts in found if parts[2:] == ["users"]))
    more = [name for name in named if name not in "AB" and (groups or name == "all")]
    return ["A", "B", *more]


def _rankings(summary, split):
    found = [name.split("/") for name in summary["mean"] if name.startswith(f"{split}/A/mrr/")]
    return [parts[-1] for parts in found] or ["–"]  # every seed diverged


def _angles(summary):
    rows = []
    for name in summary["mean"]:
        parts = name.split("/")
        if parts[:2] != ["best", "gca"] or parts[-1] != "abs_cos":
            continue
        key, null = "/".join(parts[1:4]), summary.get("null_abs_cos", math.nan)
        init, *best = f"init/{key}/abs_cos", f"{key}/abs_cos", f"{key}/xy_abs_cos"
        values = [cell(summary, n, 3) for n in (init, *(f"best/{n}" for n in best))]
        values.insert(2, "–" if math.isnan(null) else f"{null:.3f}")
        gate = cell(summary, f"best/{key}/gate_mean", 3)
        rows.append([*_lead(summary), f"{parts[2]} {parts[3]}", *values, gate])
    return rows


def cell(summary: dict, name: str, digits: int) -> str:
    """`mean ± sd` over seeds; the mean alone for a single seed; a dash without any."""
    mean, sd = summary["mean"].get(name), summary["sd"].get(name)
    if mean is None or math.isnan(mean):
        return "–"
    if digits == 0:
        return f"{mean:.0f}" if not sd else f"{mean:.0f} ± {sd:.0f}"
    return f"{mean:.{digits}f}" + (f" ± {sd:.{digits}f}" if sd is not None else "")


def status(summary: dict, say: Callable[[str], None]) -> int:
    """Exit status of a run: 1 when a seed diverged, which is said."""
    bad = [entry for entry in summary["per_seed"] if entry["diverged_step"]]
    for entry in bad:
        say(
            f"seed {entry['seed']} diverged: loss or scores not finite at step "
            f"{entry['diverged_step']} (epoch {entry['epochs']}); it is left out of the means"
        )
    return 1 if bad else 0


def read(path: str) -> list[dict]:
    """The summaries of a workdir, of all workdirs in a folder, of a summary.json or of a list.

    Raises UserError naming what is wrong.
    """
    file = files.local(path, "RUN")
    if not file.is_dir():
        return _read(file, file.parent.name if file.name == "summary.json" else file.stem)
    if (file / "summary.json").exists() or (file / "config.json").exists():
        return _read(file / "summary.json", file.resolve().name)
    found = sorted(file.rglob("config.json"))
    finished = [path.parent for path in found if (path.parent / "summary.json").exists()]
    if not finished:
        raise UserError(f"{file}: no finished run in it: expected a workdir or a folder of them")
    for path in sorted({path.parent for path in found} - set(finished)):
        print(f"{path}: not finished: left out", file=sys.stderr)
    return [s for run in finished for s in _read(run / "summary.json", str(run.relative_to(file)))]


def _read(file, run):
    summaries = files.read_json(file, EXPECTED, kind=(dict, list))
    summaries = summaries if isinstance(summaries, list) else [summaries]
    if not summaries:
        raise UserError(f"{file}: an empty list: expected {EXPECTED}")
    for summary in summaries:
        _check(summary, file)
    return [described(summary, file.parent) | {"run": run} for summary in summaries]


def _check(summary, file):
    for field, kind in FIELDS.items():
        if not isinstance(summary, dict) or field not in summary:
            raise UserError(f"{file}: no field {field!r}: expected {EXPECTED}")
        if not isinstance(summary[field], kind):
            found = json.dumps(summary[field])[:40]
            raise UserError(f"{file}: {field}: found {found}: expected {EXPECTED}")
    for name, value in [*summary["mean"].items(), *summary["sd"].items()]:
        if not isinstance(value, int | float | None):
            raise UserError(f"{file}: {name}: found {json.dumps(value)[:40]}: expected a number")


def described(summary: dict, workdir: str | os.PathLike) -> dict:
    """`summary` with the names of run, data and protocol, as far as `workdir` knows."""
    workdir = pathlib.Path(workdir).resolve()
    found = {"run": workdir.name}
    if (workdir / "config.json").exists():
        config = files.read_json(workdir / "config.json", "the configuration of a run")
        found |= {"data": _data_name(config, workdir), "protocol": config.get("protocol", "–")}
    return found | summary


def _data_name(config, workdir):
    """Name and fingerprint: two synthetic worlds have the same name."""
    data = config.get("data")
    name = str(data.get("name", "–")) if isinstance(data, dict) else "–"
    if not (workdir / "env.json").exists():
        return name
    prints = files.read_json(workdir / "env.json", "the environment of a run").get("fingerprints")
    return f"{name} {str(prints.get('data', ''))[:6]}" if isinstance(prints, dict) else name


def define_flags() -> None:
    """What `output` looks at."""
    flags.DEFINE_bool("markdown", False, "Print Markdown.")
    flags.DEFINE_bool("csv", False, "Print CSV, a table after the other.")
    flags.DEFINE_enum("split", "test", ["val", "test"], "Which split's metrics.")
    flags.DEFINE_bool("groups", False, "Also the sets of users that the backbone tells apart.")


def output(summaries: list[dict]) -> None:
    """The tables in the form that the command line asks for."""
    form = flags.FLAGS.split, flags.FLAGS.groups
    if flags.FLAGS.markdown or flags.FLAGS.csv:
        found = sheets(summaries, *form)
        texts = [sheet.csv() if flags.FLAGS.csv else sheet.markdown() for sheet in found]
        print("\n".join(texts), end="")
    else:
        show(summaries, *form)


def main(paths):
    if not paths:
        raise UserError("no run given: expected WORKDIR ...")
    output([summary for path in paths for summary in read(path)])


def start() -> None:
    define_flags()
    cli.run(main, positional="workdirs")
