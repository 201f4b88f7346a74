"""`report`: one HTML page and a folder of PNG and PDF with everything that these runs show.

`--fast` leaves out what needs checkpoints (`orthogonality`, `intervene`); what an earlier call has
left of them in --out is used all the same.
"""

from __future__ import annotations

import datetime

import polars as pl
from absl import flags

import oa_jax
from analysis import (
    ablation,
    angles,
    correlate,
    figures,
    intervene,
    orthogonality,
    probes,
    published,
    scaling,
    table,
    trajectory,
)
from analysis.output import interval, number, read_frame, write, write_frame
from analysis.page import Section, page
from analysis.runs import Run, find_runs, finished, notes
from oa_jax.errors import UserError
from oa_jax.sheets import Sheet


def define_flags() -> None:
    flags.DEFINE_bool("fast", False, "Nothing that needs checkpoints: no probes, no interventions.")
    for module in (correlate, intervene, orthogonality, scaling, table, trajectory):
        module.define_flags()


def command(runs: list[Run], out, say) -> int:
    """Write report.html, figures/ and the frames of all commands into `out`."""
    left_out = find_runs(flags.FLAGS.runs)[1]
    failed = {} if flags.FLAGS.fast else measure(runs, out, say)
    text, drawn = build(runs, left_out, out, say, options(), failed)
    figures.save(out, drawn)
    write(out / "report.html", text)
    say(f"report in {out / 'report.html'}")
    return 1 if failed else 0


def options() -> dict:
    """The flags that the sections depend on."""
    names = ("metric", "draws", "statistic", "points", "baseline", "pair_seeds")
    return {name: flags.FLAGS[name].value for name in names} | {"metrics": table.chosen_metrics()}


def measure(runs, out, say) -> dict[str, str]:
    """Run the commands that need checkpoints; {command: why it could not}."""
    failed = {}
    for module in (orthogonality, intervene):
        name = module.__name__.split(".")[-1]
        say(f"{name} …")
        try:
            if module.command(runs, out, say):
                failed[name] = "some runs could not be measured, see the command's output"
        except UserError as error:
            failed[name] = str(error)
            say(f"{name}: {error}")
    return failed


def build(runs, left_out, out, say, options: dict, failed: dict | None = None):
    """-> (HTML, {name: figure}); writes the frames of the sections into `out`."""
    measured = read_frame(out, "orthogonality")
    intervened = read_frame(out, "intervene")
    sections = [
        runs_section(runs, left_out),
        table_section(runs, out, options),
        angles_section(runs, measured, failed or {}),
        correlate_section(runs, out, measured, options),
        intervene_section(runs, out, intervened, options["metric"], failed or {}),
        scaling_section(runs, out, options),
        trajectory_section(runs, out, measured, options["metric"]),
        sources_section(),
    ]
    count = f"{len(runs)} run{'s' if len(runs) != 1 else ''}, {len(finished(runs))} finished"
    made = f"made {datetime.date.today()} by oa-jax {oa_jax.__version__}"
    lead = f"{count}; {made}. Intervals are 95 %."
    drawn = {name: figure for s in sections for name, figure in s.figures.items()}
    return page("Orthogonal Alignment: what these runs show", lead, sections), drawn


def runs_section(runs, left_out) -> Section:
    rows = []
    for run in runs:
        size = f"{run.summary['n_parameters']:,}" if run.is_finished else "–"
        epochs = run.epochs()
        last = str(epochs["epoch"].max()) if len(epochs) else "–"
        seeds = f"{len(run.seeds())} of {run.config['seeds']}" if run.is_finished else "–"
        commit = run.env.get("commit") or "unknown"
        width = str(run.config["model"]["d_embed"])
        rows.append(
            [run.name, run.setting, run.variant, run.state, commit, width, size, seeds, last]
        )
    header = [
        "run",
        "setting",
        "variant",
        "state",
        "code",
        "width",
        "parameters",
        "seeds",
        "epochs",
    ]
    how = "What went into this page. Numbers of different settings are never compared."
    sheet = Sheet("Runs", header, rows, words=5)
    return Section("Runs", how, "", notes(runs), left_out, [sheet])


