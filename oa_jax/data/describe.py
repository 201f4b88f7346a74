"""Figures of a prepared set: counts, lengths, overlap, ties, cold targets; a table and a plot."""

from __future__ import annotations

import os

import numpy as np

from oa_jax.data.store import ORDER, Place, Prepared
from oa_jax.errors import UserError
from oa_jax.events.log import TEST, TRAINING, VALIDATION, InteractionLog


def describe(data: Prepared) -> list[list[str]]:
    """Rows [what, A, B, both] of the table."""
    log, role, domain = data.log, data.role, data.log.domain
    sides = [domain == 0, domain == 1, np.ones(len(domain), bool)]

    def counts(marked):
        return [f"{(s & marked).sum():,}" for s in sides]

    def shares(marked, among):
        pairs = [((s & among & marked).sum(), (s & among).sum()) for s in sides]
        return [f"{n / of:.1%}" if of else "–" for n, of in pairs]

    lengths = [np.bincount(log.user[s], minlength=log.n_users) for s in sides]
    overlap = (lengths[0] > 0) & (lengths[1] > 0)
    rows = [
        ["items", *(f"{n:,}" for n in (*log.n_items, sum(log.n_items)))],
        ["interactions", *counts(True)],
        ["users with events", *(f"{(n > 0).sum():,}" for n in lengths)],
        ["users with both", "", "", f"{overlap.sum():,} ({overlap.mean():.1%})"],
        ["users with one domain alone", *(f"{((n > 0) & ~overlap).sum():,}" for n in lengths)],
        ["length: mean / median / longest", *map(_length, lengths)],
        ["training events", *counts(role == TRAINING)],
    ]
    kinds = ((VALIDATION, "validation targets"), (TEST, "test targets"))
    rows += [[name, *counts(role == kind)] for kind, name in kinds]
    rows += [[f"cold {s}", *shares(cold_targets(data, kind), role == kind)] for kind, s in kinds]
    rows.append(["repeats of an item by a user", *shares(repeated(log), sides[2])])
    if data.metadata["times"] != ORDER:
        same = log.user[1:] == log.user[:-1]
        tied = same & (log.time[1:] == log.time[:-1])
        step = np.diff(domain)
        rows += [
            ["neighbours at the same time", "", "", f"{tied.sum() / same.sum():.1%}"],
            ["of these A then B, B then A", *(f"{(tied & (step == s)).sum():,}" for s in (1, -1))],
            ["first and last time", "", "", f"{log.time.min()} – {log.time.max()}"],
        ]
        rows[-2].append("")
    popularity = [f"{value:.3f}" for value in popularity_ndcg(data)]
    return [*rows, ["NDCG@10 of popularity, 1 of 1000", *popularity, ""]]


def _length(counts):
    counts = counts[counts > 0]
    mean = f"{counts.mean():.1f} / {np.median(counts):g} / {counts.max()}" if len(counts) else "–"
    return mean


def cold_targets(data: Prepared, kind: int) -> np.ndarray:
    """(N,) targets of a kind whose item occurs in nobody's training part."""
    log = data.log
    trained = np.zeros(sum(log.n_items) + 1, bool)
    trained[log.item[data.role == TRAINING]] = True
    return (data.role == kind) & ~trained[log.item]


def repeated(log: InteractionLog) -> np.ndarray:
    """(N,) events whose item its user has taken before."""
    pair = log.user.astype(np.int64) * (sum(log.n_items) + 1) + log.item
    out = np.ones(len(pair), bool)
    out[np.unique(pair, return_index=True)[1]] = False
    return out


def popularity_ndcg(
    data: Prepared, above_history: bool = False, n_negatives: int = 999, cut: int = 10
) -> tuple[float, float]:
    """NDCG@cut of test targets ranked by training popularity among random items of their domain.

    -> (A, B): exact expectations over the draw of the negatives, equal scores counting half; NaN
    without targets. above_history: only items with an id above the user's largest one in the
    domain score at all, which is what the AMID files reward: they are in the order of ids.
    """
    log, role = data.log, data.role
    popularity = np.bincount(log.item[role == TRAINING], minlength=sum(log.n_items) + 1)
    gain = 1 / np.log2(np.arange(cut) + 2)
    results = []
    for domain, first in enumerate((1, log.n_items[0] + 1)):
        rows = np.flatnonzero((role == TEST) & (log.domain == domain))
        own = popularity[first : first + log.n_items[domain]]
        if above_history:
            better = _better_above(own, log, rows, domain, first)
        else:
            better = _better(own, log.item[rows] - first)
        draws = min(n_negatives, len(own) - 1)
        chance = _hypergeometric(np.arange(cut)[:, None], len(own) - 1, better, draws)
        results.append(float((gain @ chance).mean()) if len(rows) else float("nan"))
    return tuple(results)


