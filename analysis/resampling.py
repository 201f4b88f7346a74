"""Intervals by resampling: differences over seeds and users, and statistics over clusters."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from scipy import special, stats

DRAWS, LEVEL = 2000, 0.95
BLOCK = 4_000_000  # user weights held at once


@dataclasses.dataclass(frozen=True)
class Difference:
    """Mean of a minus mean of b: with its interval, and what the test behind it can see.

    p: two-sided, of no difference; mde: the true difference that this test finds with power 0.8
    at 5 %. nan where the data cannot say (a single user; no variation at all).
    """

    estimate: float
    low: float
    high: float
    se: float
    df: float
    p: float
    mde: float


def compare(a_MxSxR, b_MxTxR, rng, draws: int = DRAWS) -> list[Difference]:
    """M metrics of S seeds of one run against T of another, over the same R users.

    Users are paired: a draw takes the same users, with replacement, on both sides. Seeds are not:
    those of either side are drawn on their own. Interval: percentiles of these draws, their
    deviations scaled to the standard error of the two-way model (seeds, users, seeds × users) and
    to Student's t. Unscaled they would be too wide where seed and user interact, which this
    bootstrap counts three times (Owen 2007, "The pigeonhole bootstrap"), and too narrow for few
    seeds. With a single seed on a side its seeds cannot vary: the interval then covers users only.
    """
    a, b = np.asarray(a_MxSxR, np.float64), np.asarray(b_MxTxR, np.float64)
    drawn_MxD = _draw(a, b, rng, draws)
    out = []
    for a_SxR, b_TxR, drawn_D in zip(a, b, drawn_MxD, strict=True):
        estimate = float(a_SxR.mean() - b_TxR.mean())
        se, df = standard_error(a_SxR, b_TxR)
        spread = float(drawn_D.std(ddof=1))
        if not se > 0 or not spread > 0:
            low = high = estimate if se == 0 else math.nan
            out.append(Difference(estimate, low, high, se, df, math.nan, math.nan))
            continue
        tail = (1 - LEVEL) / 2
        stretch = se / spread * stats.t.isf(tail, df) / stats.norm.isf(tail)
        deviations = np.quantile(drawn_D, [tail, 1 - tail]) - estimate
        low, high = estimate + stretch * deviations
        p = 2 * stats.t.sf(abs(estimate) / se, df)
        found = Difference(estimate, float(low), float(high), se, df, float(p), detectable(se, df))
        out.append(found)
    return out


def standard_error(a_SxR, b_TxR) -> tuple[float, float]:
    """Standard error of the difference of means, and Satterthwaite's degrees of freedom.

    Variance of the seeds' means on both sides, plus that of the users' paired differences, minus
    the interaction of seed and user, which both of them hold.
    """
    parts, interaction = [], 0.0
    for side in (a_SxR, b_TxR):
        n_seeds, n_users = side.shape
        if n_seeds > 1:
            parts.append((float(side.mean(1).var(ddof=1)) / n_seeds, n_seeds - 1))
        if n_seeds > 1 and n_users > 1:
            rest = side - side.mean(1, keepdims=True) - side.mean(0, keepdims=True) + side.mean()
            mean_square = float((rest**2).sum()) / ((n_seeds - 1) * (n_users - 1))
            interaction += mean_square / side.size
    n_users = a_SxR.shape[1]
    if n_users > 1:
        users = float((a_SxR.mean(0) - b_TxR.mean(0)).var(ddof=1)) / n_users
        parts.append((max(users - interaction, 0.0), n_users - 1))
    total = sum(value for value, _ in parts)
    if not parts or total == 0:
        return (0.0 if parts else math.nan), math.nan
    return math.sqrt(total), total**2 / sum(value**2 / df for value, df in parts)


def detectable(se: float, df: float, power: float = 0.8, size: float = 0.05) -> float:
    """The difference that a two-sided t test of this standard error finds with this power."""
    # The other tail, being wrong in sign, has a probability below 0.001 there.
    return float(se * special.nctdtrinc(df, 1 - power, stats.t.isf(size / 2, df)))


def probability_of_improvement(a_S, b_T) -> float:
    """Share of pairs of a seed of a and one of b in which a is better; a tie counts half.

    Mann and Whitney's U over S·T.
    """
    statistic = stats.mannwhitneyu(a_S, b_T).statistic
    return float(statistic / (len(a_S) * len(b_T)))


def _draw(a, b, rng, draws):
    """(M, D) differences under drawn seeds and users."""
    n_users, out = a.shape[2], []
    seeds = [_weights(rng, draws, side.shape[1]) for side in (a, b)]
    size = max(1, BLOCK // n_users)
    for start in range(0, draws, size):
        rows = slice(start, min(draws, start + size))
        users_DxR = _weights(rng, rows.stop - rows.start, n_users)
        means = [
            np.einsum("dr,msr,ds->md", users_DxR, side, weight_DxS[rows], optimize=True)
            for side, weight_DxS in zip((a, b), seeds, strict=True)
        ]
        out.append(means[0] - means[1])
    return np.concatenate(out, 1)


def _weights(rng, draws, n):
    """(draws, n) shares of n things drawn n times with replacement."""
    return rng.multinomial(n, np.full(n, 1 / n), draws) / n


def cluster_interval(clusters, statistic, rng, draws: int = DRAWS) -> tuple[float, float, float]:
    """Percentile interval of `statistic(indices)` when whole clusters are drawn with replacement.

    clusters: a label per observation. statistic: int indices -> float, nan where it is undefined.
    -> low, high, share of draws that were undefined and are left out. nan, nan below 3 clusters.
    """
    labels = np.unique(np.asarray(clusters), return_inverse=True)[1]
    members = [np.flatnonzero(labels == label) for label in range(labels.max() + 1)]
    if len(members) < 3:
        return math.nan, math.nan, math.nan
    values = np.empty(draws)
    for i in range(draws):
        chosen = rng.integers(0, len(members), len(members))
        values[i] = statistic(np.concatenate([members[c] for c in chosen]))
    defined = values[np.isfinite(values)]
    if len(defined) < draws / 2:
        return math.nan, math.nan, 1 - len(defined) / draws
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(defined, [tail, 1 - tail])
    return float(low), float(high), 1 - len(defined) / draws
