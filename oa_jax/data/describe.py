"""Figures of a prepared set: counts, lengths, overlap, ties, cold targets; a table and a plot."""

from __future__ import annotations

import numpy as np

from oa_jax.data.prepared import Prepared
from oa_jax.events.log import TEST, TRAINING, VALIDATION


def describe(data: Prepared) -> list[tuple[str, str, str, str]]:
    """Rows (what, A, B, both) of the table."""
    log, role = data.log, data.role
    domain = log.domain
    sides = [domain == 0, domain == 1, np.ones(len(domain), bool)]
    rows = [("items", *map(_whole, (*log.n_items, sum(log.n_items))))]
    rows.append(("interactions", *(_whole(s.sum()) for s in sides)))
    lengths = [np.bincount(log.user[s], minlength=log.n_users) for s in sides]
    rows.append(("users with events", *(_whole((n > 0).sum()) for n in lengths)))
    overlap = (lengths[0] > 0) & (lengths[1] > 0)
    rows.append(("users with both", "", "", f"{overlap.sum():,} ({overlap.mean():.1%})"))
    alone = [_whole(((n > 0) & ~overlap).sum()) for n in lengths]
    rows.append(("users with one domain alone", *alone))
    rows.append(("length: mean / median / longest", *map(_length, lengths)))
    for kind, name in ((TRAINING, "training events"), (VALIDATION, "validation targets")):
        rows.append((name, *(_whole((s & (role == kind)).sum()) for s in sides)))
    rows.append(("test targets", *(_whole((s & (role == TEST)).sum()) for s in sides)))
    for kind, name in ((VALIDATION, "cold validation targets"), (TEST, "cold test targets")):
        cold = cold_targets(data, kind)
        rows.append((name, *(_share(cold, s & (role == kind)) for s in sides)))
    repeated = _repeated(log)
    rows.append(("repeats of an item by a user", *(_share(repeated, s) for s in sides)))
    if data.metadata["times"] != "order":
        tied, same = tied_pairs(log)
        rows.append(("neighbours at the same time", "", "", f"{tied.sum() / same.sum():.1%}"))
        pairs = zip("AB", "BA", strict=True)
        counts = [_whole((tied & _change(domain, a, b)).sum()) for a, b in pairs]
        rows.append(("of these A then B, B then A", *counts, ""))
        rows.append(("first and last time", "", "", f"{log.time.min()} – {log.time.max()}"))
    rows.append(
        ("NDCG@10 of popularity, 1 of 1000", *(f"{v:.3f}" for v in popularity_ndcg(data)), "")
    )
    return rows


def _whole(n):
    return f"{n:,}"


def _length(counts):
    counts = counts[counts > 0]
    if not len(counts):
        return "–"
    return f"{counts.mean():.1f} / {np.median(counts):g} / {counts.max()}"


def _share(marked, among):
    return f"{(marked & among).sum() / among.sum():.1%}" if among.any() else "–"


def cold_targets(data: Prepared, kind: int) -> np.ndarray:
    """(N,) targets of a kind whose item occurs in nobody's training part."""
    log = data.log
    trained = np.zeros(sum(log.n_items) + 1, bool)
    trained[log.item[data.role == TRAINING]] = True
    return (data.role == kind) & ~trained[log.item]


def tied_pairs(log) -> tuple[np.ndarray, np.ndarray]:
    """(N-1,) neighbours of one user at the same time, and neighbours of one user."""
    same = log.user[1:] == log.user[:-1]
    return same & (log.time[1:] == log.time[:-1]), same


def _change(domain, first, second):
    return (domain[:-1] == "AB".index(first)) & (domain[1:] == "AB".index(second))


def _repeated(log):
    """(N,) events whose item its user has taken before."""
    pair = log.user.astype(np.int64) * (sum(log.n_items) + 1) + log.item
    repeated = np.ones(len(pair), bool)
    repeated[np.unique(pair, return_index=True)[1]] = False
    return repeated


def popularity_ndcg(data: Prepared, above_history: bool = False, n_negatives=999, cut=10):
    """NDCG@cut of test targets ranked by training popularity among random items of their domain.

    -> (A, B): exact expectations over the draw of the negatives, equal scores counting half; NaN
    without targets. above_history: only items with an id above the user's largest one in the
    domain score at all, which is what the AMID files reward (spec cdsrnp §14.1).
    """
    log, role = data.log, data.role
    popularity = np.bincount(log.item[role == TRAINING], minlength=sum(log.n_items) + 1)
    gain = 1 / np.log2(np.arange(cut) + 2)
    results = []
    for domain, first in enumerate((1, log.n_items[0] + 1)):
        rows = np.flatnonzero((role == TEST) & (log.domain == domain))
        own = popularity[first : first + log.n_items[domain]]
        target = log.item[rows] - first
        if above_history:
            better = _better_above(own, target, _largest_before(log, rows, domain) - first)
        else:
            better = _better(own, target)
        draws = min(n_negatives, len(own) - 1)
        chance = _hypergeometric(np.arange(cut)[:, None], len(own) - 1, better, draws)
        results.append(float((gain @ chance).mean()) if len(rows) else float("nan"))
    return tuple(results)


def _hypergeometric(k, total, marked, draws):
    """Chance that `draws` out of `total` hold k of the `marked`."""
    from scipy.special import gammaln

    def log_choose(n, m):
        with np.errstate(invalid="ignore"):
            value = gammaln(n + 1) - gammaln(m + 1) - gammaln(n - m + 1)
        return np.where((m >= 0) & (m <= n), value, -np.inf)

    rest = log_choose(total - marked, draws - k)
    return np.exp(log_choose(marked, k) + rest - log_choose(total, draws))


def _largest_before(log, rows, domain):
    """Largest id of the domain among the events of the user before each row; 0 without any."""
    mine, offsets = np.where(log.domain == domain, log.item, 0), log.offsets
    return np.array([mine[offsets[log.user[r]] : r].max(initial=0) for r in rows], np.int64)


def _better(popularity, target):
    """How many items of the domain are more popular than each target, ties counting half."""
    ordered, own = np.sort(popularity), popularity[target]
    left, right = (np.searchsorted(ordered, own, side) for side in ("left", "right"))
    return len(ordered) - right + (right - left - 1) // 2


def _better_above(popularity, target, floor):
    """The same if the items up to the index `floor` are all last."""
    out, popularity = np.empty(len(target), np.int64), popularity.astype(np.int32)
    for k, (at, low) in enumerate(zip(target, floor, strict=True)):
        rivals = popularity[low + 1 :]
        if at > low:
            above, equal = rivals > popularity[at], rivals == popularity[at]
            out[k] = above.sum() + (equal.sum() - 1) // 2
        else:
            out[k] = len(rivals) + low // 2
    return out


def plot(data: Prepared, path) -> None:
    """Lengths and popularity by domain, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    log = data.log
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
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
    pyplot.close(figure)
