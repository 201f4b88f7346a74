"""The interaction log, into which every data source is turned: user, item, domain and time."""

import dataclasses
import functools
import hashlib
from typing import Any

import numpy as np

from oa_jax.errors import UserError
from oa_jax.fields import checked, text, two, whole

DOMAINS = ("A", "B")
# What an event is for, in data that come with a split. CONTEXT: input of the user's targets only.
CONTEXT, TRAINING, VALIDATION, TEST = -1, 0, 1, 2


@dataclasses.dataclass(frozen=True)
class InteractionLog:
    """Interactions of two domains, grouped by user, oldest first.

    Row r says that user `user[r]` took item `item[r]` at `time[r]`. Items share one id space:
    0 is padding, 1..n_items[0] is domain A, the next n_items[1] ids are domain B.
    Users are 0..n_users-1 and every user has at least one row. Within a user the row order is
    the order of events (ties in time keep the order of the source).

    user: (N,) int32, ascending.  item: (N,) int32.  time: (N,) int64, in the unit of the source
    (unix seconds for the Amazon files).
    role: (N,) int8, None unless the source has a split that differs from `leave_one_out`.
    TRAINING events of a user come first, then targets (VALIDATION before TEST, at most one of
    each) and CONTEXT, in the order of the sequence.
    origin: the `World` that generated the events, or a data set, which has `raw_users`, `items` and
    `times`; None for your own arrays.
    """

    user: np.ndarray
    item: np.ndarray
    time: np.ndarray
    n_items: tuple[int, int]
    name: str
    role: np.ndarray | None = None
    origin: Any = dataclasses.field(default=None, repr=False)

    @property
    def domain(self) -> np.ndarray:
        """(N,) int8: 0 for an item of A, 1 for an item of B."""
        return domain_of(self.item, self.n_items)

    @property
    def local(self) -> np.ndarray:
        """(N,) int32: item ids within their own domain, counted from 1."""
        return self.item - self.n_items[0] * self.domain.astype(np.int32)

    @property
    def n_users(self) -> int:
        return int(self.user[-1]) + 1

    @functools.cached_property
    def offsets(self) -> np.ndarray:
        """(U+1,) int64: rows offsets[u]:offsets[u+1] belong to user u."""
        return np.searchsorted(self.user, np.arange(self.n_users + 1))

    @property
    def position(self) -> np.ndarray:
        """(N,) int64: place of every event in its user's sequence, from 0 at the oldest."""
        return np.arange(len(self.user)) - self.offsets[self.user]

    def take(self, users: np.ndarray) -> "InteractionLog":
        """The log of the given users (at least one), numbered from 0 in that order.

        A user given twice becomes two users.
        """
        user, event = first_events(self, users, np.diff(self.offsets)[users])
        role = None if self.role is None else self.role[event]
        columns = user.astype(np.int32), self.item[event], self.time[event]
        return InteractionLog(*columns, self.n_items, self.name, role)

    def fingerprint(self) -> str:
        """Hex digest of the content: equal logs have equal fingerprints, whatever their source."""
        digest = hashlib.sha256(repr(tuple(map(int, self.n_items))).encode())
        for column, dtype in ((self.user, "<i4"), (self.item, "<i4"), (self.time, "<i8")):
            digest.update(np.ascontiguousarray(column, dtype=dtype).tobytes())
        if self.role is not None:
            digest.update(np.ascontiguousarray(self.role, dtype="<i1").tobytes())
        return digest.hexdigest()[:16]


