"""Angles between X and its update: from summary.json alone, and what `orthogonality` adds to it.

Two statistics, which are not the same: the mean over tokens of |cos| (`abs_cos`), whose null is
that of independent random directions, and |mean cos| (`cos_abs`), whose null is the untrained
model. The paper's |cos| is the second.
"""

import itertools

import numpy as np
import polars as pl

from oa_jax.nn.angles import null_abs_cos
from oa_jax.sheets import Sheet

from . import figures, orthogonality, tokens
from .output import mean_sd, number, read_frame
from .page import Section
from .runs import Run, finished

KINDS = {"abs_cos": "mean |cos|", "cos_abs": "|mean cos|"}
UPDATES = {"": "X′", "gated_": "α ⊙ X′"}
OTHERS = ("parallel_share", "xy_abs_cos", "xy_cos_abs", "gate_mean")
SHOWN = (*(f"{form}{name}" for form in UPDATES for name in (*KINDS, "cos")), *OTHERS)
# Columns of the tables of what `orthogonality` measures -> statistic.
NULLS = {
    "mean |cos|": "abs_cos",
    "with another user's": "shuffled_abs_cos",
    "centred": "centred_abs_cos",
    "random": "abs_cos_null",
    "|mean cos|": "cos_abs",
    "other's |mean|": "shuffled_cos_abs",
    "cos of the means": "mean_cos",
    "share of X's mean": "mean_share_x",
    "share of its mean": "mean_share",
}
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


def angles(runs: list[Run]) -> pl.DataFrame:
    """Tidy: setting, run, place, domain, statistic, when (init or best), mean, sd, seeds, null.

    Over the test users, by seed, of the best and of the untrained parameters. null: of the mean
    |cos| of independent random directions; that of |mean cos| is the row with `when` = init.
    """
    rows = []
    for run in finished(runs):
        seeds, null = run.seeds(), null_abs_cos(run.width)
        of_run = map(str, run.places), "AB", SHOWN, ("init", "best")
        for place, domain, statistic, when in itertools.product(*of_run):
            column = f"{when}/gca/{place}/{domain}/{statistic}"
            values = seeds[column].drop_nulls() if column in seeds.columns else ()
            if len(values):
                lead = {"setting": run.setting, "run": run.name, "place": place, "domain": domain}
                lead |= {"statistic": statistic, "when": when, "mean": values.mean()}
                rows.append(lead | {"sd": values.std(), "seeds": len(values), "null": null})
    return pl.DataFrame(rows, schema_overrides={"sd": pl.Float64}) if rows else pl.DataFrame()


def warnings(runs: list[Run]) -> list[str]:
    """Sentences on runs whose angles have to be read with care."""
    out = []
    for run in finished(runs):
        if run.places and run.part in ("parallel", "orthogonal"):
            out.append(
                f"{run.name}: trained with the {run.part} part alone: its angles are those before "
                "the part is taken, not of what is added to X"
            )
        if run.places and run.gate == "tanh":
            out.append(
                f"{run.name}: tanh gate: the angle of the raw X′ is arbitrary, as turning the sign "
                "of a unit and of its gate changes no output"
            )
    return out


def sheet(frame: pl.DataFrame) -> Sheet:
    """A row for each run, place, domain and update."""
    header = ["run", "place", "domain", "of X and", "mean |cos|: untrained", "trained", "random"]
    header += ["times", "|mean cos|: untrained", "trained", "mean cos"]
    header += ["share along X", "X, Y: mean |cos|", "|mean cos|", "gate"]
    rows = []
    keys = ("run", "place", "domain", "null")
    for (*lead, null), part in frame.group_by(keys, maintain_order=True):
        cells = {(r["statistic"], r["when"]): r for r in part.iter_rows(named=True)}

        def cell(statistic, when="best", cells=cells):
            found = cells.get((statistic, when))
            return mean_sd(found["mean"], found["sd"], 3) if found else "–"

        for form, name in UPDATES.items():
            trained = cells.get((f"{form}abs_cos", "best"))
            if trained is None:
                continue
            row = [*lead, name, cell(f"{form}abs_cos", "init"), cell(f"{form}abs_cos")]
            row += [number(null, 3), number(trained["mean"] / null, 1)]
            row += [cell(f"{form}cos_abs", "init"), cell(f"{form}cos_abs"), cell(f"{form}cos")]
            rows.append(row + [cell(name) if not form else "" for name in OTHERS])
    title = "Angles of X with the update, test users, mean ± sd over seeds"
    return Sheet(title, header, rows, words=4)


@figures.for_each("setting")
def draw(frame: pl.DataFrame, setting: str, runs: list[Run]):
    """Mean |cos| over |mean cos| of every place, trained and untrained."""
    runs, names, looks = figures.of_runs(frame, runs)
    keys = frame.select("run", "place").unique(maintain_order=True).rows()

    def panel(axes, domain):
        for axis, (kind, text) in zip(axes, KINDS.items(), strict=True):
            for y, (run, place) in enumerate(keys):
                here = frame.filter(run=run, place=place, domain=domain)
                here = here.filter(statistic=f"gated_{kind}")
                for row in here.iter_rows(named=True):
                    look = figures.point_style(looks[run], "1" if row["when"] == "init" else "0")
                    look |= {"elinewidth": 0.9, "capsize": 2}
                    axis.errorbar(row["mean"], y, xerr=row["sd"] or 0, **look)
            for width in sorted({run.width for run in runs}) if kind == "abs_cos" else ():
                null = null_abs_cos(width)
                label = f"null: independent directions ({null:.3f})"
                axis.axvline(null, label=label, **figures.NULL)
            axis.set_xlabel(f"{text} of X and α ⊙ X′")
            axis.set_yticks(range(len(keys)), [f"{names[r]}, place {p}" for r, p in keys])
            axis.update_datalim([(0, 0)])  # an angle is to be seen from 0
            axis.autoscale_view()
            axis.set_ylim(len(keys) - 0.5, -0.5)

    heading = f"{setting}: filled trained, hollow untrained; ± sd over seeds"
    label = f"Angles of X with its update at every place, {setting}: trained and untrained"
    more = {"rows": 2, "sharey": True, "sharex": "row"}
    height = 0.9 + 0.3 * len(keys)
    return figures.by_domain("angles", setting, panel, heading, label, height, **more)


