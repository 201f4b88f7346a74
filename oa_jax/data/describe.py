"""Figures of a prepared set: counts, lengths, overlap, ties, cold targets; a table and a plot."""

from __future__ import annotations

import numpy as np

from oa_jax.data.log import TEST, TRAINING, VALIDATION
from oa_jax.data.prepared import Prepared


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
    from scipy.stats import hypergeom

    log, role = data.log, data.role
    popularity = np.bincount(log.item[role == TRAINING], minlength=sum(log.n_items) + 1)
    gain = 1 / np.log2(np.arange(cut) + 2)
    results = []
    for domain, first in enumerate((1, log.n_items[0] + 1)):
        rows = np.flatnonzero((role == TEST) & (log.domain == domain))
        if not len(rows):
            results.append(float("nan"))
            continue
        own = popularity[first : first + log.n_items[domain]]
        floor = _largest_before(log, rows, domain) - first if above_history else -np.ones(len(rows))
        better = _better(own, log.item[rows] - first, floor.astype(np.int64))
        draws = min(n_negatives, len(own) - 1)
        values, inverse = np.unique(better, return_inverse=True)
        chance = hypergeom.pmf(np.arange(cut)[:, None], len(own) - 1, values, draws)
        results.append(float((gain @ chance)[inverse].mean()))
    return tuple(results)


def _largest_before(log, rows, domain):
    """Largest id of the domain among the events of the user before each row; 0 without any."""
    mine = np.where(log.domain == domain, log.item, 0)
    return np.array([mine[log.offsets[log.user[r]] : r].max(initial=0) for r in rows])


def _better(popularity, target, floor, block=512):
    """How many items of the domain score above each target, ties counting half."""
    out = []
    index = np.arange(len(popularity))
    for start in range(0, len(target), block):
        at, low = target[start : start + block], floor[start : start + block]
        score = np.where(index > low[:, None], popularity, -1)
        own = score[np.arange(len(at)), at][:, None]
        above, equal = (score > own).sum(1), (score == own).sum(1) - 1
        out.append(above + equal // 2)
    return np.concatenate(out)


def plot(data: Prepared, path) -> None:
    """Lengths and popularity by domain, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    log = data.log
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    names = [f"{d}: {title}" for d, title in zip("AB", data.metadata["domains"], strict=True)]
    lengths = [np.bincount(log.user[log.domain == d], minlength=log.n_users) for d in (0, 1)]
    longest = max(int(np.percentile(n, 99.5)) for n in lengths) + 1
    bins = np.linspace(0.5, longest + 0.5, min(longest, 60) + 1)
    for counts, name, color in zip(lengths, names, ("C0", "C1"), strict=True):
        left.hist(counts[counts > 0], bins, histtype="step", color=color, label=name, linewidth=1.5)
    left.set(xlabel="events of a user in the domain", ylabel="users", title="Lengths")
    left.set_xlim(0, longest + 0.5)
    for domain, (name, color) in enumerate(zip(names, ("C0", "C1"), strict=True)):
        first = 1 + domain * log.n_items[0]
        counts = np.bincount(log.item, minlength=sum(log.n_items) + 1)
        counts = np.sort(counts[first : first + log.n_items[domain]])[::-1]
        right.loglog(np.arange(1, len(counts) + 1), counts, color=color, label=name, linewidth=1.5)
    right.set(xlabel="rank of the item", ylabel="interactions", title="Popularity")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    figure.suptitle(
        f"{data.metadata['name']}: {log.n_users:,} users, {len(log.user):,} interactions"
    )
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
