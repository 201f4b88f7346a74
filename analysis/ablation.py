"""The projection ablation: what is left of the quality when only a part of X' is used.

Three kinds of evidence side by side: models trained anew with a part of X' (`gca.part`) or with
the orthogonality term (`gca.ortho_weight`), trained models whose X' is replaced afterwards
(`intervene`), and the values published with a later version of the paper.
"""

from __future__ import annotations

import polars as pl

from analysis import output, published
from analysis.runs import Run

METRICS = ("ndcg@1", "ndcg@10")
# What is used of X' -> the end of its name in the published table.
USED = {
    "full": "",
    "parallel": "_parallel_only",
    "orthogonal": "_orthogonal_only",
    "full + ortho term": "_plus_L_ortho",
}
HEADS = {
    "full": "X'",
    "parallel": "X'∥ only",
    "orthogonal": "X'⊥ only",
    "full + ortho term": "X' + L_ortho",
}
SOURCES = ("trained so", "replaced in the trained model", "published")
SCHEMA = {
    "model": pl.String,  # backbone, data and protocol
    "variant": pl.String,  # early, stack, GCA[1]; the width, except of what is published
    "source": pl.String,
    "used": pl.String,
    "detail": pl.String,  # the run and, if any, the weight of the term
    "metric": pl.String,  # A/ndcg@1/uni999
    "mean": pl.Float64,
    "sd": pl.Float64,
    "seeds": pl.Int64,
}


def write(runs: list[Run], interventions: pl.DataFrame, out, say) -> None:
    """ablation.parquet, .csv and .md of these runs; says which runs would complete it."""
    frame = collect(runs, interventions)
    output.write_frame(out, "ablation", frame)
    output.write(out / "ablation.md", markdown(frame))
    trained = frame.filter(pl.col("source") == SOURCES[0])
    for (model, variant), rows in trained.group_by("model", "variant", maintain_order=True):
        missing = [used for used in USED if used not in rows["used"].to_list()]
        if missing:
            say(f"ablation: {model}, {variant}: no finished run trained with {', '.join(missing)}")


def collect(runs: list[Run], interventions: pl.DataFrame) -> pl.DataFrame:
    """Mean and sd over seeds of test NDCG@1 and @10, by what is used of X'. Columns `SCHEMA`.

    interventions: the frame of `intervene`; its best parameters on the test users count.
    """
    records, told = [], set()
    for run in runs:
        if not run.places:
            continue
        variant = f"{placement(run)}, d={run.config['model']['d_embed']}"
        family = {"model": run.setting, "variant": variant}
        records += [family | r for r in _trained(run) + _replaced(run, interventions)]
        if (run.setting, placement(run)) not in told:
            told.add((run.setting, placement(run)))
            family = {"model": run.setting, "variant": placement(run)}
            records += [family | r for r in _published(run, placement(run))]
    frame = pl.DataFrame(records, schema=SCHEMA)
    order = pl.col("source").replace_strict({s: i for i, s in enumerate(SOURCES)})
    return frame.sort("model", "variant", order, maintain_order=True)


def placement(run: Run) -> str:
    """The variant without what is said of its update: early, stack, GCA[1]."""
    return run.variant.split(",")[0]


def used(run: Run) -> str:
    """What a run was trained to use of X', a key of `USED`; others by the names of the fields."""
    gca = run.config["gca"]
    name = gca.get("part", gca.get("update", "full"))  # its older name
    return f"{name} + ortho term" if gca.get("ortho_weight") else name


def _trained(run):
    if not run.is_finished:
        return []
    weight = run.config["gca"].get("ortho_weight")
    detail = run.name + (f", λ={weight:g}" if weight else "")
    seeds, records = run.seeds(), []
    for name in seeds.columns:
        split, *rest = name.split("/")
        if split == "test" and len(rest) == 3 and rest[1] in METRICS:
            lead = {"source": SOURCES[0], "used": used(run), "detail": detail}
            records.append(lead | _summary("/".join(rest), seeds[name]))
    return records


def _replaced(run, frame):
    """X' replaced at all places, at scale 1, in a model that was trained with all of X'."""
    if used(run) != "full" or frame.is_empty():
        return []
    frame = frame.filter(
        pl.col("run").eq(run.name)
        & pl.col("seed").is_not_null()
        & pl.col("parameters").eq("best")
        & pl.col("split").eq("test")
        & pl.col("places").eq("all")
        & pl.col("scale").eq(1.0)
        & pl.col("intervention").is_in(["full", "parallel", "orthogonal"])
        & pl.col("metric").str.split("/").list.first().is_in(METRICS)
    )
    records = []
    for (part, domain, metric), rows in frame.group_by(
        "intervention", "domain", "metric", maintain_order=True
    ):
        lead = {"source": SOURCES[1], "used": part, "detail": run.name}
        records.append(lead | _summary(f"{domain}/{metric}", rows["value"]))
    return records


def _published(run, variant):
    table, records = published.paper()["ablation"], []
    for row in table["rows"]:
        same = row["model"].lower() == run.config["backbone"].lower()
        same = same and published.same_data(row["dataset"], run.config["data"]["name"])
        if not same or row["variant"] != variant:
            continue
        for what, end in USED.items():
            mean, sd = row[f"ndcg1_A{end}"]
            records.append(
                {"source": SOURCES[2], "used": what, "detail": "arXiv 2510.09435, project page"}
                | {"metric": f"A/ndcg@1/{run.candidates}", "mean": mean, "sd": sd, "seeds": 5}
            )
    return records


def _summary(metric, values):
    return {
        "metric": metric,
        "mean": values.mean(),
        "sd": values.std() if len(values) > 1 else None,
        "seeds": len(values),
    }


def markdown(frame: pl.DataFrame) -> str:
    """A table for each model and metric: rows are variant and source, columns what is used."""
    if frame.is_empty():
        return "No run with GCA.\n"
    blocks = []
    for (model, metric), rows in frame.group_by("model", "metric", maintain_order=True):
        lines = [f"{model}: test {metric}, mean ± sd over seeds", ""]
        lines.append("| " + " | ".join(["variant", "source", *HEADS.values()]) + " |")
        lines.append("|" + " --- |" * (2 + len(HEADS)))
        for (variant, source), of_row in rows.group_by("variant", "source", maintain_order=True):
            cells = [_cell(of_row.filter(pl.col("used") == what)) for what in USED]
            lines.append("| " + " | ".join([variant, source, *cells]) + " |")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"


def _cell(rows) -> str:
    """`mean ± sd` of every run that has it; λ, and the run's name where there are several."""
    cells = []
    for row in rows.iter_rows(named=True):
        text = f"{row['mean']:.4f}" + ("" if row["sd"] is None else f" ± {row['sd']:.4f}")
        name, _, weight = row["detail"].partition(", λ=")
        notes = [name] * (len(rows) > 1) + ([f"λ={weight}"] if weight else [])
        cells.append(text + (f" ({', '.join(notes)})" if notes else ""))
    return "; ".join(cells) or "–"
