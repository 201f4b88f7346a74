"""Changes the item vectors of two domains, to align or to separate them, before training.

    as_is     as the encoder gave them
    rotated   B's are turned by a random orthogonal matrix: each domain keeps its information
    shifted   B's are shifted along one random direction, as in the gap between modalities
    aligned   a map for each domain brings items that one user took together, by InfoNCE

Every row keeps its length. A row of zeros, which means "no text", stays a row of zeros.
Shapes: N items, W columns, S steps, B pairs of a batch.
"""

import dataclasses
import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

from oa_jax.errors import UserError
from oa_jax.events import views
from oa_jax.events.log import InteractionLog
from oa_jax.events.world import PAIRS, World, stream

KINDS = ("as_is", "rotated", "shifted", "aligned")
BATCH, LEARNING_RATE = 256, 1e-3
# Where InfoNCE is least, cos / temperature is the log of how much more often than chance a pair
# occurs, but for a constant: users' baskets say little, so that a small one would not align.
TEMPERATURE = 0.5


@dataclasses.dataclass(frozen=True)
class Alignment:
    """kind: one of KINDS. amount: for `rotated` the rotation, 0 to 1; for `shifted` the gap, in
    lengths of a vector (see `views.seen`). steps: of InfoNCE. seed: decides all draws."""

    kind: str = "as_is"
    amount: float = 1.0
    steps: int = 1000
    seed: int = 0

    def __post_init__(self):
        most, to = (1, " to 1") if self.kind == "rotated" else (sys.float_info.max, " up")
        if not 0 <= self.amount <= most:
            raise UserError(f"--amount={self.amount}: expected a number from 0{to}")

    def identity(self) -> dict:
        """The fields that change the vectors, as stored in metadata.json."""
        if self.kind == "aligned":
            fixed = {"batch": BATCH, "temperature": TEMPERATURE, "rate": LEARNING_RATE}
            return {"kind": self.kind, "steps": self.steps, "seed": self.seed} | fixed
        return {"kind": self.kind, "amount": self.amount, "seed": self.seed}

    def apply(self, rows_NxW: np.ndarray, log: InteractionLog, n_history: np.ndarray) -> np.ndarray:
        """The changed vectors of all items of `log`, A's before B's, (N, W) float32.

        n_history: (U,) how many first events of each user may be used; see `tables.history_of`.
        """
        rng, n_a = np.random.default_rng(self.seed), log.n_items[0]
        both_2xNxW = np.stack([rows_NxW, rows_NxW])
        if self.kind == "aligned":
            shape = self.steps, min(BATCH, *log.n_items)
            pairs = bought_together(log, n_history, rows_NxW.any(1), shape, rng)
            both_2xNxW = contrastive(both_2xNxW, pairs)
        rotation, gap = (self.amount if self.kind == kind else 0 for kind in ("rotated", "shifted"))
        return views.seen(both_2xNxW, n_a, rotation, gap, rng)


def world_vectors(world: World, log: InteractionLog, n_history: np.ndarray) -> np.ndarray:
    """The item vectors of a synthetic world, (I, W) float32. In an `aligned` world InfoNCE trains
    on pairs of views of the same item or, with one view, on pairs of items that one user took.

    n_history: see `Alignment.apply`.
    """

    def align(views_2xIxW):
        rng, shape = stream(world, PAIRS), (Alignment.steps, min(BATCH, *log.n_items))
        if world.views == 1:
            known = np.ones(sum(log.n_items), bool)
            pairs = bought_together(log, n_history, known, shape, rng)
        else:
            pairs = np.repeat(rng.integers(0, sum(log.n_items), (*shape, 1)), 2, axis=2)
        return contrastive(views_2xIxW, pairs)

    return views.embeddings(world, align=align)