def _hypergeometric(k, total, marked, draws):
    """Chance that `draws` out of `total` hold k of the `marked`."""
    from scipy.special import gammaln  # scipy.stats.hypergeom takes 20 times as long

    def log_choose(n, m):
        with np.errstate(invalid="ignore"):
            value = gammaln(n + 1) - gammaln(m + 1) - gammaln(n - m + 1)
        return np.where((m >= 0) & (m <= n), value, -np.inf)

    rest = log_choose(total - marked, draws - k)
    return np.exp(log_choose(marked, k) + rest - log_choose(total, draws))


def _better(popularity, target):
    """How many items of the domain are more popular than each target, ties counting half."""
    ordered, own = np.sort(popularity), popularity[target]
    left, right = (np.searchsorted(ordered, own, side) for side in ("left", "right"))
    return len(ordered) - right + (right - left - 1) // 2


def _better_above(popularity, log, rows, domain, first):
    """The same for the targets in `rows` if items up to the user's largest id are all last."""
    out, popularity = np.empty(len(rows), np.int64), popularity.astype(np.int32)
    mine, offsets = np.where(log.domain == domain, log.item, 0), log.offsets
    for k, row in enumerate(rows):
        at = log.item[row] - first
        low = mine[offsets[log.user[row]] : row].max(initial=0) - first
        rivals = popularity[low + 1 :] if low >= 0 else popularity
        if at > low:
            above, equal = rivals > popularity[at], rivals == popularity[at]
            out[k] = above.sum() + (equal.sum() - 1) // 2
        else:
            out[k] = len(rivals) + low // 2
    return out


def plot(data: Prepared, path: Place) -> None:
    """Lengths and popularity by domain, as a picture in the format that the name ends in.

    Raises UserError for an ending that matplotlib does not know.
    """
    from matplotlib.figure import Figure

    log = data.log
    figure = Figure(figsize=(10, 4), layout="constrained")
    known = sorted(figure.canvas.get_supported_filetypes())
    if os.path.splitext(path)[1][1:].lower() not in known:
        raise UserError(f"{path}: expected a name that ends in one of .{', .'.join(known)}")
    left, right = figure.subplots(1, 2)
    for domain, title in enumerate(data.metadata["domains"]):
        style = {"color": f"C{domain}", "label": f"{'AB'[domain]}: {title.replace('_', ' ')}"}
        lengths = np.bincount(log.user[log.domain == domain])
        lengths = np.sort(lengths[lengths > 0])[::-1]
        left.loglog(lengths, np.arange(1, len(lengths) + 1), **style)
        first = 1 + domain * log.n_items[0]
        counts = np.bincount(log.item, minlength=sum(log.n_items) + 1)
        counts = np.sort(counts[first : first + log.n_items[domain]])[::-1]
        right.loglog(np.arange(1, len(counts) + 1), counts, **style)
    left.set(xlabel="events in the domain", ylabel="sequences with at least that many")
    left.set_title("Lengths")
    # Lengths often span less than a decade, where the usual ticks of a log axis are few or crowded.
    ticks = [n for d in range(4) for n in (10**d, 2 * 10**d, 5 * 10**d)]
    limits = left.get_xlim()
    left.set_xticks(ticks, [str(n) for n in ticks])
    left.set_xticks([], minor=True)
    left.set_xlim(limits)
    right.set(xlabel="rank of the item", ylabel="interactions", title="Popularity")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    counts = f"{log.n_users:,} sequences, {len(log.user):,} interactions"
    figure.suptitle(f"{data.metadata['name']}: {counts}")
    figure.savefig(path, dpi=130)
