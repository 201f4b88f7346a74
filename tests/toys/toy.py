"""A backbone that compiles in a second, and experiments small enough to train in a test.

Scripts beside it and tests of all rooms import it by its bare name.
"""

import dataclasses
import functools
import os
import pathlib

import jax
import jax.numpy as jnp
import pytest

from oa_jax import experiment as experiment_lib
from oa_jax import presets
from oa_jax.backbones import known
from oa_jax.engine import compilation
from oa_jax.nn.layers import Packing
from oa_jax.runs import loop, training
from oa_jax.runs.run import conclude
from oa_jax.runs.workdir import Workdir

ROOT = pathlib.Path(__file__).resolve().parents[2]

SMALL = {
    "seeds": 3,
    "model.d_embed": 8,
    "train.batch_size": 16,
    "train.max_epochs": 3,
    "train.warmup_epochs": 0,
    "train.probe_users": 16,
    "train.learning_rate": 0.01,
    "train.quick_compile": True,
    "train.checkpoint_every": 1,
    "evaluate.n_negatives": 10,
    "evaluate.block_users": 32,
    "evaluate.block_items": 32,
    "data.world.n_users": 60,
    "data.world.n_items": (24, 30),
    "data.world.topics": 2,
    "data.world.min_length": 8,
    "data.world.max_length": 12,
}
OWN = {
    "abxi": {
        "model.d_ffn": 8,
        "model.rank_domain": 2,
        "model.rank_invariant": 2,
        "model.length": 12,
        "train.n_negatives": 4,
        "train.plateau_patience": 30,
        "train.stop_patience": 61,
    },
    "llm4cdsr": {
        "seeds": 2,
        "model.blocks": 1,
        "model.length": 10,
        "data.global_width": 12,
    },
    "sasrec": {"seeds": 2, "model.length": 10},
    "cdsrnp": {
        "seeds": 2,
        "model.blocks": 1,
        "model.length": 6,
        "model.merged_length": 10,
        "model.decoder_widths": (8, 4),
        "model.support": 8,
        "model.eval_support": 20,
        "data.world.single": (15, 20),
    },
}


def config_file(backbone, argument):
    """configs/BACKBONE.py:argument."""
    return presets.load(f"configs/{backbone}.py:{argument}")


training.RARE = 0  # a machine that is busy saves as often as another

# Options with which programs are compiled as a user has them, and not as tests do (conftest.py).
AS_USERS = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}
if "xla_cpu_use_fusion_emitters" in os.environ.get("XLA_FLAGS", ""):
    AS_USERS["xla_cpu_use_fusion_emitters"] = True


def as_users(experiment):
    """The same, its programs compiled as those of a user without quick_compile."""
    engine = experiment.engine
    compiled = type(engine)._program

    def program(*args):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(compilation, "QUICK_OPTIONS", AS_USERS)
            return compiled(engine, *args)

    engine._program = program
    return experiment


def small_config(backbone, argument, **overrides):
    """The same in the smallest size; overrides `train__max_epochs=5` as in `SMALL`."""
    config = config_file(backbone, argument)
    changes = {name.replace("__", "."): value for name, value in overrides.items()}
    config.update_from_flattened_dict(SMALL | OWN[backbone] | changes)
    return config


def small_experiment(backbone, argument, **overrides):
    return experiment_lib.build(known.resolve(small_config(backbone, argument, **overrides)))


def train_whole(experiment, path):
    """Train and conclude in the workdir `path` -> (path, final states)."""
    with Workdir(path) as workdir:
        states, seconds = loop.train(experiment, workdir, lambda line: None)
        conclude(experiment, workdir, states, seconds)
    return path, states


def train_interrupted(experiment, path):
    """Train, stop after epoch 2 before its checkpoint, go on -> (final states, lines said)."""

    def stop(line):
        if line.startswith("epoch   2"):
            raise KeyboardInterrupt

    said = []
    with Workdir(path) as workdir:
        with pytest.raises(KeyboardInterrupt):
            loop.train(experiment, workdir, stop)
        states, _ = loop.train(experiment, workdir, said.append)
    return states, said


