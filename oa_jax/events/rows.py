"""Rows of model inputs cut out of a log, with whole-log array operations.

The functions compute the row and column of each event in an output, then scatter all values at
once. Shapes: M entries, R rows; `row` (M,) ascends, so the entries of a row stand together, in
their order.

Values whose number differs much between rows, such as the items of a user, are kept as *lists* of
three arrays: NAME (M,), the values of all rows one after the other; first_NAME (R,), the start of
each row; n_NAME (R,), their number. So one long history costs only its own length, while in a table
every row would be as long.
"""

import dataclasses
import functools

import numpy as np

from oa_jax.events.log import DOMAINS, InteractionLog, domain_of, first_events
from oa_jax.events.split import Split


@dataclasses.dataclass(frozen=True)
class Ragged:
    """Rows of different lengths, on the host. `ragged[3]` is the values of row 3; a slice, an array
    of numbers or a mask selects rows. values: (M,) of all rows, one after the other. size: (R,)."""

    values: np.ndarray
    size: np.ndarray

    @classmethod
    def of(cls, row: np.ndarray, values: np.ndarray, n_rows: int) -> "Ragged":
        """row: (M,) the row of each value, ascending."""
        return cls(values, np.bincount(row, minlength=n_rows))

    def __len__(self):
        return len(self.size)

    @property
    def row(self) -> np.ndarray:
        """(M,) the row of each value."""
        return np.repeat(np.arange(len(self)), self.size)

    @functools.cached_property
    def first(self) -> np.ndarray:
        """(R,) place of each row's first value."""
        return np.cumsum(self.size) - self.size

    def __iter__(self):
        return (self[row] for row in range(len(self)))

    def __getitem__(self, rows) -> "np.ndarray | Ragged":
        size, begin = self.size[rows], self.first[rows]
        if np.ndim(size) == 0:
            return self.values[begin : begin + size]
        place = np.arange(size.sum()) - np.repeat(np.cumsum(size) - size, size)
        return Ragged(self.values[np.repeat(begin, size) + place], size)

    def width(self, height: int) -> int:
        """The least multiple of `height`, above 0, that holds the values of any block of that many
        rows."""
        most = np.bincount(self.row // height).max(initial=0)
        return height * max(1, -(-int(most) // height))

    def blocks(self, height: int, width: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """(rows, values), (N, W) each, of N blocks of `height` rows: the row of each value within
        its block, and the value, padded with `height` and 0. W: at least `width`."""
        block, row = np.divmod(self.row, height)
        place, count = rank(block, -(-len(self) // height))
        shape = len(count), max(width, self.width(height))
        at = block, place
        return scatter(shape, at, row, fill=height), scatter(shape, at, self.values)


def rank(row: np.ndarray, n_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """(M,) place of each entry within its row, from 0; and (n_rows,) number of entries of a row."""
    count = np.bincount(row, minlength=n_rows)
    return np.arange(len(row)) - (np.cumsum(count) - count)[row], count


def end_columns(row: np.ndarray, n_rows: int, length: int) -> np.ndarray:
    """(M,) columns that left-pad the rows: the last entry of a row is in column length - 1.

    Entries that do not fit get columns below 0; `scatter` leaves them out.
    """
    place, count = rank(row, n_rows)
    return length - count[row] + place


def scatter(shape: tuple[int, int], place, values: np.ndarray, fill: int = 0) -> np.ndarray:
    """int32 array of `shape` with values at place = (row, column), and `fill` elsewhere.

    Values whose column is outside 0..shape[1]-1 are left out.
    """
    array = np.full(shape, fill, np.int32)
    row, column = place
    kept = (column >= 0) & (column < shape[1])
    array[row[kept], column[kept]] = values[kept]
    return array


def lists(name: str, row: np.ndarray, values: np.ndarray, n_rows: int) -> dict[str, np.ndarray]:
    """The lists NAME (M + 1,), first_NAME and n_NAME (n_rows,) of all rows, int32."""
    # Never empty: compiled programs read it whether used or not.
    rows = Ragged.of(row, np.append(values, 0), n_rows)
    arrays = {name: rows.values, f"first_{name}": rows.first, f"n_{name}": rows.size}
    return {key: array.astype(np.int32) for key, array in arrays.items()}


def own_items(
    log: InteractionLog, chosen: np.ndarray, name: str = "own", drop_last: bool = False
) -> dict[str, np.ndarray]:
    """Lists NAME_A and NAME_B: the distinct items of each user's chosen events in a domain.

    Negatives avoid these items. Ids count from 0 within the domain, ascending.
    chosen: (N,) bool.  drop_last: leave out the last item of each domain, for pools without it.
    """
    arrays = {}
    for d, domain in enumerate(DOMAINS):
        n_items, event = log.n_items[d], np.flatnonzero(chosen & (log.domain == d))
        pair = np.unique(log.user[event].astype(np.int64) * n_items + log.local[event] - 1)
        user, item = np.divmod(pair, n_items)
        kept = item < n_items - drop_last
        arrays |= lists(f"{name}_{domain}", user[kept], item[kept], log.n_users)
    return arrays


def streams(
    log: InteractionLog,
    row: np.ndarray,
    event: np.ndarray,
    n_rows: int,
    length: int,
    merged_length: int,
) -> dict[str, np.ndarray]:
    """Left-padded streams of the events `event` (M,), rows of the log; event m goes to row row[m].

    seq: (R, merged_length) joint ids of both domains in the order of the log.  seq_A, seq_B:
    (R, length) joint ids of one domain.  time_A, time_B: (R, length) the column of the same event
    in `seq`; -1 at padding, and for events older than `seq` reaches.
    """
    column, shape = end_columns(row, n_rows, merged_length), (n_rows, length)
    arrays = {"seq": scatter((n_rows, merged_length), (row, column), log.item[event])}
    for d, name in enumerate(DOMAINS):
        own = np.flatnonzero(log.domain[event] == d)
        place = (row[own], end_columns(row[own], *shape))
        arrays[f"seq_{name}"] = scatter(shape, place, log.item[event[own]])
        arrays[f"time_{name}"] = scatter(shape, place, np.maximum(column[own], -1), fill=-1)
    return arrays


def evaluation_rows(log: InteractionLog, split: Split, which: str):
    """The evaluation rows of "val" or "test", as every backbone needs them.

    Returns (arrays, place, row, event).
    arrays: user (R,) int32, the users with a target, ascending; target (R,) int32 item; domain (R,)
        int8 of the target; seen, `Ragged` int32, the distinct items of the whole history except the
        target, ascending: the full ranking leaves them out.
    place: (R,) int32, place of the target, equal to the number of events in its history.
    row, event: (M,) the histories, see `first_events`.
    """
    user, place = split.targets(which)
    row, event = first_events(log, user, place)
    target = log.item[log.offsets[user] + place]
    n_ids = sum(log.n_items) + 1
    seen_row, seen = np.divmod(np.unique(row.astype(np.int64) * n_ids + log.item[event]), n_ids)
    new = seen != target[seen_row]
    arrays = {"user": user, "target": target, "domain": domain_of(target, log.n_items)}
    arrays["seen"] = Ragged.of(seen_row[new], seen[new].astype(np.int32), len(user))
    return arrays, place, row, event
