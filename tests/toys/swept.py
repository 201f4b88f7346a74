"""A sweep of the toy, for tests; `python swept.py OUT SECONDS SLOTS` is a worker to be killed.

SECONDS: each epoch takes at least as long, so that there is time to be killed in.
"""

import os
import pathlib
import sys
import time

import jax
import toy

from oa_jax.backbones import known
from oa_jax.errors import UserError
from oa_jax.runs import search, sweep

SLOTS = 2
UNEVEN = {
    "seeds": 2,
    "seed_axis": "map",
    "train__max_epochs": 6,
    "train__stop_patience": 0,
    "train__plateau_patience": 0,
}
# Rates at which seeds stop at different epochs; two patiences, which one program can hold too.
RATES = {"slow": (0.003, 0), "quick": (0.03, 0), "patient": (0.03, 1)}


def runs(**more):
    def config(rate, patience):
        values = UNEVEN | more | {"train__learning_rate": rate, "train__stop_patience": patience}
        return known.resolve(toy.abxi_config(**values))

    return {name: config(*values) for name, values in RATES.items()}


def build(config, log=None):
    """In the place of `experiment.build`. A width of 5 is data that cannot be read."""
    if config.model.d_embed == 5:
        try:
            os.listdir("nowhere")
        except OSError:
            raise UserError("data.dir=nowhere: no such folder") from None
    config = config.replace(data={"split": "leave_one_out"})  # as of `experiment.build`
    # Compiled with less effort, a program of one seed is an ulp off that of two.
    return toy.as_users(toy.shared_toy(config, log))


def sweep_of(out, studied=None, say=lambda line: None, **options):
    """A `Sweep` that saves every run after each epoch; of toys where `build` builds them."""
    options = {"slots": SLOTS, "save_seconds": 0.0} | options
    return search.sweep_of(studied or runs(), pathlib.Path(out), say, **options)


if __name__ == "__main__":
    sweep.experiment_lib.build = build
    out, pause, slots = sys.argv[1:]
    waits = float(pause)
    progress = sweep_of(out, watch=lambda now: time.sleep(waits), slots=int(slots)).run()
    print(progress.finished, progress.done_here, os.getpid(), jax.device_count(), flush=True)
