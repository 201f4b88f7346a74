"""`factors`: what one change of the configuration does to the angle, and what it costs.

Of runs with GCA in one setting (backbone, protocol, data and ranking), each is compared with the
one that differs in a single field and has its usual value there, that of most runs. Seeds are
paired: runs of one seed number share the order of batches, and their initial weights as far as
their shapes allow. Fields that always change together are one, called by the first of them, the
others named beside it. Runs that differ in their seeds alone are put together.
"""

import json

import polars as pl

from . import correlate, figures
from .differences import differing_fields, few, follows, in_words
from .output import columns, interval, number, plural, sheet_of, write_frame
from .page import Section
from .phase import order
from .resampling import mean_interval
from .runs import Run, finished

# Column -> of which points of `correlate.points_of`, and which of their columns.
MEASURES = {"angle": ("gated_abs_cos", "x"), "mean_cos": ("cos_abs", "x")}
MEASURES |= {"quality": ("gated_abs_cos", "y")}
SCHEMA = columns("setting change others run reference domain", "seeds")
SCHEMA |= columns(real=" ".join(f"{m} {m}_from {m}_by {m}_low {m}_high" for m in MEASURES))


def pairs(runs: list[Run]) -> list[tuple[list[Run], list[Run], str, str]]:
    """(runs of a configuration, those of its reference, what differs, what else is unusual in
    both): `gate_act: sigmoid → tanh`."""
    alike = [[r for r in runs if r.setting == s] for s in dict.fromkeys(r.setting for r in runs)]
    return [pair for of_setting in alike for pair in _pairs(of_setting)]


def _pairs(runs):
    values, usual = differing_fields(runs)
    kept: list[str] = []
    for name in sorted(values, key=lambda name: -len(set(values[name]))):
        if not any(follows(values[name], values[other]) for other in kept):
            kept.append(name)
    at: dict[tuple, list[int]] = {}
    for i in range(len(runs)):
        at.setdefault(tuple(values[name][i] for name in kept), []).append(i)
    found = []
    for of, mine in at.items():
        fields = dict(zip(kept, of, strict=True))
        unusual = {name: value for name, value in fields.items() if value != usual[name]}
        for name, value in unusual.items():
            if twins := at.get(tuple((fields | {name: usual[name]}).values())):
                usually, i, j = json.loads(usual[name]), mine[0], twins[0]
                change = f"{name.rpartition('.')[2]}: {usually} → {json.loads(value)}"
                differ = [n for n in values if n != name and values[n][i] != values[n][j]]
                with_it = few([n.rpartition(".")[2] for n in differ], 2)
                change += f" (with {with_it})" if with_it else ""
                more = [in_words(n, v) for n, v in unusual.items() if n != name]
                key = bool(more), kept.index(name), order(value)
                sides = ([runs[k] for k in side] for side in (mine, twins))
                found.append((key, (*sides, change, ", ".join(more))))
    return [pair for _, pair in sorted(found, key=lambda one: one[0])]


def effects(runs: list[Run], metric: str = "ndcg@10") -> pl.DataFrame:
    """A row per pair and domain, columns `SCHEMA`: of each measure its mean over the run's seeds,
    that of the reference, and the mean difference over seeds of both with its 95 % interval."""
    chosen, rows = [run for run in finished(runs) if run.places and len(run.seeds())], []
    asked = dict.fromkeys(statistic for statistic, _ in MEASURES.values())
    points = {name: correlate.points_of(chosen, name, metric, "mean") for name in asked}
    for *pair, change, others in pairs(chosen):
        names = [[run.name for run in side] for side in pair]
        lead = {"setting": pair[0][0].setting, "change": change, "others": others}
        lead |= {"run": ", ".join(names[0]), "reference": ", ".join(names[1])}
        for domain in "AB":
            row = lead | {"domain": domain}
            for name, (statistic, column) in MEASURES.items():
                of_domain = points[statistic].filter(domain=domain)
                sides = (of_domain.filter(pl.col("run").is_in(side)) for side in names)
                sides = (side.unique("seed", keep="first", maintain_order=True) for side in sides)
                both = next(sides).join(next(sides), on="seed", suffix="_from")
                by = mean_interval((both[column] - both[f"{column}_from"]).to_numpy())
                values = both[column].mean(), both[f"{column}_from"].mean(), *by
                keys = (name, *(f"{name}_{part}" for part in ("from", "by", "low", "high")))
                row |= dict(zip(keys, values, strict=True)) | {"seeds": len(both)}
            rows.append(row)
    return pl.DataFrame(rows, schema=SCHEMA).fill_nan(None)


def applies(runs: list[Run], options) -> bool:
    """Whether two runs differ in one field, so that `report` shows them."""
    return bool(pairs([run for run in finished(runs) if run.places]))


def section(runs: list[Run], out, options) -> Section:
    """The table and the figure; writes `factors`."""
    frame = effects(runs, options.metric)
    write_frame(out, "factors", frame)
    how = (
        "Each row is a run beside the one that differs in this field alone: how far mean "
        "|cos(X, α ⊙ X')| and the metric of the best parameters move, with 95 % intervals over "
        "paired seeds. |mean cos(X, X')|, the paper's statistic, stands beside."
    )
    if frame.is_empty():
        missing = ["no two runs with GCA of one setting differ in one field alone"]
        return Section("What moves the angle", how, missing=missing)
    clear = frame.filter((pl.col("angle_low") > 0) | (pl.col("angle_high") < 0))
    of = plural(len(frame), "comparison")
    short = f"In {len(clear)} of {of} the interval of the angle's difference leaves 0 out."

    def cells(name, heading, digits):
        low, high = f"{name}_low", f"{name}_high"
        return {
            heading: lambda r: number(r[name], digits),
            f"{heading}, by": lambda r: number(r[f"{name}_by"], digits, sign=True),
            f"{heading}, interval": lambda r: interval(r[low], r[high], digits, sign=True),
        }

    shown = {"setting": "setting", "change": "change", "where": "others", "domain": "domain"}
    shown |= cells("angle", "mean |cos|", 2) | cells("mean_cos", "|mean cos|", 2)
    shown |= cells("quality", options.metric, 4)
    sheet = sheet_of(frame, "One change at a time", 4, shown)
    return Section("What moves the angle", how, short, sheets=[sheet], figures=draw(frame))


@figures.for_each("setting")
def draw(frame: pl.DataFrame, setting: str):
    """A line for each change; hollow where other fields are unusual, too."""
    changes = frame["change"].unique(maintain_order=True).to_list()

    def panel(axis, domain):
        for row in frame.filter(domain=domain).drop_nulls("angle_by").iter_rows(named=True):
            y, alone = changes.index(row["change"]), not row["others"]
            mark = figures.point_style(figures.MARKS[0 if alone else 1], "0" if alone else "1")
            label = "all else as usual, 95 %" if alone else "with another change"
            if alone and row["angle_low"] is not None:
                ends = row["angle_low"], row["angle_high"]
                axis.plot(ends, (y, y), color=mark["color"], linewidth=1.2)
            axis.plot(row["angle_by"], y, label=label, zorder=3 if alone else 2, **mark)
        axis.axvline(0, **figures.NULL)
        axis.set_yticks(range(len(changes)), changes)
        axis.set_ylim(len(changes) - 0.5, -0.5)
        axis.set_xlabel("difference in mean |cos(X, α ⊙ X′)|")

    heading = f"{setting}: what moves the angle between X and its update"
    height = 1.2 + 0.21 * len(changes)
    return figures.by_domain("factors", setting, panel, heading, heading, height, sharey=True)
