"""`python -m oa_jax train --config=FILE.py:ARGS --workdir=DIR`: start, resume or finish a run."""

import math

from absl import flags
from rich.console import Group
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from oa_jax.commands import cli, report
from oa_jax.runs.run import run
from oa_jax.runs.training import Training

flags.DEFINE_string("workdir", None, "Folder of the run: empty starts it, a begun one goes on.")
flags.DEFINE_bool("extend", False, "Let a run go on to more seeds or epochs than it had.")
cli.define_config()
cli.define_distributed()


def main(_):
    workdir = cli.given("workdir", "a folder for the run")
    with cli.watching(view, per_second=4) as watch:
        summary = run(cli.config_value(), workdir, cli.say, None, flags.FLAGS.extend, watch)
    return report.conclude([report.described(summary, workdir)])


def view(run: Training, seconds: float) -> Group:
    """A row for each seed, and how far the run is. seconds: of the last epoch."""
    evaluation, most = run.experiment.evaluation, run.experiment.config.train.max_epochs
    name = f"ndcg@10/{evaluation.rankings[evaluation.watched]}"
    table = Table(box=None, padding=(0, 2), pad_edge=False)
    for column in ("seed", "epoch", f"{name} A", "B", "best epoch", ""):
        table.add_column(column, justify="left" if column == "" else "right")
    for seed, done in zip(run.experiment.seeds.tolist(), run.done, strict=True):
        row = run.rows.latest.get(seed)
        if row is None:
            continue
        is_best = row["best_epoch"] == row["epoch"]
        state = "diverged" if row["diverged_step"] else "stopped" if done else "best" * is_best
        scores = [f"{row[f'val/{domain}/{name}']:.4f}" for domain in "AB"]
        cells = [str(seed), str(row["epoch"]), *scores, str(row["best_epoch"]), state]
        table.add_row(*cells, style="dim" if done else "bold" if is_best else "")
    epoch = int(run.epochs.max())
    left = math.ceil((most - epoch) * seconds / 60)
    bar = Table.grid(padding=(0, 2))
    bar.add_row(
        ProgressBar(total=most, completed=epoch, width=20),
        Text(f"epoch {epoch} of at most {most}, {seconds:.1f} s each, {left} min left"),
    )
    return Group(table, bar)
