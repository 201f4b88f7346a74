"""`trajectory`: validation metrics and angles over training, seed by seed, from metrics.jsonl.

Unfinished runs are shown as far as they are. Where `orthogonality` has measured several kept
checkpoints of a run (`--which=all`), its values come as well, with another `source`.
"""

from __future__ import annotations

import polars as pl
from absl import flags

from analysis import figures
from analysis.output import read_frame, write_frame
from analysis.runs import Run
from oa_jax.nn.angles import null_abs_cos

STATISTICS = ("cos", "abs_cos", "parallel_share", "xy_abs_cos", "gate_mean")
SCHEMA = {
    "setting": pl.String,
    "run": pl.String,
    "variant": pl.String,
    "seed": pl.Int64,
    "epoch": pl.Int64,
    "place": pl.String,
    "domain": pl.String,
    "quantity": pl.String,
    "value": pl.Float64,
    "best_epoch": pl.Int64,
    "source": pl.String,
}


def trajectories(runs: list[Run], measured: pl.DataFrame | None = None) -> pl.DataFrame:
    """Tidy: a row per run, seed, epoch and quantity; columns as `SCHEMA`.

    quantity: `val/ndcg@10/uni999`, `train/loss_a` and the like, without place; or a statistic of
    GCA with its place. best_epoch: the seed's best by the end of what the file holds.
    """
    frames = [pl.DataFrame(schema=SCHEMA)]
    for run in runs:
        epochs = run.epochs()
        if epochs.is_empty():
            continue
        last = epochs.group_by("seed").agg(pl.col("best_epoch").last())
        names = [n for n in epochs.columns if _parse(n)]
        tidy = epochs.unpivot(names, index=["epoch", "seed"], variable_name="name").drop_nulls()
        parsed = pl.DataFrame(
            [{"name": n, **_parse(n)} for n in names], schema_overrides={"place": pl.String}
        )
        tidy = tidy.join(parsed, on="name").join(last, on="seed")
        frames.append(_named(tidy, run).with_columns(source=pl.lit("metrics.jsonl")))
        frames.append(_of_checkpoints(run, measured, last))
    return pl.concat([frame.select(list(SCHEMA)).cast(SCHEMA) for frame in frames])


def _parse(name):
    """Place, domain and quantity of a column of metrics.jsonl, None for what is not drawn."""
    parts = name.split("/")
    if parts[0] == "val" and len(parts) == 4:
        return {"place": None, "domain": parts[1], "quantity": f"val/{parts[2]}/{parts[3]}"}
    if parts[0] == "gca" and len(parts) == 4 and parts[3] in STATISTICS:
        return {"place": parts[1], "domain": parts[2], "quantity": parts[3]}
    return None


def _named(frame, run):
    return frame.with_columns(
        setting=pl.lit(run.setting), run=pl.lit(run.name), variant=pl.lit(run.variant)
    )


def _of_checkpoints(run, measured, last):
    """What `orthogonality --which=all` measured of a run: its kept checkpoints, and untrained."""
    if measured is None:
        return pl.DataFrame(schema=SCHEMA)
    found = measured.filter(
        (pl.col("run") == run.name) & pl.col("parameters").is_in(["init", "kept"])
    ).drop_nulls("value")
    if "kept" not in found["parameters"]:
        return pl.DataFrame(schema=SCHEMA)
    found = found.rename({"statistic": "quantity", "step": "epoch"}).with_columns(
        place=pl.col("place").cast(pl.String), source=pl.lit("checkpoint, ") + pl.col("split")
    )
    return _named(found.join(last, on="seed"), run)


def missing(frame: pl.DataFrame) -> str | None:
    """A sentence when there is nothing to draw."""
    return "no run with rows in metrics.jsonl: no trajectory" if frame.is_empty() else None


