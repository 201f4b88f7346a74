"""`intervene`: what happens to ranking quality when the update is replaced in a trained model.

Nothing is trained again: the parameters are a checkpoint's, the users and candidates those of the
run. Every change is a difference of the same seed and the same user.
"""

import dataclasses
import itertools

import jax
import numpy as np
import polars as pl
from absl import flags

from oa_jax.engine.program import Engine
from oa_jax.errors import UserError
from oa_jax.events.log import InteractionLog
from oa_jax.ranking.metrics import user_metrics
from oa_jax.runs.run import check_same_data
from oa_jax.runs.workdir import Workdir
from oa_jax.sheets import Sheet

from . import ablation, figures, restore
from . import interventions as lib
from .output import columns, interval, number, read_frame
from .page import Section
from .resampling import DRAWS, compare
from .runs import Run

SCALES = (0.5, 1.0, 2.0)
HELD = 20_000_000  # differences (metrics × seeds × users) held at once
# seed: null over all seeds, whose step is that of the checkpoint if every kept one is asked for,
# else null, as their best epochs differ.
# part_of: what is replaced, U = α ⊙ X' (gated) or X' (update).
SCHEMA = columns("run", "seed") | columns("parameters split", "step")
SCHEMA |= columns("part_of places intervention", "", "scale") | columns("domain metric")
SCHEMA |= columns("", "", "base value change low high") | columns("", "users")
TOLD = {"orthogonal": "with U⊥ alone by", "parallel": "with U∥ alone by", "zero": "without U by"}


def define_flags() -> None:
    restore.define_flags()
    flags.DEFINE_list("interventions", list(lib.REPLACEMENTS), "What the update is replaced by.")
    flags.DEFINE_list("scales", [f"{s:g}" for s in SCALES], "Factors on what replaces it.")
    flags.DEFINE_bool("each_place", False, "Also at one place of GCA at a time.")
    meaning = "What is replaced: gated, α ⊙ X'; update, X' before its gate."
    flags.DEFINE_enum("part_of", "gated", lib.PART_OF, meaning)


def command(runs: list[Run], out, say) -> int:
    """Intervene on every run with GCA; write intervene.* and the projection ablation."""
    values = flags.FLAGS
    try:
        scales = [float(text) for text in values.scales]
    except ValueError:
        given = ",".join(values.scales)
        raise UserError(f"--scales={given}: expected numbers such as 0.5,1,2") from None
    asked = {"scales": scales, "parts": values.interventions}
    asked |= {name: values[name].value for name in ("each_place", "draws", "part_of")}
    lib.interventions(asked["parts"], asked["scales"])  # what is wrong is said before the work
    frame, status = restore.of_every_run(runs, "intervene", SCHEMA, out, say, intervene, **asked)
    for name in names_of(frame, values.metric):
        found = sheet(frame, runs, name, values.which, values.split)
        if found.rows:
            say("\n" + found.markdown())
    ablation.write(runs, frame, out, say)
    return status


def intervene(
    run: Run,
    which: str = "best",
    split: str = "test",
    say=print,
    *,
    parts=tuple(lib.REPLACEMENTS),
    scales=SCALES,
    each_place: bool = False,
    draws: int = DRAWS,
    data_dir: str | None = None,
    data: InteractionLog | None = None,
    part_of: str = "gated",
) -> pl.DataFrame:
    """Changes of every metric under every intervention: columns `SCHEMA`, one run.

    part_of: "gated" or "update"; a run that was trained with a part is changed where it had it.
    data_dir, data: see restore.experiment_of.
    Rows with a seed: that seed's change, interval over users. Rows without: the mean over seeds,
    interval over seeds and users (resampling.compare on the paired differences), 95 % each, not
    corrected for their number. nan where an intervention gave a score that is not finite.
    Raises UserError when nothing can be restored or the candidates are not those of the run.
    """
    if not run.places:
        return pl.DataFrame(schema=SCHEMA)
    if run.part != "full":  # a part of the one has no counterpart in the other
        part_of = run.gca["part_of"]
    experiment = restore.experiment_of(run, say, data_dir, data)
    if run.env["fingerprints"]:  # ranks of other candidates cannot be held against the run's
        check_same_data(Workdir(run.path), experiment.identity())
    asked = lib.interventions(parts, scales, run.places if each_place else ())
    records = []
    for restored in restore.parameters(run, experiment, which, say):
        ranker = Ranker(experiment, restored, split, part_of)
        if len(ranker.seeds) == 1:
            say(f"{run.name}: one seed: its intervals are over users only")
        base = ranker.ranks(lib.UNCHANGED)
        if which == "best" and run.summary:
            say(f"{run.name}: {agreement(base, run.ranks(), ranker)}")
        lead = {"run": run.name, "parameters": restored.kind, "split": split, "part_of": part_of}
        records += _changes(ranker, base, asked, lead, draws, say)
    return pl.DataFrame(records, schema=SCHEMA)