def table_section(runs, out, options) -> Section:
    how = (
        "Means and standard deviations over seeds, the published values beside them. A gain is a "
        "variant minus the baseline of the same configuration; its interval is a bootstrap over "
        "seeds and users, users paired. 'P(better seed)' is the share of pairs of seeds in which "
        "the variant is better, 'detectable gain' the true gain that this comparison would find "
        "with power 0.8. Holm's correction runs over all gains of the table."
    )
    lack = table.missing(runs)
    if lack:
        return Section("Ranking quality", how, missing=[lack])
    frame, found = table.gains(
        runs, options["baseline"], options["metrics"], options["draws"], options["pair_seeds"]
    )
    pages = table.write_table(out, frame)
    rows = frame.filter(metric=options["metric"].split("/")[0]).drop_nulls("gain").to_dicts()
    lines, short = [_gain_line(row) for row in rows], _quality_in_short(rows)
    return Section("Ranking quality", how, short, lines, found, pages, table.draw(frame))


def _quality_in_short(rows):
    """How many gains there are, and how many of them chance does not explain."""
    if not rows:
        return "Does GCA rank better? No gain can be computed from these runs."
    known = [row for row in rows if row["p_holm"] is not None]
    better = sum(row["p_holm"] < 0.05 and row["gain"] > 0 for row in known)
    worse = sum(row["p_holm"] < 0.05 and row["gain"] < 0 for row in known)
    relative = [100 * row["relative_gain"] for row in rows if row["relative_gain"] is not None]
    spread = f", from {number(min(relative), 1, True)} % to {number(max(relative), 1, True)} %"
    return (
        f"Does GCA rank better? Of {len(rows)} gains in {rows[0]['metric'].upper()} (runs, domains "
        f"and rankings){spread if relative else ''}, {better} are positive and {worse} negative "
        "beyond chance (Holm over all metrics, 5 %)."
    )


def _gain_line(row):
    relative = row["relative_gain"]
    share = f" ({number(100 * relative, 1, sign=True)} %)" if relative is not None else ""
    return (
        f"{row['run']} against {row['baseline']}, {row['metric'].upper()} ({row['ranking']}) in "
        f"{row['domain']}: {number(row['gain'], 4, sign=True)} "
        f"{interval(row['low'], row['high'], 4, True)}{share}, p after Holm "
        f"{table.small(row['p_holm'])}"
    )


def angles_section(runs, measured, failed) -> Section:
    how = (
        "X′ is the update of the cross-attention before its gate, X the stream that asks. The null "
        "is what independent random directions of this width give; untrained models sit there. A "
        "small |cos| means little unless it is below the null or far from the trained value of "
        "another model."
    )
    frame = angles.angles(runs)
    known = {run.name for run in runs}
    measured = None if measured is None else measured.filter(pl.col("run").is_in(list(known)))
    missing = [failed["orthogonality"]] if "orthogonality" in failed else []
    if frame.is_empty():
        return Section("Angles", how, missing=[*missing, "no finished run with GCA: no angles"])
    sheets, drawn = [angles.sheet(frame)], angles.draw(frame, runs)
    if measured is None or measured.is_empty():
        missing.append("distributions and subspaces: `orthogonality` has not been run (--fast?)")
    else:
        sheets.append(probes.subspace_sheet(measured))
        drawn |= probes.draw_cosines(measured, runs)
    trained = frame.filter(statistic="abs_cos", when="best")
    lines = [
        f"{r['run']}, place {r['place']}, {r['domain']}: |cos(X, X′)| {number(r['mean'])}, "
        f"{number(r['mean'] / r['null'], 1)} times the null ({number(r['null'])})"
        for r in trained.iter_rows(named=True)
    ]
    return Section("Angles", how, _angles_in_short(trained), lines, missing, sheets, drawn)