def draw(frame: pl.DataFrame, runs: list[Run], metric: str = "ndcg@10") -> dict:
    """{name: figure}: per setting the validation metric over it |cos(X, X')|, a column a domain."""
    out = {}
    frame = frame.filter(source="metrics.jsonl")
    for (setting,), part in frame.group_by("setting", maintain_order=True):
        mine = [run for run in runs if run.setting == setting]
        labels = figures.labels(mine)
        looks = figures.marks([labels[run.name] for run in mine])
        angles = part.filter(quantity="abs_cos")
        with_gca = not angles.is_empty()
        figure, axes = figures.new_figure(1 + with_gca, 2, 2.5, sharex=True)
        sampled = metric if "/" in metric else f"{metric}/{mine[0].candidates}"
        for column, domain in enumerate("AB"):
            for run in mine:
                here = part.filter(run=run.name, domain=domain)
                values = here.filter(quantity=f"val/{sampled}")
                label, look = labels[run.name], looks[labels[run.name]]
                _lines(axes[0, column], values, look, label, "-")
                for place in map(str, run.places):
                    at = here.filter(quantity="abs_cos", place=place)
                    text = f"{label}, place {place}"
                    _lines(axes[-1, column], at, look, text, figures.PLACE_LINES.get(place, "-."))
            axes[0, column].set_ylabel(f"validation {sampled}")
            figures.title(axes[0, column], f"Domain {domain}")
            if with_gca:
                for width in sorted({r.config["model"]["d_embed"] for r in mine if r.places}):
                    figures.draw_null(
                        axes[1, column],
                        null_abs_cos(width),
                        f"null: independent directions, d = {width}",
                    )
                axes[1, column].set_ylabel("mean |cos(X, X′)|")
                axes[1, column].set_ylim(bottom=0)
            axes[-1, column].set_xlabel("epoch")
        figures.heading(figure, f"{setting}: thin a seed, thick the mean of all while all train")
        figures.legend_below(figure, axes, 3)
        figure.set_label(
            f"Validation {sampled}{' and mean |cos(X, X′)|' if with_gca else ''} over epochs, "
            f"{setting}; rings are each seed's best epoch"
        )
        out[figures.file_name("trajectory", setting)] = figure
    return out


def _lines(axis, part, look, label, line):
    """A thin line for each seed, with a ring at its best epoch, and the mean of all."""
    if part.is_empty():
        return
    for _, seed in part.group_by("seed", maintain_order=True):
        axis.plot(seed["epoch"], seed["value"], color=look["color"], lw=0.5, alpha=0.45)
        best = seed.filter(pl.col("epoch") == pl.col("best_epoch"))
        axis.plot(
            *(best["epoch"], best["value"]),
            **figures.point_style(look) | {"fillstyle": "none", "markersize": 4, "alpha": 0.8},
        )
    count = part["seed"].n_unique()
    mean = part.group_by("epoch").agg(pl.col("value").mean(), n=pl.len()).sort("epoch")
    mean = mean.filter(pl.col("n") == count)
    every = max(1, len(mean) // 8)
    style = {"marker": look["marker"], "markevery": (every // 2, every), "markersize": 4}
    axis.plot(mean["epoch"], mean["value"], color=look["color"], ls=line, label=label, **style)


def summary(frame: pl.DataFrame) -> pl.DataFrame:
    """|cos(X, X')| of each run, place and domain: before training, at its highest, at the end.

    Means over seeds of each seed's first, greatest and last value, and the epoch of the greatest.
    """
    angles = frame.filter(quantity="abs_cos", source="metrics.jsonl").sort("epoch")
    keys = ["setting", "run", "place", "domain"]
    per_seed = angles.group_by([*keys, "seed"], maintain_order=True).agg(
        first=pl.col("value").first(),
        highest=pl.col("value").max(),
        epoch_of_highest=pl.col("epoch").get(pl.col("value").arg_max()).cast(pl.Float64),
        last=pl.col("value").last(),
        epochs=pl.col("epoch").max().cast(pl.Float64),
    )
    return per_seed.group_by(keys, maintain_order=True).agg(pl.exclude("seed").mean())


def define_flags() -> None:
    """None of its own."""


def command(runs: list[Run], out, say) -> int:
    """Write trajectory, trajectory_summary (parquet, CSV) and the figures."""
    frame = trajectories(runs, read_frame(out, "orthogonality"))
    lack = missing(frame)
    if lack:
        say(lack)
        return 0
    write_frame(out, "trajectory", frame)
    write_frame(out, "trajectory_summary", summary(frame))
    figures.save(out, draw(frame, runs, flags.FLAGS.metric))
    say(f"trajectories of {frame['run'].n_unique()} runs in {out}")
    return 0
