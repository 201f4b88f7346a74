"""`toy_command.py train|evaluate …`: the command with the toy in the backbone's place, which
compiles in a second."""

import runpy
import sys

import toy

from oa_jax import experiment as experiment_lib

if __name__ == "__main__":
    experiment_lib.build = toy.with_toy
    runpy.run_module(f"oa_jax.{sys.argv.pop(1)}", run_name="__main__", alter_sys=True)
