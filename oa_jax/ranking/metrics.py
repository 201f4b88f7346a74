"""Ranks to metrics, in float64 on the host: one relevant item per user.

The three papers agree on these formulas and differ in what they rank against: the last part of a
metric's name.
"""

import numpy as np

from oa_jax.errors import UserError
from oa_jax.fields import checked, real

HR_CUTOFFS = (5, 10, 20)
NDCG_CUTOFFS = (1, 5, 10, 20)


def rank_metrics(
    rank: np.ndarray, ties: np.ndarray, n_candidates: np.ndarray | int, tie_weight: float
) -> dict[str, float]:
    """Means over users of HR@{5,10,20}, NDCG@{1,5,10,20}, MRR and AUC: 'hr@5', 'ndcg@10', 'mrr',
    'auc', … All are nan when there are no users. Arguments and errors are those of `user_metrics`.
    """
    values = user_metrics(rank, ties, n_candidates, tie_weight)
    # numpy warns about the mean of nothing; an empty domain is ordinary here.
    return {name: float(v.mean()) if v.size else float("nan") for name, v in values.items()}


def user_metrics(
    rank: np.ndarray, ties: np.ndarray, n_candidates: np.ndarray | int, tie_weight: float
) -> dict[str, np.ndarray]:
    """Every metric of every user, (R,) or (S, R) float64.

    rank: int, 1 + number of candidates that score strictly above the target.
    ties: int, number of other candidates with exactly the target's score.
    n_candidates: int, of one or of each row: the number N of candidates, target included.
    tie_weight: 0 puts the target first among its ties (official, ABXI quirk Q10), 0.5 takes the
        middle, 1 puts it last.

    With r = rank + tie_weight * ties: HR@k = [r <= k], NDCG@k = [r <= k] / log2(r + 1),
    MRR = 1/r without cut-off, as official ABXI, AUC = (N - r) / (N - 1). At tie_weight 0.5 the AUC
    is the share of negatives below the target, a tied one counting half.

    Raises UserError naming the first row whose counts no set of N >= 2 scores can give.
    """
    tie_weight = checked("tie_weight", tie_weight, real(0, "", 0, 1))
    rank, ties = np.asarray(rank, np.float64), np.asarray(ties, np.float64)
    n_candidates = np.broadcast_to(np.asarray(n_candidates, np.float64), rank.shape)
    # Written so that a nan is bad as well: a diverged model must not pass as rank 1 (quirk Q9).
    good = (rank >= 1) & (ties >= 0) & (rank + ties <= n_candidates) & (n_candidates >= 2)
    if not good.all():
        row = int(np.argmin(good))
        found = (f"{counts.flat[row]:g}" for counts in (rank, ties, n_candidates))
        raise UserError(
            "row {}: rank {}, ties {}, candidates {}: expected rank >= 1, ties >= 0, "
            "rank + ties <= candidates, candidates >= 2".format(row, *found)
        )
    r = rank + tie_weight * ties
    values = {f"hr@{k}": (r <= k).astype(np.float64) for k in HR_CUTOFFS}
    values |= {f"ndcg@{k}": np.where(r <= k, 1 / np.log2(r + 1), 0) for k in NDCG_CUTOFFS}
    return values | {"mrr": 1 / r, "auc": (n_candidates - r) / (n_candidates - 1)}


def metrics_by_domain(
    rank, ties, n_candidates, domain, tie_weight: float, ranking: str, groups: dict | None = None
) -> dict[str, float]:
    """`rank_metrics` of A, the users whose target lies there, of B, and of further sets of users.

    domain: (R,) int, 0 for A and 1 for B.  groups: {name: mask (R,)}, which may overlap.
    ranking: the name of what the target was ranked against, 'uni999' or 'full'.
    Keys 'NAME/ndcg@10/uni999', … and the user counts 'NAME/users' (int); nan without users.
    Raises UserError when a domain is neither, and as `user_metrics` does, with rows counted inside
    the set.
    """
    rank, ties, domain = map(np.asarray, (rank, ties, domain))
    if not np.isin(domain, (0, 1)).all():
        raise UserError(f"domain: found {np.unique(domain)}, expected 0 (A) and 1 (B)")
    n_candidates, out = np.broadcast_to(n_candidates, rank.shape), {}
    for name, rows in {"A": domain == 0, "B": domain == 1, **(groups or {})}.items():
        values = rank_metrics(rank[rows], ties[rows], n_candidates[rows], tie_weight)
        out |= {f"{name}/{metric}/{ranking}": value for metric, value in values.items()}
        out[f"{name}/users"] = int(rows.sum())
    return out
