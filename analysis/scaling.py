"""`scaling`: quality against parameters, and how many parameters a baseline needs to keep up.

The parameter ratio of a GCA variant is N*/N, where N* is the size at which the baseline's curve
reaches the variant's quality: the paper's claim is 1.3 to 1.4. The curve is the baseline's means
made monotone (isotonic regression, weights: seeds) and joined by a monotone cubic (PCHIP) over
log parameters. Outside its range there is no ratio, only a bound.
"""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import polars as pl
from scipy import interpolate, optimize

from oa_jax.sheets import Sheet

from . import figures, published
from .output import columns, number, plural, sheet_of, write_frame
from .page import Section
from .resampling import DRAWS, TAIL, t_over_normal
from .runs import Run, check_metric, finished

SCHEMA = columns("setting domain variant", "parameters")
SCHEMA |= columns("", "", "quality ratio more_than less_than low high") | columns("note")


@dataclasses.dataclass(frozen=True)
class Point:
    """A model size with the quality of its seeds, or, where only these are known, mean and se."""

    setting: str
    domain: str
    variant: str
    parameters: int
    quality: float
    sd: float
    n_seeds: int
    values: tuple[float, ...] = ()
    source: str = ""

    def drawn(self, rng, draws: int):
        """(draws,) means of resampled seeds; of a normal, where only mean and sd are known.

        The seeds' deviations are widened by √(S/(S-1)), as resampled ones vary too little by that,
        and by what Student's t is wider than a normal.
        """
        # A ratio rests on the seeds of the variant and, halved, of its two neighbours on the curve:
        # by Satterthwaite's formula that is 2 (S - 1) degrees of freedom.
        wider = t_over_normal(2 * (self.n_seeds - 1))
        if not self.values:
            return rng.normal(self.quality, wider * self.sd / math.sqrt(self.n_seeds), draws)
        means = rng.choice(self.values, (draws, len(self.values))).mean(1)
        wider *= math.sqrt(self.n_seeds / (self.n_seeds - 1))
        return self.quality + wider * (means - self.quality)


class Curve:
    """Quality of the baseline as a monotone function of its parameters, for D draws at once."""

    def __init__(self, sizes, quality, weights=None):
        """sizes: (P,); quality: (P,) or (D, P); weights: (P,), such as the number of seeds.

        Points of one size are averaged. Raises ValueError with fewer than 2 different sizes.
        """
        quality_DxP = np.atleast_2d(np.asarray(quality, np.float64))
        weights = np.ones(len(sizes)) if weights is None else np.asarray(weights, np.float64)
        self.sizes, where = np.unique(np.asarray(sizes, np.float64), return_inverse=True)
        if len(self.sizes) < 2:
            raise ValueError(f"sizes: found {self.sizes}, expected at least 2 different ones")
        member_PxU = np.eye(len(self.sizes))[where] * weights[:, None]
        total_U = member_PxU.sum(0)
        fitted = [
            optimize.isotonic_regression(row, weights=total_U).x
            for row in quality_DxP @ member_PxU / total_U
        ]
        self.quality_DxU = np.array(fitted)
        self._cubic = interpolate.PchipInterpolator(np.log(self.sizes), self.quality_DxU, axis=1)

    def __call__(self, sizes):
        """(D, N) quality at these N sizes, which must lie within those of the curve."""
        return self._cubic(np.log(sizes))

    def size_for(self, quality):
        """(D,) smallest size of this quality, a number or (D,); inf above the curve, 0 below."""
        quality_D = np.broadcast_to(quality, len(self.quality_DxU))
        reached_DxU = self.quality_DxU >= quality_D[:, None]
        at_D = np.maximum(np.argmax(reached_DxU, 1), 1)
        draws = np.arange(len(at_D))
        # Coefficients of the cubic between the points at - 1 and at: (4, D), highest power first.
        cubic = self._cubic.c[:, at_D - 1, draws]
        low = np.zeros(len(at_D))
        high = width = np.diff(np.log(self.sizes))[at_D - 1]
        for _ in range(60):  # halvings, to the last bit
            middle = (low + high) / 2
            enough = np.polyval(cubic, middle) >= quality_D
            low, high = np.where(enough, low, middle), np.where(enough, middle, high)
        found = np.exp(np.log(self.sizes)[at_D - 1] + np.minimum(high, width))
        found = np.where(self.quality_DxU[:, 0] == quality_D, self.sizes[0], found)
        found = np.where(self.quality_DxU[:, 0] > quality_D, 0.0, found)
        return np.where(reached_DxU.any(1), found, np.inf)


