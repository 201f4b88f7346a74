"""`scaling`: quality against parameters, and how many parameters a baseline needs to keep up.

The parameter ratio of a GCA variant is N*/N, where N* is the size at which the baseline's curve
reaches the variant's quality: the paper's claim is 1.3 to 1.4. The curve is the baseline's means
made monotone (isotonic regression, weights: seeds) and joined by a monotone cubic (PCHIP) over
log parameters. Outside its range there is no ratio, only a bound.
"""

import itertools
import json
import math

import numpy as np
import polars as pl
from scipy import interpolate, optimize

from oa_jax.runs.index import score_of
from oa_jax.sheets import Sheet

from . import figures, published
from .differences import differing_fields, few, follows
from .output import columns, number, plural, sheet_of, write_frame
from .page import Section
from .resampling import DRAWS, TAIL, t_over_normal
from .runs import Run, finished

SCHEMA = columns("setting domain variant", "parameters")
SCHEMA |= columns("", "", "quality ratio more_than less_than low high") | columns("note")
# A point is a model size with the quality of its seeds; `values` is null where only their mean and
# sd are known.
POINTS = columns("setting domain variant", "parameters", "quality sd") | columns("", "n_seeds")
POINTS |= {"values": pl.List(pl.Float64)} | columns("source")
RATE, SIZES = "train.learning_rate", ("model.d_embed", "model.blocks")
OF_CURVE = ("parameters", "quality", "n_seeds")


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
        means_DxU = quality_DxP @ member_PxU / total_U
        fitted = [optimize.isotonic_regression(row, weights=total_U).x for row in means_DxU]
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
        high = np.diff(np.log(self.sizes))[at_D - 1]
        for _ in range(60):  # halvings, to the last bit
            middle = (low + high) / 2
            enough = np.polyval(cubic, middle) >= quality_D
            low, high = np.where(enough, low, middle), np.where(enough, middle, high)
        found = np.exp(np.log(self.sizes)[at_D - 1] + high)
        found = np.where(self.quality_DxU[:, 0] == quality_D, self.sizes[0], found)
        found = np.where(self.quality_DxU[:, 0] > quality_D, 0.0, found)
        return np.where(reached_DxU.any(1), found, np.inf)


def scores_of(run: Run) -> list[float]:
    """Of each seed that ended well, by what configurations are chosen: the validation NDCG@10, mean
    over domains, of the ranking that training selected by."""
    good = [entry for entry in run.summary["per_seed"] if not entry.get("diverged_step")]
    return [score_of(entry, run.summary.get("watched")) for entry in good]


def at_best_rate(runs: list[Run]) -> list[Run]:
    """The finished ones, of configurations that differ in their learning rate alone those of the
    rate with the best mean validation NDCG@10."""
    scores: dict[str, dict[str, list[float]]] = {}
    of_run = {run: f"{run.setting} {run.configuration}" for run in finished(runs)}
    for run, name in of_run.items():
        but_rate = json.dumps([run.setting, run.fields | {RATE: ""}])
        scores.setdefault(but_rate, {}).setdefault(name, []).extend(scores_of(run))
    best = {max(of, key=lambda name: np.mean(of[name] or [-1.0])) for of in scores.values()}
    return [run for run, name in of_run.items() if name in best]


def points_of(runs: list[Run], metric: str = "ndcg@10") -> pl.DataFrame:
    """A row for each configuration and domain, columns `POINTS`: seeds of equal configurations are
    put together, and of learning rates the best counts, see `at_best_rate`."""
    pooled: dict[tuple, dict] = {}
    for run, domain in itertools.product(at_best_rate(runs), "AB"):
        seeds, name = run.seeds(), f"test/{domain}/{run.full_name(metric)}"
        values = seeds[name].drop_nulls().to_list() if name in seeds.columns else []
        if values:
            point = {"setting": run.setting, "domain": domain, "variant": run.variant}
            point |= {"parameters": int(run.summary["n_parameters"]), "source": "", "values": []}
            point = pooled.setdefault((run.setting, domain, run.configuration), point)
            point["source"] += ", " * bool(point["source"]) + run.name
            point["values"] += values
    for point in pooled.values():
        values = point["values"]
        sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
        point |= {"quality": float(np.mean(values)), "sd": sd, "n_seeds": len(values)}
    frame = pl.DataFrame(list(pooled.values()), schema=POINTS)
    return frame.sort("setting", "domain", "parameters", maintain_order=True)


