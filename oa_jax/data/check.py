"""What can be wrong with a prepared set: its files, its split, and the data themselves."""

from __future__ import annotations

import contextlib

import numpy as np

from oa_jax.data import store
from oa_jax.data.describe import popularity_ndcg, repeated
from oa_jax.data.store import ORDER, Place, Prepared
from oa_jax.errors import UserError
from oa_jax.events.log import CONTEXT, TEST, TRAINING, VALIDATION, InteractionLog
from oa_jax.events.split import Split, leave_one_out, published, roles_of

# "error": the set must not be used. "finding": a property of the data that results depend on.
OK, FINDING, ERROR = "ok", "finding", "error"
ASCENDING = 0.8  # of neighbouring items; half of them are expected to ascend by chance
KINDS = {VALIDATION: "validation", TEST: "test"}


def check(data_dir: Place, name: str) -> list[tuple[str, str]]:
    """(level, line) of everything that was looked at.

    Raises UserError if the set cannot be read or is not what its metadata say.
    """
    data = store.load(data_dir, name)
    log = data.log
    split = leave_one_out(log) if log.role is None else published(log)
    said = [(OK, f"log: fingerprint {log.fingerprint()} of {len(log.user):,} events")]
    said += [_items(data), _records(data)]
    leaks = split_leaks(log, split, data.role)
    said += [(ERROR, line) for line in leaks]
    if not leaks:
        said.append((OK, "split: no target or later event is an input or a training event"))
    findings = (*files(data), *targets(data, split), *user_leak(data), *id_order(data))
    return said + [(FINDING, line) for line in findings]


def split_leaks(log: InteractionLog, split: Split, role: np.ndarray | None = None) -> list[str]:
    """Violations of the leak rules, one line a kind; empty if there is none.

    A target comes after every training event of its user, the validation target before the test
    target, and no event before a target in the sequence is later in time. `role`, if given, is the
    role of every event under the split.
    """
    lines, n_events = [], np.diff(log.offsets)

    def note(bad, what):
        if bad.any():
            lines.append(f"split: {int(bad.sum())} users, the first {int(np.argmax(bad))}: {what}")

    for kind, place in zip(KINDS.values(), (split.val, split.test), strict=True):
        has = place >= 0
        note(has & (place < np.maximum(split.n_train, 1)), f"{kind} target among its own inputs")
        note(place >= n_events, f"{kind} target beyond the sequence")
        inside = has & (place < n_events)
        # Latest time of the events before each place, user by user.
        target = np.where(inside, log.offsets[:-1] + place, log.offsets[:-1])
        before = (np.arange(len(log.user)) < target[log.user]) & inside[log.user]
        later = before & (log.time > log.time[target][log.user])
        note(np.bincount(log.user[later], minlength=log.n_users) > 0, f"{kind} inputs are later")
    both = (split.val >= 0) & (split.test >= 0)
    note(both & (split.val >= split.test), "validation target not before the test target")
    if role is not None and (roles_of(log, split) != role).any():
        lines.append("split: roles of the events are not those of the split")
    return lines


def _items(data):
    digest, n_items = store.items_digest(data.directory), sum(data.log.n_items)
    good = digest == data.metadata["items_digest"] and len(data.items) == n_items
    if good and all(item.get("id") == k for k, item in enumerate(data.items, 1)):
        return OK, f"items: digest {digest} of {n_items:,} items"
    return ERROR, f"items: digest {digest}, {len(data.items)} items: expected {n_items}, " + (
        f"ids 1, 2, ... and digest {data.metadata['items_digest']}"
    )


def _records(data):
    """The TFDS records, user by user, against the columns."""
    import tensorflow_datasets as tfds

    log, ends = data.log, data.log.offsets
    columns = {"item": log.item, "domain": log.domain, "time": log.time, "role": data.role}
    try:
        with contextlib.redirect_stdout(None):
            records = tfds.builder_from_directory(data.directory).as_data_source("train")
        if len(records) != log.n_users:
            return ERROR, f"records: found {len(records)}, expected {log.n_users}"
        for user, record in enumerate(records):
            same = record["user"] == user and record["raw_user"].decode() == data.raw_users[user]
            for name, column in columns.items():
                same = same and np.array_equal(record[name], column[ends[user] : ends[user + 1]])
            if not same:
                return ERROR, f"records: record {user} is not user {user} of log.npz"
    except Exception as error:  # of several storage libraries
        raise UserError(f"{data.directory}: records: {type(error).__name__}: {error}") from None
    return OK, f"records: all {log.n_users:,} equal to log.npz"


