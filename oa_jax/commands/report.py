"""Tables of runs: `python -m oa_jax report RUN...` on the console, --markdown or --csv for others.

RUN is the workdir of a run, a folder of workdirs, a summary.json on its own, or the file that
`python -m oa_jax rules --out` wrote. `--groups` adds the sets of users that a backbone tells apart,
below the two domains. Of the folder of a sweep its configurations are ranked first.
"""

import math
import os
import pathlib
import re
import sys
from collections.abc import Callable

from absl import flags
from scipy.special import stdtrit

from oa_jax import files, processes
from oa_jax.commands import cli
from oa_jax.errors import UserError
from oa_jax.runs import index
from oa_jax.runs.summary import EXPECTED, check_summary
from oa_jax.serving.lists import kept
from oa_jax.sheets import Sheet

METRICS = ("ndcg@1", "ndcg@10", "hr@10", "mrr", "auc")
CONFIGURATION, ENVIRONMENT = "the configuration of a run", "the environment of a run"
BEYOND = ("coverage", "gini", "popularity_rank", "popularity_lift", "novelty")
BEYOND += ("intra_list_similarity",)
ANGLES = ("xy_abs_cos", "gate_mean")
LEAD = {"run": "run", "model": "label", "data": "data", "protocol": "protocol"}


def show(summaries: list[dict], split: str = "test", groups: bool = False) -> None:
    """Print the tables of some runs; what all rows of one have in common stands above it."""
    for sheet in sheets(summaries, split, groups):
        columns = list(zip(*sheet.rows, strict=True))
        same = [i for i in range(sheet.words) if len(set(columns[i])) == 1]
        title = ", ".join(f"{sheet.header[i]} {columns[i][0]}" for i in same)
        header, *rows = (
            [text for i, text in enumerate(row) if i not in same]
            for row in (sheet.header, *sheet.rows)
        )
        cli.console.print()
        Sheet(title, header, rows, sheet.words - len(same)).show(cli.console)


def sheets(summaries: list[dict], split: str, groups: bool = False) -> list[Sheet]:
    """Quality by domain and ranking; and GCA's angles if any of the runs has it."""
    header = [*LEAD, "parameters", "epochs", "users" if groups else "domain", "ranking"]
    quality = [row for summary in summaries for row in _quality(summary, split, groups)]
    out = [Sheet("", header + [name.upper() for name in METRICS], quality, words=len(header))]
    angles = [row for summary in summaries for row in _angles(summary)]
    if angles:
        header = [*LEAD, "place", "|cos(X,X')| init", "trained", "null", "|cos(X,Y)|", "gate"]
        out.append(Sheet("", header, angles, words=len(LEAD) + 1))
    lists = lists_sheet(summaries)
    return [*out, lists] if lists else out


def _lead(summary):
    return [str(summary.get(field, "–")) for field in LEAD.values()]


def _quality(summary, split, groups):
    """A row for each set of users, A and B first, and ranking."""
    found = [name.split("/")[1:] for name in summary["mean"] if name.startswith(f"{split}/")]
    named = dict.fromkeys(users for users, *rest in found if rest == ["users"])
    more = [name for name in named if name not in "AB" and (groups or name == "all")]
    # Without any, every seed has diverged.
    rankings = [ranking for *of, ranking in found if of == ["A", "mrr"]] or ["–"]
    lead = [*_lead(summary), f"{summary['n_parameters']:,}", cell(summary, "epochs", 0)]
    return [
        [*lead, users, ranking]
        + [cell(summary, f"{split}/{users}/{metric}/{ranking}", 4) for metric in METRICS]
        for users in ("A", "B", *more)
        for ranking in rankings
    ]


def _angles(summary):
    rows, null = [], cell({"mean": summary, "sd": {}}, "null_abs_cos", 3)
    for name in summary["mean"]:
        match = re.fullmatch(r"best/(gca/([^/]+)/([^/]+))/abs_cos", name)
        if not match:
            continue
        names = f"init/{match[1]}/abs_cos", name, *(f"best/{match[1]}/{e}" for e in ANGLES)
        init, trained, xy, gate = (cell(summary, name, 3) for name in names)
        rows.append([*_lead(summary), f"{match[2]} {match[3]}", init, trained, null, xy, gate])
    return rows


def cell(summary: dict, name: str, digits: int, wide: float = 1.0) -> str:
    """`mean ± wide * sd` over seeds; the mean alone for a single seed; a dash without any."""
    mean, sd = summary["mean"].get(name), summary["sd"].get(name)
    if mean is None or math.isnan(mean):
        return "–"
    if digits == 0:
        return f"{mean:.0f}" if not sd else f"{mean:.0f} ± {sd:.0f}"
    return f"{mean:.{digits}f}" + (f" ± {wide * sd:.{digits}f}" if sd is not None else "")


def lists_sheet(summaries: list[dict]) -> Sheet | None:
    """What the lists of the runs are like, as `python -m oa_jax recommend` has left it."""
    rows = []
    for summary in summaries:
        for lists in summary.get("lists", ()):
            for domain, found in lists["figures"].items():
                lead = [summary["run"], str(lists["of"]), str(lists["k"]), domain]
                rows.append(lead + [cell({"mean": found, "sd": {}}, name, 3) for name in BEYOND])
    header = ["run", "lists of", "k", "domain", *(name.replace("_", " ") for name in BEYOND)]
    return Sheet("", header, rows, words=4) if rows else None


