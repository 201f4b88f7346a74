"""`correlate`: does the angle between X and X' go with ranking quality, over runs and seeds?

A point is a seed of a run at one place of GCA (`--points=place`), as the paper's figures have one
point per inserted module for two of its backbones; or the mean over the run's places
(`--points=mean`), one point per seed. Runs without GCA have no point.
"""

from __future__ import annotations

import math

import numpy as np
import polars as pl
from absl import flags
from scipy import stats

from analysis import figures, published
from analysis.output import interval, number, read_frame, write_frame
from analysis.resampling import DRAWS, cluster_interval
from analysis.runs import Run, finished
from oa_jax.nn.angles import null_abs_cos
from oa_jax.sheets import Sheet

COVARIATES = ("log_parameters", "hidden_size", "progress")
WITHIN = "within configuration"
FIRST = ("Pearson r", WITHIN)  # what to read first
SCHEMA = {
    "setting": pl.String,
    "domain": pl.String,
    "coefficient": pl.String,
    "value": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "points": pl.Int64,
    "configurations": pl.Int64,
    "published": pl.Float64,
    "note": pl.String,
}


def points_of(
    runs: list[Run],
    statistic: str = "abs_cos",
    metric: str = "ndcg@10",
    points: str = "place",
    measured: pl.DataFrame | None = None,
) -> pl.DataFrame:
    """A row per point: run, variant, setting, backbone, configuration, seed, place, domain, x
    (statistic of the best parameters on the test users), y (test metric), null, covariates.

    metric: `ndcg@10` under the sampled ranking, or with its ranking, `ndcg@10/full`.
    measured: the frame of `orthogonality`, for statistics that summary.json has not.
    """
    rows = []
    for run in finished(runs):
        if not run.places:
            continue
        name = metric if "/" in metric else f"{metric}/{run.candidates}"
        for entry in run.seeds().iter_rows(named=True):
            for domain in "AB":
                values = {
                    place: _statistic(run, entry, place, domain, statistic, measured)
                    for place in map(str, run.places)
                }
                if points == "mean":
                    known = [v for v in values.values() if v is not None]
                    values = {"mean": float(np.mean(known)) if len(known) == len(values) else None}
                y = entry.get(f"test/{domain}/{name}")
                rows += [_row(run, entry, place, domain, x, y) for place, x in values.items()]
    frame = pl.DataFrame(rows, schema_overrides={"x": pl.Float64, "y": pl.Float64})
    return frame.drop_nulls(["x", "y"]) if rows else frame


def _statistic(run, entry, place, domain, statistic, measured):
    value = entry.get(f"best/gca/{place}/{domain}/{statistic}")
    if value is None and measured is not None:
        found = measured.filter(
            run=run.name,
            seed=entry["seed"],
            parameters="best",
            split="test",
            place=int(place),
            domain=domain,
            statistic=statistic,
        )
        value = found["value"][0] if len(found) else None
    return value if value is not None and math.isfinite(value) else None


def _row(run, entry, place, domain, x, y):
    width = run.config["model"]["d_embed"]
    return {
        "run": run.name,
        "variant": run.variant,
        "setting": run.setting,
        "backbone": run.config["backbone"],
        "configuration": run.configuration,
        "seed": entry["seed"],
        "place": place,
        "domain": domain,
        "x": x,
        "y": y,
        "null": null_abs_cos(width),
        "log_parameters": math.log(run.summary["n_parameters"]),
        "hidden_size": float(width),
        "progress": entry["best_epoch"] / max(entry["epochs"], 1),
    }


