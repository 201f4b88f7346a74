"""Coefficients of correlation; what is undefined is nan, never a number."""

import math
import warnings

import numpy as np
from scipy import stats
from statsmodels.regression.mixed_linear_model import MixedLM

from .resampling import TAIL


def pearson(x, y) -> float:
    """Pearson's r; nan when it is undefined: under 3 points, or a constant."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if len(x) < 3 or is_constant(x) or is_constant(y):
        return math.nan
    return float(np.clip(np.corrcoef(x, y)[0, 1], -1, 1))


def spearman(x, y) -> float:
    """Spearman's ρ: Pearson's r of the ranks, ties at their mean rank."""
    return pearson(stats.rankdata(x), stats.rankdata(y))


def partial(x, y, covariates_NxC) -> float:
    """Pearson's r of what is left of x and y after least squares on 1 and the covariates.

    nan when fewer than 3 degrees of freedom are left, or nothing is left of x or y.
    """
    c = np.asarray(covariates_NxC, np.float64)
    c = c[:, [not is_constant(column) for column in c.T]]
    design = np.column_stack([np.ones(len(c)), (c - c.mean(0)) / c.std(0)])
    if len(c) - np.linalg.matrix_rank(design) < 3:
        return math.nan
    left = []
    for values in (np.asarray(x, np.float64), np.asarray(y, np.float64)):
        rest = values - design @ np.linalg.lstsq(design, values, rcond=None)[0]
        spread = np.linalg.norm(values - values.mean())
        if np.linalg.norm(rest) <= 1e-9 * spread + 1e-12 * np.linalg.norm(values):
            return math.nan
        left.append(rest)
    return pearson(*left)


def within(x, y, groups) -> float:
    """Pearson's r of the deviations from the means of each group; nan without two in a group."""
    labels = np.unique(np.asarray(groups), return_inverse=True)[1]
    counts = np.bincount(labels)
    keep = counts[labels] > 1
    if keep.sum() - len(set(labels[keep])) < 2:
        return math.nan
    deviations = []
    for values in (np.asarray(x, np.float64), np.asarray(y, np.float64)):
        rest = (values - (np.bincount(labels, values) / counts)[labels])[keep]
        if np.abs(rest).max() <= 1e-12 * (np.abs(values).max() + 1e-300):
            return math.nan
        deviations.append(rest)
    return pearson(*deviations)


def mixed(x, y, groups) -> tuple[float, float, float]:
    """Slope of y on x, both in standard deviations, with a random intercept for each group, and its
    95 % interval, by `statsmodels.MixedLM`; nan where it cannot be fitted, or where groups have
    fewer than two points on average, which leave no way to tell their intercepts from noise.

    The interval is Wald's at Student's t with a degree of freedom less than there are groups:
    with few of them, normal quantiles cover too little.
    """
    x, y = (np.asarray(v, np.float64) for v in (x, y))
    if is_constant(x) or is_constant(y) or not 2 <= len(set(groups)) <= len(x) / 2:
        return math.nan, math.nan, math.nan
    x, y = ((v - v.mean()) / v.std() for v in (x, y))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a variance of 0 is a fit, too
        try:
            model = MixedLM(y, np.column_stack([np.ones_like(x), x]), groups=np.asarray(groups))
            # The default ends in a local maximum where groups differ much: the better of two.
            fits = [model.fit(reml=True, **how) for how in ({}, {"method": "powell"})]
            fit = max(fits, key=lambda fit: fit.llf)
        except (np.linalg.LinAlgError, ValueError):
            return math.nan, math.nan, math.nan
    slope, half = float(fit.params[1]), float(fit.bse[1] * stats.t.isf(TAIL, len(set(groups)) - 1))
    return slope, slope - half, slope + half


def leave_one_out(x, y, clusters) -> tuple[float, float]:
    """Least and greatest r when each cluster is left out in turn; nan for fewer than 3."""
    clusters = np.asarray(clusters)
    names = np.unique(clusters)
    values = [pearson(x[clusters != name], y[clusters != name]) for name in names]
    defined = [v for v in values if math.isfinite(v)]
    return (min(defined), max(defined)) if defined and len(names) > 2 else (math.nan, math.nan)


def is_constant(values) -> bool:
    """Whether the values differ by no more than rounding."""
    return bool(np.ptp(values) <= 1e-12 * (np.abs(values).max() + 1e-300))
