"""Which events train a model and which are its validation and test targets."""

import dataclasses
import hashlib

import numpy as np

from oa_jax.errors import UserError
from oa_jax.events.log import CONTEXT, TEST, TRAINING, VALIDATION, InteractionLog, check_log

# Kinds of users by the domains of a history; the numbers are those of `kinds`, EMPTY aside.
EMPTY, ONLY_A, ONLY_B, BOTH = range(4)


@dataclasses.dataclass(frozen=True)
class Split:
    """Places of training part and targets in each user's sequence; place 0 is the oldest event.

    Events 0..n_train-1 of a user are the training part. When a target is scored, the model may see
    its history: all earlier events of the user.

    n_train: (U,) int32, number of events in the training part.
    val, test: (U,) int32, place of the target event, or -1 if the user has none.
    """

    n_train: np.ndarray
    val: np.ndarray
    test: np.ndarray

    def take(self, users: np.ndarray) -> "Split":
        """The split of the given users, in that order; use it with `InteractionLog.take`."""
        return Split(self.n_train[users], self.val[users], self.test[users])

    def in_training(self, log: InteractionLog) -> np.ndarray:
        """(N,) bool: the events of training parts."""
        return log.position < self.n_train[log.user]

    def targets(self, which: str) -> tuple[np.ndarray, np.ndarray]:
        """(users, places), (R,) int32 each: the targets of `which`, 'val' or 'test'.

        Raises ValueError for another `which`.
        """
        if which not in ("val", "test"):
            raise ValueError(f"which: found {which!r}, expected 'val' or 'test'")
        place = getattr(self, which)
        users = np.flatnonzero(place >= 0).astype(np.int32)
        return users, place[users]


def leave_one_out(log: InteractionLog, skip_short: bool = False) -> Split:
    """The last event of a user is its test target, the one before it its validation target.

    The other events are the training part. Times are not compared between users, so a training
    event of one user may be later than the test target of another; `global_time` forbids that.

    skip_short: users with fewer than 3 events get no training part and no target. Otherwise
    UserError names the first of them.
    """
    length = np.diff(log.offsets)
    there = length >= 3
    if not (skip_short or there.all()):
        user = int(np.argmin(there))
        found = f"found {length[user]} events, expected at least 3 for split leave_one_out"
        raise UserError(f"{log.name}: user {user}: {found}")
    places = ((length - 2, 0), (length - 2, -1), (length - 1, -1))
    return Split(*(np.where(there, at, none).astype(np.int32) for at, none in places))


def time_cuts(
    log: InteractionLog, val_fraction: float = 0.1, test_fraction: float = 0.1
) -> tuple[int, int]:
    """Start times of the validation and of the test period, in the log's unit of time.

    Each is the time of an event. With all N times sorted, about N * fraction events lie at or after
    the cut. Events at exactly the time of a cut belong to the later period, so ties can only make
    that period longer.

    Raises UserError if a fraction is not above 0, or both together are not below 1.
    """
    for field, value in (("val_fraction", val_fraction), ("test_fraction", test_fraction)):
        if not 0 < value < 1:  # NaN fails too
            raise UserError(f"{field}: found {value}, expected a number above 0 and below 1")
    if not val_fraction + test_fraction < 1:
        found = f"found {val_fraction} + {test_fraction}, expected a sum below 1"
        raise UserError(f"val_fraction + test_fraction: {found}")
    ordered, n = np.sort(log.time), len(log.time)
    # Counted from the end: 1 - 0.1 - 0.1 is not 0.8 in floating point.
    after_cut = (round(n * (val_fraction + test_fraction)), round(n * test_fraction))
    val_cut, test_cut = (int(ordered[n - min(max(count, 1), n)]) for count in after_cut)
    return val_cut, test_cut


def global_time(
    log: InteractionLog, val_fraction: float = 0.1, test_fraction: float = 0.1
) -> Split:
    """Split at two times that are the same for all users (see `time_cuts`).

    The training part of a user is its events strictly before the first cut. The validation target
    is its first event between the cuts (including the first), the test target its first event at or
    after the second. A target without an earlier event is -1. A user with fewer than 2 training
    events has no training target.

    No leaks: no training event of any user lies at or after the first cut, and no input is later
    than its target (it may have the same time).

    Raises UserError for bad fractions, and if no user has a training, validation or test target.
    """
    cuts = time_cuts(log, val_fraction, test_fraction)
    # Times never run backwards within a user, so "before the cut" is a prefix of its sequence.
    counts = (np.bincount(log.user, log.time < cut, log.n_users) for cut in cuts)
    n_train, n_before_test = (count.astype(np.int32) for count in counts)
    val = np.where((n_train > 0) & (n_train < n_before_test), n_train, -1)
    has_later = n_before_test < np.diff(log.offsets)
    test = np.where((n_before_test > 0) & has_later, n_before_test, -1)
    for part, some in (("training", n_train > 1), ("validation", val >= 0), ("test", test >= 0)):
        if not some.any():
            where = f"{log.name}: split global_time with cuts at {cuts[0]} and {cuts[1]}"
            found = f"found no user with a {part} target, expected at least one"
            raise UserError(f"{where}: {found}")
    return Split(n_train, val.astype(np.int32), test.astype(np.int32))


