"""One seed: a training step, an epoch, an assessment. Pure functions of state and arrays."""

import contextlib
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from oa_jax.engine.precision import products_in
from oa_jax.engine.state import Schedule, State, name_of
from oa_jax.nn import angles
from oa_jax.nn.draws import Purpose, epoch_rows, key_of
from oa_jax.nn.shards import on_batch
from oa_jax.ranking.ranks import SELECTION, Ranks, among_all, among_candidates


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the pure functions need beside state and arrays; static in a compiled program."""

    backbone: Any
    task: Any
    schedule: Schedule
    optimizer: optax.GradientTransformation
    n_items: tuple[int, int]
    tie_weight: float
    block_users: int
    block_items: int
    watched: str = "candidates"  # the ranking that training selects by
    compute_dtype: str = "float32"  # of the matrix products of a training step
    activation_dtype: str = "float32"  # of what a training step keeps of its layers
    matmul_precision: str = "default"  # of all matrix products
    quick_compile: bool = False  # programs are ready sooner and run slower

    def on(self, tables) -> "Settings":
        """These settings with the backbone's frozen tables, if it has any: shared by all seeds."""
        if tables is None:
            return self
        return dataclasses.replace(self, backbone=self.backbone.on(tables))

    def precision(self) -> contextlib.AbstractContextManager:
        """In which programs of the backbone are traced: their products have `matmul_precision`."""
        given = self.matmul_precision
        return jax.default_matmul_precision(None if given == "default" else given)


def train_step(settings: Settings, capacity, state: State, rows_N, arrays):
    """One AdamW step on the batch of rows `rows_N` -> (state, aux of scalars).

    Decay is decoupled and reaches every parameter, biases and norms included (quirk Q7), but for
    the backbone's `frozen` ones, which stay as they are.
    """
    rows_N = on_batch(rows_N)
    with jax.named_scope("batch"):
        batch = on_batch(settings.task.batch(arrays, rows_N, state.seed, state.step, capacity))
    key = key_of(state.seed, Purpose.DROPOUT, state.step)
    backbone = settings.backbone
    if settings.activation_dtype != "float32":
        backbone = dataclasses.replace(backbone, dtype=settings.activation_dtype)
    value_and_grad = jax.value_and_grad(backbone.loss, has_aux=True)
    value_and_grad = products_in(settings.compute_dtype, value_and_grad)
    with jax.named_scope("loss"):
        (loss, aux), grads = value_and_grad(state.params, batch, key, state.hparams)
    rate, decay = settings.schedule.learning_rate(state), state.hparams["weight_decay"]
    with jax.named_scope("optimizer"):
        directions, moments = settings.optimizer.update(grads, state.moments)
        frozen = getattr(backbone, "frozen", ())

        def stepped(path, p, d):
            return p if name_of(path) in frozen else p - rate * (d + decay * p)

        params = jax.tree_util.tree_map_with_path(stepped, state.params, directions)
    diverged = ~jnp.isfinite(loss) & (state.diverged_step == 0)
    share = batch["n_users"] / settings.task.n_users  # of the epoch's mean
    state = state.replace(
        step=state.step + 1,
        params=params,
        moments=moments,
        diverged_step=jnp.where(diverged, state.step + 1, state.diverged_step),
    )
    return state, {name: value * share for name, value in (aux | {"loss": loss}).items()}


def epoch(settings: Settings, capacity, state: State, arrays):
    """Train an epoch, validate, select -> (state, report). A seed that is done stays as it is.

    report: mean losses, the learning rate, ranks of the validation users, GCA sums.
    """
    settings, before = settings.on(arrays.get("tables")), state
    state, losses = _train(settings, capacity, None, state, arrays["train"])
    assessed = assess(settings, state.params, arrays)
    state, report = select(settings, state, losses, assessed, arrays["val"])
    return unless_done(before, state), report