def points_of(runs: list[Run], metric: str = "ndcg@10") -> list[Point]:
    """A point for each configuration and domain: seeds of equal configurations are put together."""
    pooled: dict[tuple, list] = {}
    for run, domain in itertools.product(finished(runs), "AB"):
        seeds, name = run.seeds(), f"test/{domain}/{run.full_name(metric)}"
        values = seeds[name].drop_nulls().to_list() if name in seeds.columns else []
        if values:
            key = (run.setting, domain, run.configuration)
            pooled.setdefault(key, []).append((run, values))
    points = []
    for (setting, domain, _), found in pooled.items():
        run, values = found[0][0], tuple(value for _, of_run in found for value in of_run)
        sd = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
        of_size = run.variant, int(run.summary["n_parameters"]), float(np.mean(values)), sd
        names = ", ".join(run.name for run, _ in found)
        points.append(Point(setting, domain, *of_size, len(values), values, names))
    return sorted(points, key=lambda p: (p.setting, p.domain, p.parameters))


def published_points() -> list[Point]:
    """The paper's figures of quality against parameters, to go through the same code.

    They have no seeds: every point takes the sd that Table 1 states for its variant over 5 seeds.
    Where a figure draws a point against Table 1, the series of its data come a second time, with
    Table 1's values.
    """
    drawn, right, contradicted = [], [], set()
    for series in published.paper()["model_comparison"]["series"]:
        setting = f"{series['model']} · {series['dataset']}"
        domain, variant = series["domain"], series["variant"]
        plain = series["dataset"].split(" (")[0].lower().replace("-", "_")
        mean, sd = published.table1(series["model"], plain)[variant][f"{domain}/ndcg@10"]
        first, *more = (Point(setting, domain, variant, *at, sd, 5) for at in series["points"])
        wrong = abs(mean - first.quality) > 0.001
        contradicted |= {setting} if wrong else set()
        drawn += [first, *more]
        right += [dataclasses.replace(first, quality=mean) if wrong else first, *more]
    again = [point for point in right if point.setting in contradicted]
    return [
        dataclasses.replace(point, setting=f"{point.setting} · {text}")
        for text, points in (("as drawn", drawn), ("as in Table 1", again))
        for point in points
    ]


def ratios(points: list[Point], draws: int = DRAWS, seed: int = 0) -> pl.DataFrame:
    """Parameter ratio at equal quality of every point that is no baseline. Columns: `SCHEMA`.

    The interval is that of the resampled seeds of the variant and of every baseline; a draw above
    or below the curve counts as a ratio of inf or 0, and an end of the interval that falls there
    is null, which `note` says. Off the curve there is no ratio, but a bound: more_than, less_than.
    """
    rows = []
    for point in (p for p in points if p.variant != "baseline"):
        beside = [p for p in points if (p.setting, p.domain) == (point.setting, point.domain)]
        baselines = [p for p in beside if p.variant == "baseline"]
        row = {"setting": point.setting, "domain": point.domain, "variant": point.variant}
        row |= {"parameters": point.parameters, "quality": point.quality}
        rows.append(row | _ratio(point, baselines, draws, np.random.default_rng(seed)))
    return pl.DataFrame(rows, schema=SCHEMA)


