"""`verdicts`: results that would refute the paper's mechanism (`CONDITIONS`), and what runs say.

A condition is `met` where its interval lies on its side, `not met` where it lies on the other,
`open` where it covers both or there is too little, which the note says. All are of plain GCA: other
fusions, sources, parts and penalties are controls and do not decide.
"""

import math

import numpy as np
import polars as pl

from . import correlate
from .differences import few
from .output import columns, interval, number, plural, sheet_of, write_frame
from .page import Section
from .resampling import DRAWS, for_worst_of, mean_interval
from .runs import Run, finished
from .scaling import scores_of
from .statistics import pearson
from .table import gains

ORTHOGONAL = 0.5  # a mean |cos| above it is no orthogonality
MATCHED = 0.03  # the difference in parameters at which a baseline counts as equal
SCHEMA = columns("condition setting domain verdict", "runs") | columns("", "", "value low high")
SCHEMA |= columns("note")
CONDITIONS = {
    "not orthogonal": "mean |cos(X, α ⊙ X′)| is above 0.5",
    "positive": "|cos(X, α ⊙ X′)| goes with quality positively (r within width)",
    "parameters": "a baseline of equal parameters is as good (gain over it, worst plain run)",
    "follows Y": "over data sets |cos(X, X′)| follows |cos(X, Y)| (r)",
}


def verdicts(runs: list[Run], metric: str = "ndcg@10/full", draws: int = DRAWS) -> pl.DataFrame:
    """A row per condition, setting and domain; columns `SCHEMA`. value: the mean, the r or the gain
    that decides, with its 95 % interval."""
    plain = [run for run in runs if run.variant == run.placement]
    points = correlate.points_of(plain, "gated_abs_cos", metric, "mean")
    rows = [] if points.is_empty() else [*_orthogonal(points), *_positive(points, draws)]
    rows += [*_parameters(plain, metric, draws), *_follows(plain, metric)]
    return pl.DataFrame(rows, schema=SCHEMA).fill_nan(None)


def _row(condition, setting, domain, n_runs, value, low, high, bound, note=""):
    """bound: below it the condition is not met, above it it is."""
    verdict = "met" if low > bound else "not met" if high < bound else "open"  # also with nan
    row = condition, setting, domain, verdict, n_runs, value, low, high, note
    return dict(zip(SCHEMA, row, strict=True))


def _orthogonal(points):
    """The mean over configurations, each of which counts once."""
    for (setting, domain), part in points.group_by("setting", "domain", maintain_order=True):
        means = part.group_by("configuration", maintain_order=True).agg(pl.col("x").mean())
        x = means["x"].to_numpy()
        note = f"above it: {(x > ORTHOGONAL).sum()} of {plural(len(x), 'configuration')}"
        row = "not orthogonal", setting, domain, len(x), *np.clip(mean_interval(x), 0, 1).tolist()
        yield _row(*row, ORTHOGONAL, note)


def _positive(points, draws):
    # Among the configurations of a width, as the width moves angle and quality.
    found = correlate.correlations(points, draws).filter(coefficient=correlate.OF_WIDTH)
    for row in found.iter_rows(named=True):
        numbers = [math.nan if row[k] is None else row[k] for k in ("value", "low", "high")]
        lead = "positive", row["setting"], row["domain"], row["configurations"]
        yield _row(*lead, *numbers, 0.0, row["note"] or "")


def _parameters(runs, metric, draws):
    """Of each setting the run of plain GCA that gains least over its equal."""
    name, _, ranking = metric.partition("/")
    found: dict[tuple[str, str], list] = {}
    for run in finished(runs):
        equal = equal_of(run, runs) if run.places else None
        if equal is None:
            continue
        frame, notes = gains([run, equal], equal.name, (name,), draws)
        frame = frame.filter(run=run.name, ranking=ranking or run.candidates)
        for row in frame.drop_nulls("gain").iter_rows(named=True):
            row["note"] = "; ".join([f"{run.name} on {equal.name}", *notes])
            found.setdefault((run.setting, row["domain"]), []).append(row)
    for key, rows in found.items():
        worst = min(rows, key=lambda row: row["gain"])
        gain, low, high, note = (worst[name] for name in ("gain", "low", "high", "note"))
        known = worst["least_seeds"] > 1 and low is not None
        if len(rows) > 1:
            note += f"; the worst of {len(rows)} runs"
            if known and worst["df"] is not None:
                wider = for_worst_of(len(rows), worst["df"])
                low, high = gain + wider * (low - gain), gain + wider * (high - gain)
                note += ", its interval by Bonferroni's correction"
        # As good or better is a gain below 0: the sign is turned for the bound.
        ends = (-high, -low) if known else (math.nan, math.nan)
        row = _row("parameters", *key, len(rows), -gain, *ends, 0.0, note)
        yield row | {"value": gain, "low": low, "high": high}