def bought_together(
    log: InteractionLog,
    n_history: np.ndarray,
    has_vector: np.ndarray,
    shape: tuple[int, int],
    rng: np.random.Generator,
) -> np.ndarray:
    """Random pairs (S, B, 2): the rows of an item of A and of one of B that the same user took.

    Each user with events of both domains is equally likely; then one of its events of each domain
    is drawn. n_history, has_vector: select the events, as in `vectors.mean_profiles`.
    Raises UserError if no user has events of both domains.
    """
    may = (log.position < n_history[log.user]) & has_vector[log.item - 1]
    row_of = [np.flatnonzero(may & (log.domain == domain)) for domain in (0, 1)]
    count_2xU = np.stack([np.bincount(log.user[row], minlength=log.n_users) for row in row_of])
    users = np.flatnonzero(count_2xU.all(0))
    if not len(users):
        raise UserError(f"{log.name}: no user took items of both domains: expected some to align")
    user_SxB = rng.choice(users, shape)
    first_2xU = np.cumsum(count_2xU, axis=1) - count_2xU
    items = [
        log.item[row[first_U[user_SxB] + rng.integers(0, count_U[user_SxB])]] - 1
        for row, first_U, count_U in zip(row_of, first_2xU, count_2xU, strict=True)
    ]
    return np.stack(items, axis=2)


def contrastive(views_2xNxW: np.ndarray, pairs_SxBx2: np.ndarray) -> np.ndarray:
    """Both views (2, N, W) float32 after linear maps that bring the two rows of a pair together.

    Each view has one map, which starts as the identity. Adam trains it on InfoNCE in both
    directions as in CLIP (arXiv 2103.00020), at a fixed temperature. The negatives of a pair are
    all others of its batch, except those that share an item with it.
    pairs: rows of the first and of the second view, one batch for each step.
    """
    length_2xNx1 = np.linalg.norm(views_2xNxW, axis=2, keepdims=True)
    unit_2xNxW = jnp.asarray(views.with_length(views_2xNxW, np.ones(1)), jnp.float32)
    with jax.default_matmul_precision("highest"):  # the same data on every device
        maps_2xWxW = _train(unit_2xNxW, jnp.asarray(pairs_SxBx2, jnp.int32))
        found = np.asarray(jnp.einsum("vnw,vwx->vnx", unit_2xNxW, maps_2xWxW))
    return views.with_length(found, length_2xNx1).astype(np.float32)


@jax.jit
def _train(unit_2xNxW, pairs_SxBx2):
    optimizer, width = optax.adam(LEARNING_RATE), unit_2xNxW.shape[2]

    def step(state, pairs_Bx2):
        maps, moments = state
        updates, moments = optimizer.update(jax.grad(_loss)(maps, unit_2xNxW, pairs_Bx2), moments)
        return (optax.apply_updates(maps, updates), moments), None

    maps_2xWxW = jnp.tile(jnp.eye(width), (2, 1, 1))
    return jax.lax.scan(step, (maps_2xWxW, optimizer.init(maps_2xWxW)), pairs_SxBx2)[0][0]


def _loss(maps_2xWxW, unit_2xNxW, pairs_Bx2):
    batch = len(pairs_Bx2)
    rows_2xBxW = jnp.stack([unit_2xNxW[0, pairs_Bx2[:, 0]], unit_2xNxW[1, pairs_Bx2[:, 1]]])
    mapped_2xBxW = jnp.einsum("vbw,vwx->vbx", rows_2xBxW, maps_2xWxW)
    mapped_2xBxW /= jnp.linalg.norm(mapped_2xBxW, axis=2, keepdims=True)
    logits_BxB = mapped_2xBxW[0] @ mapped_2xBxW[1].T / TEMPERATURE
    same_BxB = (pairs_Bx2[:, None] == pairs_Bx2).any(2) & ~jnp.eye(batch, dtype=bool)
    logits_BxB = jnp.where(same_BxB, -jnp.inf, logits_BxB)
    own_B = jnp.arange(batch)
    cross_entropy = functools.partial(optax.softmax_cross_entropy_with_integer_labels, labels=own_B)
    return (cross_entropy(logits_BxB).mean() + cross_entropy(logits_BxB.T).mean()) / 2
