"""`python -m oa_jax.train` with the toy in the backbone's place: compiles in a second."""

import runpy

import toy

from oa_jax import experiment as experiment_lib

build = experiment_lib.build


def build_toy(config):
    experiment = build(config)
    experiment.__dict__["backbone"] = toy.Toy(sum(experiment.log.n_items))
    return experiment


if __name__ == "__main__":
    experiment_lib.build = build_toy
    runpy.run_module("oa_jax.train", run_name="__main__", alter_sys=True)