def pearson(x, y) -> float:
    """Pearson's r; nan when it is undefined: under 3 points, or a constant."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if len(x) < 3 or _is_constant(x) or _is_constant(y):
        return math.nan
    return float(stats.pearsonr(x, y).statistic)


def spearman(x, y) -> float:
    """Spearman's ρ: Pearson's r of the ranks, ties at their mean rank."""
    return pearson(stats.rankdata(x), stats.rankdata(y))


def partial(x, y, covariates_NxC) -> float:
    """Pearson's r of what is left of x and y after least squares on 1 and the covariates.

    nan when fewer than 3 degrees of freedom are left, or nothing is left of x or y.
    """
    c = np.asarray(covariates_NxC, np.float64)
    c = c - c.mean(0)
    scale = c.std(0)
    c = c[:, scale > 1e-12 * (1 + np.abs(covariates_NxC).max(0))]
    design = np.column_stack([np.ones(len(c)), c / c.std(0)])
    if len(c) - np.linalg.matrix_rank(design) < 3:
        return math.nan
    left = []
    for values in (np.asarray(x, np.float64), np.asarray(y, np.float64)):
        fitted = design @ np.linalg.lstsq(design, values, rcond=None)[0]
        rest = values - fitted
        spread = np.linalg.norm(values - values.mean())
        if np.linalg.norm(rest) <= 1e-9 * spread + 1e-12 * np.linalg.norm(values):
            return math.nan
        left.append(rest)
    return pearson(*left)


def within(x, y, groups) -> float:
    """Pearson's r of the deviations from the means of each group; nan without two in a group."""
    labels = np.unique(np.asarray(groups), return_inverse=True)[1]
    counts = np.bincount(labels)
    keep = counts[labels] > 1
    if keep.sum() - len(set(labels[keep])) < 2:
        return math.nan
    deviations = []
    for values in (np.asarray(x, np.float64), np.asarray(y, np.float64)):
        rest = (values - (np.bincount(labels, values) / counts)[labels])[keep]
        if np.abs(rest).max() <= 1e-12 * (np.abs(values).max() + 1e-300):
            return math.nan
        deviations.append(rest)
    return pearson(*deviations)


def leave_one_out(x, y, clusters) -> tuple[float, float]:
    """Least and greatest r when each cluster is left out in turn; nan for fewer than 3."""
    clusters = np.asarray(clusters)
    names = np.unique(clusters)
    if len(names) < 3:
        return math.nan, math.nan
    values = [pearson(x[clusters != name], y[clusters != name]) for name in names]
    defined = [v for v in values if math.isfinite(v)]
    return (min(defined), max(defined)) if defined else (math.nan, math.nan)


def _is_constant(values):
    return np.ptp(values) <= 1e-12 * (np.abs(values).max() + 1e-300)


def correlations(points: pl.DataFrame, draws: int = DRAWS, seed: int = 0) -> pl.DataFrame:
    """Coefficients of x and y for every setting and domain, with cluster bootstrap intervals.

    Whole configurations are drawn, with all of their points; for the correlation within
    configurations, which holds them fixed, whole seeds.
    Columns: `SCHEMA`; an undefined value is null and `note` says why. `published` stands beside
    Pearson's r where the paper prints one for the backbone.
    """
    rows = []
    if not points.is_empty():
        for (setting, domain), part in points.sort(
            "setting", "domain", maintain_order=True
        ).group_by("setting", "domain", maintain_order=True):
            rows += _coefficients(part, setting, domain, draws, np.random.default_rng(seed))
    return pl.DataFrame(rows, schema=SCHEMA)


