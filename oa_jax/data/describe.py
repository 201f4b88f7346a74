"""Statistics of a prepared set (counts, lengths, overlap, ties, cold targets): table and plot."""

import os
from collections.abc import Iterable

import numpy as np

from oa_jax.data.store import ORDER, Place, Prepared
from oa_jax.errors import UserError
from oa_jax.events.log import TEST, TRAINING, VALIDATION, InteractionLog


def describe(data: Prepared) -> list[list[str]]:
    """Rows [what, A, B, both] of the table."""
    log, role = data.log, data.role
    sides = [log.domain == 0, log.domain == 1, np.ones(len(log.user), bool)]

    def row(what, marked, among=None):
        """Number of marked events of A, B and both; with `among`, their share."""
        counts = [int((side & marked).sum()) for side in sides]
        if among is None:
            return [what, *(f"{n:,}" for n in counts)]
        pairs = zip(counts, [int((side & among).sum()) for side in sides], strict=True)
        return [what, *(f"{n / of:.1%}" if of else "–" for n, of in pairs)]

    lengths = [np.bincount(log.user[side], minlength=log.n_users) for side in sides]
    overlap = (lengths[0] > 0) & (lengths[1] > 0)
    some = [n[n > 0] for n in lengths]
    spread = [f"{n.mean():.1f} / {np.median(n):g} / {n.max()}" if len(n) else "–" for n in some]
    kinds = {"validation targets": role == VALIDATION, "test targets": role == TEST}
    rows = [
        ["items", *(f"{n:,}" for n in (*log.n_items, sum(log.n_items)))],
        row("interactions", sides[2]),
        ["users with events", *(f"{len(n):,}" for n in some)],
        ["users with both", "", "", f"{overlap.sum():,} ({overlap.mean():.1%})"],
        ["users with one domain alone", *(f"{((n > 0) & ~overlap).sum():,}" for n in lengths)],
        ["length: mean / median / longest", *spread],
        row("training events", role == TRAINING),
        *(row(name, of) for name, of in kinds.items()),
        *(row(f"cold {name}", of & cold(data), of) for name, of in kinds.items()),
        row("repeats of an item by a user", repeated(log), sides[2]),
    ]
    if data.metadata["times"] != ORDER:
        same = np.diff(log.user) == 0
        tied, step = same & (np.diff(log.time) == 0), np.diff(log.domain)
        steps = [f"{(tied & (step == s)).sum():,}" for s in (1, -1)]
        rows += [
            ["neighbours at the same time", "", "", f"{tied.sum() / same.sum():.1%}"],
            ["of these A then B, B then A", *steps, ""],
            ["first and last time", "", "", f"{log.time.min()} – {log.time.max()}"],
        ]
    popularity = ["–" if np.isnan(v) else f"{v:.3f}" for v in popularity_ndcg(data)]
    of = f"1 of {no_more(1000, log.n_items)}"
    return [*rows, [f"NDCG@10 of popularity, {of}", *popularity, ""]]


def no_more(most: int, numbers: Iterable[int]) -> str:
    """The numbers of A and of B, at most `most` each; a single number if they are equal."""
    return " / ".join(dict.fromkeys(str(min(most, n)) for n in numbers))


def cold(data: Prepared) -> np.ndarray:
    """(N,) bool: events whose item is in no training part."""
    return ~np.isin(data.log.item, data.log.item[data.role == TRAINING])


def repeated(log: InteractionLog) -> np.ndarray:
    """(N,) bool: events whose item the user has taken before."""
    pair = log.user.astype(np.int64) * (sum(log.n_items) + 1) + log.item
    out = np.ones(len(pair), bool)
    out[np.unique(pair, return_index=True)[1]] = False
    return out


def popularity_ndcg(
    data: Prepared, above_history: bool = False, n_negatives: int = 999
) -> tuple[float, float]:
    """NDCG@10 of test targets ranked by training popularity among random items of their domain.

    Returns (A, B): exact expectations over the draw of the negatives, with equal scores counted
    half; NaN without targets. above_history: only items with an id above the user's largest one in
    the domain get a score. AMID's files reward this: they are in the order of ids.
    """
    log, role, offsets = data.log, data.role, data.log.offsets
    popularity = np.bincount(log.item[role == TRAINING], minlength=sum(log.n_items) + 1)
    gain, results = 1 / np.log2(np.arange(10) + 2), []
    for domain, first in enumerate((1, log.n_items[0] + 1)):
        rows = np.flatnonzero((role == TEST) & (log.domain == domain))
        own = popularity[first : first + log.n_items[domain]].astype(np.int32)
        place = np.where(log.domain == domain, log.item - first, -1)
        twice = np.empty(len(rows), np.int64)  # how many items are better, ties counting half
        for k, row in enumerate(rows):
            history = place[offsets[log.user[row]] : row] if above_history else place[:0]
            at, low = place[row], history.max(initial=-1)
            rivals = own[low + 1 :]
            if at > low:
                twice[k] = 2 * (rivals > own[at]).sum() + (rivals == own[at]).sum() - 1
            else:
                twice[k] = 2 * len(rivals) + low
        draws = min(n_negatives, len(own) - 1)
        places = np.arange(10)[:, None], len(own) - 1
        # A half is the mean of the numbers beside it.
        both = [_hypergeometric(*places, better, draws) for better in (twice // 2, -(-twice // 2))]
        results.append(float((gain @ sum(both)).mean()) / 2 if len(rows) else float("nan"))
    return tuple(results)


def _hypergeometric(k, total, marked, draws):
    """Chance that `draws` out of `total` hold k of the `marked`."""
    from scipy.special import gammaln  # scipy.stats.hypergeom takes 20 times as long

    def log_choose(n, m):  # gammaln of 0, -1, … is inf: none where m < 0 or m > n
        return gammaln(n + 1) - gammaln(m + 1) - gammaln(n - m + 1)

    rest = log_choose(total - marked, draws - k)
    return np.exp(log_choose(marked, k) + rest - log_choose(total, draws))


def plot(data: Prepared, path: Place) -> None:
    """Plot lengths and popularity by domain; the ending of the file name decides the format.

    Raises UserError for an ending that matplotlib does not know.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    log = data.log
    figure = Figure(figsize=(10, 4), layout="constrained")
    known = sorted(figure.canvas.get_supported_filetypes())
    if os.path.splitext(path)[1][1:].lower() not in known:
        raise UserError(f"{path}: expected a name that ends in one of .{', .'.join(known)}")
    left, right = figure.subplots(1, 2)
    for domain, title in enumerate(data.metadata["domains"]):
        style = {"color": f"C{domain}", "label": f"{'AB'[domain]}: {title.replace('_', ' ')}"}
        mine = log.domain == domain
        lengths = np.sort(np.unique(log.user[mine], return_counts=True)[1])[::-1]
        left.loglog(lengths, np.arange(1, len(lengths) + 1), **style)
        counts = np.bincount(log.local[mine], minlength=log.n_items[domain] + 1)[1:]
        right.loglog(np.arange(1, len(counts) + 1), np.sort(counts)[::-1], **style)
    left.set(xlabel="events in the domain", ylabel="sequences with at least that many")
    left.set_title("Lengths")
    # Lengths often span less than a decade, where the usual ticks of a log axis are few or crowded.
    left.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    left.xaxis.set_major_formatter("{x:g}")
    left.minorticks_off()
    right.set(xlabel="rank of the item", ylabel="interactions", title="Popularity")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    counts = f"{log.n_users:,} sequences, {len(log.user):,} interactions"
    figure.suptitle(f"{data.metadata['name']}: {counts}")
    figure.savefig(path, dpi=130)
