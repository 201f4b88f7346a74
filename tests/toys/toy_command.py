"""`toy_command.py train|evaluate …`: the command with the toy in the backbone's place, which
compiles in a second.

With `TOY_SIGNAL=MOMENT:NUMBER:CALL` it sends itself the signal at a moment, in its CALL-th call.
"""

import itertools
import os
import sys

import toy

from oa_jax import experiment as experiment_lib
from oa_jax.__main__ import main
from oa_jax.engine.program import Engine
from oa_jax.runs.checkpoint import Checkpoints

# Functions of the house, and whether the signal comes after what they do, or before.
MOMENTS = {
    "epoch": (Engine, "epoch", False),
    "save": (Checkpoints, "save", True),  # which goes on in the background
    "ranking": (Engine, "final", False),
}


def send_at(moment, number, call):
    owner, name, after = MOMENTS[moment]
    function, calls = getattr(owner, name), itertools.count(1)

    def sending(*args, **kwargs):
        is_it = next(calls) == int(call)
        if is_it and not after:
            os.kill(os.getpid(), int(number))
        out = function(*args, **kwargs)
        if is_it and after:
            os.kill(os.getpid(), int(number))
        return out

    setattr(owner, name, sending)


if __name__ == "__main__":
    experiment_lib.build = toy.with_toy
    if "TOY_SIGNAL" in os.environ:
        send_at(*os.environ["TOY_SIGNAL"].split(":"))
    main(sys.argv.pop(1))