def abxi_config(argument="pair=synthetic,gca=none", **overrides):
    return small_config("abxi", argument, **overrides)


def abxi_experiment(argument="pair=synthetic,gca=none", **overrides):
    """An experiment of the real backbone."""
    return small_experiment("abxi", argument, **overrides)


def toy_experiment(**overrides):
    """The same experiment with the toy in the backbone's place, its programs shared."""
    return shared_toy(known.resolve(abxi_config(**overrides)))


def shared_toy(config, log=None):
    """`with_toy`, with the compiled programs of an earlier one that differs on the host only."""
    host = {"checkpoint_every": 1, "compaction": True, "keep_checkpoints": 1}
    one = config.replace(seeds=1, first_seed=0, train=host)
    return dataclasses.replace(with_toy(config, log), engine=_engine(one))


@functools.cache
def _engine(config):
    return with_toy(config).engine


def with_toy(config, log=None, candidates=None):
    """As `experiment.build`, with the toy in the backbone's place."""
    data = experiment_lib.load(config, log)
    evaluation = experiment_lib.build_evaluation(config, data, candidates)
    toy = Toy(sum(data.log.n_items))
    engine = experiment_lib.build_engine(config, data, evaluation, toy)
    return experiment_lib.Experiment(config, data, evaluation, engine)


@dataclasses.dataclass(frozen=True)
class Toy:
    """Scores items by the last item seen: one table and one matrix. Pure, one seed."""

    n_items: int
    width: int = 8

    def init(self, key):
        keys = jax.random.split(key, 3)
        return {
            "items": 0.1 * jax.random.normal(keys[0], (self.n_items + 1, self.width)),
            "mix": jnp.eye(self.width) + 0.1 * jax.random.normal(keys[1], (self.width,) * 2),
            "bias": 0.1 * jax.random.normal(keys[2], (self.width,)),
        }

    def loss(self, params, batch, key, hparams):
        """Mean over the batch's users of their summed losses -> (scalar, aux)."""
        at_P = jnp.concatenate([batch["at_A"], batch["at_B"]])
        packing = Packing(at_P, batch["gt"].shape)
        h_PxD = self._hidden(params, packing.pack(batch["seq_x"]))
        if key is not None:
            # A mask over the grid, so that the draw does not depend on the slots.
            grid_BxLxD = jax.random.uniform(key, (*packing.shape, self.width))
            keep_PxD = packing.pack(grid_BxLxD >= hparams["dropout"])
            h_PxD = jnp.where(keep_PxD, h_PxD, 0.0) / (1 - hparams["dropout"])
        h_PxD = h_PxD / hparams["temperature"]
        negatives_PxK = batch["negatives"] if "negatives" in batch else self._shared(batch, at_P)
        ids_PxK = jnp.concatenate([packing.pack(batch["gt"])[:, None], negatives_PxK], 1)
        scores_PxK = jnp.einsum("pd,pkd->pk", h_PxD, params["items"][ids_PxK])
        nll_P = jax.nn.logsumexp(scores_PxK, -1) - scores_PxK[:, 0]
        terms_P = jnp.where(at_P < batch["gt"].size, nll_P, 0.0) / batch["n_users"]
        loss_a, loss_b = (jnp.sum(t) for t in jnp.split(terms_P, [len(batch["at_A"])]))
        return loss_a + loss_b, {"loss_a": loss_a, "loss_b": loss_b}

    def _hidden(self, params, ids):
        return params["items"][ids] @ params["mix"] + params["bias"]

    def _shared(self, batch, at_P):
        row_P = at_P // batch["gt"].shape[1]
        return batch["shared_negatives"].at[row_P].get(mode="fill", fill_value=0)

    def index(self, params):
        return params

    def encode(self, params, batch):
        return self._hidden(params, batch["seq_x"][:, -1])

    def score(self, params, encoded_BxD, candidates):
        if candidates.ndim == 1:
            return encoded_BxD @ params["items"][candidates].T
        return jnp.einsum("bd,bkd->bk", encoded_BxD, params["items"][candidates])

    def probe(self, params, batch):
        return {}