def conclude(summaries: list[dict]) -> int:
    """Show the runs that a command has ended, once for all processes; its exit status."""
    if processes.is_first():
        show(summaries)
    return max(status(summary, cli.say) for summary in summaries)


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
    found = [  # an exported model has a copy of it
        path
        for path in sorted(file.rglob("config.json"))
        if not (path.parent / "parameters.safetensors").exists()
    ]
    finished = [path.parent for path in found if (path.parent / "summary.json").exists()]
    if not finished:
        raise UserError(f"{file}: no finished run in it: expected a workdir or a folder of them")
    for path in sorted({path.parent for path in found} - set(finished)):
        print(f"{path}: not finished: left out", file=sys.stderr)
    return [s for run in finished for s in _read(run / "summary.json", str(run.relative_to(file)))]


def _read(file, run):
    found = files.read_json(file, EXPECTED, kind=(dict, list))
    summaries = found if isinstance(found, list) else [found]
    if not summaries:
        raise UserError(f"{file}: an empty list: expected {EXPECTED}")
    rows = [described(check_summary(file, summary), file.parent) for summary in summaries]
    # A trial of a search that was pruned trained for fewer epochs than its rivals.
    return [row | {"run": f"{run} ({row['stopped']})" if "stopped" in row else run} for row in rows]


def described(summary: dict, workdir: str | os.PathLike) -> dict:
    """`summary` with the names of run, data and protocol, as far as `workdir` knows. To the name of
    the data comes their fingerprint, as two synthetic worlds have the same name, and what of the
    split and of the users that are ranked is not as usual.

    Raises UserError naming the file and field that is wrong.
    """
    workdir, known = pathlib.Path(workdir).resolve(), {}
    if (path := workdir / "config.json").exists():
        config = {"protocol": "–", "data": {}, "evaluate": {}} | files.read_json(
            path, CONFIGURATION
        )
        kinds = {"protocol": str, "data": dict, "evaluate": dict}
        files.check(path, config, kinds, CONFIGURATION)
        name = str(config["data"].get("name", "–"))
        if (path := workdir / "env.json").exists():
            env = {"fingerprints": {}} | files.read_json(path, ENVIRONMENT)
            files.check(path, env, {"fingerprints": dict}, ENVIRONMENT)
            name += f" {str(env['fingerprints'].get('data', ''))[:6]}"
        if config["data"].get("split") == "global_time":
            name += ", by time"
        if n_users := config["evaluate"].get("users_per_kind"):
            name += f", {n_users} users of a kind"
        known |= {"data": name, "protocol": config["protocol"]}
    if lists := kept(workdir):
        known["lists"] = lists
    return {"run": workdir.name} | known | summary


def define_flags(tables: bool = True) -> None:
    """What `output` looks at, and --tables."""
    flags.DEFINE_bool("markdown", False, "Print Markdown.")
    flags.DEFINE_bool("csv", False, "Print CSV, a table after the other.")
    flags.DEFINE_enum("split", "test", ["val", "test"], "Which split's metrics.")
    flags.DEFINE_bool("groups", False, "Also the sets of users that the backbone tells apart.")
    if tables:
        flags.DEFINE_bool("tables", False, "Also the tables of each run of a sweep.")


def output(summaries: list[dict]) -> None:
    """The tables in the form that the command line asks for."""
    form = flags.FLAGS.split, flags.FLAGS.groups
    if not (flags.FLAGS.markdown or flags.FLAGS.csv):
        return show(summaries, *form)
    found = sheets(summaries, *form)
    texts = [sheet.csv() if flags.FLAGS.csv else sheet.markdown() for sheet in found]
    print("\n".join(texts), end="")


def ranked(summaries: list[dict]) -> Sheet:
    """The runs of a sweep by their validation score, with 95 % intervals over the seeds (t)."""
    names = [(m, d) for m in ("ndcg@1", "ndcg@10") for d in "AB"]
    metrics = {f"{m.upper()} {d}": f"test/{d}/{m}/full" for m, d in names}
    rows = []
    # Scores of other data, or another protocol's, are no order.
    apart = [n for n in ("data", "protocol") if len({of.get(n, "–") for of in summaries}) > 1]
    header = ["run", *apart, "parameters", "seeds", "val NDCG@10"]
    scores = [index.score_of(of["mean"], of.get("watched")) for of in summaries]
    groups = [[of.get(name, "–") for name in apart] for of in summaries]
    order = zip(groups, scores, summaries, strict=True)
    for group, score, summary in sorted(order, key=lambda of: (of[0], -of[1])):
        n_seeds = sum(not entry["diverged_step"] for entry in summary["per_seed"])
        lead = [summary["run"], *group, f"{summary['n_parameters']:,}", str(n_seeds)]
        n_seeds = max(n_seeds, 1)
        half = stdtrit(n_seeds - 1, 0.975) / math.sqrt(n_seeds)  # of the interval, in sd
        cells = [cell(summary, name, 4, half) for name in metrics.values()]
        rows.append([*lead, f"{score:.4f}" if score >= 0 else "–", *cells])
    title = "runs by validation NDCG@10; test metrics among all items, ± half of the 95 % interval"
    return Sheet(title, [*header, *metrics], rows, words=1 + len(apart))


def main(paths):
    if not paths:
        raise UserError("no run given: expected WORKDIR ...")
    sweeps = [path for path in paths if (files.local(path, "RUN") / "study.json").is_file()]
    form = "csv" if flags.FLAGS.csv else "markdown" if flags.FLAGS.markdown else ""
    for path in sweeps:
        sheet = ranked(read(path))
        print(getattr(sheet, form)()) if form else sheet.show(cli.console)
        if not form:
            command = f"python -m analysis report --fast --runs={path} --out=FOLDER"
            cli.say(f"gains with their intervals, as a page: {command}")
    others = [path for path in paths if flags.FLAGS.tables or path not in sweeps]
    if others:
        output([summary for path in others for summary in read(path)])