def published(log: InteractionLog) -> Split:
    """The split that was published with the data, from the roles of the log.

    The training part is the TRAINING events of a user; fewer than two give nothing to train on.
    Targets are the VALIDATION and the TEST event; their history is every earlier event.

    Raises UserError for a log without roles.
    """
    if log.role is None:
        expected = "expected split leave_one_out or global_time"
        raise UserError(f"{log.name}: came without a split of its own: {expected}")
    n_train = np.bincount(log.user, log.role == TRAINING, log.n_users).astype(np.int32)
    val, test = np.full((2, log.n_users), -1, np.int32)
    for kind, column in ((VALIDATION, val), (TEST, test)):
        event = log.role == kind
        column[log.user[event]] = log.position[event]
    return Split(n_train, val, test)


def roles_of(log: InteractionLog, split: Split) -> np.ndarray:
    """(N,) int8: roles such that `published` of a log with them returns the split."""
    role = np.where(split.in_training(log), TRAINING, CONTEXT).astype(np.int8)
    for kind, column in ((VALIDATION, split.val), (TEST, split.test)):
        role[log.position == column[log.user]] = kind
    return role


OWN = "own"  # the split that the data came with, where they have one, else leave_one_out
OWN_MEANS = ("leave_one_out", "published")
RULES = {"leave_one_out": leave_one_out, "global_time": global_time, "published": published}


def rule_of(log: InteractionLog, kind: str) -> str:
    """The name of the rule `kind`; for OWN, the rule that it means for this log."""
    return OWN_MEANS[log.role is not None] if kind == OWN else kind


def make_split(log: InteractionLog, kind: str, skip_short: bool = False) -> Split:
    """Split a log into training events and validation and test targets.

    kind: "leave_one_out", "global_time", "published" (the split of the source), or "own":
    "published" if the source has a split, else "leave_one_out".
    skip_short: with leave_one_out, users with fewer than 3 events get no target; else an error.

    Raises UserError for another kind, if `log` is no log, and whatever the rule raises.
    """
    kind = rule_of(check_log("log", log), kind)
    if kind not in RULES:
        raise UserError(f"split: found {kind!r}, expected one of {', '.join((OWN, *RULES))}")
    return leave_one_out(log, skip_short) if kind == "leave_one_out" else RULES[kind](log)


def train_on_both(log: InteractionLog, split: Split) -> Split:
    """The split without the training parts of users who have events of only one domain in them."""
    both = kinds(log, split.n_train) == BOTH
    return dataclasses.replace(split, n_train=np.where(both, split.n_train, 0).astype(np.int32))


def kinds(log: InteractionLog, end: np.ndarray) -> np.ndarray:
    """(U,) int8: EMPTY, ONLY_A, ONLY_B or BOTH, the domains among each user's first `end` events.

    end: (U,), values below 1 mean no events. `split.n_train` gives the kinds of training parts,
    `split.test` the kinds of the histories of test targets.
    """
    event = log.position < end[log.user]
    kind = np.zeros(log.n_users, np.int8)
    for domain, bit in ((0, ONLY_A), (1, ONLY_B)):
        kind[log.user[event & (log.domain == domain)]] |= bit
    return kind


def limit_targets(split: Split, log: InteractionLog, most: int) -> Split:
    """Keep at most `most` validation targets for each kind of history, and as many test targets.

    A hash of the user's number decides: the users kept under a smaller limit are among those of a
    larger one. most: 0 keeps all. Training parts and the histories of the kept targets stay.
    """
    if not most:
        return split

    def lot(user):
        return hashlib.sha256(f"evaluated users:{user}".encode()).digest()

    columns = {"val": split.val.copy(), "test": split.test.copy()}
    for column in columns.values():
        kind = kinds(log, column)
        for one in (EMPTY, ONLY_A, ONLY_B, BOTH):
            users = np.flatnonzero((column >= 0) & (kind == one))
            column[sorted(users, key=lot)[most:]] = -1
    return dataclasses.replace(split, **columns)


def limit_domain(split: Split, log: InteractionLog, domain: int) -> Split:
    """Keep only the targets in a domain, 0 or 1. Training parts stay."""

    def kept(place):
        event = np.where(place >= 0, log.offsets[:-1] + place, 0)
        return np.where(log.domain[event] == domain, place, -1).astype(np.int32)

    return dataclasses.replace(split, val=kept(split.val), test=kept(split.test))