def _coefficients(part, setting, domain, draws, rng):
    x, y = part["x"].to_numpy(), part["y"].to_numpy()
    clusters = part["configuration"].to_numpy()
    groups = (part["configuration"] + "/" + part["place"]).to_numpy()
    covariates = part.select(COVARIATES).to_numpy()
    count = len(set(clusters))
    found = published.correlation(part["backbone"][0], domain)
    base = {"setting": setting, "domain": domain, "points": len(part), "configurations": count}
    measures = {
        "Pearson r": lambda i: pearson(x[i], y[i]),
        "Spearman ρ": lambda i: spearman(x[i], y[i]),
        "partial r": lambda i: partial(x[i], y[i], covariates[i]),
        WITHIN: lambda i: within(x[i], y[i], groups[i]),
    }
    seeds = part.select(pl.concat_str("configuration", pl.col("seed").cast(pl.String)))
    units = {WITHIN: seeds.to_series().to_numpy()}  # the configurations are held fixed there
    out = []
    for name, measure in measures.items():
        value = measure(np.arange(len(part)))
        row = base | {"coefficient": name, "value": value if math.isfinite(value) else None}
        row["note"] = "" if math.isfinite(value) else _why(name, x, y, count)
        if row["value"] is not None:
            drawn = units.get(name, clusters)
            low, high, lost = cluster_interval(drawn, measure, rng, draws)
            note = _warning(
                len(set(drawn)), low, lost, "seed" if name in units else "configuration"
            )
            row |= {"low": _finite(low), "high": _finite(high), "note": note}
        if name == "Pearson r" and found:
            row["published"] = found["r"]
        out.append(row)
    low, high = leave_one_out(x, y, clusters)
    note = "" if math.isfinite(low) else f"{_plural(count, 'configuration')}: expected at least 3"
    row = base | {"coefficient": "leave one configuration out", "value": None, "note": note}
    return [*out, row | {"low": _finite(low), "high": _finite(high)}]


def _why(name, x, y, count):
    if len(x) < 3:
        return f"undefined: {_plural(len(x), 'point')}, expected at least 3"
    for what, values in (("statistic", x), ("metric", y)):
        if _is_constant(values):
            return f"undefined: the {what} is constant"
    if name == "partial r":
        return "undefined: nothing is left once parameters, width and progress are held fixed"
    if name == WITHIN:
        return "undefined: no configuration with two seeds that differ"
    return f"undefined for these {count} configurations"


def _warning(count, low, lost, unit):
    if count < 3:
        return f"no interval: {_plural(count, unit)}, expected at least 3"
    if not math.isfinite(low):
        return "no interval: undefined in most draws"
    notes = [f"only {count} {unit}s: a rough interval"] if count < 10 else []
    if lost > 0.01:
        notes.append(f"undefined in {lost:.0%} of the draws, which are left out")
    return "; ".join(notes)


def _plural(count, noun):
    return f"{count} {noun}" + ("" if count == 1 else "s")


def _finite(value):
    return value if math.isfinite(value) else None


def missing(runs: list[Run], points: pl.DataFrame) -> str | None:
    """A sentence when there is nothing to correlate."""
    if not points.is_empty():
        return None
    done = finished(runs)
    if not done:
        return "no finished run: nothing to correlate"
    if not any(run.places for run in done):
        return "no finished run with GCA: nothing to correlate"
    return "no seed with both the statistic and the metric: nothing to correlate"


def draw(points: pl.DataFrame, table: pl.DataFrame, statistic: str, metric: str) -> dict:
    """{name: figure}: per setting a panel for each domain, points by variant and place."""
    out = {}
    for (setting,), part in points.group_by("setting", maintain_order=True):
        figure, axes = figures.new_figure(1, 2, 3.3)
        looks = figures.marks(part["variant"].to_list())
        for axis, domain in zip(axes[0], "AB", strict=True):
            here = part.filter(pl.col("domain") == domain)
            _panel(axis, here, looks, statistic)
            axis.set_ylabel(f"test {metric}, domain {domain}")
            rows = table.filter((pl.col("setting") == setting) & (pl.col("domain") == domain))
            figures.title(axis, _title(domain, rows))
        figures.heading(figure, setting)
        figures.legend_below(figure, axes)
        titles = "; ".join(axis.get_title("left") for axis in axes.flat)
        figure.set_label(f"Test {metric} against {statistic} by seed, {setting}. {titles}")
        out[figures.file_name("correlate", setting)] = figure
    return out


