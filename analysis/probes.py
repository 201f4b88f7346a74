"""Pages of what `orthogonality` and `intervene` have measured: tables for people, and figures."""

from __future__ import annotations

import numpy as np
import polars as pl
from scipy import stats

from analysis import figures
from analysis.output import interval, number
from analysis.runs import Run
from oa_jax.sheets import Sheet

# Columns of the table of subspaces: what stands over them -> statistic.
SUBSPACES = {
    "R² by X": "r2_x",
    "R² by Y": "r2_y",
    "R² by X and Y": "r2_xy",
    "CKA(X, X′)": "cka_x_update",
    "CKA(X′, Y)": "cka_update_y",
    "CKA(X, Y)": "cka_x_y",
    "directions of X": "participation_x",
    "directions of X′": "participation_update",
    "cos² of the subspaces": "subspace_cos2",
    "its null": "subspace_cos2_null",
}
PARTS = {  # as `intervene` names them -> for people
    "full": "X′ as it is",
    "parallel": "X′∥, along X",
    "orthogonal": "X′⊥, the rest",
    "parallel_at_norm": "X′∥ at the norm of X′",
    "orthogonal_at_norm": "X′⊥ at the norm of X′",
    "random": "random at the norm of X′",
    "other_user": "another user's X′",
    "mean": "the mean X′",
    "zero": "nothing",
}


def subspace_sheet(frame: pl.DataFrame) -> Sheet:
    """Means over seeds of the trained models, a row for each run, place and domain."""
    trained = frame.filter(parameters="best").drop_nans("value")
    means = trained.group_by("run", "place", "domain", "statistic").agg(pl.col("value").mean())
    found = {(r[0], r[1], r[2], r[3]): r[4] for r in means.iter_rows()}
    keys = trained.select("run", "place", "domain").unique(maintain_order=True).rows()
    rows = []
    for key in keys:
        values = [found.get((*key, name)) for name in SUBSPACES.values()]
        digits = [1 if "participation" in n else 3 for n in SUBSPACES.values()]
        cells = [number(v, d) for v, d in zip(values, digits, strict=True)]
        rows.append([key[0], str(key[1]), key[2], *cells])
    title = "Is X′ new, or a rotation of what is there? Trained models, means over seeds"
    return Sheet(title, ["run", "place", "domain", *SUBSPACES], rows, words=3)


def draw_cosines(frame: pl.DataFrame, runs: list[Run]) -> dict:
    """{name: figure}: distribution of cos(X, X') over tokens, with that of random directions."""
    out = {}
    bins = frame.filter(pl.col("statistic").str.starts_with("cos_hist/"), parameters="best")
    bins = bins.with_columns(at=pl.col("statistic").str.slice(9).cast(pl.Float64))
    mean = bins.group_by("run", "place", "domain", "at").agg(pl.col("value").mean()).sort("at")
    for setting, mine in by_setting(runs, mean):
        labels = figures.labels(mine)
        looks = figures.marks(labels.values())
        figure, axes = figures.new_figure(1, 2, 2.7, sharey=True)
        for axis, domain in zip(axes[0], "AB", strict=True):
            for run in mine:
                for place in run.places:
                    part = mean.filter(run=run.name, place=place, domain=domain).drop_nans()
                    style = figures.line_style(looks[labels[run.name]])
                    style["linestyle"] = figures.PLACE_LINES.get(str(place), "-.")
                    every = {"marker": looks[labels[run.name]]["marker"], "markevery": 5}
                    label = f"{labels[run.name]}, place {place}"
                    axis.plot(part["at"], part["value"], label=label, ms=4, **style, **every)
            for width in sorted({run.config["model"]["d_embed"] for run in mine}):
                _null_curve(axis, mean["at"].unique().sort().to_numpy(), width)
            axis.set(xlabel="cos(X, X′) of a token", ylabel="share of tokens per 0.05")
            axis.set_xticks(np.linspace(-1, 1, 5))
            figures.title(axis, f"Domain {domain}")
        figures.heading(figure, f"{setting}: trained models, mean over seeds")
        figures.legend_below(figure, axes, 3)
        figure.set_label(
            f"Distribution over test tokens of the cosine between X and X′, {setting}, with that "
            "of independent random directions"
        )
        out[figures.file_name("cosines", setting)] = figure
    return out


