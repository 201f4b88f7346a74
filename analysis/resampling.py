"""Intervals by resampling: differences over seeds and users, and statistics over clusters."""

import dataclasses
import math
from collections.abc import Callable

import numpy as np
from scipy import special, stats

DRAWS, LEVEL = 2000, 0.95
TAIL = (1 - LEVEL) / 2
BLOCK = 4_000_000  # user weights held at once


@dataclasses.dataclass(frozen=True)
class Difference:
    """Mean of a minus mean of b: with its interval, and what the test behind it can see.

    p: two-sided, of no difference; mde: the true difference that this test finds with power 0.8
    at 5 %. nan where the data cannot say (seeds that cannot vary; no variation at all).
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

    b: None compares with 0, as for differences that are already paired. Users are paired: a draw
    takes the same users, with replacement, on both sides. Seeds are not: those of either side are
    drawn on their own. Interval: percentiles of these draws, their deviations scaled to the
    standard error of the two-way model (seeds, users, seeds × users) and to Student's t. Unscaled
    they would be too wide where seed and user interact, which this bootstrap counts three times
    (Owen 2007, "The pigeonhole bootstrap"), and too narrow for few seeds.

    A side with a single seed borrows the variance of the other's seeds. Where no seeds can vary,
    the interval covers users only, and p and mde are nan: a test that took seeds for fixed would
    find differences that another seed does not have.
    """
    sides = [np.asarray(side, np.float64) for side in (a_MxSxR, b_MxTxR) if side is not None]
    drawn_MxD = _draw(sides, rng, draws)
    out = []
    for *of_metric, drawn_D in zip(*sides, drawn_MxD, strict=True):
        means = [float(side.mean()) for side in of_metric]
        estimate = means[0] - sum(means[1:])
        se, df = standard_error(*of_metric)
        spread = float(drawn_D.std(ddof=1))
        if not se > 0 or not spread > 0:
            low = high = estimate if se == 0 else math.nan
            out.append(Difference(estimate, low, high, se, df, math.nan, math.nan))
            continue
        stretch = se / spread * t_over_normal(df)
        low, high = estimate + stretch * (np.quantile(drawn_D, [TAIL, 1 - TAIL]) - estimate)
        p, mde = 2 * stats.t.sf(abs(estimate) / se, df), detectable(se, df)
        if max(len(side) for side in of_metric) == 1:
            p = mde = math.nan
        out.append(Difference(estimate, float(low), float(high), se, df, float(p), mde))
    return out


def for_worst_of(k: int, df: float) -> float:
    """How much wider the interval of each of k is, at which none of them covers too little but at
    1 - `LEVEL` (Bonferroni)."""
    return float(stats.t.isf(TAIL / k, df) / stats.t.isf(TAIL, df))


def t_over_normal(df: float) -> float:
    """How much wider Student's t with `df` degrees of freedom is than a normal, at `LEVEL`."""
    return float(stats.t.isf(TAIL, df) / stats.norm.isf(TAIL))


def mean_interval(values) -> tuple[float, float, float]:
    """Mean of independent values and the ends of its interval by Student's t; nan where too few."""
    values = np.asarray(values, np.float64)
    mean, half = float(values.mean()) if len(values) else math.nan, math.nan
    if len(values) > 1:
        half = stats.t.isf(TAIL, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def standard_error(*sides_SxR) -> tuple[float, float]:
    """Standard error of the difference of means, and Satterthwaite's degrees of freedom.

    Variance of the seeds' means on both sides, plus that of the users' paired differences, minus
    the interaction of seed and user, which both of them hold. Side: (its seeds, users).
    """
    found = [_of_seeds(side) for side in sides_SxR if len(side) > 1]
    parts, interaction = [], 0.0
    n_users = sides_SxR[0].shape[1]
    if found and len(found) < len(sides_SxR):  # one estimate serves both: its variances add up
        variance, mean_square, df = found[0]
        share = sum(1 / len(side) for side in sides_SxR)
        parts, interaction = [(variance * share, df)], mean_square * share / n_users
    elif found:
        parts = [(v / len(s), df) for (v, _, df), s in zip(found, sides_SxR, strict=True)]
        interaction = sum(m / s.size for (_, m, _), s in zip(found, sides_SxR, strict=True))
    if n_users > 1:
        difference_R = sides_SxR[0].mean(0) - sum(side.mean(0) for side in sides_SxR[1:])
        users = float(difference_R.var(ddof=1)) / n_users
        parts.append((max(users - interaction, 0.0), n_users - 1))
    total = sum(value for value, _ in parts)
    if not parts or total == 0:
        return (0.0 if parts else math.nan), math.nan
    return math.sqrt(total), total**2 / sum(value**2 / df for value, df in parts)


def _of_seeds(side_SxR):
    """Variance of the seeds' means, mean square of the interaction with users, freedom."""
    n_seeds, n_users = side_SxR.shape
    rest = side_SxR - side_SxR.mean(1, keepdims=True) - side_SxR.mean(0) + side_SxR.mean()
    mean_square = float((rest**2).sum()) / ((n_seeds - 1) * max(n_users - 1, 1))
    return float(side_SxR.mean(1).var(ddof=1)), mean_square, n_seeds - 1


def detectable(se: float, df: float) -> float:
    """The difference that a two-sided t test at 5 % of this standard error finds with power 0.8."""
    # The other tail, being wrong in sign, has a probability below 0.001 there.
    return float(se * special.nctdtrinc(df, 0.2, stats.t.isf(TAIL, df)))


def probability_of_improvement(a_S, b_T) -> float:
    """Share of pairs of seeds in which a is better, ties half: Mann and Whitney's U / S T."""
    return float(stats.mannwhitneyu(a_S, b_T).statistic / (len(a_S) * len(b_T)))


def _draw(sides, rng, draws):
    """(M, D) differences under drawn seeds and users."""
    n_users, out = sides[0].shape[2], []
    seeds = [_weights(rng, draws, side.shape[1]) for side in sides]
    size = max(1, BLOCK // n_users)
    for start in range(0, draws, size):
        rows = slice(start, min(draws, start + size))
        users_DxR = _weights(rng, rows.stop - rows.start, n_users)
        means = [
            np.einsum("dr,msr,ds->md", users_DxR, side, weight_DxS[rows], optimize=True)
            for side, weight_DxS in zip(sides, seeds, strict=True)
        ]
        out.append(means[0] - sum(means[1:]))
    return np.concatenate(out, 1)


def _weights(rng, draws, n):
    """(draws, n) shares of n things drawn n times with replacement."""
    return rng.multinomial(n, np.full(n, 1 / n), draws) / n


def cluster_interval(
    clusters, statistic: Callable[[np.ndarray], float], rng, draws: int = DRAWS
) -> tuple[float, float, float]:
    """Percentile interval of `statistic(indices)` when whole clusters are drawn with replacement,
    its deviations scaled from a normal to Student's t with a degree of freedom less than there are
    clusters: as it is, the interval covers too little when they are few.

    clusters: a label per observation. statistic: int indices -> float, nan where it is undefined.
    -> low, high, share of draws that were undefined and are left out. All nan below 3 clusters.
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
    lost = 1 - len(defined) / draws
    if lost > 0.5:
        return math.nan, math.nan, lost
    value, stretch = statistic(np.arange(len(labels))), t_over_normal(len(members) - 1)
    low, high = value + stretch * (np.quantile(defined, [TAIL, 1 - TAIL]) - value)
    return float(low), float(high), lost