def _angles_in_short(trained):
    values = trained.select(times=pl.col("mean") / pl.col("null"), value=pl.col("mean"))
    below = values.filter(pl.col("times") <= 1).height
    return (
        f"Is X′ orthogonal to X? Over {len(values)} places and domains the trained |cos(X, X′)| is "
        f"{number(values['value'].min())} to {number(values['value'].max())}, "
        f"{number(values['times'].min(), 1)} to {number(values['times'].max(), 1)} times what "
        f"random directions give; {below} are at or below that null."
    )


def correlate_section(runs, out, measured, options) -> Section:
    how = (
        "A point is a seed at one place of GCA. Seeds of one configuration are alike, so intervals "
        "draw whole configurations. 'Partial' holds parameters, width and training progress "
        "fixed; 'within configuration' compares the seeds of a configuration only, where neither "
        "size nor design differs. The paper's r has no interval and mixes configurations."
    )
    kept = (options["statistic"], options["metric"])
    points = correlate.points_of(runs, *kept, options["points"], measured)
    lack = correlate.missing(runs, points)
    if lack:
        return Section("Angle and quality", how, missing=[lack])
    frame = correlate.correlations(points, options["draws"])
    write_frame(out, "correlate_points", points)
    write_frame(out, "correlate", frame)
    drawn = correlate.draw(points, frame, *kept)
    first = frame.filter(coefficient="Pearson r")
    short = "Does a smaller |cos| go with a better ranking? " + "; ".join(
        f"{r['domain']} {correlate.in_words(r)}" for r in first.iter_rows(named=True)
    )
    lines = correlate.sentences(frame.filter(pl.col("coefficient").is_in(correlate.FIRST)))
    sheets = [correlate.sheet(frame)]
    return Section("Angle and quality", how, short + ".", lines, [], sheets, drawn)


def intervene_section(runs, out, frame, metric, failed) -> Section:
    how = (
        "In trained models, X′ is replaced at every place of GCA, nothing is trained again, and "
        "the same users are ranked again. 'At the norm of X′' tells direction from size. What a "
        "model loses this way is what it has come to rely on, not what it could learn without."
    )
    missing = [failed["intervene"]] if "intervene" in failed else []
    mine = [run for run in runs if frame is not None and run.name in set(frame["run"])]
    if not mine:
        why = "no trained model was intervened on (--fast, or no run with GCA and checkpoints)"
        return Section("Interventions", how, missing=[*missing, why])
    sheet = probes.intervention_sheet(frame, mine, metric)
    told = [probes.PARTS[part] for part in ("parallel", "orthogonal", "zero")]
    lines = [
        f"{row[0]}, X′ replaced by {row[1]}: A {row[3]} {row[4]}, B {row[6]} {row[7]}"
        for row in sheet.rows
        if row[1] in told
    ]
    short = _interventions_in_short(frame, mine, metric)
    sheets = [sheet, *ablation_sheets(read_frame(out, "ablation"))]
    drawn = probes.draw_interventions(frame, mine, metric)
    return Section("Interventions", how, short, lines, missing, sheets, drawn)


def _interventions_in_short(frame, runs, metric):
    tables = pl.concat([probes.changes(frame, metric, run) for run in runs])
    parts = []
    for part, text in _TOLD:
        change = tables.filter(intervention=part)["change"].drop_nulls()
        if len(change):
            ends = [number(value, 4, sign=True) for value in (change.min(), change.max())]
            parts.append(f"{text} {' to '.join(dict.fromkeys(ends))}")
    if not parts:
        return ""
    return (
        f"Does the orthogonal part carry it? In trained models {metric} changes, over runs and "
        f"domains, {', '.join(parts)}."
    )


_TOLD = (
    ("orthogonal", "with X′⊥ alone by"),
    ("parallel", "with X′∥ alone by"),
    ("zero", "without X′ by"),
)


