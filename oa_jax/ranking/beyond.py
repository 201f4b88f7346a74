"""Lists beyond accuracy: coverage, concentration, popularity, novelty, similarity within a list.

On the host, added up list by list, so that the lists of a million users need no room at once.
"""

import numpy as np
from scipy import stats


class Beyond:
    """Figures of the lists of one domain.

    popularity: (I,) users who took each item in training; n_users: of all.
    vectors: (I, E) of the items, None where there are none. Items are numbers from 0.
    """

    def __init__(self, popularity: np.ndarray, n_users: int, vectors: np.ndarray | None = None):
        self.popularity, self.n_users = popularity.astype(np.float64), n_users
        self.rank = stats.rankdata(-self.popularity)  # 1 the most popular, equal ones alike
        self.bits = -np.log2(np.maximum(self.popularity, 1) / n_users)
        self.vectors = None
        if vectors is not None:
            norm = np.linalg.norm(vectors, axis=1, keepdims=True)
            self.vectors = vectors / np.where(norm > 0, norm, 1)
        self.listed = np.zeros(len(popularity), np.int64)
        self._sums = dict.fromkeys(("rank", "bits", "own", "taken", "alike", "pairs"), 0)

    def add(self, items: np.ndarray, there: np.ndarray, taken: np.ndarray) -> None:
        """Lists of B users: items (B, k), of which those count that are `there`; taken (B,): mean
        popularity of what each user took in this domain before, nan without any."""
        count, sums = there.sum(1), self._sums
        self.listed += np.bincount(items[there], minlength=len(self.listed))
        sums["rank"] += self.rank[items[there]].sum()
        sums["bits"] += self.bits[items[there]].sum()
        has_own = np.isfinite(taken) & (count > 0)
        of_list = (self.popularity[items] * there).sum(1) / np.maximum(count, 1)
        sums["own"] += of_list[has_own].sum()
        sums["taken"] += taken[has_own].sum()
        if self.vectors is not None:
            vectors = self.vectors[items] * there[..., None]
            # All pairs at once: |Σv|² less the squares of the vectors themselves.
            both = (vectors.sum(1) ** 2).sum(1) - (vectors**2).sum((1, 2))
            pair = count * (count - 1)
            sums["alike"] += (both[pair > 0] / pair[pair > 0]).sum()
            sums["pairs"] += int((pair > 0).sum())

    def figures(self) -> dict[str, float]:
        """coverage: share of the items that are in a list.  gini: of how often each item is, 0
        where all alike.  popularity_rank: mean over the lists' items, 1 the most popular, equal
        ones share the middle.  popularity_lift: mean popularity of a user's list over that of
        what the user took before, less 1 (means over users).  novelty: mean bits -log2(share of
        users who took the item), at least one user counted.  intra_list_similarity: mean cosine
        of pairs in a list, over the lists of two items or more. What does not exist is left out.
        """
        n_listed, sums = int(self.listed.sum()), self._sums
        if not n_listed:
            return {}
        out = {
            "coverage": (self.listed > 0).mean(),
            "gini": gini(self.listed),
            "popularity_rank": sums["rank"] / n_listed,
            "novelty": sums["bits"] / n_listed,
        }
        if sums["taken"]:
            out["popularity_lift"] = sums["own"] / sums["taken"] - 1
        if sums["pairs"]:
            out["intra_list_similarity"] = sums["alike"] / sums["pairs"]
        return {name: float(value) for name, value in out.items()}


def gini(counts: np.ndarray) -> float:
    """Gini coefficient of counts, zeros included: 0 if all are equal, 1 - 1/n if one has all."""
    ordered, n = np.sort(counts).astype(np.float64), len(counts)
    return float(((2 * np.arange(1, n + 1) - n - 1) * ordered).sum() / (n * ordered.sum()))
