"""Workdirs as training leaves them, without training: drawn parameters, real ranks and summary."""

import dataclasses
import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from oa_jax import experiment as experiment_lib
from oa_jax.backbones import known
from oa_jax.runs import run as run_lib
from oa_jax.runs.checkpoint import Checkpoints
from oa_jax.runs.run import environment
from oa_jax.runs.workdir import Workdir

ROOT = pathlib.Path(__file__).resolve().parents[2]
STEPS = (4, 6)
SIZES = {
    "seeds": 3,
    "model.d_embed": 8,
    "model.d_ffn": 8,
    "model.rank_domain": 2,
    "model.rank_invariant": 2,
    "model.length": 12,
    "train.max_epochs": 6,
    "train.batch_size": 16,
    "train.n_negatives": 4,
    "train.probe_users": 16,
    "train.quick_compile": True,
    "evaluate.n_negatives": 10,
    "evaluate.block_users": 16,
    "evaluate.block_items": 32,
    "data.world.n_users": 60,
    "data.world.n_items": (30, 36),
    "data.world.topics": 2,
    "data.world.min_length": 8,
    "data.world.max_length": 15,
}


def make_experiment(gca="stack", **overrides):
    """A small experiment of configs/abxi.py; overrides as in `gca__part="parallel"`."""
    spec = importlib.util.spec_from_file_location("abxi_file", ROOT / "configs" / "abxi.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config(f"pair=synthetic,gca={gca}")
    changes = {name.replace("__", "."): value for name, value in overrides.items()}
    config.update_from_flattened_dict(SIZES | changes)
    return experiment_lib.build(known.resolve(config))


def drawn(experiment, step):
    """States whose X' is as large as X: parameters (S, …) drawn anew for each step, seed and kind.

    Best and last differ; every seed's best epoch is one of its own.
    """
    states = experiment.engine.create(experiment.seeds, experiment.hparams())
    rng = np.random.default_rng(step)

    def draw(leaf):
        return jnp.asarray(leaf + rng.normal(0, 0.3, leaf.shape), leaf.dtype)

    last, best = (jax.tree.map(draw, states.params) for _ in range(2))
    epochs = jnp.full(len(experiment.seeds), step, jnp.int32)
    return states.replace(
        params=last,
        best_params=best,
        epoch=epochs,
        best_epoch=epochs - 1 - jnp.arange(len(experiment.seeds), dtype=jnp.int32),
        done=states.done | (step == STEPS[-1]),
    )


def make_workdir(path, experiment, change=lambda states: states, finished=True):
    """A workdir with a checkpoint of each of `STEPS`, the last one passed through `change`."""
    with Workdir(path) as workdir:
        workdir.claim(experiment.config.to_dict())
        workdir.write_json("env.json", environment(experiment))
        states = {step: drawn(experiment, step) for step in STEPS}
        states[STEPS[-1]] = change(states[STEPS[-1]])
        with Checkpoints(workdir.checkpoints, keep=len(STEPS)) as checkpoints:
            for step in STEPS:
                checkpoints.save(step, states[step], {})
        if finished:
            run_lib.conclude(experiment, workdir, states[STEPS[-1]], {})
    (workdir.path / ".lock").unlink()
    return workdir.path


def diverged(slot, finite):
    """A change for `make_workdir`: one seed diverged, or holds a value that is not finite."""

    def change(states):
        if finite:
            return states.replace(diverged_step=states.diverged_step.at[slot].set(5))
        items = states.best_params["items"].at[slot, 0, 0].set(jnp.nan)
        return states.replace(best_params=states.best_params | {"items": items})

    return change


def contents(path: pathlib.Path):
    """Every file below `path` with its bytes and time."""
    files = [p for p in path.rglob("*") if p.is_file()]
    return {str(p.relative_to(path)): (p.read_bytes(), p.stat().st_mtime_ns) for p in files}


@dataclasses.dataclass
class Said:
    """Collects what is said."""

    lines: list = dataclasses.field(default_factory=list)

    def __call__(self, line):
        self.lines.append(line)

    def __contains__(self, text):
        return any(text in line for line in self.lines)
