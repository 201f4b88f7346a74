"""Item vectors of a synthetic world, and how those of the two domains lie to each other.

Shapes: I items, W columns, n_a the items of A, which come first.
"""

import math
from collections.abc import Callable

import numpy as np

from oa_jax.errors import UserError
from oa_jax.events.world import IMAGES, PLACES, TEXTS, World, latents, stream

WIDTH, NOISE = 64, 0.5


def embeddings(world: World, align: Callable[[np.ndarray], np.ndarray] | None = None) -> np.ndarray:
    """(I, WIDTH) float32 unit rows, one for each item, as a text encoder might give them:

        e_i = unit( (M [√K onehot(k_i) ; y_i]) / √(K + D) + NOISE ε_i ),   M, ε ~ N(0, 1)

    With K = D the topic counts as much as all of y. Users and events play no part. With two views
    A's items have another M and ε (images). If `world.aligned`, `align` then trains both views,
    (2, I, W) -> (2, I, W). Last, `seen` turns and shifts B's vectors.

    Raises UserError if the world is `aligned` and `align` is None.
    """
    texts_IxW = _encoded(world, TEXTS)
    images_IxW = texts_IxW if world.views == 1 else _encoded(world, IMAGES)
    views_2xIxW = np.stack([images_IxW, texts_IxW])
    if world.aligned and align is None:
        raise UserError("synthetic: aligned True: expected `align`, which trains the views")
    if world.aligned:
        views_2xIxW = align(views_2xIxW)
    return seen(views_2xIxW, world.n_items[0], world.rotation, world.gap, stream(world, PLACES))


def _encoded(world, purpose):
    """What one encoder says of all items."""
    truth, rng = latents(world), stream(world, purpose)
    topic_IxK = math.sqrt(world.topics) * np.eye(world.topics)[truth.item_topic]
    meaning_IxF = np.concatenate([topic_IxK, truth.item_latent], axis=1)
    map_FxW = rng.standard_normal((meaning_IxF.shape[1], WIDTH)) / math.sqrt(meaning_IxF.shape[1])
    rows_IxW = meaning_IxF @ map_FxW + NOISE * rng.standard_normal((len(meaning_IxF), WIDTH))
    return (rows_IxW / np.linalg.norm(rows_IxW, axis=1, keepdims=True)).astype(np.float32)


def seen(
    views_2xIxW: np.ndarray,
    n_a: int,
    rotation: float = 0.0,
    gap: float = 0.0,
    rng: np.random.Generator | None = None,
) -> np.ndarray:
    """(I, W) float32: A's items in the first view and B's in the second, B's turned and shifted.

    rotation: 0 to 1; see `turned`. gap: e then becomes e + gap |e| u, for one random unit vector u,
    scaled back to the length of e. Differences among B's items stay, up to scale.
    """
    a, b = views_2xIxW[0, :n_a], views_2xIxW[1, n_a:]
    if rotation:
        b = turned(b, rotation, rng)
    if gap:
        direction_W = rng.standard_normal(b.shape[1])
        length = np.linalg.norm(b, axis=1, keepdims=True)
        b = with_length(b + gap * length * direction_W / np.linalg.norm(direction_W), length)
    return np.concatenate([a, b]).astype(np.float32)


def turned(rows_NxW: np.ndarray, rotation: float, rng: np.random.Generator) -> np.ndarray:
    """The rows times an orthogonal matrix: their lengths and the angles among them stay.

    The rows turn in W/2 random orthogonal planes, in each by `rotation` times the angle of that
    plane; these angles are spread evenly over 0 to π. The mean cosine of a row before and after is
    sin(πr) / πr for rotation r: 1 at r = 0, 0 at r = 1.
    """
    width = rows_NxW.shape[1]
    planes = width // 2
    basis_WxW, upper = np.linalg.qr(rng.standard_normal((width, width)))
    basis_WxW *= np.sign(np.diag(upper))  # which makes it uniform (Haar)
    turn = np.exp(1j * rotation * math.pi * (np.arange(planes) + 0.5) / planes)
    inside_NxW = rows_NxW @ basis_WxW
    point = (inside_NxW[:, 0 : 2 * planes : 2] + 1j * inside_NxW[:, 1 : 2 * planes : 2]) * turn
    inside_NxW[:, 0 : 2 * planes : 2], inside_NxW[:, 1 : 2 * planes : 2] = point.real, point.imag
    return inside_NxW @ basis_WxW.T


def with_length(rows: np.ndarray, length: np.ndarray) -> np.ndarray:
    """Rows (…, N, W) scaled to lengths (…, N, 1) or (1,); a row of zeros stays zero."""
    now = np.linalg.norm(rows, axis=-1, keepdims=True)
    return rows * (length / np.where(now > 0, now, 1))