def _ratio(point, baselines, draws, rng):
    sizes, weights = [p.parameters for p in baselines], [p.n_seeds for p in baselines]
    if len(set(sizes)) < 2:
        found = plural(len(set(sizes)), "baseline size")
        return {"note": f"no curve: {found}, expected at least 2 different ones"}
    curve = Curve(sizes, [p.quality for p in baselines], weights)
    size = float(curve.size_for(point.quality)[0])
    out, notes = {"ratio": size / point.parameters}, []
    if not 0 < size < math.inf:  # off the curve there is a bound
        end, side, bound = (-1, "above", "more_than") if size else (0, "below", "less_than")
        out = {bound: float(curve.sizes[end] / point.parameters)}
        notes.append(
            f"{point.quality:.4f} is {side} the baseline's curve (which ends with "
            f"{curve.quality_DxU[0, end]:.4f} at {curve.sizes[end]:,.0f}): the ratio is "
            f"{bound.replace('_', ' ')} {out[bound]:.2f}, not extrapolated"
        )
    if any(math.isnan(p.sd) for p in [point, *baselines]):
        return out | {"note": "; ".join([*notes, "no interval: a size with a single seed"])}
    drawn_DxP = np.column_stack([p.drawn(rng, draws) for p in baselines])
    drawn = Curve(sizes, drawn_DxP, weights).size_for(point.drawn(rng, draws))
    # A method that takes one of the draws: between a number and infinity there is no middle.
    ends = np.quantile(drawn / point.parameters, [TAIL, 1 - TAIL], method="inverted_cdf")
    shares = {"above": np.isinf(drawn).mean(), "below": (drawn == 0).mean()}
    parts = [f"{s:.0%} {side}" if s >= 0.01 else f"<1% {side}" for side, s in shares.items() if s]
    if parts:
        notes.append(f"of the draws, {' and '.join(parts)} the baseline's range")
    inside = {k: float(v) for k, v in zip(("low", "high"), ends, strict=True) if 0 < v < math.inf}
    return out | inside | {"note": "; ".join(notes)}


def draw(points: list[Point], metric: str, table: pl.DataFrame) -> dict:
    """{name: figure}: per setting a panel for each domain, the curve and the ratios' arrows."""
    names = dict.fromkeys(point.setting for point in points)
    groups = {name: [p for p in points if p.setting == name] for name in names}
    return dict(
        _drawn(here, table.filter(setting=setting), setting, metric)
        for setting, here in groups.items()
        if len({p.parameters for p in here}) > 1  # else nothing to compare
    )


def _drawn(points, table, setting, metric):
    large = max(p.parameters for p in points) >= 1e6
    unit, name = (1e6, "millions") if large else (1e3, "thousands")
    looks = figures.marks([p.variant for p in points])

    def panel(axis, domain):
        _panel(axis, [p for p in points if p.domain == domain], looks, unit)
        rows = table.filter(domain=domain).drop_nulls("ratio")
        arrow = {"arrowstyle": "->", "color": "#555555", "linestyle": ":"}
        arrow |= {"shrinkA": 0, "shrinkB": 4}
        for row in rows.iter_rows(named=True):
            ends = [(row["parameters"] * k / unit, row["quality"]) for k in (row["ratio"], 1.0)]
            if abs(row["ratio"] - 1) >= 0.01:  # shorter ones cannot be seen
                axis.annotate("", xy=ends[0], xytext=ends[1], arrowprops=arrow)
        axis.locator_params("x", nbins=6)
        axis.set(xlabel=f"parameters ({name})", ylabel=f"test {metric}, domain {domain}")
        first = rows.group_by("variant", maintain_order=True).first().iter_rows(named=True)
        known = ", ".join(f"{row['variant']} {number(row['ratio'], 2)}" for row in first)
        text = f"parameter ratio {known}" if known else "no ratio within the baseline's range"
        figures.title(axis, f"{domain}: {text}")

    label = f"Test {metric} against parameters, {setting}"
    return figures.by_domain("scaling", setting, panel, setting, label, 3.1)


