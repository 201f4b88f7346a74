"""`correlate`: does the angle between X and its update go with ranking quality?

A point is a seed of a run at one place of GCA (`--points=place`), or its mean over the places
(`--points=mean`). Runs whose gates have different activations are never pooled: under tanh the sign
of X' is arbitrary.
"""

import itertools
import math

import numpy as np
import polars as pl
from absl import flags
from scipy import stats

from oa_jax.errors import UserError
from oa_jax.nn.angles import null_abs_cos
from oa_jax.sheets import Sheet

from . import figures, published
from .output import columns, interval, number, plural, read_frame, sheet_of, write_frame
from .page import Section
from .resampling import DRAWS, cluster_interval
from .runs import Run, finished
from .statistics import is_constant, leave_one_out, mixed, partial, pearson, spearman, within

COVARIATES = ("log_parameters", "hidden_size", "progress")
WITHIN, OF_WIDTH = "within configuration", "within width"
MIXED = "mixed model"
# By default: both statistics of what is added to X, and the paper's own.
STATISTICS = ("gated_abs_cos", "gated_cos_abs", "cos_abs")
PAPERS = "cos_abs"  # the paper's |cos| is the size of a mean over tokens, of the raw X'
SCHEMA = columns("setting statistic domain coefficient", "points configurations")
SCHEMA |= columns("", "", "value low high published") | columns("note")


def points_of(
    runs: list[Run],
    statistic: str = "abs_cos",
    metric: str = "ndcg@10",
    points: str = "place",
    measured: pl.DataFrame | None = None,
) -> pl.DataFrame:
    """A row per point: run, variant, setting (with the gate and, of X', the part in use: points of
    different ones are never put together), configuration, seed, place, domain, statistic, x (its
    value for the best parameters on the test users), y (test metric), null, covariates, the
    paper's r.

    metric: `ndcg@10` under the sampled ranking, or with its ranking, `ndcg@10/full`. measured: the
    frame of `orthogonality`, for statistics that summary.json has not. null: of a mean |cos|,
    independent random directions; of any other, the untrained model.
    """
    rows = []
    for run in (run for run in finished(runs) if run.places and len(run.seeds())):
        part = "" if run.part == "full" else f", {run.part} part"
        lead = {"run": run.name, "variant": run.variant}
        lead |= {"setting": f"{run.setting} · {run.gate} gate{part}"}
        lead |= {"configuration": run.configuration, "statistic": statistic}
        lead |= {"log_parameters": math.log(run.summary["n_parameters"])}
        lead |= {"hidden_size": float(run.width)}
        seeds = with_measured(run, measured).iter_rows(named=True)
        for entry, domain in itertools.product(seeds, "AB"):
            at = {
                when: [entry.get(f"{when}/gca/{p}/{domain}/{statistic}") for p in run.places]
                for when in ("best", "init")
            }
            places = map(str, run.places)
            if points == "mean":
                places = ["mean"]
                at = {k: [None if None in v else float(np.mean(v))] for k, v in at.items()}
            beside = statistic == PAPERS and published.beside(run)
            r = published.correlation(run.config["backbone"], domain)["r"] if beside else None
            of_seed = {"seed": entry["seed"], "domain": domain}
            of_seed |= {"y": entry.get(f"test/{domain}/{run.full_name(metric)}")}
            of_seed |= {"progress": entry["best_epoch"] / max(entry["epochs"], 1)}
            of_seed |= {"published": r}
            for place, x, start in zip(places, at["best"], at["init"], strict=True):
                null = null_abs_cos(run.width) if statistic.endswith("abs_cos") else start
                rows.append(lead | of_seed | {"place": place, "x": x, "null": null})
    numbers = dict.fromkeys(("x", "y", "null", "published"), pl.Float64)
    frame = pl.DataFrame(rows, schema_overrides=numbers)
    return frame.drop_nulls(["x", "y"]) if rows else frame


def with_measured(run: Run, measured: pl.DataFrame | None) -> pl.DataFrame:
    """run.seeds() with what `orthogonality` measured of its best parameters as further columns."""
    seeds = run.seeds()
    if measured is None:
        return seeds
    found = measured.filter(run=run.name, parameters="best", split="test").drop_nans("value")
    parts = pl.lit("best/gca"), pl.col("place").cast(pl.String), "domain", "statistic"
    found = found.with_columns(name=pl.concat_str(*parts, separator="/"))
    found = found.filter(~pl.col("name").is_in(seeds.columns))
    return seeds.join(found.pivot("name", index="seed", values="value"), on="seed", how="left")


