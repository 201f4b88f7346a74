"""`intervene`: what happens to ranking quality when X' is replaced in a trained model.

Nothing is trained again: the parameters are a checkpoint's, the users and candidates those of the
run. Every change is a difference of the same seed and the same user.
"""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import polars as pl
from absl import flags
from rich.table import Table

from analysis import ablation, restore
from analysis.interventions import (
    PARTS,
    UNCHANGED,
    Intervened,
    Intervention,
    interventions,
    modules_of,
    variables,
)
from analysis.output import write_frame
from analysis.resampling import DRAWS, compare
from analysis.runs import Run
from oa_jax.commands import cli
from oa_jax.engine.compilation import use_compilation_cache
from oa_jax.engine.program import Engine
from oa_jax.errors import UserError
from oa_jax.ranking.metrics import user_metrics
from oa_jax.runs.run import check_same_data
from oa_jax.runs.workdir import Workdir

SCALES = (0.5, 1.0, 2.0)
HELD = 20_000_000  # differences (metrics × seeds × users) held at once
SCHEMA = {
    "run": pl.String,
    "seed": pl.Int64,  # null: over all seeds
    "parameters": pl.String,
    "split": pl.String,
    "step": pl.Int64,
    "places": pl.String,
    "intervention": pl.String,
    "scale": pl.Float64,
    "domain": pl.String,
    "metric": pl.String,
    "base": pl.Float64,
    "value": pl.Float64,
    "change": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "users": pl.Int64,
}


def define_flags() -> None:
    restore.define_flags()
    flags.DEFINE_list("interventions", list(PARTS), "What X' is replaced by.")
    flags.DEFINE_list("scales", [f"{s:g}" for s in SCALES], "Factors on what replaces X'.")
    flags.DEFINE_bool("each_place", False, "Also at one place of GCA at a time.")


def command(runs: list[Run], out, say) -> int:
    """Intervene on every run with GCA; write intervene.* and the projection ablation."""
    use_compilation_cache()
    asked = {
        "parts": flags.FLAGS.interventions,
        "scales": [_number(text) for text in flags.FLAGS.scales],
        "each_place": flags.FLAGS.each_place,
        "draws": flags.FLAGS.draws,
        "data_dir": flags.FLAGS.data_dir,
    }
    interventions(asked["parts"], asked["scales"])  # what is wrong is said before the work
    frames, missing = [], []
    for run in runs:
        if not run.places:
            say(f"{run.name}: no GCA: nothing to intervene on")
            continue
        try:
            frames.append(intervene(run, flags.FLAGS.which, flags.FLAGS.split, say, **asked))
        except UserError as error:
            missing.append(str(error))
            say(f"{run.name}: left out: {error}")
    if missing and not frames:
        raise UserError(missing[0])
    frame = pl.concat(frames) if frames else pl.DataFrame(schema=SCHEMA)
    write_frame(out, "intervene", frame)
    for run in runs:
        show(frame.filter(pl.col("run") == run.name), flags.FLAGS.metric, cli.console)
    ablation.write(runs, frame, out, say)
    say(f"{len(frame)} changes in {out / 'intervene.parquet'} and .csv")
    return 1 if missing else 0


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UserError(f"--scales={text}: expected numbers such as 0.5,1,2") from None


def intervene(
    run: Run,
    which: str = "best",
    split: str = "test",
    say=print,
    *,
    parts=tuple(PARTS),
    scales=SCALES,
    each_place: bool = False,
    draws: int = DRAWS,
    data_dir: str | None = None,
) -> pl.DataFrame:
    """Changes of every metric under every intervention: columns `SCHEMA`, one run.

    Rows with a seed: that seed's change, interval over users. Rows without: the mean over seeds,
    interval over seeds and users (analysis.resampling.compare on the paired differences), 95 %
    each, not corrected for their number. nan where an intervention gave a score that is not finite.
    Raises UserError when nothing can be restored or the candidates are not those of the run.
    """
    if not run.places:
        return pl.DataFrame(schema=SCHEMA)
    experiment = restore.experiment_of(run, say, data_dir)
    if run.env:
        check_same_data(Workdir(run.path), {"fingerprints": experiment.identity()})
    asked = interventions(parts, scales, run.places if each_place else ())
    records = []
    for restored in restore.parameters(run, experiment, which, say):
        ranker = Ranker(experiment, restored, split)
        base = ranker.ranks(UNCHANGED)
        if which == "best" and run.is_finished:
            say(f"{run.name}: {agreement(base, run.ranks(), ranker)}")
        lead = {"run": run.name, "parameters": restored.kind, "split": split}
        records += _changes(ranker, base, asked, lead, draws, say)
    return pl.DataFrame(records, schema=SCHEMA)


