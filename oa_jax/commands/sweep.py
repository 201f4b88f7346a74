"""`python -m oa_jax sweep --study=FILE.py[:ARGUMENT] --out=DIR`: train the runs of a study.

The same command goes on where it was, and several of them, on one machine (`--workers=`) or on
many, can share DIR. `--dry-run` says what there is to do and how long it takes.
"""

import sys

import jax
from absl import flags
from rich.table import Table

from oa_jax import experiment as experiment_lib
from oa_jax import files
from oa_jax.bench.cases import Cases
from oa_jax.commands import cli
from oa_jax.configuration import Config
from oa_jax.engine.compilation import use_compilation_cache
from oa_jax.errors import UserError
from oa_jax.runs import study as study_lib
from oa_jax.runs.beside import beside, share_machine
from oa_jax.runs.search import sweep_of
from oa_jax.runs.sweep import KEEP, Progress, default_slots
from oa_jax.runs.workdir import Workdir
from oa_jax.sheets import Sheet

TIMED_STEPS = 4

flags.DEFINE_string("study", None, "FILE.py[:a=x,b=y] whose get_study returns the runs.")
flags.DEFINE_string("out", None, "Folder of the sweep: each run gets a folder in it.")
flags.DEFINE_integer("slots", None, "Seeds in a program at a time; by default what fits.", 1)
flags.DEFINE_enum("keep", "last", list(KEEP), "Checkpoints of a run that has ended.")
flags.DEFINE_integer("workers", 1, "Processes on this machine, which share it.", 1)
flags.DEFINE_bool(
    "dry_run",
    False,
    "Print runs, programs, times and memory; compile and time each program, train nothing.",
)


def main(_):
    workers = flags.FLAGS.workers
    if workers > 1 and (most := share_machine(workers)) < workers:  # before a study asks JAX
        why = "which takes the TPU for itself" if jax.default_backend() == "tpu" else "a CPU each"
        raise UserError(f"--workers={workers}: expected at most {most}, {why}")
    study = study_lib.load(cli.given("study", study_lib.EXPECTED))
    out = files.local(cli.given("out", "a folder for the runs"), "--out")
    if flags.FLAGS.dry_run:
        if isinstance(study, study_lib.Search):
            return cli.say(f"a search of {study.trials} trials: what they are comes with results")
        use_compilation_cache(cli.say)
        return predict(study, out)
    options = {"slots": flags.FLAGS.slots, "keep": flags.FLAGS.keep}
    files.check_folder(out, "study.json", "--out")
    words = ["sweep", *sys.argv[1:], "--workers=1"]
    others = {out / ".workers" / f"worker-{i}.log": words for i in range(2, workers + 1)}
    with cli.watching(table, per_second=2) as watch:
        options |= {"watch": watch} if watch else {}
        sweep = sweep_of(study, out, cli.say, **options)
        with beside(others, cli.say):
            progress = sweep.run()
            cost = progress.cost  # before it waits for the others
        if others:  # whatever they have left, and the count of all
            progress = sweep.run()
    return conclude(progress, out, cost)


def table(now: Progress) -> Table:
    """What a terminal shows of a sweep under way."""
    page = Table(box=None, show_header=False, padding=(0, 2))
    score, name = now.best
    waiting = now.runs - now.finished - len(now.failed) - len(now.running)
    program = f"{now.program}, {now.slots} slots, {now.busy:.0%} of them busy"
    rows = {
        "program": program if now.program else "–",
        "runs": f"{now.finished} of {now.runs} done, {len(now.running)} running, "
        f"{waiting} waiting, {len(now.failed)} failed",
        "best so far": f"{name}, validation ndcg@10 {score:.4f}" if name else "–",
        "time left": f"about {now.seconds_left / 60:.0f} min" if now.finished > now.found else "–",
    }
    for what, text in rows.items():
        page.add_row(what, text)
    for run, epochs in list(now.running.items())[-8:]:
        page.add_row("", f"{run}: epochs {' '.join(map(str, epochs))}")
    return page


def conclude(progress: Progress, out, cost: str) -> int:
    """Say how the sweep has ended; its exit status."""
    for name in progress.failed:
        cli.say(f"{name}: failed: {out / name}")
    for name in progress.diverged:
        cli.say(f"{name}: diverged, see its summary.json")
    cli.say(
        f"{progress.finished} of {progress.runs} runs are finished: {out / 'index.csv'}; "
        f"python -m oa_jax report {out}"
    )
    if progress.done_here:
        cli.say(cost)
    return 1 if progress.failed or progress.diverged else 0


def predict(runs: dict[str, Config], out) -> None:
    """Programs, slots, times and memory, from a few timed steps of each program."""
    waiting = {name: of for name, of in runs.items() if not Workdir(out / name).is_finished}
    for name, config in waiting.items():
        if not config.data.resident:
            said = f"--dry-run: {name}: data.resident=False: expected True"
            raise UserError(f"{said}: streams are not timed")
    n_seeds, n_programs = sum(of.seeds for of in runs.values()), len(study_lib.programs(runs))
    cli.say(
        f"{len(runs)} runs ({n_seeds} with their seeds) in {n_programs} programs; "
        f"{len(runs) - len(waiting)} runs are finished"
    )
    rows, total = [], 0.0
    for group in study_lib.programs(waiting):
        first, seeds = next(iter(group)), sum(of.seeds for of in group.values())
        with cli.working(f"timing the program of {first}"):
            try:
                slots, compiling, step, memory, n_steps = timed(group[first], seeds)
            except UserError as error:
                raise UserError(f"--dry-run: {first}: {error}") from None
        slots = min(slots, seeds)
        epochs = sum(config.seeds * config.train.max_epochs for config in group.values())
        most = epochs * n_steps * step
        total += compiling + most
        row = [first, len(group), seeds, slots, f"{compiling:.0f}", f"{1e3 * step:.1f}"]
        rows.append([*map(str, row), f"{most / 60:.1f}", f"{memory * slots / 2**20:.0f}"])
    if rows:
        header = ["program of", "runs", "seeds", "slots", "compile s", "ms/step and seed"]
        header += ["steps min at most", "MiB of states"]
        Sheet("", header, rows, words=1).show(cli.console)
        what = "of compiling and steps with one worker, and evaluation on top"
        cli.say(f"at most {total / 60:.0f} minutes {what}")


def timed(config: Config, wanted: int) -> tuple[int, float, float, int, int]:
    """(slots for `wanted` seeds, seconds to compile an epoch, seconds of a step of a seed, bytes of
    a seed's state, steps of an epoch) of a program on this machine."""
    experiment = experiment_lib.build(config)
    n_seeds = config.seeds
    slots = flags.FLAGS.slots or default_slots(experiment, wanted)
    cases = Cases(experiment, TIMED_STEPS, 1)
    cases.arrays = experiment.engine.keep(cases.arrays, n_seeds)
    # An epoch has the evaluation beside the steps: about as much to compile again.
    compiling = 2 * cases.prepare(n_seeds)["compile_seconds"]
    step = cases.steps(n_seeds) / cases.n_steps / n_seeds
    states = experiment.engine.abstract(experiment.seeds, experiment.hparams())
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(states)) // n_seeds
    return slots, compiling, step, size, cases.task.n_steps