def measured_sheet(frame: pl.DataFrame, title: str, names: dict, forms=("",)) -> Sheet:
    """Means over seeds of the trained models, a row for each run, place, domain and update."""
    trained, keys = frame.filter(parameters="best").drop_nans("value"), ["run", "place", "domain"]
    wide = trained.pivot("statistic", index=keys, values="value", aggregate_function="mean")
    rows = []
    for row, form in itertools.product(wide.iter_rows(named=True), forms):
        cells = [str(row[key]) for key in keys] + [orthogonality.FORMS[form]] * (len(forms) > 1)
        for name in names.values():
            # What the update has no part in has no form.
            value = row.get(form + name, row.get(name))
            cells.append(number(value, 1 if "participation" in name else 3))
        rows.append(cells)
    header = [*keys, *["of X and"] * (len(forms) > 1), *names]
    return Sheet(title, header, rows, words=len(header) - len(names))


@figures.for_each("setting")
def draw_cosines(bins: pl.DataFrame, setting: str, runs: list[Run]):
    """Distribution of cos(X, X') over tokens, with that of random directions."""
    runs, labels, looks = figures.of_runs(bins, runs)
    bins = bins.with_columns(at=pl.col("statistic").str.slice(9).cast(pl.Float64))
    mean = bins.group_by("run", "place", "domain", "at").agg(pl.col("value").mean()).sort("at")

    def panel(axis, domain):
        for run, place in ((r, place) for r in runs for place in r.places):
            part = mean.filter(run=run.name, place=place, domain=domain).drop_nans()
            line = figures.PLACE_LINES.get(str(place), "-.")
            style = looks[run.name] | {"linestyle": line, "markevery": 5, "markersize": 4}
            label = f"{labels[run.name]}, place {place}"
            axis.plot(part["at"], part["value"], label=label, **style)
        middles = mean["at"].unique().sort().to_numpy()
        half = (middles[1] - middles[0]) / 2
        for width in sorted({run.width for run in runs}):
            null = orthogonality.null_cos(width)
            shares = null.cdf(middles + half) - null.cdf(middles - half)
            label = f"null: independent directions, d = {width}"
            axis.plot(middles, shares, label=label, **figures.NULL)
        axis.set(xlabel="cos(X, X′) of a token", ylabel="share of tokens per 0.05")
        axis.set_xticks(np.linspace(-1, 1, 5))

    heading = f"{setting}: trained models, mean over seeds"
    label = f"Distribution over test tokens of cos(X, X′), {setting}, and of random directions"
    return figures.by_domain("cosines", setting, panel, heading, label, 2.7, sharey=True)


def section(runs: list[Run], out, options) -> Section:
    """Angles of the summaries, and what `orthogonality` has left in `out`."""
    how = (
        "X is the stream that asks, X′ the update of the cross-attention, α ⊙ X′ what its gate "
        "lets through: that is read first, as with a tanh gate the signs of X′ are arbitrary. The "
        "mean over tokens of |cos| and |mean cos| are different statistics with different nulls: "
        "independent random directions for the first, untrained models for the second; the paper's "
        "number is of the second. Neither null knows that X and its update share a mean direction "
        "and few others: another user's update does, and vectors about their means do "
        "(`orthogonality`)."
    )
    frame = angles(runs)
    if frame.is_empty():
        return Section("Angles", how, missing=["no finished run with GCA: no angles"])
    measured, missing = read_frame(out, "orthogonality", runs), []
    if measured is not None:
        measured = measured.filter(split="test")
    sheets, drawn = [sheet(frame)], draw(frame, runs)
    if measured is None or "best" not in measured["parameters"]:
        lack = "`orthogonality` has not measured the best parameters on test users (--fast?)"
        missing.append(f"distributions and subspaces: {lack}")
    else:
        title = "Angles beside the nulls that matter: another user's update, and centred vectors"
        sheets.append(measured_sheet(measured, title, NULLS, orthogonality.FORMS))
        title = "Is X′ new, or a rotation of what is there? Trained models, means over seeds"
        sheets += [measured_sheet(measured, title, SUBSPACES), *tokens.sheets(measured)]
        bins = measured.filter(pl.col("statistic").str.starts_with("cos_hist/"), parameters="best")
        drawn |= draw_cosines(bins, runs)
    rows = frame.filter(when="best", statistic="gated_abs_cos").to_dicts()
    values, times = [r["mean"] for r in rows], [r["mean"] / r["null"] for r in rows]
    short = ""
    if rows:
        short = (
            f"Is the update orthogonal to X? Over {len(rows)} places and domains the trained mean "
            f"|cos| is {number(min(values))} to {number(max(values))}, {number(min(times), 1)} to "
            f"{number(max(times), 1)} times that of random directions."
        )
    return Section("Angles", how, short, warnings(runs), missing, sheets, drawn)