class Ranker:
    """Ranks of one run's users under any intervention, by one compiled program."""

    def __init__(self, experiment, restored, split):
        self.experiment, self.split = experiment, split
        self.slots = np.flatnonzero(restored.good_S)
        if not len(self.slots):
            raise UserError(f"step {restored.checkpoint}: every seed is left out")
        self.seeds = experiment.seeds[self.slots]
        self.epochs = restored.epoch_S[self.slots]
        self.rows = experiment.eval_rows[split]
        padded = experiment.padded(self.rows)
        block = {k: v[: experiment.config["evaluate"]["block_users"]] for k, v in padded.items()}
        one = restored.of_seed(int(self.slots[0]))
        self.modules = modules_of(experiment.backbone, one, block)
        settings = experiment.engine.settings
        settings = dataclasses.replace(settings, backbone=Intervened(experiment.backbone))
        self._engine = Engine(settings, experiment.engine.axis)
        self._params = jax.device_put(jax.tree.map(lambda a: a[self.slots], restored.params))
        self._rows = jax.device_put(padded)

    def ranks(self, intervention: Intervention) -> dict:
        """{ranking's name: Ranks of numpy arrays, (S, R)}."""
        args = variables(self._params, self.seeds, self.modules, intervention)
        n_rows, names = len(self.rows["target"]), self.experiment.protocol_names
        tables = self.experiment.tables
        found, _ = self._engine.final(args, self._rows, tuple(names), tables)
        found = jax.device_get(found)
        return {names[k]: jax.tree.map(lambda a: a[:, :n_rows], v) for k, v in found.items()}

    def metrics(self, ranks) -> tuple[list[str], np.ndarray]:
        """(names such as ndcg@10/full, values of every seed and user (M, S, R)).

        nan for a seed with a score that is not finite.
        """
        names, values = [], []
        for name, found in ranks.items():
            counts = (found.rank, found.ties, found.n_candidates)
            metrics = user_metrics(*counts, self.experiment.tie_weight)
            lost_Sx1 = ~found.finite.all(1)[:, None]
            names += [f"{metric}/{name}" for metric in metrics]
            values += [np.where(lost_Sx1, np.nan, value) for value in metrics.values()]
        return names, np.stack(values)


def agreement(ranks, stored, ranker: Ranker) -> str:
    """A sentence: whether the unchanged model's ranks are those of ranks.npz, seed by seed."""
    differ = total = 0
    slots = np.searchsorted(stored["seed"], ranker.seeds)
    for name, found in ranks.items():
        for field in ("rank", "ties"):
            there = stored[f"{ranker.split}/{name}/{field}"][slots]
            differ += int((there != getattr(found, field)).sum())
            total += there.size
    if not differ:
        return f"unchanged, all {total} ranks and ties are those of ranks.npz"
    return (
        f"unchanged, {differ} of {total} ranks and ties differ from ranks.npz: "
        "expected only on another device, seed axis or version than the run's"
    )


def _changes(ranker, base_ranks, asked, lead, draws, say):
    """Records of all interventions, in groups whose differences are held together."""
    names, base = ranker.metrics(base_ranks)
    size, records = max(1, HELD // base.size), _records(ranker, names, base, [UNCHANGED], [base], 2)
    for start in range(0, len(asked), size):
        group, values = asked[start : start + size], []
        for i, intervention in enumerate(group, start + 1):
            values.append(ranker.metrics(ranker.ranks(intervention))[1])
            what = f"{intervention.scale:g} × {intervention.part}, {intervention.places}"
            say(f"{lead['run']}: {i}/{len(asked)} {what}")
        records += _records(ranker, names, base, group, values, draws)
    return [lead | record for record in records]


def _records(ranker, names, base, group, values, draws):
    out, domain_R = [], ranker.rows["domain"]
    # One axis for interventions and metrics: all of them see the same draws.
    value = np.concatenate(values)
    kinds = [(intervention, name) for intervention in group for name in names]
    for index, domain in enumerate("AB"):
        rows = domain_R == index
        if not rows.any():
            continue
        mine, there = value[:, :, rows], np.concatenate([base[:, :, rows]] * len(group))
        whose = [(None, None, slice(None))]
        whose += [
            (int(seed), int(epoch), slice(i, i + 1))
            for i, (seed, epoch) in enumerate(zip(ranker.seeds, ranker.epochs, strict=True))
        ]
        for seed, step, slots in whose:
            found = paired(mine[:, slots] - there[:, slots], draws)
            ends = (mine[:, slots].mean((1, 2)), there[:, slots].mean((1, 2)))
            for (intervention, name), change, now, before in zip(kinds, found, *ends, strict=True):
                out.append(
                    {"seed": seed, "step": step, "places": intervention.places}
                    | {"intervention": intervention.part, "scale": intervention.scale}
                    | {"domain": domain, "metric": name, "base": before, "value": now}
                    | {"change": change.estimate, "low": change.low, "high": change.high}
                    | {"users": int(rows.sum())}
                )
    return out


def paired(difference_MxSxR, draws: int):
    """Mean changes and intervals from differences of the same seed and user.

    Seeds and users are drawn, both paired: the two-way model of `compare`, whose other side is 0.
    """
    nothing = np.zeros((len(difference_MxSxR), 1, difference_MxSxR.shape[2]))
    return compare(difference_MxSxR, nothing, np.random.default_rng(0), draws)


def show(frame: pl.DataFrame, metric: str, console) -> None:
    """A table of one run: change of `metric` over all seeds, at all places at once."""
    frame = frame.filter(pl.col("seed").is_null())
    names = frame["metric"].unique(maintain_order=True)
    names = [name for name in names if metric in (name, name.split("/")[0])]
    if frame.is_empty() or not names:
        return
    columns = [(domain, name) for name in names for domain in ("A", "B")]
    heads = [f"{name} {domain}" for domain, name in columns]
    table = Table("replaced by", "scale", "places", *heads, box=None, pad_edge=False)
    keys = ("parameters", "places", "intervention", "scale")
    for (_, places, part, scale), rows in frame.group_by(keys, maintain_order=True):
        cells = []
        for domain, name in columns:
            row = rows.filter((pl.col("domain") == domain) & (pl.col("metric") == name))
            cells.append(_cell(row.row(0, named=True)) if len(row) else "–")
        table.add_row(PARTS[part], f"{scale:g}", places, *cells)
    console.print(f"\n{frame['run'][0]}: change, 95 % interval over seeds and users", markup=False)
    console.print(table)


def _cell(row) -> str:
    if row["intervention"] == "full" and row["scale"] == 1:
        return f"{row['value']:.4f}"
    return f"{row['change']:+.4f} [{row['low']:+.4f}, {row['high']:+.4f}]"