def _null_curve(axis, middles, width):
    null = stats.beta((width - 1) / 2, (width - 1) / 2, loc=-1, scale=2)
    half = (middles[1] - middles[0]) / 2
    label = f"null: independent directions, d = {width}"
    axis.plot(
        middles, null.cdf(middles + half) - null.cdf(middles - half), label=label, **figures.NULL
    )


def by_setting(runs: list[Run], frame: pl.DataFrame):
    """[(setting, runs)] of the runs that the frame knows."""
    known = set(frame["run"].to_list())
    out: dict[str, list[Run]] = {}
    for run in runs:
        if run.name in known:
            out.setdefault(run.setting, []).append(run)
    return out.items()


def changes(frame: pl.DataFrame, metric: str, run: Run, scale: float = 1.0) -> pl.DataFrame:
    """Changes of one metric of a run, over all seeds and all of its places at once."""
    name = metric if "/" in metric else f"{metric}/{run.candidates}"
    of_run = frame.filter(run=run.name, metric=name, places="all", parameters="best", split="test")
    return of_run.filter(pl.col("seed").is_null() & (pl.col("scale") == scale))


def intervention_sheet(frame: pl.DataFrame, runs: list[Run], metric: str) -> Sheet:
    """A row for each run and replacement, the change in either domain."""
    rows = []
    for run in runs:
        table = changes(frame, metric, run)
        for part, text in PARTS.items():
            of_part = table.filter(intervention=part)
            if of_part.is_empty():
                continue
            row = [run.name, text]
            for domain in "AB":
                found = of_part.filter(domain=domain).to_dicts()
                row += _change_cells(found[0]) if found else ["–", "–", "–"]
            rows.append(row)
    header = ["run", "X′ replaced by"]
    for domain in "AB":
        header += [f"{domain}: value", "change", "95 % interval"]
    title = f"Test {metric} with X′ replaced in the trained models, paired by user and seed"
    return Sheet(title, header, rows, words=2)


def _change_cells(row):
    change = number(row["change"], 4, sign=True)
    return [number(row["value"], 4), change, interval(row["low"], row["high"], 4, True)]


def draw_interventions(frame: pl.DataFrame, runs: list[Run], metric: str) -> dict:
    """{name: figure}: change of the metric by each replacement, a marker for each run."""
    out = {}
    for setting, mine in by_setting(runs, frame):
        labels = figures.labels(mine)
        looks = figures.marks(labels.values())
        tables = {run.name: changes(frame, metric, run) for run in mine}
        found = {part for table in tables.values() for part in table["intervention"]}
        parts = [part for part in PARTS if part in found and part != "full"]
        if not parts:
            continue
        figure, axes = figures.new_figure(1, 2, 1.5 + 0.26 * len(parts), sharey=True)
        for axis, domain in zip(axes[0], "AB", strict=True):
            for i, run in enumerate(mine):
                shift = (i - (len(mine) - 1) / 2) * 0.6 / len(mine)
                look = looks[labels[run.name]]
                table = tables[run.name].filter(domain=domain)
                _points(axis, table, parts, shift, look, labels[run.name])
            figures.draw_null(axis, 0, "no change", vertical=True)
            axis.set_yticks(range(len(parts)), [PARTS[part] for part in parts])
            axis.set_xlabel(f"change of test {metric}")
            axis.locator_params("x", nbins=5)
            figures.title(axis, f"Domain {domain}")
        axes[0, 0].set_ylim(len(parts) - 0.5, -0.5)
        figures.heading(figure, f"{setting}: X′ replaced in trained models, 95 % intervals")
        figures.legend_below(figure, axes, 4)
        figure.set_label(
            f"Change of test {metric} when X′ is replaced at all places, {setting}, by replacement"
        )
        out[figures.file_name("interventions", setting)] = figure
    return out


def _points(axis, table, parts, shift, look, label):
    rows = [row for row in table.to_dicts() if row["intervention"] in parts]
    if not rows:
        return
    x = np.array([row["change"] for row in rows])
    y = [parts.index(row["intervention"]) + shift for row in rows]
    ends = np.array([[row["low"], row["high"]] for row in rows], np.float64)
    widths = np.nan_to_num(np.maximum(np.array([x - ends[:, 0], ends[:, 1] - x]), 0))
    style = figures.point_style(look) | {"elinewidth": 0.9, "markersize": 4}
    axis.errorbar(x, y, xerr=widths, label=label, **style)