def files(data: Prepared) -> list[str]:
    """Sources that are not the published files, and their malformed lines."""
    other = [f["name"] for f in data.metadata.get("files", []) if f["published"] is False]
    bad = data.metadata.get("malformed", {})
    lines = [f"files: {name} is not the published one" for name in other]
    return lines + [
        f"files: {name}: {b['lines']} malformed, {b['first']}" for name, b in bad.items()
    ]


def targets(data: Prepared, split: Split) -> list[str]:
    """Targets at the time of their last input, whose order the source decides, and those whose
    item is in their own history: copying it then counts as recommending."""
    log, lines, again = data.log, [], repeated(data.log)
    no_times = data.metadata["times"] == ORDER
    if no_times:
        lines.append("times: the source has none: `time` is the place in the sequence")
    for kind, place in zip(KINDS.values(), (split.val, split.test), strict=True):
        target = (log.offsets[:-1] + place)[place > 0]
        tied = log.time[target] == log.time[target - 1]
        of = f"{len(target):,} {kind} targets"
        if tied.any():
            lines.append(f"times: {tied.mean():.1%} of {of} have the time of their last input")
        if again[target].any():
            copies = (log.item[target] == log.item[target - 1]) & (tied | no_times)
            share = f"{again[target].mean():.1%} of {of} are items of their own history"
            lines.append(f"copies: {share} ({copies.mean():.1%} copies of the last input)")
    return lines


def user_leak(data: Prepared) -> list[str]:
    """Raw users with targets of a kind in one sequence and other roles in another."""
    _, person = np.unique(data.raw_users, return_inverse=True)
    log, lines = data.log, []
    kind_of = np.zeros(log.n_users, np.int8)
    target_item = np.zeros(log.n_users, np.int64)
    for kind in KINDS:
        rows = data.role == kind
        kind_of[log.user[rows]], target_item[log.user[rows]] = kind, log.item[rows]
    width = sum(log.n_items) + 1
    for kind, name in KINDS.items():
        # Sequences that a model may have trained on or been selected by before this target.
        other = (kind_of < kind)[log.user]
        earlier = other & (data.role != CONTEXT)
        has = np.isin(np.arange(log.n_users), log.user[data.role == kind])
        has &= np.bincount(log.user[data.role == TRAINING], minlength=log.n_users) == 0
        known = has & np.isin(person, person[np.unique(log.user[earlier])])
        pairs = person[log.user] * width + log.item
        inside = known & np.isin(person * width + target_item, pairs[other])
        if known.any():
            share = f"{known.sum():,} of {has.sum():,} {name} sequences belong to a user with"
            lines += [
                f"users: {share} another sequence in training or an earlier part",
                f"users: in {inside.sum():,} of these the target is an item of that sequence",
            ]
    return lines


def id_order(data: Prepared) -> list[str]:
    """Sequences in the order of item ids: the next item is then the user's largest id."""
    log, lines = data.log, []
    for domain in (0, 1):
        rows = np.flatnonzero(log.domain == domain)
        user, item = log.user[rows], log.item[rows]
        same, up = user[1:] == user[:-1], item[1:] > item[:-1]
        if not same.any() or up[same].mean() < ASCENDING:
            continue
        n_users, broken = len(np.unique(user)), len(np.unique(user[1:][same & ~up]))
        lines.append(
            f"order: domain {'AB'[domain]} is not chronological: {up[same].mean():.1%} of "
            f"neighbouring items ascend in id, in {1 - broken / n_users:.1%} of {n_users:,} "
            "sequences all"
        )
    if lines:
        words = []
        for label, above in (("popularity", False), ("popularity among larger ids", True)):
            a, b = popularity_ndcg(data, above_history=above)
            words.append(f"{label} {a:.3f} A, {b:.3f} B")
        lines.append(f"rules: test NDCG@10 among 999 without learning: {'; '.join(words)}")
    return lines