class Ranker:
    """Ranks of one run's users under any intervention, by one compiled program."""

    def __init__(self, experiment, restored, split, part_of="gated"):
        slots, evaluation = np.flatnonzero(restored.good_S), experiment.evaluation
        if not len(slots):
            raise UserError(f"step {restored.checkpoint}: every seed is left out")
        self.split, self.tie_weight = split, evaluation.tie_weight
        self.seeds, self.epochs = experiment.seeds[slots], restored.epoch_S[slots]
        self.step = restored.checkpoint if restored.kind == "kept" else None
        self.rows, self._names = evaluation.rows[split], evaluation.rankings
        settings = experiment.engine.settings
        self._modules, self._tables = lib.modules_of(settings.backbone), experiment.tables
        changed = lib.Intervened(settings.backbone, part_of)
        settings = dataclasses.replace(settings, backbone=changed)
        self._engine = Engine(settings, experiment.engine.axis)
        self._params = jax.device_put(jax.tree.map(lambda a: a[slots], restored.params))
        self._padded = jax.device_put(evaluation.padded(self.rows))

    def ranks(self, intervention: lib.Intervention) -> dict:
        """{ranking's name: Ranks of numpy arrays, (S, R)}."""
        asked = lib.variables(self._params, self.seeds, self._modules, intervention)
        found, _ = self._engine.final(asked, self._padded, tuple(self._names), self._tables)
        found, n = jax.device_get(found), len(self.rows["target"])
        return {self._names[k]: jax.tree.map(lambda a: a[:, :n], v) for k, v in found.items()}

    def metrics(self, ranks) -> tuple[list[str], np.ndarray]:
        """(names such as ndcg@10/full, values (M, S, R)): nan for a seed with a score that is not
        finite."""
        names, values = [], []
        for name, found in ranks.items():
            counts = (found.rank, found.ties, found.n_candidates)
            metrics = user_metrics(*counts, self.tie_weight)
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
    size, unchanged = max(1, HELD // base.size), [lib.UNCHANGED]
    records = _records(ranker, names, base, unchanged, [base], 2)
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
        whose = [(None, ranker.step, slice(None))]
        numbers = zip(ranker.seeds.tolist(), ranker.epochs.tolist(), strict=True)
        whose += [(*of, slice(i, i + 1)) for i, of in enumerate(numbers)]
        for seed, step, slots in whose:
            now, before = mine[:, slots], there[:, slots]
            found = compare(now - before, None, np.random.default_rng(0), draws)
            means = now.mean((1, 2)), before.mean((1, 2))
            lead = {"seed": seed, "step": step, "domain": domain, "users": int(rows.sum())}
            for (of, name), change, *ends in zip(kinds, found, *means, strict=True):
                row = {"places": of.places, "intervention": of.part, "scale": of.scale}
                row |= {"metric": name, "value": ends[0], "base": ends[1]}
                row |= {"change": change.estimate, "low": change.low, "high": change.high}
                out.append(lead | row)
    return out


def names_of(frame: pl.DataFrame, metric: str) -> list[str]:
    """Names in the frame of a metric, which may lack its ranking."""
    names = frame["metric"].unique(maintain_order=True)
    return [name for name in names if metric in (name, name.split("/")[0])]


def sheet(frame: pl.DataFrame, runs: list[Run], metric: str, which="best", split="test") -> Sheet:
    """A row for each run, replacement, scale and places, the change in either domain."""
    rows, steps = [], ["step"] * (which == "all")
    keys = (*steps, "part_of", "intervention", "scale", "places")
    where = {"metric": metric, "parameters": "kept" if which == "all" else which, "split": split}
    for run in runs:
        found = frame.filter(pl.col("seed").is_null(), run=run.name, **where)
        for key, here in found.group_by(keys, maintain_order=True):
            *step, part_of, part, scale, places = key
            row = [run.name, *map(str, step), _named(part, part_of), f"{scale:g}", places]
            for domain in "AB":
                of = here.filter(domain=domain).to_dicts()
                change = number(of[0]["change"], 4, sign=True) if of else "–"
                row += [number(of[0]["value"], 4) if of else "–", change]
                row.append(interval(of[0]["low"], of[0]["high"], 4, True) if of else "–")
            rows.append(row)
    header = ["run", *steps, "U replaced by", "scale", "places"]
    header += [f"{d}: {what}" for d in "AB" for what in ("value", "change", "95 % interval")]
    title = f"{split.capitalize()} {metric} with the update U replaced in the trained models, "
    return Sheet(title + "paired by user and seed", header, rows, words=4 + len(steps))


def _named(part, part_of):
    return lib.REPLACEMENTS[part].replace("U", "α ⊙ X′" if part_of == "gated" else "X′")


@figures.for_each("setting")
def draw(frame: pl.DataFrame, setting: str, runs: list[Run], metric: str):
    """Change of the metric by each replacement, a marker for each run."""
    pairs = itertools.product(frame["part_of"].unique(maintain_order=True), lib.REPLACEMENTS)
    there = set(frame.select("part_of", "intervention").rows())
    parts = [pair for pair in pairs if pair in there]
    runs, labels, looks = figures.of_runs(frame, runs)
    full = runs[0].full_name(metric)

    def panel(axis, domain):
        for i, run in enumerate(runs):
            shift = (i - (len(runs) - 1) / 2) * 0.6 / len(runs)
            rows = frame.filter(run=run.name, domain=domain)
            x, low, high = (rows[name].to_numpy() for name in ("change", "low", "high"))
            y = [parts.index(of) + shift for of in rows.select("part_of", "intervention").rows()]
            look = figures.point_style(looks[run.name])
            figures.spans(axis, x, y, low, high, look, labels[run.name])
        axis.axvline(0, label="no change", **figures.NULL)
        axis.set_yticks(range(len(parts)), [_named(part, of) for of, part in parts])
        axis.set(ylim=(len(parts) - 0.5, -0.5), xlabel=f"change of test {full}")
        axis.locator_params("x", nbins=5)

    heading = f"{setting}: the update replaced in trained models, 95 % intervals"
    label = f"Change of test {full} when the update is replaced at all places, {setting}"
    height = 1.5 + 0.26 * len(parts)
    return figures.by_domain("interventions", setting, panel, heading, label, height, sharey=True)


def section(runs: list[Run], out, options) -> Section:
    """What `intervene` has left in `out` of these runs."""
    how = (
        "In trained models the update U, α ⊙ X′ or X′, is replaced at every place of GCA, nothing "
        "is trained again, and the same users are ranked again. 'At the norm of U' tells direction "
        "from size. After residual and norm an update along X vanishes, exactly so for U = α ⊙ X′: "
        "a gate that differs from unit to unit turns an X′ along X into one that is not. What a "
        "model loses this way is what it has come to rely on, not what it could learn without."
    )
    frame = everything = read_frame(out, "intervene", runs)
    mine = [run for run in runs if frame is not None and run.name in set(frame["run"])]
    if not mine:
        why = "no trained model was intervened on (--fast, or no run with GCA and checkpoints)"
        return Section("Interventions", how, missing=[why])
    # Over all seeds, at all places at once, by the sampled ranking if none is named.
    frame = frame.filter(pl.col("seed").is_null(), parameters="best", split="test")
    frame = frame.filter(places="all", scale=1.0)
    names = [(run.name, run.full_name(options.metric)) for run in mine]
    whole = pl.concat([frame.filter(run=run, metric=metric) for run, metric in names])
    sheets = [sheet(whole, mine, name) for name in names_of(whole, options.metric)]
    sheets += ablation.sheets(ablation.collect(runs, everything))
    parts = []
    for part, text in TOLD.items():
        change = whole.filter(intervention=part)["change"].drop_nulls()
        if len(change):
            ends = [number(value, 4, sign=True) for value in (change.min(), change.max())]
            parts.append(f"{text} {' to '.join(dict.fromkeys(ends))}")
    short = (
        "Does the orthogonal part carry it? In trained models "
        f"{options.metric} changes, over runs and domains, {', '.join(parts)}."
    )
    drawn = draw(whole.filter(pl.col("intervention") != "full"), mine, options.metric)
    return Section("Interventions", how, short if parts else "", [], [], sheets, drawn)