def _panel(axis, points, looks, unit):
    for variant in dict.fromkeys(p.variant for p in points):
        here = sorted((p for p in points if p.variant == variant), key=lambda p: p.parameters)
        x = [p.parameters / unit for p in here]
        sd = [0.0 if math.isnan(p.sd) else p.sd for p in here]
        style = figures.point_style(looks[variant]) | {"capsize": 2, "elinewidth": 0.8}
        axis.errorbar(x, [p.quality for p in here], yerr=sd, label=f"{variant} (± sd)", **style)
    baselines = [p for p in points if p.variant == "baseline"]
    if len({p.parameters for p in baselines}) < 2:
        return
    fields = ("parameters", "quality", "n_seeds")
    curve = Curve(*([getattr(p, name) for p in baselines] for name in fields))
    sizes = np.geomspace(curve.sizes[0], curve.sizes[-1], 200)
    axis.plot(sizes / unit, curve(sizes)[0], color="#555555", lw=1, label="baseline, monotone")


def frame(points: list[Point]) -> pl.DataFrame:
    """The points as a table."""
    rows = [dataclasses.asdict(point) for point in points]
    whole = pl.DataFrame(rows, schema_overrides={"sd": pl.Float64, "values": pl.List(pl.Float64)})
    return whole.drop("values", strict=False).fill_nan(None)


def value(row: dict) -> str:
    """The ratio, or the side of its bound on which it lies."""
    for sign, name in ((">", "more_than"), ("<", "less_than")):
        if row[name] is not None:
            return f"{sign} {number(row[name], 2)}"
    return number(row["ratio"], 2)


def bounds(row: dict) -> str:
    """The interval of a ratio; where one of its ends lies outside the range, what is known."""
    if row["low"] is None and row["high"] is None:
        return ""
    sides = {"low": "below the range", "high": "above the range"}
    ends = (side if row[end] is None else number(row[end], 2) for end, side in sides.items())
    return f"[{', '.join(ends)}]"


def sheet(table: pl.DataFrame, title: str) -> Sheet:
    """The ratios as a table for people."""
    cells = {name: name for name in ("setting", "domain", "variant")}
    cells |= {"parameters": lambda r: f"{r['parameters']:,}"}
    cells |= {"quality": lambda r: number(r["quality"], 4), "ratio": value}
    cells |= {"95 % interval": bounds, "note": lambda r: r["note"] or ""}
    return sheet_of(table, title, 3, cells)


def section(runs: list[Run], out, options) -> Section:
    """Ratios of these runs, and of the paper's points for their backbones."""
    how = (
        "N*/N: how many times the parameters of a GCA variant a baseline needs to rank as well. "
        "The baseline's curve is made monotone and joined over log parameters; nothing is said "
        "beyond its ends but a bound. Intervals resample the seeds of every size."
    )
    check_metric(options.metric, runs)
    points, paper = points_of(runs, options.metric), published_points()
    lack = [] if points else ["no finished run with this metric: nothing to scale"]
    found, of_paper = ratios(points, options.draws), ratios(paper, options.draws)
    write_frame(out, "scaling_points", frame(points + paper))
    write_frame(out, "scaling", pl.concat([found, of_paper]))
    backbones = tuple(f"{run.config['backbone'].upper()} " for run in runs)
    shown = [point for point in paper if point.setting.startswith(backbones)]
    of_paper = of_paper.filter(pl.col("setting").is_in([p.setting for p in shown]))
    drawn = draw(points, options.metric, found) | draw(shown, "NDCG@10", of_paper)
    titles = ("Parameter ratio at equal quality", "The same for the points of the paper's figures")
    sheets = [sheet(t, title) for t, title in zip((found, of_paper), titles, strict=True) if len(t)]
    known = [
        f"{r['variant']} {r['domain']} {number(r['ratio'], 2)} {bounds(r)}".strip()
        for r in found.drop_nulls("ratio").iter_rows(named=True)
    ]
    short = "How many more parameters does a baseline need? "
    short += f"Ratios at equal quality: {', '.join(known)}." if known else "Not known: "
    short += "" if known or found.is_empty() else f"{found['note'][0]}."
    short = short if len(found) else ""
    return Section("Quality and parameters", how, short, [], lack, sheets, drawn)
