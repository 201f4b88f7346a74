"""`python -m oa_jax bench --config=FILE.py:ARGS --seeds=1,2,5`: how fast this device is at it.

Training steps for several numbers of seeds, evaluation and a checkpoint; with --vary of several
values of a field (`--vary=train.compute_dtype=float32,bfloat16`); with --official the official
PyTorch code of ABXI or LLM4CDSR on the same batches. Every round measures each case once, so that
ratios compare what ran side by side; the tables show medians. On a CPU they show ratios alone, the
JSON file holds the seconds. Programs are compiled anew, not taken from the cache, as compiling is
measured.
"""

from __future__ import annotations

import sys

import jax
from absl import flags

from oa_jax import experiment as experiment_lib
from oa_jax import files
from oa_jax.bench import tables
from oa_jax.bench.arguments import counts, variants
from oa_jax.bench.measure import measure
from oa_jax.commands import cli
from oa_jax.sheets import Sheet

flags.DEFINE_list("seeds", ["1", "2", "5", "8", "16"], "Numbers of seeds in one program.")
flags.DEFINE_integer(
    "steps", 0, "Batches in one measurement; 0: 4 on a CPU, an epoch elsewhere.", lower_bound=0
)
flags.DEFINE_integer("rounds", 3, "Measurements of each case.", lower_bound=1)
flags.DEFINE_integer("users", 1024, "Evaluation users in one measurement.", lower_bound=1)
flags.DEFINE_string("vary", None, "FIELD=VALUE,VALUE of the configuration: side by side.")
flags.DEFINE_string("official", None, "Folder of the backbone's official code: beside ours.")
flags.DEFINE_string("official_python", sys.executable, "With PyTorch, and tqdm for ABXI.")
flags.DEFINE_string("out", None, "JSON file for everything that was measured.")
cli.define_config()


def main(_):
    given = flags.FLAGS
    if given.out:
        files.check_writable(given.out, "--out")
    resolved = variants(cli.config_value(), given.vary)
    jax.config.update("jax_enable_compilation_cache", False)
    device = jax.devices()[0]
    found = {"device": f"{device.platform}: {device.device_kind}", "devices": len(jax.devices())}
    absolute = device.platform != "cpu"
    seeds, options = counts("seeds", given.seeds), (given.steps, given.users, given.rounds)
    official = (given.official, given.official_python) if given.official else ()
    with cli.working("compiling and measuring, which takes minutes"):
        found |= measure(resolved, experiment_lib.build, seeds, *options, cli.say, official)
    found |= {"vary": given.vary}
    cli.say(tables.summary_line(found, absolute))
    show(tables.of_training(found, absolute))
    show(tables.of_rest(found, absolute))
    if official:
        cli.say(tables.official_line(found, absolute))
    if given.out:
        files.write_json(given.out, found)


def show(table) -> None:
    header, rows = table
    Sheet("", header, rows, words=len(header)).show(cli.console)


def start() -> None:
    cli.run(main)
