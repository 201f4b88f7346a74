"""`trajectory`: validation metrics and angles over training, seed by seed, from metrics.jsonl.

Unfinished runs are shown as far as they are. Where `orthogonality` has measured several kept
checkpoints of a run (`--which=all`), its values come as well, with another `source`.
"""

import polars as pl
from matplotlib.ticker import MaxNLocator

from oa_jax.nn.angles import null_abs_cos

from . import figures
from .angles import SHOWN
from .output import columns, number, read_frame, sheet_of, write_frame
from .page import Section
from .runs import Run

SCHEMA = columns("setting run variant", "seed epoch") | columns("place domain quantity")
SCHEMA |= columns("", "", "value") | columns("", "best_epoch") | columns("source")


def trajectories(runs: list[Run], measured: pl.DataFrame | None = None) -> pl.DataFrame:
    """Tidy: a row per run, seed, epoch and quantity; columns as `SCHEMA`.

    quantity: `val/ndcg@10/uni999` and the like, without place; or a statistic of GCA with its
    place. best_epoch: the seed's best by the end of what the file holds.
    """
    frames = [pl.DataFrame(schema=SCHEMA)]
    for run in runs:
        epochs = run.epochs()
        drawn = [(name, *of) for name in epochs.columns if (of := _parse(name))]
        if not drawn:
            continue
        parsed = pl.DataFrame(drawn, columns("name place domain quantity"), orient="row")
        tidy = epochs.unpivot(parsed["name"], index=["epoch", "seed"], variable_name="name")
        tidy = tidy.drop_nulls().join(parsed, on="name")
        parts = [tidy.with_columns(source=pl.lit("metrics.jsonl"))]
        if measured is not None:  # with `--which=all`: its kept checkpoints, and untrained
            kept = pl.col("parameters").is_in(["init", "kept"])
            found = measured.filter(kept, run=run.name).drop_nulls("value")
            if "kept" in found["parameters"]:
                found = found.rename({"statistic": "quantity", "step": "epoch"})
                parts.append(found.with_columns(source="checkpoint, " + pl.col("split")))
        best = epochs.group_by("seed").agg(pl.col("^best_epoch$").last())
        lead = {"setting": run.setting, "run": run.name, "variant": run.variant}
        lead = {name: pl.lit(value) for name, value in lead.items()}
        frames += [part.join(best, on="seed").with_columns(**lead) for part in parts]
    # Rows of older runs have no best epoch.
    return pl.concat(frames, how="diagonal_relaxed").select(*SCHEMA).cast(SCHEMA)


def _parse(name):
    """Place, domain and quantity of a column of metrics.jsonl, None for what is not drawn."""
    parts = name.split("/")
    if parts[0] == "val" and len(parts) == 4:
        return None, parts[1], f"val/{parts[2]}/{parts[3]}"
    return parts[1:] if parts[0] == "gca" and len(parts) == 4 and parts[3] in SHOWN else None


@figures.for_each("setting")
def draw(frame: pl.DataFrame, setting: str, runs: list[Run], metric: str = "ndcg@10"):
    """The validation metric of a setting over the angle, a column a domain."""
    runs, labels, looks = figures.of_runs(frame, runs)
    # The gated update's angles, if all runs that have any have these.
    with_raw = set(frame.filter(quantity="abs_cos")["run"])
    with_gated = set(frame.filter(quantity="gated_abs_cos")["run"])
    form = "gated_" if with_gated and with_raw <= with_gated else ""
    with_gca = bool(with_raw | with_gated)
    # Training watches one ranking alone, which need not be the one asked for.
    metric, sampled = metric.partition("/")[0], runs[0].full_name(metric)
    found = frame.filter(pl.col("quantity").str.starts_with(f"val/{metric}/"))["quantity"]
    names = found.str.strip_prefix("val/").unique(maintain_order=True).to_list()
    sampled = sampled if sampled in names else [*names, f"{metric}: none"][0]
    angle = "mean |cos(X, α ⊙ X′)|" if form else "mean |cos(X, X′)|"

    def panel(axes, domain):
        axes = axes if with_gca else [axes]
        for run in runs:
            here = frame.filter(run=run.name, domain=domain)
            label, look = labels[run.name], looks[run.name]
            # Named once: those with GCA by the lines of their places, of the same look.
            named = None if with_gca and run.places else label
            _lines(axes[0], here.filter(quantity=f"val/{sampled}"), look, named)
            for place in map(str, run.places):
                at = here.filter(quantity=f"{form}abs_cos", place=place)
                line = figures.PLACE_LINES.get(place, "-.")
                _lines(axes[-1], at, look, f"{label}, place {place}", line)
        axes[0].set_ylabel(f"validation {sampled}")
        if with_gca:
            for width in sorted({r.width for r in runs if r.places}):
                text = f"null: independent directions, d = {width}"
                axes[1].axhline(null_abs_cos(width), label=text, **figures.NULL)
            axes[1].set_ylabel(angle)
            axes[1].set_ylim(0, 1.05 * axes[1].dataLim.y1)  # room for the highest ring
        axes[-1].set_xlabel("epoch")
        axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))

    heading = f"{setting}: thin a seed, thick the mean of all while all train"
    shown = f"{sampled} and {angle}" if with_gca else sampled
    label = f"Validation {shown} over epochs, {setting}; rings are each seed's best epoch"
    more = {"rows": 1 + with_gca, "sharex": True}
    return figures.by_domain("trajectory", setting, panel, heading, label, 2.5, **more)