def ablation_sheets(frame) -> list[Sheet]:
    """The projection ablation beside the paper's, a table for each model."""
    out = []
    if frame is None:
        return out
    header = ["metric", "variant", "source", *ablation.HEADS.values()]
    for (model,), rows in frame.group_by("model", maintain_order=True):
        keys = ("metric", "variant", "source")
        lines = [
            [*key, *(_ablation_cell(part.filter(used=what)) for what in ablation.USED)]
            for key, part in rows.group_by(keys, maintain_order=True)
        ]
        out.append(Sheet(f"Projection ablation: {model}", header, lines, words=3))
    return out


def _ablation_cell(rows) -> str:
    """`mean ± sd` of each run that has it; what tells them apart where there are several."""
    cells = []
    for row in rows.iter_rows(named=True):
        told = len(rows) > 1 or "λ" in (row["detail"] or "")
        cells.append(table.mean_sd(row["mean"], row["sd"]) + f" ({row['detail']})" * told)
    return "; ".join(cells) or "–"


def scaling_section(runs, out, options) -> Section:
    how = (
        "The parameter ratio is the size that the baseline needs for a variant's quality, over the "
        "variant's size: above 1, the variant is the more efficient. The baseline's curve is made "
        "monotone and read between its sizes only. The paper claims 1.3 to 1.4; its own points go "
        "through the same code below, with the standard deviations of its Table 1."
    )
    points = scaling.points_of(runs, options["metric"])
    frame, paper = scaling.ratios(points, options["draws"]), scaling.published_points()
    paper_frame = scaling.ratios(paper, options["draws"])
    write_frame(out, "scaling_points", scaling.frame(points + paper))
    write_frame(out, "scaling", pl.concat([frame, paper_frame]))
    lack = scaling.missing(points)
    drawn = scaling.draw(points, options["metric"], frame)
    backbones = tuple(run.config["backbone"].upper() for run in runs)
    of_backbones = [point for point in paper if point.setting.startswith(backbones)]
    drawn |= scaling.draw(of_backbones, "NDCG@10", paper_frame)
    sheets = [
        scaling.sheet(t, title)
        for t, title in (
            (frame, "Parameter ratio at equal quality"),
            (paper_frame, "The same for the points of the paper's figures"),
        )
        if len(t)
    ]
    known = [
        f"{r['variant']} {r['domain']} {number(r['ratio'], 2)} {scaling.bounds(r)}".strip()
        for r in frame.drop_nulls("ratio").iter_rows(named=True)
    ]
    why = "; ".join(frame["note"].unique(maintain_order=True).to_list()[:1])
    short = "How many more parameters does a baseline need? "
    short += f"Ratios at equal quality: {', '.join(known)}." if known else f"Not known: {why}."
    lines, missing = scaling.sentences(frame), [lack] if lack else []
    return Section(
        "Quality and parameters", how, short if len(frame) else "", lines, missing, sheets, drawn
    )


def trajectory_section(runs, out, measured, metric) -> Section:
    how = (
        "Validation metric and angle after every epoch; epoch 0 is the untrained model. Angles "
        "are those of the users that the training probes, not of all. Unfinished runs are shown."
    )
    frame = trajectory.trajectories(runs, measured)
    lack = trajectory.missing(frame)
    if lack:
        return Section("Over training", how, missing=[lack])
    summary = trajectory.summary(frame)
    write_frame(out, "trajectory", frame)
    write_frame(out, "trajectory_summary", summary)
    lines = [
        f"{r['run']}, place {r['place']}, {r['domain']}: |cos(X, X′)| {number(r['first'])} before "
        f"training, {number(r['highest'])} at its highest (epoch {number(r['epoch_of_highest'], 0)}"
        f" on average), {number(r['last'])} at the end"
        for r in summary.iter_rows(named=True)
    ]
    drawn = trajectory.draw(frame, runs, metric)
    return Section("Over training", how, "", lines, [], [], drawn)


def sources_section() -> Section:
    parts = ("table1", "ablation", "correlation", "boxplot_mean", "model_comparison")
    paper = published.paper()
    lines = [paper[part]["source"] for part in parts]
    lines += paper["model_comparison"]["errors_in_the_figure"]
    how = f"Where the numbers of {paper['paper']} come from."
    return Section("Published values", how, "", lines)