def mixed_curves(runs: list[Run]) -> list[str]:
    """A sentence for each setting whose baselines differ in more than size and learning rate."""
    lines, plain = [], [run for run in at_best_rate(runs) if not run.places]
    for setting in dict.fromkeys(run.setting for run in plain):
        mine = [run for run in plain if run.setting == setting]
        values = {n: of for n, of in differing_fields(mine)[0].items() if n != RATE}
        sizes = list(zip(*(values.pop(n, [""] * len(mine)) for n in SIZES), strict=True))
        # A width that is a multiple of another one follows; a switch is a switch.
        if more := [n for n, of in values.items() if "true" in of or not follows(of, sizes)]:
            lines.append(f"{setting}: its baselines also differ in {few(more)}: no curve of sizes")
    return lines


def published_points() -> pl.DataFrame:
    """The paper's figures of quality against parameters, to go through the same code.

    They have no seeds: every point takes the sd that Table 1 states for its variant over 5 seeds.
    Where a figure draws a point against Table 1, the series of its data come a second time, with
    Table 1's values.
    """
    rows = []
    for series in published.paper()["model_comparison"]["series"]:
        plain = series["dataset"].split(" (")[0].lower().replace("-", "_")
        table = published.table1(series["model"], plain)[series["variant"]]
        mean, sd = table[f"{series['domain']}/ndcg@10"]
        lead = {"setting": f"{series['model']} · {series['dataset']}", "source": ""}
        lead |= {"domain": series["domain"], "variant": series["variant"], "sd": sd, "n_seeds": 5}
        for i, (n, quality) in enumerate(series["points"]):
            stated = mean if i == 0 and abs(mean - quality) > 0.001 else quality
            rows.append(lead | {"parameters": n, "quality": quality, "stated": stated})
    as_drawn = pl.DataFrame(rows, schema=POINTS | columns(real="stated"))
    wrong = as_drawn.filter(pl.col("stated") != pl.col("quality"))["setting"]
    again = as_drawn.filter(pl.col("setting").is_in(wrong.implode()))
    named = {"as drawn": as_drawn, "as in Table 1": again.with_columns(quality="stated")}
    titled = [of.with_columns(pl.col("setting") + f" · {name}") for name, of in named.items()]
    return pl.concat(titled).drop("stated")


def drawn(point: dict, rng, draws: int):
    """(draws,) means of a point's resampled seeds; of a normal, where only mean and sd are known.

    The seeds' deviations are widened by √(S/(S-1)), as resampled ones vary too little by that, and
    by what Student's t is wider than a normal.
    """
    mean, n_seeds = point["quality"], point["n_seeds"]
    # A ratio rests on the seeds of the variant and, halved, of its two neighbours on the curve:
    # by Satterthwaite's formula that is 2 (S - 1) degrees of freedom.
    wider = t_over_normal(2 * (n_seeds - 1))
    if point["values"] is None:
        return rng.normal(mean, wider * point["sd"] / math.sqrt(n_seeds), draws)
    means = rng.choice(point["values"], (draws, n_seeds)).mean(1)
    return mean + wider * math.sqrt(n_seeds / (n_seeds - 1)) * (means - mean)


def ratios(points: pl.DataFrame, draws: int = DRAWS, seed: int = 0) -> pl.DataFrame:
    """Parameter ratio at equal quality of every point that is no baseline. Columns: `SCHEMA`.

    The interval is that of the resampled seeds of the variant and of every baseline; a draw above
    or below the curve counts as a ratio of inf or 0, and an end of the interval that falls there
    is null, which `note` says. Off the curve there is no ratio, but a bound: more_than, less_than.
    """
    rows = []
    for point in points.filter(pl.col("variant") != "baseline").iter_rows(named=True):
        beside = points.filter(setting=point["setting"], domain=point["domain"])
        ratio = _ratio(point, beside.filter(variant="baseline"), draws, np.random.default_rng(seed))
        rows.append({name: point[name] for name in SCHEMA if name in point} | ratio)
    return pl.DataFrame(rows, schema=SCHEMA)


