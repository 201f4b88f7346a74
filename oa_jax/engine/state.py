"""The state of one seed: everything needed to go on, as one plain pytree."""

import dataclasses
from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax

from oa_jax.nn.draws import Purpose, key_of


@flax.struct.dataclass
class State:
    """One run (config, seed). A program over seeds has a leading S axis on every leaf.

    hparams: values that need no recompilation (float32 scalars): `experiment.HPARAMS` and the
    backbone's own. They are the configuration's, and not stored.
    best_*: parameters, score and 1-based epoch of the best validation so far; epoch 0 is the
    initialisation.  bad_epochs: validations since then.  plateau_epochs: the same since the last
    cut of the learning rate.  diverged_step: 1 + the step whose loss was not finite, 0 if none.
    """

    seed: jax.Array
    step: jax.Array
    epoch: jax.Array
    params: Any
    moments: optax.OptState
    hparams: dict[str, jax.Array]
    lr_scale: jax.Array
    best_params: Any
    best_score: jax.Array
    best_epoch: jax.Array
    bad_epochs: jax.Array
    plateau_epochs: jax.Array
    diverged_step: jax.Array
    done: jax.Array


def name_of(path) -> str:
    """`net/items`: a parameter's name, of its path in a tree."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Epochs, patience and the metric that selects.

    Epoch e (1-based) of the first `warmup_epochs` trains at lr (1e-5 + (1 - 1e-5)(e - 1)/warmup);
    no selection happens there. A validation at least as good as the best by the metric `selection`
    (`strict`: better than it) resets the counters. More than `plateau_patience` bad ones in a row
    cut the rate by `plateau_factor`; more than `stop_patience` end the run, and so does the epoch
    `max_epochs`: these four are each seed's own, in its `hparams`.
    """

    warmup_epochs: int = 10
    selection: str = "mrr_sum"
    strict: bool = False

    def learning_rate(self, state: State):
        """Rate of the epoch that is about to run."""
        done = state.epoch.astype(jnp.float32)
        warm = 1e-5 + (1 - 1e-5) * done / max(self.warmup_epochs, 1)
        rate = state.hparams["learning_rate"] * state.lr_scale
        return jnp.where(state.epoch < self.warmup_epochs, rate * warm, rate)

    def after_validation(self, state: State, score: jax.Array) -> State:
        """Selection, plateau and stopping, once the epoch in `state.epoch` has been validated."""
        counts = state.epoch > self.warmup_epochs
        score = _computed_once(score, state.epoch >= 0)
        as_good = score > state.best_score if self.strict else score >= state.best_score
        better = counts & as_good
        bad = jnp.where(better, 0, state.bad_epochs + counts)
        # The official loop ends before the scheduler sees the last bad epoch.
        goes_on = bad <= state.hparams["stop_patience"]
        plateau = jnp.where(better, 0, state.plateau_epochs + (counts & goes_on))
        cut = plateau > state.hparams["plateau_patience"]

        def pick(new, old):
            return jax.tree.map(lambda n, o: jnp.where(better, n, o), new, old)

        state = state.replace(
            best_params=pick(state.params, state.best_params),
            best_score=pick(score, state.best_score),
            best_epoch=pick(state.epoch, state.best_epoch),
            bad_epochs=bad,
            plateau_epochs=jnp.where(cut, 0, plateau),
            lr_scale=jnp.where(
                cut, state.lr_scale * state.hparams["plateau_factor"], state.lr_scale
            ),
        )
        return state.replace(done=self.is_over(state))

    def is_over(self, state: State) -> jax.Array:
        """Whether a seed has trained its last epoch."""
        stopped = state.bad_epochs > state.hparams["stop_patience"]
        return stopped | (state.epoch >= state.hparams["max_epochs"]) | (state.diverged_step > 0)


def _computed_once(value, true):
    """`value` of one buffer. XLA may compute a value anew, an ulp off, in each fusion that needs it
    (CPU, quick_compile): then some of the counters would see a tie and some a better score.
    `optimization_barrier` is taken out before the fusions are made; a loop that runs once is not,
    as long as XLA cannot know that `true` is."""
    ended = (jnp.zeros_like(true), value)
    return jax.lax.while_loop(lambda c: c[0], lambda _: ended, (true, jnp.zeros_like(value)))[1]


def create(seed, hparams, init, optimizer) -> State:
    """The state of `seed` before its first step. `init`: key -> parameters."""
    params = init(key_of(seed, Purpose.INIT, 0))
    counts = ("step", "epoch", "best_epoch", "bad_epochs", "plateau_epochs", "diverged_step")
    return State(
        seed=jnp.asarray(seed, jnp.int32),
        params=params,
        moments=optimizer.init(params),
        hparams=hparams,
        lr_scale=jnp.ones(()),
        best_params=jax.tree.map(jnp.copy, params),
        best_score=jnp.zeros(()),
        done=jnp.zeros((), bool),
        **dict.fromkeys(counts, jnp.zeros((), jnp.int32)),
    )