def _lines(axis, part, look, label, line="-"):
    """A thin line for each seed, with a ring at its best epoch, and the mean of all."""
    if part.is_empty():
        return
    for _, seed in part.group_by("seed", maintain_order=True):
        axis.plot(seed["epoch"], seed["value"], color=look["color"], lw=0.5, alpha=0.45)
        best = seed.filter(pl.col("epoch") == pl.col("best_epoch"))
        ring = figures.point_style(look, "1") | {"markersize": 4, "alpha": 0.8}
        axis.plot(best["epoch"], best["value"], **ring)
    mean = part.group_by("epoch").agg(pl.col("value").mean(), n=pl.len()).sort("epoch")
    mean = mean.filter(pl.col("n") == part["seed"].n_unique())
    every = max(1, len(mean) // 8)
    style = {"marker": look["marker"], "markevery": (every // 2, every), "markersize": 4}
    axis.plot(mean["epoch"], mean["value"], color=look["color"], ls=line, label=label, **style)


def summary(frame: pl.DataFrame) -> pl.DataFrame:
    """Mean |cos| of each run, place, domain and update: untrained, at its highest, at the end.

    Means over seeds of each seed's first, greatest and last value, and the epoch of the greatest.
    """
    angles = frame.filter(pl.col("quantity").is_in(["gated_abs_cos", "abs_cos"]))
    angles = angles.filter(source="metrics.jsonl").sort("epoch")
    keys = ["setting", "run", "place", "domain", "quantity"]
    per_seed = angles.group_by([*keys, "seed"], maintain_order=True).agg(
        first=pl.col("value").first(),
        highest=pl.col("value").max(),
        epoch_of_highest=pl.col("epoch").get(pl.col("value").arg_max()).cast(pl.Float64),
        last=pl.col("value").last(),
        epochs=pl.col("epoch").max().cast(pl.Float64),
    )
    return per_seed.group_by(keys, maintain_order=True).agg(pl.exclude("seed").mean())


def section(runs: list[Run], out, options) -> Section:
    """Curves over training of options.metric and of the angles."""
    how = (
        "Validation metric and angle after every epoch; epoch 0 is the untrained model. Angles "
        "are those of the users that the training probes, not of all. Unfinished runs are shown."
    )
    frame = trajectories(runs, read_frame(out, "orthogonality", runs))
    if frame.is_empty():
        lack = "no run with rows in metrics.jsonl: no trajectory"
        return Section("Over training", how, missing=[lack])
    found = summary(frame)
    write_frame(out, "trajectory", frame)
    write_frame(out, "trajectory_summary", found)
    cells = {name: name for name in ("run", "place", "domain")} | {"statistic": "quantity"}
    cells |= {"untrained": lambda r: number(r["first"]), "highest": lambda r: number(r["highest"])}
    cells |= {"at epoch": lambda r: number(r["epoch_of_highest"], 0)}
    cells |= {"last": lambda r: number(r["last"])}
    sheets = [sheet_of(found, "Mean |cos| over training, means over seeds", 4, cells)]
    drawn = draw(frame.filter(source="metrics.jsonl"), runs, options.metric)
    lacks = [] if len(found) else ["no run with GCA: no angle over training"]
    return Section("Over training", how, "", [], lacks, sheets * (len(found) > 0), drawn)