def equal_of(run: Run, runs: list[Run]) -> Run | None:
    """Of the baselines of the same setting with as many parameters within 3 %, the one that is best
    on validation."""
    n = run.summary["n_parameters"]
    others = [r for r in finished(runs) if r.setting == run.setting and not r.places]
    near = [r for r in others if abs(r.summary["n_parameters"] / n - 1) <= MATCHED]
    near = [r for r in near if r.ranked_by == run.ranked_by]
    return max(near, key=lambda r: np.mean(scores_of(r) or [-1.0]), default=None)


def _follows(runs, metric):
    """r over data sets of the means of both statistics, by backbone, protocol, gate and width;
    Fisher's interval."""
    raw = correlate.points_of(runs, "abs_cos", metric, "mean")
    other = correlate.points_of(runs, "xy_abs_cos", metric, "mean")
    if raw.is_empty() or other.is_empty():
        return
    parts = pl.col("setting").str.split(" · ").list  # as `Run.setting` has them, and the gate
    places = {"of": (0, 2, -1), "data": (1, -2)}
    keys = {k: pl.concat_str(*map(parts.get, at), separator=" · ") for k, at in places.items()}
    keys["data"] = keys["data"].str.replace(r"(data \w+).*", "${1}")  # other users, tables, ties
    keys["of"] = pl.format("{} · d={}", keys["of"], pl.col("hidden_size").cast(pl.Int64))
    frames = (frame.group_by("domain", maintain_order=True, **keys) for frame in (raw, other))
    raw, other = (frame.agg(pl.col("x").mean()) for frame in frames)
    joined = raw.join(other, on=["domain", *keys], suffix="_y", maintain_order="left")
    for (name, domain), part in joined.group_by("of", "domain", maintain_order=True):
        n, r, low, high = len(part), pearson(part["x"], part["x_y"]), math.nan, math.nan
        if n > 3 and abs(r) < 1:
            half = 1.96 / math.sqrt(n - 3)
            low, high = np.tanh([np.arctanh(r) - half, np.arctanh(r) + half]).tolist()
        used = few(part["data"].to_list()) if n > 3 else "expected at least 4"
        note = f"{plural(n, 'data set')}: {used}"
        yield _row("follows Y", str(name), domain, n, r, low, high, 0.0, note)


def section(runs: list[Run], out, options) -> Section:
    """The conditions and what these runs say of them."""
    frame = verdicts(runs, options.metric, options.draws)
    conditions = "; ".join(CONDITIONS.values())
    how = f"What would refute the mechanism, each with its interval: {conditions}"
    title = "What would refute it"
    if frame.is_empty():
        return Section(title, how, missing=["no finished run with GCA: nothing to judge"])
    write_frame(out, "verdicts", frame)
    found = frame["verdict"].to_list()
    short = ", ".join(f"{found.count(v)} {v}" for v in ("met", "not met", "open"))
    cells = {"condition": lambda r: CONDITIONS[r["condition"]]}
    cells |= {name: name for name in ("setting", "domain", "verdict")}
    cells |= {"value": lambda r: number(r["value"], 4, sign=True)}
    cells |= {"95 % interval": lambda r: interval(r["low"], r["high"], 4, sign=True)}
    cells |= {"runs": "runs", "note": "note"}
    sheet = sheet_of(frame, "Conditions that would refute it", 4, cells)
    return Section(title, how, f"Conditions against it: {short}.", [], [], [sheet])
