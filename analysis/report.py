"""`report`: one HTML page and a folder of PNG and PDF with everything that these runs show.

`--fast` leaves out what needs checkpoints (`orthogonality`, `intervene`); what an earlier call has
left of them in --out is used all the same.
"""

import dataclasses
import datetime

from absl import flags

from oa_jax import __version__, files
from oa_jax.errors import UserError
from oa_jax.sheets import Sheet

from . import (
    angles,
    correlate,
    factors,
    figures,
    intervene,
    orthogonality,
    phase,
    published,
    scaling,
    table,
    trajectory,
    verdicts,
)
from .output import plural
from .page import Section, page
from .runs import Run, find_runs, finished, notes

SOMETIMES = (phase, factors)  # where there is something to show
MEASURE = {orthogonality: angles, intervene: intervene}  # command -> whose section shows it
SECTIONS = (verdicts, table, angles, correlate, intervene, scaling, trajectory)


def define_flags() -> None:
    flags.DEFINE_bool("fast", False, "Nothing that needs checkpoints: no probes, no interventions.")
    for module in (correlate, intervene, phase, table):
        module.define_flags()


def command(runs: list[Run], out, say) -> int:
    """Write report.html, figures/ and the frames of all commands into `out`."""
    options = flags.FLAGS
    failed = {}
    for module, shown_by in () if options.fast else MEASURE.items():
        name = module.__name__.split(".")[-1]
        say(f"{name} …")
        try:
            if module.command(runs, out, say):
                failed[shown_by] = f"{name}: some runs could not be measured, see its output"
        except UserError as error:
            failed[shown_by] = str(error)
            say(f"{name}: {error}")
    sections = [runs_section(runs, find_runs(options.runs)[1])]
    for module in (*SECTIONS, *(m for m in SOMETIMES if m.applies(runs, options))):
        section = module.section(runs, out, options)
        missing = [failed[module]] if module in failed else []
        sections.append(dataclasses.replace(section, missing=[*missing, *section.missing]))
    paper = published.paper()
    lines = [part["source"] for part in paper.values() if isinstance(part, dict)]
    lines += paper["model_comparison"]["errors_in_the_figure"]
    how = f"Where the numbers of {paper['paper']} come from."
    sections.append(Section("Published values", how, "", lines))
    count = f"{plural(len(runs), 'run')}, {len(finished(runs))} finished"
    lead = f"{count}; made {datetime.date.today()} by oa-jax {__version__}. Intervals are 95 %."
    text = page("Orthogonal Alignment: what these runs show", lead, sections)
    for section in sections:
        figures.save(out, section.figures)
    files.write(out / "report.html", text)
    say(f"report in {out / 'report.html'}")
    return 1 if failed else 0


def runs_section(runs: list[Run], left_out: list[str]) -> Section:
    """What went into the page: runs, how far they are, what is amiss."""
    rows = []
    for run in runs:
        done, epochs = run.summary, run.epochs()
        row = [run.name, run.setting, run.variant, "finished" if done else "unfinished"]
        row += [str(run.env.get("commit") or "unknown"), str(run.width)]
        row += [f"{run.summary['n_parameters']:,}" if done else "–"]
        row += [f"{len(run.seeds())} of {run.config['seeds']}" if done else "–"]
        rows.append([*row, str(epochs["epoch"].max()) if len(epochs) else "–"])
    header = ["run", "setting", "variant", "state", "code", "width", "parameters", "seeds"]
    how = "What went into this page. Numbers of different settings are never compared."
    sheet = Sheet("Runs", [*header, "epochs"], rows, words=5)
    return Section("Runs", how, "", notes(runs), left_out, [sheet])
