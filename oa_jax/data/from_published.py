"""From files that the authors of a model published to numbered events: one function a format.

Each takes the paths of its files, in the order of the catalogue (None for an optional one that is
not there), the `Reading` that counts lines, and the options of the data set.
"""

from __future__ import annotations

import json
import re

import numpy as np

from oa_jax.data import pickles, published
from oa_jax.data.built import (
    LEAVE_ONE_OUT,
    ORDER,
    SECONDS,
    Built,
    item_table,
    leave_one_out_roles,
    tenths,
    user_disjoint_roles,
)
from oa_jax.data.raw import shown
from oa_jax.errors import UserError
from oa_jax.events.log import TEST, TRAINING, VALIDATION

LIST = r"\[(?:[0-9]{1,9}(?:, ?[0-9]{1,9})*)?\]"
AMID_LINE = re.compile(rf'([0-9]{{1,18}}),"?({LIST})"?,"?({LIST})"?,([01])')
AMID_HEADER = "user_id,seq_d1,seq_d2,domain_id"
LLMCDSR_LINE = re.compile(r"([0-9]{1,18})\t([0-9]{1,9}(?:,[0-9]{1,9})*)")


def abxi(paths, reading, what: str) -> Built:
    """ABXI's sequences, item map and, if it is there, user map."""
    sequences, items, users = paths
    log = published.read_abxi(sequences.parent, sequences.name.split("_50_")[0])
    n_items, names = published.read_item_map(items)
    role = leave_one_out_roles(log.user.astype(np.int64))
    raw_users = _user_names(users, log.n_users)
    table = item_table((names[: n_items[0]], names[n_items[0] :]))
    return Built(log.user, log.item, log.time, role, n_items, raw_users, table, SECONDS)


def _user_names(path, n_users):
    """Names of users 0, 1, ... in ABXI's user map, their numbers without it."""
    if path is None:
        return [str(user) for user in range(n_users)]
    mapping = _json(path)
    if not isinstance(mapping, dict) or sorted(map(repr, mapping.values())) != sorted(
        map(repr, range(n_users))
    ):
        raise UserError(f"{path}: expected an object that maps a name to each id 0..{n_users - 1}")
    return sorted(mapping, key=mapping.__getitem__)


def llm4cdsr(paths, reading, what: str) -> Built:
    """LLM4CDSR's pickle of (items, domains) by user, local ids in time order, and its id map."""
    pickle_path, map_path = paths
    sequences, domains = _two_dicts(pickle_path, pickles.load(pickle_path))
    n_items, names, labels, users = _id_map(map_path)
    columns, raw_users, empty = [], [], 0
    for number in range(1, len(sequences) + 1):
        item, domain = _sequence(pickle_path, number, sequences, domains, n_items)
        if not len(item):
            empty += 1
            continue
        columns.append(item + n_items[0] * domain)
        raw_users.append(users.get(str(number), str(number)))
    user, item, time = _concatenated(columns)
    texts = tuple(
        {name: {"category": tags[k]} for k, name in enumerate(own) if k in tags}
        for own, tags in zip(names, labels, strict=True)
    )
    return Built(
        user,
        item,
        time,
        leave_one_out_roles(user),
        n_items,
        raw_users,
        item_table(names, texts),
        ORDER,
        LEAVE_ONE_OUT,
        {"users_without_events": empty},
    )


def _two_dicts(path, value):
    two = isinstance(value, tuple) and len(value) == 2
    if not two or not all(isinstance(v, dict) for v in value) or not value[0]:
        raise UserError(f"{path}: expected a tuple of two dicts by user, not empty")
    for v in value:
        if set(v) != set(range(1, len(value[0]) + 1)):
            raise UserError(f"{path}: expected users 1..{len(value[0])} as keys of both dicts")
    return value


def _sequence(path, number, sequences, domains, n_items):
    """Local ids and domains of a user, checked."""
    try:
        item, domain = (np.asarray(part[number]) for part in (sequences, domains))
        if not len(item):
            return item, domain
        good = item.ndim == 1 and item.shape == domain.shape
        good = good and all(np.issubdtype(a.dtype, np.integer) for a in (item, domain))
        good = good and np.isin(domain, (0, 1)).all() and item.min() >= 1
        good = good and (item <= np.asarray(n_items)[domain]).all()
    except (TypeError, ValueError):
        good = False
    if not good:
        raise UserError(
            f"{path}: user {number}: expected equally many item ids 1..{n_items[0]} or "
            f"1..{n_items[1]} and domains 0 or 1"
        )
    return item.astype(np.int64), domain.astype(np.int64)


def _id_map(path):
    """n_items, raw names by local id, tags by place, raw users by number as text."""
    value = _json(path)
    try:
        items = value["item_dict"]
        n_items = tuple(int(items["item_count"][d]) for d in "01")
        names = tuple(
            [str(items[d]["id2str"][str(k)]) for k in range(1, n + 1)]
            for d, n in zip("01", n_items, strict=True)
        )
        tags = tuple(
            {int(k) - 1: [str(t) for t in v] for k, v in items[d].get("id2label", {}).items()}
            for d in "01"
        )
        users = {str(k): str(v) for k, v in value["user_dict"]["id2str"].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path}: {type(error).__name__}: {error}: expected item_dict with item_count and "
            "id2str of domains 0 and 1, and user_dict with id2str"
        ) from None
    return n_items, names, tags, users


