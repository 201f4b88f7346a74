"""`python -m oa_jax bench --config=FILE.py:ARGS --seeds=1,2,5`: how fast this device is at it.

Training steps for several numbers of seeds, evaluation and a checkpoint; with --vary of several
values of a field (`--vary=train.compute_dtype=float32,bfloat16`); with --official the official
PyTorch code of the backbone on the same batches. Every round measures each case once, so that
ratios compare what ran side by side; the tables show medians. On a CPU they show ratios alone, the
JSON file holds the seconds. Programs are compiled anew, not taken from the cache, as compiling is
measured. `--study=FILE.py` sweeps a study instead, and says how busy the slots were and what the
wall clock was beside the work.
"""

import pathlib
import sys
import tempfile

import jax
from absl import flags

from oa_jax import experiment as experiment_lib
from oa_jax import files
from oa_jax.bench import tables
from oa_jax.bench.cases import Cases
from oa_jax.bench.measure import counts, measure, variants
from oa_jax.commands import cli
from oa_jax.errors import UserError
from oa_jax.runs import study
from oa_jax.runs.search import sweep_of

flags.DEFINE_list("seeds", ["1", "2", "5", "8", "16"], "Numbers of seeds in one program.")
flags.DEFINE_integer(
    "steps", 0, "Batches in one measurement; 0: 4 on a CPU, 50 elsewhere.", lower_bound=0
)
flags.DEFINE_integer("rounds", 3, "Measurements of each case.", lower_bound=1)
flags.DEFINE_integer("users", 1024, "Evaluation users in one measurement.", lower_bound=1)
flags.DEFINE_string("vary", None, "FIELD=VALUE,VALUE of the configuration: side by side.")
flags.DEFINE_string("official", None, "Folder of the backbone's official code: beside ours.")
flags.DEFINE_string("official_python", sys.executable, "Python with PyTorch (ABXI: and tqdm).")
flags.DEFINE_string("out", None, "JSON file for everything that was measured.")
flags.DEFINE_string("study", None, "FILE.py[:ARGS]: how well its sweep uses the slots, instead.")
cli.define_config()


def main(_):
    given = flags.FLAGS
    if given.study:
        if alone := [name for name in ("vary", "official", "out") if given[name].value]:
            raise UserError(f"--{alone[0]}: with --study: expected one of both")
        with tempfile.TemporaryDirectory() as folder:
            runs, out = study.load(given.study), pathlib.Path(folder)
            progress = sweep_of(runs, out, cli.say, keep="none").run()
            if progress.done_here:
                cli.say(progress.cost)
            return 1 if progress.failed else 0
    if given.out:
        files.check_writable(given.out, "--out")
    configs, seeds = variants(cli.config_value(), given.vary), counts(given.seeds)
    official = (given.official, given.official_python) if given.official else None
    jax.config.update("jax_enable_compilation_cache", False)
    device = jax.devices()[0]
    absolute = device.platform != "cpu"

    def cases_of(config):
        return Cases(experiment_lib.build(config), given.steps, given.users)

    with cli.working("compiling each number of seeds, then measuring: several minutes"):
        found = measure(configs, cases_of, seeds, given.rounds, cli.say, official)
    found |= {"device": f"{device.platform}: {device.device_kind}", "devices": jax.device_count()}
    found |= {"vary": given.vary}
    cli.say(tables.summary_line(found, absolute))
    tables.of_training(found, absolute).show(cli.console)
    tables.of_rest(found, absolute).show(cli.console)
    if official:
        cli.say(tables.official_line(found, absolute))
    if given.out:
        files.write_json(given.out, found)