def correlations(points: pl.DataFrame, draws: int = DRAWS) -> pl.DataFrame:
    """Coefficients of x and y for every setting, statistic and domain, with bootstrap intervals.

    Whole configurations are drawn, with all of their points; for the correlation within
    configurations, which holds them fixed, whole seeds. Columns: `SCHEMA`; an undefined value is
    null, `note` says why; `published` is beside Pearson's r of the paper's statistic on its data.
    """
    rows, keys = [], ("setting", "statistic", "domain")
    if not points.is_empty():
        for key, part in points.sort(keys, maintain_order=True).group_by(keys, maintain_order=True):
            lead = dict(zip(keys, key, strict=True)) | {"points": len(part)}
            lead["configurations"] = part["configuration"].n_unique()
            rows += [lead | row for row in _coefficients(part, draws, np.random.default_rng(0))]
    return pl.DataFrame(rows, schema=SCHEMA).fill_nan(None)


def _coefficients(part, draws, rng):
    x, y = part["x"].to_numpy(), part["y"].to_numpy()
    clusters = part["configuration"].to_numpy()
    groups = (part["configuration"] + "/" + part["place"]).to_numpy()
    covariates = part.select(COVARIATES).to_numpy()
    count, distinct = len(set(clusters)), len(set(zip(x, y, strict=True)))
    # Two of the covariates are constant in a configuration: with few of them nothing is left.
    least = 3 + sum(not is_constant(column) for column in covariates.T)
    by_seed = part["configuration"] + part["seed"].cast(pl.String)
    whole, seeds = ("configuration", clusters), ("seed", by_seed.to_numpy())
    measures = {
        "Pearson r": (lambda i: pearson(x[i], y[i]), whole),
        "Spearman ρ": (lambda i: spearman(x[i], y[i]), whole),
        "partial r": (lambda i: partial(x[i], y[i], covariates[i]), whole),
        # The configurations are held fixed there, so seeds are what varies.
        WITHIN: (lambda i: within(x[i], y[i], groups[i]), seeds),
        OF_WIDTH: (lambda i: within(x[i], y[i], covariates[i, 1]), whole),
    }
    out = []
    for name, (measure, (unit, drawn)) in measures.items():
        needed = {"partial r": least, WITHIN: 1}.get(name, 2)
        enough = distinct >= 3 and count >= needed
        row = {"coefficient": name, "value": measure(np.arange(len(x))) if enough else math.nan}
        free = 3 + len(set(groups))  # of fewer points, draws of two give r = ±1
        if not math.isfinite(row["value"]):
            row["note"] = _why(name, x, y, count, needed, distinct)
        elif name == WITHIN and len(x) < free:
            row["note"] = f"no interval: {plural(len(x), 'point')}, expected at least {free}"
        else:
            low, high, lost = cluster_interval(drawn, measure, rng, draws)
            row["low"], row["high"] = np.clip([low, high], -1, 1).tolist()
            row["note"] = _warning(len(set(drawn)), low, lost, unit)
        out.append(row)
    out[0]["published"] = part["published"][0]
    # The places of a seed share its y: as points of their own they would count too much.
    seeds = part.group_by("configuration", "seed", maintain_order=True).agg(pl.col("x", "y").mean())
    both = seeds["x"].to_numpy(), seeds["y"].to_numpy()
    slope, low, high = mixed(*both, seeds["configuration"]) if distinct >= 3 else [math.nan] * 3
    note = "" if math.isfinite(slope) else _why(MIXED, *both, count, 2, distinct)
    out.append({"coefficient": MIXED, "value": slope, "low": low, "high": high, "note": note})
    low, high = leave_one_out(x, y, clusters)
    note = "" if math.isfinite(low) else f"{plural(count, 'configuration')}: expected at least 3"
    row = {"coefficient": "leave one configuration out", "low": low, "high": high, "note": note}
    return [*out, row]


