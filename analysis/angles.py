"""Angles between X and X' of finished runs, from summary.json alone: trained, untrained, null."""

from __future__ import annotations

import math

import polars as pl

from analysis import figures, published
from analysis.output import number
from analysis.runs import Run, finished
from oa_jax.nn.angles import null_abs_cos
from oa_jax.sheets import Sheet

SHOWN = ("abs_cos", "cos", "parallel_share", "xy_abs_cos", "gate_mean")


def angles(runs: list[Run]) -> pl.DataFrame:
    """Tidy: setting, run, place, domain, statistic, when (init or best), mean, sd, seeds, null.

    Over the test users, by seed, of the best and of the untrained parameters.
    """
    rows = []
    for run in finished(runs):
        seeds, width = run.seeds(), run.config["model"]["d_embed"]
        for place in map(str, run.places):
            for domain in "AB":
                for statistic in SHOWN:
                    for when in ("init", "best"):
                        column = f"{when}/gca/{place}/{domain}/{statistic}"
                        if column not in seeds.columns:
                            continue
                        values = seeds[column].drop_nulls()
                        rows.append(
                            {
                                **{"setting": run.setting, "run": run.name, "place": place},
                                **{"domain": domain, "statistic": statistic, "when": when},
                                **{"mean": values.mean(), "sd": values.std()},
                                **{"seeds": len(values), "null": null_abs_cos(width)},
                            }
                        )
    return pl.DataFrame(rows).drop_nulls("mean") if rows else pl.DataFrame()


def sheet(frame: pl.DataFrame) -> Sheet:
    """One row for each run, place and domain."""
    header = ["run", "place", "domain", "|cos(X, X′)| untrained", "trained", "null"]
    header += ["times null", "cos(X, X′)", "share of X′ along X", "|cos(X, Y)|", "gate"]
    rows = []
    for (run, place, domain), part in frame.group_by("run", "place", "domain", maintain_order=True):
        cells = {(r["statistic"], r["when"]): r for r in part.iter_rows(named=True)}
        trained, null = cells.get(("abs_cos", "best")), part["null"][0]
        times = number(trained["mean"] / null, 1) if trained else "–"
        row = [run, place, domain, _cell(cells, "abs_cos", "init"), _cell(cells, "abs_cos")]
        row += [number(null, 3), times]
        rows.append(row + [_cell(cells, name) for name in SHOWN[1:]])
    title = "Angles of the raw update X′, test users, mean ± sd over seeds"
    return Sheet(title, header, rows, words=3)


def _cell(cells, statistic, when="best"):
    found = cells.get((statistic, when))
    if found is None:
        return "–"
    return number(found["mean"]) + ("" if found["sd"] is None else f" ± {number(found['sd'])}")


def draw(frame: pl.DataFrame, runs: list[Run]) -> dict:
    """{name: figure}: per setting |cos(X, X')| of every place, trained and untrained, with null."""
    out = {}
    frame = frame.filter(statistic="abs_cos")
    for (setting,), part in frame.group_by("setting", maintain_order=True):
        names = part["run"].unique(maintain_order=True).to_list()
        mine = {run.name: run for run in runs if run.name in names}
        labels = figures.labels(list(mine.values()))
        keys = part.select("run", "place").unique(maintain_order=True).rows()
        figure, axes = figures.new_figure(1, 2, 1.5 + 0.3 * len(keys), sharey=True, sharex=True)
        looks = figures.marks([labels[name] for name in names])
        paper = published.paper()["boxplot_mean"]["values"]
        paper = paper.get(mine[names[0]].config["backbone"].upper(), {}).get("abs_cos")
        for axis, domain in zip(axes[0], "AB", strict=True):
            for y, (run, place) in enumerate(keys):
                here = part.filter(run=run, place=place, domain=domain)
                _row(axis, here, y, looks[labels[run]])
            for null in part["null"].unique().sort():
                text = f"null: independent directions ({null:.3f})"
                figures.draw_null(axis, null, text, vertical=True)
            if paper:
                axis.axvline(paper, color="#999999", lw=0.8, label=f"paper's mean ({paper})")
            axis.set_xlabel("mean |cos(X, X′)| of a token")
            axis.set_yticks(range(len(keys)), [f"{labels[r]}, place {p}" for r, p in keys])
            figures.title(axis, f"Domain {domain}")
        axes[0, 0].set_ylim(len(keys) - 0.5, -0.5)
        axes[0, 0].set_xlim(left=0)
        figures.heading(figure, f"{setting}: filled trained, hollow untrained; ± sd over seeds")
        figures.legend_below(figure, axes, 3)
        figure.set_label(
            f"Mean |cos(X, X′)| of every place, {setting}: trained, untrained, and the null"
        )
        out[figures.file_name("angles", setting)] = figure
    return out


def _row(axis, part, y, look):
    for when, place in (("init", "1"), ("best", "0")):  # hollow, filled
        for row in part.filter(when=when).iter_rows(named=True):
            sd = row["sd"] if row["sd"] is not None and math.isfinite(row["sd"]) else 0
            style = figures.place_style(look, place) | {"elinewidth": 0.9, "capsize": 2}
            axis.errorbar(row["mean"], y, xerr=sd, **style)