def first_events(
    log: InteractionLog, users: np.ndarray, ends: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The first ends[r] events of user users[r], for every row r: (row, event), int64 (M,) each.

    `event` is a row of the log. `row` ascends; events of one row keep their order.
    """
    row = np.repeat(np.arange(len(users)), ends)
    begin = log.offsets[users] - (np.cumsum(ends) - ends)  # less the places of earlier rows
    return row, begin[row] + np.arange(len(row))


def domain_of(item: np.ndarray, n_items: tuple[int, int]) -> np.ndarray:
    """Domain of item ids > 0, any shape: 0 is A, 1 is B. int8."""
    return (item > n_items[0]).astype(np.int8)


def make_log(
    user: np.ndarray,
    item: np.ndarray,
    time: np.ndarray,
    n_items: tuple[int, int],
    name: str,
    role: np.ndarray | None = None,
) -> InteractionLog:
    """Check columns (N,) and build a log; see `InteractionLog` for their content.

    Raises UserError naming the first bad row if columns differ in length, are empty or hold no
    whole numbers; an item id is outside 1..sum(n_items); users are not 0..U-1 in ascending order;
    time runs backwards within a user; or roles are not in the order that `InteractionLog` asks for.
    """
    name = checked("name", name, text("", ""))
    n_items = checked(f"{name}: n_items", n_items, two(whole(1, ""), 1))
    given = {"user": (user, np.int32), "item": (item, np.int32), "time": (time, np.int64)}
    given |= {} if role is None else {"role": (role, np.int8)}
    columns = {column: _column(name, column, *of) for column, of in given.items()}
    if len({len(values) for values in columns.values()}) > 1:
        found = ", ".join(f"{column} {len(values)}" for column, values in columns.items())
        raise UserError(f"{name}: columns of different length: {found}")
    user, item, time, *_ = columns.values()
    if len(user) == 0:
        raise UserError(f"{name}: no interactions")
    step = np.diff(user)
    out_of_order = np.r_[user[0] != 0, (step < 0) | (step > 1)]
    _check(name, "user", user, out_of_order, "users 0, 1, 2, … in order")
    _check(name, "item", item, (item < 1) | (item > sum(n_items)), f"an id in 1..{sum(n_items)}")
    backwards = np.r_[False, (step == 0) & (np.diff(time) < 0)]
    _check(name, "time", time, backwards, "a time not before the user's previous one")
    if role is not None:
        _check_roles(name, user, columns["role"])
    return InteractionLog(**columns, n_items=n_items, name=name)


def check_log(name: str, log: Any) -> InteractionLog:
    """Return `log`; UserError with `name`, the name of the argument, if it is no log."""
    if not isinstance(log, InteractionLog):
        expected = "expected events, as of oa.load, oa.read_events, oa.make_log or oa.World().log()"
        raise UserError(f"{name}: found {type(log).__name__}: {expected}")
    return log


def _check_roles(name, user, role):
    """Training events first; at most one validation and one test target, in this order."""
    _check(name, "role", role, (role < CONTEXT) | (role > TEST), f"one of {CONTEXT}..{TEST}")
    same = np.r_[False, user[1:] == user[:-1]]
    late = same & (role == TRAINING) & (np.r_[TRAINING, role[:-1]] != TRAINING)
    _check(name, "role", role, late, "no training event after another kind")
    # Per target kind, how many rows up to this one; less those of earlier users.
    first = np.flatnonzero(~same)
    for kind, most in ((VALIDATION, (VALIDATION, TEST)), (TEST, (TEST,))):
        earlier = np.cumsum(np.isin(role, most)) - np.isin(role, most)
        repeated = (role == kind) & (earlier > earlier[first][user])
        _check(name, "role", role, repeated, "one target of a kind, validation before test")


def _column(name, column, values, dtype):
    """A copy as (N,) dtype. A cast would cut fractions off and wrap large numbers: refused."""
    values = np.asarray(values)
    if values.ndim != 1:
        raise UserError(f"{name}: {column}: found shape {values.shape}, expected one dimension")
    if not values.size:
        return np.empty(0, dtype)
    if not np.issubdtype(values.dtype, np.integer):
        raise UserError(f"{name}: {column}: found {values.dtype}, expected whole numbers")
    limit = np.iinfo(dtype)
    bad = (values < limit.min) | (values > limit.max)
    _check(name, column, values, bad, f"a number that fits into {np.dtype(dtype).name}")
    return values.astype(dtype)


def _check(name, column, values, bad, expected):
    if bad.any():
        row = int(np.argmax(bad))
        raise UserError(f"{name}: row {row}, {column} {values[row]}: expected {expected}")