def _ratio(point, baselines, draws, rng):
    sizes, quality, weights = (baselines[name] for name in OF_CURVE)
    if sizes.n_unique() < 2:
        found = plural(sizes.n_unique(), "baseline size")
        return {"note": f"no curve: {found}, expected at least 2 different ones"}
    curve = Curve(sizes, quality, weights)
    size = float(curve.size_for(point["quality"])[0])
    out, notes = {"ratio": size / point["parameters"]}, []
    of_size = baselines.group_by("parameters").len().filter(pl.col("len") > 1).sort("parameters")
    notes += [f"{n} baselines of {at:,} parameters are averaged" for at, n in of_size.rows()]
    if not 0 < size < math.inf:  # off the curve there is a bound
        end, side, bound = (-1, "above", "more_than") if size else (0, "below", "less_than")
        out = {bound: float(curve.sizes[end] / point["parameters"])}
        notes.append(
            f"{point['quality']:.4f} is {side} the baseline's curve (which ends with "
            f"{curve.quality_DxU[0, end]:.4f} at {curve.sizes[end]:,.0f}): the ratio is "
            f"{bound.replace('_', ' ')} {out[bound]:.2f}, not extrapolated"
        )
    if None in (point["sd"], *baselines["sd"]):
        return out | {"note": "; ".join([*notes, "no interval: a size with a single seed"])}
    drawn_DxP = np.column_stack([drawn(p, rng, draws) for p in baselines.iter_rows(named=True)])
    size_D = Curve(sizes, drawn_DxP, weights).size_for(drawn(point, rng, draws))
    # A method that takes one of the draws: between a number and infinity there is no middle.
    ends = np.quantile(size_D / point["parameters"], [TAIL, 1 - TAIL], method="inverted_cdf")
    shares = {"above": np.isinf(size_D).mean(), "below": (size_D == 0).mean()}
    parts = [f"{s:.0%} {side}" if s >= 0.01 else f"<1% {side}" for side, s in shares.items() if s]
    if parts:
        notes.append(f"of the draws, {' and '.join(parts)} the baseline's range")
    inside = {k: float(v) for k, v in zip(("low", "high"), ends, strict=True) if 0 < v < math.inf}
    return out | inside | {"note": "; ".join(notes)}


@figures.for_each("setting")
def draw(points: pl.DataFrame, setting: str, metric: str, table: pl.DataFrame):
    """A panel for each domain with its curve and the ratios as arrows."""
    if points["parameters"].n_unique() < 2:  # nothing to compare
        return None
    large = points["parameters"].max() >= 1e6
    unit, name = (1e6, "millions") if large else (1e3, "thousands")
    looks = figures.marks(points["variant"])

    def panel(axis, domain):
        mine = points.filter(domain=domain)
        for (variant,), here in mine.group_by("variant", maintain_order=True):
            here = here.sort("parameters", maintain_order=True)
            style = figures.point_style(looks[variant]) | {"capsize": 2, "elinewidth": 0.8}
            style |= {"yerr": here["sd"].fill_null(0.0), "label": f"{variant} (± sd)"}
            axis.errorbar(here["parameters"] / unit, here["quality"], **style)
        baselines = mine.filter(variant="baseline")
        if baselines["parameters"].n_unique() > 1:
            curve = Curve(*(baselines[name] for name in OF_CURVE))
            sizes = np.geomspace(curve.sizes[0], curve.sizes[-1], 200)
            line = {"color": "#555555", "lw": 1, "label": "baseline, monotone"}
            axis.plot(sizes / unit, curve(sizes)[0], **line)
        rows = table.filter(setting=setting, domain=domain).drop_nulls("ratio")
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
        "beyond its ends but a bound. Intervals resample the seeds of every size. Where learning "
        "rates differ, the one that is best on validation counts."
    )
    points, paper = points_of(runs, options.metric), published_points()
    lack = [] if len(points) else ["no finished run with this metric: nothing to scale"]
    found, of_paper = ratios(points, options.draws), ratios(paper, options.draws)
    write_frame(out, "scaling_points", pl.concat([points, paper]).drop("values"))
    write_frame(out, "scaling", pl.concat([found, of_paper]))
    backbones = [run.config["backbone"].upper() for run in runs]
    here = pl.col("setting").str.split(" ").list.first().is_in(backbones)
    paper, of_paper = paper.filter(here), of_paper.filter(here)
    shown = draw(points, options.metric, found) | draw(paper, "NDCG@10", of_paper)
    titles = ("Parameter ratio at equal quality", "The same for the points of the paper's figures")
    sheets = [sheet(t, title) for t, title in zip((found, of_paper), titles, strict=True) if len(t)]
    known = [
        f"{r['variant']} {r['domain']} {number(r['ratio'], 2)} {bounds(r)}".strip()
        for r in found.drop_nulls("ratio").iter_rows(named=True)
    ]
    said = f"Ratios at equal quality: {', '.join(known)}"
    if len(found) and not known:
        said = f"Not known: {found['note'][0]}"
    short = f"How many more parameters does a baseline need? {said}." if len(found) else ""
    return Section("Quality and parameters", how, short, mixed_curves(runs), lack, sheets, shown)