def _why(name, x, y, count, needed, distinct):
    if distinct < 3:
        return f"undefined: {plural(distinct, 'distinct point')}, expected at least 3"
    for what, values in (("statistic", x), ("metric", y)):
        if is_constant(values):
            return f"undefined: the {what} is constant"
    if count < needed:
        more = ", 3 more than covariates" if name == "partial r" else ""
        found = plural(count, "configuration")
        return f"not computed: {found}, expected at least {needed}{more}"
    if name == MIXED and len(x) < 2 * count:
        return "not computed: fewer than two seeds for each configuration"
    if name == "partial r":
        return "undefined: nothing is left once parameters, width and progress are held fixed"
    if name == WITHIN:
        return "undefined: no configuration with two seeds that differ"
    return f"undefined for {plural(count, 'configuration')}"


def _warning(count, low, lost, unit):
    if count < 3:
        return f"no interval: {plural(count, unit)}, expected at least 3"
    if not math.isfinite(low):
        return "no interval: undefined in most draws"
    notes = [f"only {count} {unit}s: a rough interval"] if count < 10 else []
    if lost > 0.01:
        notes.append(f"undefined in {lost:.0%} of the draws, which are left out")
    return "; ".join(notes)


def missing(runs: list[Run], points: pl.DataFrame) -> str | None:
    """A sentence when there is nothing to correlate."""
    if not points.is_empty():
        return None
    what = "finished run" if not finished(runs) else "finished run with GCA"
    if any(run.places for run in finished(runs)):
        what = "seed with both the statistic and the metric"
    return f"no {what}: nothing to correlate"


@figures.for_each("setting", "statistic")
def draw(part: pl.DataFrame, setting: str, statistic: str, table: pl.DataFrame, metric: str):
    """The points of a setting and statistic, with those coefficients, a panel for each domain."""
    rows = table.filter(coefficient="Pearson r", setting=setting, statistic=statistic)
    looks = figures.marks(part["variant"].to_list())
    of = "α ⊙ X′" if statistic.startswith("gated_") else "X′"
    named = {"abs_cos": f"mean |cos(X, {of})| of a token", "cos_abs": f"|mean cos(X, {of})|"}
    metric = metric if "/" in metric else f"{metric}/{setting.split(' · ')[3]}"

    def panel(axis, domain):
        mine = part.filter(domain=domain)
        for (variant, place), points in mine.group_by("variant", "place", maintain_order=True):
            look = figures.point_style(looks[variant], place)
            label = f"{variant}, {'mean of places' if place == 'mean' else f'place {place}'}"
            axis.plot(points["x"], points["y"], label=label, alpha=0.85, **look)
        if statistic.endswith("cos_abs"):
            null = mine["null"].mean()
            _draw_null(axis, mine, "untrained models", [] if null is None else [null])
        elif statistic.endswith("abs_cos"):
            _draw_null(axis, mine, "independent directions", mine["null"].unique().sort())
        x, y = mine["x"].to_numpy(), mine["y"].to_numpy()
        if math.isfinite(pearson(x, y)):
            fit, ends = stats.linregress(x, y), np.array([x.min(), x.max()])
            line = {"color": "#555555", "lw": 0.9, "label": "least squares"}
            axis.plot(ends, fit.intercept + fit.slope * ends, **line)
        name = named.get(statistic.removeprefix("gated_"), statistic)
        axis.set(xlabel=name, ylabel=f"test {metric}, domain {domain}")
        for row in rows.filter(domain=domain).iter_rows(named=True):
            r = number(row["value"], 2, sign=True)
            text = f"r = {r} {interval(row['low'], row['high'], 2, sign=True)}".strip()
            text = "r undefined" if row["value"] is None else text
            of_paper = f", paper {paper(row)}" if paper(row) else ""
            figures.title(axis, f"{domain}: {text}{of_paper}")

    label = f"Test {metric} against {statistic} by seed, {setting}"
    name, heading = f"correlate_{statistic}", f"{setting}: {statistic}"
    return figures.by_domain(name, setting, panel, heading, label, 3.3)


