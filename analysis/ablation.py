"""The projection ablation: what is left of the quality when only a part of the update is used.

Three kinds of evidence side by side: models trained anew with a part of X' (`gca.part`) or with
the orthogonality term (`gca.ortho_weight`), trained models whose update is replaced afterwards
(`intervene`), and the values published with a later version of the paper.
"""

import pathlib

import polars as pl

from oa_jax import files
from oa_jax.sheets import Sheet

from . import published
from .output import columns, mean_sd, write_frame
from .runs import Run

METRICS = ("ndcg@1", "ndcg@10")
# What is used of X' -> its heading, and the end of its name in the published table.
USED = {
    "full": ("X′", ""),
    "parallel": ("X′∥ only", "_parallel_only"),
    "orthogonal": ("X′⊥ only", "_orthogonal_only"),
    "full + ortho term": ("X′ + L_ortho", "_plus_L_ortho"),
}
TRAINED, REPLACED, PUBLISHED = "trained so", "replaced in the trained model", "published"
OF_GATED = ", of α ⊙ X′"  # what the parts are of, where not of X'
SOURCES = (TRAINED, TRAINED + OF_GATED, REPLACED, REPLACED + OF_GATED, PUBLISHED)
# model: backbone, data and protocol. variant: early, stack, GCA[1]; arms; the width, except of
# what is published. detail: the run and, if any, the weight of the term. metric: A/ndcg@1/uni999.
SCHEMA = columns("model variant source used detail metric", "", "mean sd") | columns("", "seeds")


def write(runs: list[Run], interventions: pl.DataFrame, out: pathlib.Path, say) -> None:
    """ablation.parquet, .csv and .md of these runs; says which runs would complete it."""
    frame = collect(runs, interventions)
    write_frame(out, "ablation", frame)
    pages = "\n".join(sheet.markdown() for sheet in sheets(frame))
    files.write(out / "ablation.md", pages or "No run with GCA.\n")
    trained = frame.filter(pl.col("source").str.starts_with(TRAINED))
    for (model, variant), rows in trained.group_by("model", "variant", maintain_order=True):
        if missing := [used for used in USED if used not in rows["used"]]:
            say(f"ablation: {model}, {variant}: no finished run trained with {', '.join(missing)}")


def collect(runs: list[Run], interventions: pl.DataFrame) -> pl.DataFrame:
    """Mean and sd over seeds of test NDCG@1 and @10, by what is used of X'. Columns `SCHEMA`.

    interventions: the frame of `intervene`; its best parameters on the test users count.
    """
    records, told = [], set()
    for run in (run for run in runs if run.places):
        variant = ", ".join([run.placement, *run.arms, f"d={run.width}"])
        family = {"model": run.setting, "variant": variant}
        records += [family | r for r in _trained(run) + _replaced(run, interventions)]
        family["variant"] = run.placement
        if tuple(family.values()) not in told and published.beside(run) and not run.arms:
            told.add(tuple(family.values()))
            records += [family | r for r in _published(run)]
    frame = pl.DataFrame(records, schema=SCHEMA)
    order = pl.col("source").cast(pl.Enum(SOURCES))
    return frame.sort("model", "variant", order, maintain_order=True)


def used(run: Run) -> str:
    """What a run was trained to use of X', a key of `USED`; others by the names of the fields."""
    return f"{run.part} + ortho term" if run.gca["ortho_weight"] else run.part


def _trained(run):
    weight, gated = run.gca["ortho_weight"], used(run) != "full" and run.gca["part_of"] == "gated"
    lead = {"source": TRAINED + OF_GATED * gated, "used": used(run)}
    lead["detail"] = run.name + (f", λ={weight:g}" if weight else "")
    found = run.seeds().select(pl.col(f"^test/[^/]+/({'|'.join(METRICS)})/[^/]+$"))
    return [lead | _summary(of.name.removeprefix("test/"), of) for of in found]


def _replaced(run, frame):
    """Replaced at all places, at scale 1, in a model that was trained with all of X'."""
    if used(run) != "full" or frame.is_empty():
        return []
    where = {"run": run.name, "parameters": "best", "split": "test", "places": "all", "scale": 1.0}
    parts = pl.col("intervention").is_in(["full", "parallel", "orthogonal"])
    metrics = pl.col("metric").str.split("/").list.first().is_in(METRICS)
    found = frame.filter(parts, metrics, pl.col("seed").is_not_null(), **where)
    keys = ("part_of", "intervention", "domain", "metric")
    return [
        {"source": REPLACED + OF_GATED * (of == "gated"), "detail": run.name, "used": part}
        | _summary(f"{domain}/{metric}", rows["value"])
        for (of, part, domain, metric), rows in found.group_by(keys, maintain_order=True)
    ]


def _published(run):
    found, lead = [], {"source": PUBLISHED, "detail": "arXiv 2510.09435, project page", "seeds": 5}
    lead["metric"] = f"A/ndcg@1/{run.candidates}"
    for row in published.paper()["ablation"]["rows"]:
        same = row["model"].lower() == run.config["backbone"].lower()
        same = same and published.same_data(row["dataset"], run.config["data"]["name"])
        if same and row["variant"] == run.placement:
            for what, (_, end) in USED.items():
                mean, sd = row[f"ndcg1_A{end}"]
                found.append(lead | {"used": what, "mean": mean, "sd": sd})
    return found


def _summary(metric, values):
    return {"metric": metric, "mean": values.mean(), "sd": values.std(), "seeds": len(values)}


def sheets(frame: pl.DataFrame) -> list[Sheet]:
    """A table for each model: rows are metric, variant and source, columns what is used, `USED`
    and whatever else a run was trained with."""
    out, keys = [], ("metric", "variant", "source")
    for (model,), rows in frame.group_by("model", maintain_order=True):
        names = list(dict.fromkeys([*USED, *rows["used"]]))
        lines = [
            [*key, *(_cell(part.filter(used=what)) for what in names)]
            for key, part in rows.group_by(keys, maintain_order=True)
        ]
        header = [*keys, *(USED.get(what, (what,))[0] for what in names)]
        title = f"Projection ablation, test, mean ± sd over seeds: {model}"
        out.append(Sheet(title, header, lines, words=3))
    return out


def _cell(rows) -> str:
    """`mean ± sd` of every run that has it; λ, and the run's name where there are several."""
    cells = []
    for row in rows.iter_rows(named=True):
        name, _, weight = row["detail"].partition(", λ=")
        notes = [name] * (len(rows) > 1) + ([f"λ={weight}"] if weight else [])
        text = mean_sd(row["mean"], row["sd"])
        cells.append(text + (f" ({', '.join(notes)})" if notes else ""))
    return "; ".join(cells) or "–"