def _panel(axis, part, looks, statistic):
    for (variant, place), points in part.group_by("variant", "place", maintain_order=True):
        look = figures.place_style(looks[variant], place)
        label = f"{variant}, {'mean of places' if place == 'mean' else f'place {place}'}"
        axis.plot(points["x"], points["y"], label=label, alpha=0.85, **look)
    if statistic == "abs_cos":
        _draw_nulls(axis, part)
    x, y = part["x"].to_numpy(), part["y"].to_numpy()
    if math.isfinite(pearson(x, y)):
        fit = stats.linregress(x, y)
        ends = np.array([x.min(), x.max()])
        axis.plot(
            ends, fit.intercept + fit.slope * ends, color="#555555", lw=0.9, label="least squares"
        )
    axis.set_xlabel("mean |cos(X, X′)| of a token" if statistic == "abs_cos" else statistic)


def _draw_nulls(axis, part):
    """The null of each width; one that would squeeze the points is named, not drawn."""
    low, high = part["x"].min(), part["x"].max()
    for null in part["null"].unique().sort():
        text = f"null: independent directions ({number(null)}"
        if low - 2 * (high - low) <= null <= high + 2 * (high - low):
            figures.draw_null(axis, null, f"{text})", vertical=True)
        else:
            side = "left" if null < low else "right"
            axis.plot([], [], label=f"{text}, {side} of the axis)", **figures.NULL)


def _title(domain, rows):
    first = rows.filter(coefficient="Pearson r").row(0, named=True)
    value, ends = first["value"], interval(first["low"], first["high"], 2, sign=True)
    text = "r undefined" if value is None else f"r = {number(value, 2, sign=True)} {ends}".strip()
    if first["published"] is not None:
        text += f", paper {number(first['published'], 3, sign=True)}"
    return f"{domain}: {text}"


def define_flags() -> None:
    flags.DEFINE_string("statistic", "abs_cos", "Which statistic of X and X'.")
    flags.DEFINE_enum("points", "place", ["place", "mean"], "A point per place, or their mean.")


def command(runs: list[Run], out, say) -> int:
    """Write correlate_points, correlate (parquet, CSV) and the figures."""
    values = flags.FLAGS
    measured = read_frame(out, "orthogonality")
    points = points_of(runs, values.statistic, values.metric, values.points, measured)
    lack = missing(runs, points)
    if lack:
        say(lack)
        return 0
    table = correlations(points, values.draws)
    write_frame(out, "correlate_points", points)
    write_frame(out, "correlate", table)
    figures.save(out, draw(points, table, values.statistic, values.metric))
    for line in sentences(table):
        say(line)
    return 0


def sentences(table: pl.DataFrame) -> list[str]:
    """A plain line for each coefficient."""
    return [
        f"{row['setting']}, {row['domain']}: {row['coefficient']} {in_words(row)}"
        for row in table.iter_rows(named=True)
    ]


def in_words(row: dict) -> str:
    """Value, interval, the paper's value and the note of a row."""
    parts = [] if row["value"] is None else [number(row["value"], 3, sign=True)]
    parts.append(interval(row["low"], row["high"], 3, sign=True))
    if row["published"] is not None:
        parts.append(f"(paper {number(row['published'], 3, sign=True)})")
    text = " ".join(filter(None, parts))
    return ", ".join(filter(None, [text, row["note"]]))


def sheet(table: pl.DataFrame) -> Sheet:
    """The coefficients as a table for people."""
    header = ["setting", "domain", "coefficient", "value", "95 % interval", "paper"]
    header += ["points", "configurations", "note"]
    rows = [
        [
            *(row["setting"], row["domain"], row["coefficient"]),
            *(number(row["value"], 3, sign=True), interval(row["low"], row["high"], 3, True)),
            "" if row["published"] is None else number(row["published"], 3, sign=True),
            *(str(row["points"]), str(row["configurations"]), row["note"]),
        ]
        for row in table.iter_rows(named=True)
    ]
    return Sheet("Correlation of the statistic with the metric", header, rows, words=3)