def amid(paths, reading, what: str) -> Built:
    """AMID's rows: a user, its items of both domains, and the domain whose last item is the target.

    A row is a sequence of its own: the other domain's items, then those of the target's domain, as
    the files have no times. Rows of the test file have a test target; of the training file a tenth
    of the users validates, as no validation file is published. An id that occurs in both domains
    becomes an item of each.
    """
    rows = [(path, *row) for path in paths for row in _amid_rows(path, reading)]
    raw_users = [row[1] for row in rows]
    in_test = np.array([row[0] == paths[1] for row in rows])
    part = np.where(in_test, TEST, tenths(raw_users, "validation", test=False))
    known = [np.unique(np.concatenate([row[2 + d] for row in rows])) for d in (0, 1)]
    n_items = (len(known[0]), len(known[1]))
    columns = []
    for _, _, *sequences, target in rows:
        first = [1, n_items[0] + 1]
        own = [np.searchsorted(known[d], sequences[d]) + first[d] for d in (0, 1)]
        columns.append(np.concatenate([own[1 - target], own[target]]))
    user, item, time = _concatenated(columns)
    return Built(
        user,
        item,
        time,
        user_disjoint_roles(user, part),
        n_items,
        raw_users,
        item_table((known[0].tolist(), known[1].tolist())),
        ORDER,
        "files; a tenth of the training users validates",
        {
            "shared_items": len(np.intersect1d(*known)),
            "rows": {path.name: int(np.sum([r[0] == path for r in rows])) for path in paths},
        },
    )


def _amid_rows(path, reading):
    """(user, items 1, items 2, domain of the target) of every row."""
    lines = published.read_text(path).splitlines()
    if lines[0].strip() != AMID_HEADER:
        raise UserError(f"{path}: line 1: found {shown(lines[0])}, expected {AMID_HEADER}")
    reading.lines[path.name] = len(lines)
    for number, line in enumerate(lines[1:], 2):
        match = AMID_LINE.fullmatch(line.strip())
        sequences = [_numbers(match[k][1:-1]) for k in (2, 3)] if match else []
        if not match or not len(sequences[int(match[4])]):
            expected = 'user,"[items]","[items]",domain with items of the target\'s domain'
            raise UserError(f"{path}: line {number}: found {shown(line)}, expected {expected}")
        yield match[1], *sequences, int(match[4])


def llmcdsr(paths, reading, what: str) -> Built:
    """LLMCDSR's sequences: three training files, valid and test, and its items with titles.

    All events of a training line train; the last item of a line of valid or test is its target.
    Ids in the lines count from 0, B after A. Lines name no users across files, so a user is a line.
    """
    sequence_paths, item_paths = paths[:5], paths[5:7]  # pickles of titles lie beside the latter
    tables = [_llmcdsr_items(path) for path in item_paths]
    n_items = (len(tables[0]), len(tables[1]))
    columns, raw_users, part = [], [], []
    for path in sequence_paths:
        stem = path.name.split(".")[0]
        kind = {"valid": VALIDATION, "test": TEST}.get(stem, TRAINING)
        for number, items in _llmcdsr_lines(path, sum(n_items), reading):
            columns.append(items + 1)
            raw_users.append(f"{stem}:{number}")
            part.append(kind)
    user, item, time = _concatenated(columns)
    names = tuple([name for name, _ in table] for table in tables)
    texts = tuple({name: {"title": title} for name, title in table} for table in tables)
    role = user_disjoint_roles(user, np.array(part))
    table = item_table(names, texts)
    return Built(user, item, time, role, n_items, raw_users, table, ORDER, "files")


def _llmcdsr_lines(path, n_items, reading):
    lines = published.read_text(path).splitlines()
    reading.lines[path.name] = len(lines)
    for number, line in enumerate(lines, 1):
        match = LLMCDSR_LINE.fullmatch(line.strip())
        if not match:
            expected = "user, a tabulator, item ids parted by commas"
            raise UserError(f"{path}: line {number}: found {shown(line)}, expected {expected}")
        items = _numbers(match[2])
        if items.max() >= n_items:
            expected = f"ids 0..{n_items - 1} for the items of both tables"
            raise UserError(f"{path}: line {number}: found {items.max()}, expected {expected}")
        yield match[1], items


def _llmcdsr_items(path):
    """[(raw id, title)] in the order of local ids: from JSON lines, or from the two pickles."""
    if path.name.startswith("item_set"):
        ids = pickles.load(path)
        titles = pickles.load(path.with_name(path.name.replace("item_set", "text")))
    else:
        rows = [_item(path, k, line) for k, line in enumerate(_text_lines(path))]
        ids = {row["asin"]: row["id"] for row in rows}
        titles = {row["asin"]: row.get("title", "") for row in rows}
    good = isinstance(ids, dict) and isinstance(titles, dict)
    if not good or set(map(repr, ids.values())) != set(map(repr, range(len(ids)))):
        raise UserError(f"{path}: expected local ids 0, 1, 2, ... once each")
    return [(str(name), str(titles.get(name, ""))) for name in sorted(ids, key=ids.__getitem__)]


def _text_lines(path):
    return published.read_text(path).rstrip("\n").split("\n")


def _item(path, place, line):
    try:
        row = json.loads(line)
        if isinstance(row["asin"], str) and isinstance(row["id"], int):
            return row
    except (ValueError, KeyError, TypeError):
        pass
    expected = "a JSON object with id, asin and title"
    raise UserError(f"{path}: line {place + 1}: found {shown(line)}, expected {expected}")


def _json(path):
    try:
        return json.loads(published.read_text(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: expected JSON, found: {error}") from None


def _numbers(text):
    return np.array([int(word) for word in text.split(",")] if text else [], np.int64)


def _concatenated(columns):
    """user, item and place in the sequence of sequences of items."""
    lengths = np.array([len(c) for c in columns], np.int64)
    user = np.repeat(np.arange(len(columns)), lengths)
    first = np.repeat(np.cumsum(lengths) - lengths, lengths)
    return user, np.concatenate(columns), np.arange(len(user)) - first
