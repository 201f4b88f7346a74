"""`toy_command.py train|evaluate …`: the command with the toy in the backbone's place, which
compiles in a second."""

import runpy
import sys

import toy

from oa_jax import experiment as experiment_lib

build = experiment_lib.build


def build_toy(config):
    experiment = build(config)
    experiment.__dict__["backbone"] = toy.Toy(sum(experiment.log.n_items))
    return experiment


if __name__ == "__main__":
    experiment_lib.build = build_toy
    runpy.run_module(f"oa_jax.{sys.argv.pop(1)}", run_name="__main__", alter_sys=True)