def steps(settings: Settings, capacity, n_steps: int, state: State, arrays):
    """Train on the first `n_steps` batches of an epoch -> (state, losses (n_steps,))."""
    settings = settings.on(arrays.get("tables"))
    state, losses = _train(settings, capacity, n_steps, state, arrays["train"])
    return state, losses["loss"]


def _train(settings, capacity, n_steps, state, arrays):
    """The first `n_steps` batches of an epoch, None: all -> (state, losses, leaves (n_steps,))."""
    task = settings.task
    rows_NxB = epoch_rows(state.seed, state.epoch, task.n_users, task.batch_size)[:n_steps]

    def step(state, rows_B):
        rows_N = task.rows_of_batch(rows_B, state.seed, state.step)
        return train_step(settings, capacity, state, rows_N, arrays)

    return jax.lax.scan(step, state, rows_NxB)


def select(settings: Settings, state: State, losses, assessed, val) -> tuple[State, dict]:
    """End the epoch whose steps gave `losses` (leaves (N,)) and whose parameters `assessed`."""
    rate = settings.schedule.learning_rate(state)
    report = {"train": jax.tree.map(jnp.sum, losses), "learning_rate": rate} | assessed
    state = state.replace(epoch=state.epoch + 1)
    score, finite = selection_score(settings, report["ranks"], val)
    broken = ~finite & (state.diverged_step == 0)
    state = state.replace(diverged_step=jnp.where(broken, state.step, state.diverged_step))
    return settings.schedule.after_validation(state, score), report


def unless_done(before: State, after: State) -> State:
    """A seed that is done stays as it is."""
    return jax.tree.map(lambda old, new: jnp.where(before.done, old, new), before, after)


def assess(settings: Settings, params, arrays):
    """Ranks among the candidates of the validation users, GCA sums over the probe users."""
    settings = settings.on(arrays.get("tables"))
    with jax.named_scope("validation"):
        ranks = all_ranks(settings, params, arrays["val"], rankings=(settings.watched,))
    return {"ranks": ranks[settings.watched], "gca": probe_sums(settings, params, arrays["probe"])}


def selection_score(settings: Settings, ranks: Ranks, rows) -> tuple[jax.Array, jax.Array]:
    """(the schedule's metric of the validation users, whether all scores behind it were finite)."""
    rank = ranks.rank + settings.tie_weight * ranks.ties
    score = SELECTION[settings.schedule.selection](rank, rows["real"], rows["domain"])
    finite = jnp.all(ranks.finite | ~rows["real"])
    return jnp.where(finite, score, -1.0), finite


def all_ranks(settings: Settings, params, rows, rankings) -> dict[str, Ranks]:
    """Ranks of every evaluation row, in blocks of users; leaves (R,). `real` tells the padding."""
    backbone = settings.backbone
    index = backbone.index(params)

    def block(rows):
        rows, out = on_batch(rows), {}
        score = functools.partial(backbone.score, index, backbone.encode(params, rows))
        for name in rankings:
            if name == "full":
                seen, n_items = (rows["seen_row"], rows["seen_item"]), settings.n_items
                out[name] = among_all(score, rows["target"], seen, n_items, settings.block_items)
            else:
                out[name] = among_candidates(score(rows[name]))
        return out

    return jax.tree.map(jnp.ravel, jax.lax.map(block, _blocks(rows, settings.block_users)))


def probe_sums(settings: Settings, params, rows):
    """{"place/domain": sums} over all tokens of the rows; {} without GCA."""

    def block(rows):
        probes = settings.backbone.probe(params, on_batch(rows))
        return {name: angles.sums(probe) for name, probe in probes.items()}

    return jax.tree.map(jnp.sum, jax.lax.map(block, _blocks(rows, settings.block_users)))


def _blocks(rows, size):
    n_blocks = len(rows["real"]) // size
    return jax.tree.map(lambda a: a.reshape(n_blocks, -1, *a.shape[1:]), rows)
