"""Items that are similar to others because the same users took them: rules that learn no vectors.

Both give weights W (1 + V, 1 + V), float32, row and column 0 of zeros: an item's score for a user
is the sum of its column over the rows of the user's items. They hold V² numbers: see `memory`.
"""

import numpy as np
from scipy import linalg, sparse

from oa_jax.events.log import InteractionLog

BLOCK = 1024  # items whose similarities are compared at a time


def memory(n_items: int) -> int:
    """Bytes that `ease` holds at most: the inverse, in its Gram matrix's place, and the weights."""
    return (8 + 4) * (1 + n_items) ** 2


def counts(log: InteractionLog, chosen: np.ndarray):
    """(1 + V, 1 + V) sparse: how many users have both items among their chosen events (N,)."""
    pairs = np.unique(np.stack([log.user[chosen], log.item[chosen]]), axis=1)  # each item once
    shape = log.n_users, sum(log.n_items) + 1
    x_UxV = sparse.csr_array((np.ones(pairs.shape[1]), tuple(pairs)), shape)
    return (x_UxV.T @ x_UxV).tocsr()


def item_knn(counts_VxV, neighbours: int) -> np.ndarray:
    """Cosine of co-occurrence, c_ij / √(c_i c_j), of an item's most similar others (Sarwar et al.,
    WWW 2001); those as similar as the last of them count too."""
    norm_V = np.sqrt(np.maximum(counts_VxV.diagonal(), 1))
    n_rows = counts_VxV.shape[0]
    weights = np.zeros((n_rows, n_rows), np.float32)
    for first in range(0, n_rows, BLOCK):
        rows = np.arange(first, min(first + BLOCK, n_rows))
        cosine = counts_VxV[rows].toarray() / (norm_V[rows, None] * norm_V)
        cosine[np.arange(len(rows)), rows] = 0
        if neighbours < n_rows:
            last = np.partition(cosine, -neighbours, axis=1)[:, -neighbours, None]
            cosine[cosine < last] = 0
        weights[:, rows] = cosine.T
    return weights


def ease(counts_VxV, ridge: float) -> np.ndarray:
    """The closed form of Steck (arXiv 1905.03375, Eq. 8): B = I - P diag(1 / P_jj), where P is the
    inverse of XᵀX + λI."""
    gram = counts_VxV.toarray()
    np.fill_diagonal(gram, gram.diagonal() + ridge)
    # Symmetric, and transposed in the order that LAPACK can overwrite.
    inverse = linalg.inv(gram.T, overwrite_a=True)
    inverse /= -inverse.diagonal().copy()
    np.fill_diagonal(inverse, 0)
    return inverse.astype(np.float32)