def _draw_null(axis, part, what, nulls):
    """The null of each width; one that would squeeze the points is named, not drawn."""
    low, high = part["x"].min(), part["x"].max()
    for null in nulls:
        text = f"null: {what} ({number(null)}"
        if low - 2 * (high - low) <= null <= high + 2 * (high - low):
            axis.axvline(null, label=f"{text})", **figures.NULL)
        else:
            side = "left" if null < low else "right"
            axis.plot([], [], label=f"{text}, {side} of the axis)", **figures.NULL)


def define_flags() -> None:
    meaning = "Statistics of X and its update, such as gated_abs_cos, or of `orthogonality`."
    flags.DEFINE_list("statistic", list(STATISTICS), meaning)
    flags.DEFINE_enum("points", "place", ["place", "mean"], "A point per place, or their mean.")


def check_statistics(runs: list[Run], names, measured: pl.DataFrame | None) -> None:
    """Raise UserError for a --statistic that no run has, naming those that there are."""
    of_gca = [with_measured(run, measured) for run in finished(runs) if run.places]
    columns = (n for seeds in of_gca for n in seeds.columns if n.startswith("best/gca/"))
    known = list(dict.fromkeys(name.split("/")[-1] for name in columns))
    for name in names if of_gca else ():
        if name not in [*known, *STATISTICS]:  # older runs lack some of these
            expected = f"expected some of {', '.join(known[:40])}"
            raise UserError(f"--statistic={name}: no such statistic: {expected}")
    if not names:
        raise UserError(f"--statistic=: empty: expected some such as {', '.join(STATISTICS)}")


def section(runs: list[Run], out, options) -> Section:
    """Coefficients and points of options.statistic against options.metric."""
    how = (
        "A point is a seed at one place of GCA. Seeds of one configuration are alike, so intervals "
        "draw whole configurations. 'Partial' holds parameters, width and training progress "
        "fixed; 'within configuration' compares the seeds of a configuration only, where neither "
        "size nor design differs, 'within width' the points of one width; 'mixed model' is the "
        "slope in standard deviations with a random intercept for each configuration. Gates of "
        "different activation are never pooled: under tanh the sign of X′ is arbitrary. The "
        "paper's r, of |mean cos|, has no interval and mixes configurations and gates; it stands "
        "beside runs on its data only."
    )
    measured = read_frame(out, "orthogonality", runs)
    check_statistics(runs, options.statistic, measured)
    asked = options.metric, options.points, measured
    found = [points_of(runs, statistic, *asked) for statistic in dict.fromkeys(options.statistic)]
    points = pl.concat([f for f in found if not f.is_empty()] or found[:1])
    if lack := missing(runs, points):
        return Section("Angle and quality", how, missing=[lack])
    frame = correlations(points, options.draws)
    write_frame(out, "correlate_points", points)
    write_frame(out, "correlate", frame)
    drawn = draw(points, frame, options.metric)
    read_first = points["statistic"][0]
    first = frame.filter(coefficient="Pearson r", statistic=read_first)
    short = f"Does a smaller |cos| go with a better ranking? {read_first}: " + "; ".join(
        f"{r['setting']}, {r['domain']} {in_words(r)}" for r in first.iter_rows(named=True)
    )
    return Section("Angle and quality", how, short + ".", [], [], [sheet(frame)], drawn)


def paper(row: dict) -> str:
    """The paper's value, where it has one."""
    return "" if row["published"] is None else number(row["published"], 3, sign=True)


def in_words(row: dict) -> str:
    """Value, interval, the paper's value and the note of a row."""
    parts = [] if row["value"] is None else [number(row["value"], 3, sign=True)]
    parts.append(interval(row["low"], row["high"], 3, sign=True))
    parts += [f"(paper {paper(row)})"] if paper(row) else []
    text = " ".join(filter(None, parts))
    return ", ".join(filter(None, [text, row["note"]]))


def sheet(table: pl.DataFrame) -> Sheet:
    """The coefficients as a table for people."""
    cells = {name: name for name in ("setting", "statistic", "domain", "coefficient")}
    cells |= {"value": lambda r: number(r["value"], 3, sign=True)}
    cells |= {"95 % interval": lambda r: interval(r["low"], r["high"], 3, sign=True)}
    cells |= {"paper": paper}
    cells |= {name: name for name in ("points", "configurations", "note")}
    title = "Correlation of the statistic with the metric"
    return sheet_of(table, title, 4, cells)
