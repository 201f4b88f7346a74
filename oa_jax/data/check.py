"""Checks a prepared set: its files, its split, and the data themselves."""

import contextlib

import numpy as np

from oa_jax.data import store
from oa_jax.data.describe import no_more, popularity_ndcg, repeated
from oa_jax.data.store import ORDER, Place, Prepared
from oa_jax.errors import UserError
from oa_jax.events.log import CONTEXT, TEST, TRAINING, VALIDATION, InteractionLog
from oa_jax.events.split import Split, leave_one_out, published, roles_of

# "error": the set must not be used. "finding": a property of the data that results depend on.
OK, FINDING, ERROR = "ok", "finding", "error"
ASCENDING = 0.8  # of neighbouring items; half of them are expected to ascend by chance
KINDS = {VALIDATION: "validation", TEST: "test"}


def check(data_dir: Place, name: str) -> list[tuple[str, str]]:
    """Yields (level, line) for every check.

    Raises UserError if the set cannot be read, or differs from its metadata.
    """
    data = store.load(data_dir, name)
    log, facts = data.log, data.metadata
    split = leave_one_out(log) if log.role is None else published(log)
    said = [(OK, f"log: fingerprint {log.fingerprint()} of {len(log.user):,} events")]
    said += [_items(data), _records(data)]
    leaks = [(ERROR, line) for line in split_leaks(log, split, data.role)]
    said += leaks or [(OK, "split: no target or later event is an input or a training event")]
    other = [f["name"] for f in facts.get("files", []) if f["published"] is False]
    findings = [f"files: {name} is not the published one" for name in other]
    for name, bad in facts.get("malformed", {}).items():
        findings.append(f"files: {name}: {bad['lines']} malformed, {bad['first']}")
    for entry in facts.get("left_out", ()):
        if entry["reason"].startswith("bad "):
            findings.append("files: {rows} rows with a {reason}, {first}".format(**entry))
    findings += [*targets(data, split), *user_leak(data), *id_order(data)]
    return said + [(FINDING, line) for line in findings]


def split_leaks(log: InteractionLog, split: Split, role: np.ndarray | None = None) -> list[str]:
    """Violations of the leak rules, one line for each kind; empty if there are none.

    The rules: a target comes after all training events of its user; the validation target comes
    before the test target; no event before a target in the sequence is later in time. `role`: (N,)
    if given, it must agree with the split.
    """
    lines, n_events = [], np.diff(log.offsets)

    def note(bad, what):
        if bad.any():
            lines.append(f"split: {int(bad.sum())} users, the first {int(np.argmax(bad))}: {what}")

    for kind, place in zip(KINDS.values(), (split.val, split.test), strict=True):
        has, inside = place >= 0, (place >= 0) & (place < n_events)
        note(has & (place < np.maximum(split.n_train, 1)), f"{kind} target among its own inputs")
        note(has & ~inside, f"{kind} target beyond the sequence")
        place = np.where(inside, place, 0)  # before the first event there is nothing
        before = log.position < place[log.user]
        later = before & (log.time > log.time[log.offsets[:-1] + place][log.user])
        note(np.bincount(log.user[later], minlength=log.n_users) > 0, f"{kind} inputs are later")
    both = (split.val >= 0) & (split.test >= 0)
    note(both & (split.val >= split.test), "validation target not before the test target")
    if role is not None and (roles_of(log, split) != role).any():
        lines.append("split: roles of the events are not those of the split")
    return lines


def _items(data):
    items, digest = store.read_items(data.directory)
    n_items, expected = sum(data.log.n_items), data.metadata["items_digest"]
    if digest == expected and [item.get("id") for item in items] == [*range(1, n_items + 1)]:
        return OK, f"items: digest {digest} of {n_items:,} items"
    found = f"items: digest {digest}, {len(items)} items"
    return ERROR, f"{found}: expected {n_items}, ids 1, 2, ... and digest {expected}"


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


def targets(data: Prepared, split: Split) -> list[str]:
    """Targets at the time of their last input (the source decides their order), and targets whose
    item is in their own history (a model can rank them by copying)."""
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
    """Raw users with a target in one sequence, and another one used earlier to train or select."""
    log, role, lines = data.log, data.role, []
    person = np.unique(data.raw_users, return_inverse=True)[1][log.user]
    pair = person * (sum(log.n_items) + 1) + log.item
    latest = np.maximum.reduceat(role, log.offsets[:-1])[log.user]
    trains = np.isin(log.user, log.user[role == TRAINING])
    for kind, name in KINDS.items():
        target = np.flatnonzero((role == kind) & ~trains)
        # Sequences that a model may have trained on or been selected by before this target.
        other = latest < kind
        known = target[np.isin(person[target], person[other & (role != CONTEXT)])]
        if len(known):
            share = f"{len(known):,} of {len(target):,} {name} sequences belong to a user with"
            inside = np.isin(pair[known], pair[other]).sum()
            lines += [
                f"users: {share} another sequence in training or an earlier part",
                f"users: in {inside:,} of these the target is an item of that sequence",
            ]
    return lines


def id_order(data: Prepared) -> list[str]:
    """Sequences in the order of item ids: the next item is then always the user's largest id."""
    log, lines = data.log, []
    for domain in (0, 1):
        rows = np.flatnonzero(log.domain == domain)
        user, item = log.user[rows], log.item[rows]
        same, up = user[1:] == user[:-1], item[1:] > item[:-1]
        if not same.any() or up[same].mean() < ASCENDING:
            continue
        n_users, broken = len(np.unique(user)), len(np.unique(user[1:][same & ~up]))
        found = f"{up[same].mean():.1%} of neighbouring items ascend in id"
        found += f", in {1 - broken / n_users:.1%} of {n_users:,} sequences all"
        lines.append(f"order: domain {'AB'[domain]} is not chronological: {found}")
    if lines:
        words = []
        for label, above in (("popularity", False), ("popularity among larger ids", True)):
            a, b = popularity_ndcg(data, above_history=above)
            words.append(f"{label} {a:.3f} A, {b:.3f} B")
        among = no_more(999, (n - 1 for n in log.n_items))
        lines.append(f"rules: test NDCG@10 among {among} without learning: {'; '.join(words)}")
    return lines
