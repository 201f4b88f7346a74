"""Numbered events from files that authors of models published: one function for each format.

Each function takes the paths of its files in the order of the catalogue (None for an optional file
that is missing), the `Reading` that counts lines, and the name of the data set. Any mistake in a
file is a UserError of one line; nothing is left out. Needs numpy only.
"""

import pathlib
import re
from collections.abc import Iterator

import numpy as np

from oa_jax.data import pickles, texts
from oa_jax.data.roles import leave_one_out_roles, tenths, user_disjoint_roles
from oa_jax.data.store import ORDER, SECONDS, Built, item_table
from oa_jax.data.texts import Reading, id_of, shown, words_of
from oa_jax.errors import UserError
from oa_jax.events.log import TEST, TRAINING, VALIDATION, InteractionLog, make_log

Paths = list[pathlib.Path | None]
ABXI_KEPT_EVENTS = 50
# 18 digits always fit into int64.
NUMBER = "[0-9]{1,18}"
LIST = r"\[(?:[0-9]{1,9}(?:, ?[0-9]{1,9})*)?\]"
AMID_LINE = re.compile(rf'({NUMBER}),"?({LIST})"?,"?({LIST})"?,([01])')
AMID_HEADER = "user_id,seq_d1,seq_d2,domain_id"
LLMCDSR_LINE = re.compile(rf"({NUMBER})\t([0-9]{{1,9}}(?:,[0-9]{{1,9}})*)")


def wrong(path: pathlib.Path, where: str, found: object, expected: str) -> UserError:
    return UserError(f"{path}: {where}: found {shown(found)}, expected {expected}")


def _built(columns, raw_users, n_items, items, part=None, time=None, **rest) -> Built:
    """Of sequences of items, one for each raw user. part: (U,) that of each user, None:
    leave-one-out. time: (N,) of the events, None: their places in the sequences."""
    lengths = np.array([len(c) for c in columns], np.int64)
    user = np.repeat(np.arange(len(columns)), lengths)
    if time is None:
        time = np.concatenate([np.arange(n) for n in lengths])
    role = leave_one_out_roles(user) if part is None else user_disjoint_roles(user, part)
    rest = {"times": ORDER} | rest
    return Built(user, np.concatenate(columns), time, role, n_items, raw_users, items, **rest)


def abxi(paths: Paths, reading: Reading, what: str) -> Built:
    """ABXI's sequences, item map and, if it is there, user map.

    The sequences have a line per user, in any order: the user id, then blank-separated `item|time`
    tokens, oldest first, time in unix seconds. The last 50 tokens of a line are kept, as in the
    official loader; the others are checked too.
    """
    path, item_map, user_map = paths
    (n_items, names), rows = read_item_map(item_map), {}
    for number, line in enumerate(texts.text(path).rstrip("\n").split("\n"), 1):
        user, item, time = _sequence(path, number, line)
        if user in rows:
            raise wrong(path, f"line {number}, user", user, "a user of its own")
        for field, values, bad, expected in (
            ("item", item, (item < 1) | (item > sum(n_items)), f"an id in 1..{sum(n_items)}"),
            ("time", time, np.diff(time, prepend=0) < 0, "a time not before the one before it"),
        ):
            if bad.any():
                where = f"line {number}, token {bad.argmax() + 1}, {field}"
                raise wrong(path, where, int(values[bad][0]), expected)
        rows[user] = item[-ABXI_KEPT_EVENTS:], time[-ABXI_KEPT_EVENTS:]
    n = len(rows)
    if max(rows) >= n:
        where = f"line {list(rows).index(max(rows)) + 1}, user"
        raise wrong(path, where, max(rows), f"ids 0..{n - 1} for {n} lines")
    raw_users = list(map(str, range(n)))
    if user_map:
        ids = texts.json_value(user_map)
        if not isinstance(ids, dict) or not _count_up(ids.values(), n):
            raise UserError(f"{user_map}: expected an object: a name for each id 0..{n - 1}")
        raw_users = sorted(ids, key=ids.__getitem__)
    item, time = zip(*(rows[k] for k in range(n)), strict=True)
    table = item_table((names[: n_items[0]], names[n_items[0] :]))
    return _built(item, raw_users, n_items, table, time=np.concatenate(time), times=SECONDS)


def _sequence(path, number, line):
    """User, items and times of a line."""
    user, *tokens = re.split("[ \t]+", line.strip(" \t\r"))
    if not re.fullmatch(NUMBER, user):
        raise wrong(path, f"line {number}, user", user, "a whole number from 0 on")
    if not tokens:
        expected = "a user and item|time tokens, separated by blanks"
        raise wrong(path, f"line {number}", line, expected)
    for place, token in enumerate(tokens, 1):
        if not re.fullmatch(rf"{NUMBER}\|{NUMBER}", token):
            expected = "item|time, two whole numbers from 0 on"
            raise wrong(path, f"line {number}, token {place}", token, expected)
    pairs = [int(word) for token in tokens for word in token.split("|")]
    return int(user), *np.array(pairs).reshape(-1, 2).T


def _count_up(ids, n):
    """Whether ids are 0, 1, ..., n-1 in any order; text, fractions and `true` are none."""
    return sorted(map(repr, ids)) == sorted(map(repr, range(n)))


def read_abxi(paths: Paths, name: str) -> InteractionLog:
    """The log `name` from ABXI's sequences and item map; a user map in `paths` is not read.
    Raises UserError as `abxi` does."""
    built = abxi([*paths[:2], None], Reading(), name)
    return make_log(built.user, built.item, built.time, built.n_items, name)


def read_item_map(path: pathlib.Path) -> tuple[tuple[int, int], list[str]]:
    """((nA, nB), raw names of items 1, 2, ...) from ABXI's item map, raw item name -> [id, domain].

    Each id of 1..n must occur once, domain A (0) before domain B (1). Raises UserError naming the
    wrong entry.
    """
    mapping = texts.json_value(path, unique=True)
    if not isinstance(mapping, dict) or not mapping:
        raise wrong(path, "line 1", mapping, "an object {item: [id, domain], …} that is not empty")
    owner, n = {}, len(mapping)
    for key, entry in mapping.items():
        # bool is an int in Python, but `true` is not an id.
        if not isinstance(entry, list) or [type(value) for value in entry] != [int, int]:
            raise wrong(path, f"item {shown(key)}", entry, "[id, domain], two whole numbers")
        if entry[1] not in (0, 1) or not 1 <= entry[0] <= n or entry[0] in owner:
            expected = f"domain 0 or 1 and an id in 1..{n} of its own"
            raise wrong(path, f"item {shown(key)}", entry, expected)
        owner[entry[0]] = key
    names = [owner[number] for number in range(1, n + 1)]
    domain = [mapping[name][1] for name in names]
    n_a = domain.count(0)
    if not 0 < n_a < n or domain != sorted(domain):
        found = f"{n_a} items of A, {n - n_a} of B"
        raise wrong(path, "domains", found, "some of each, those of A (0) with ids before B (1)")
    return (n_a, n - n_a), names


def llm4cdsr(paths: Paths, reading: Reading, what: str) -> Built:
    """LLM4CDSR's pickle, user -> (items as local ids, domains) in time order, and its id map."""
    path, map_path = paths
    value = pickles.load(path)
    two = isinstance(value, tuple) and len(value) == 2 and all(isinstance(v, dict) for v in value)
    if not two or not value[0] or any(set(v) != {*range(1, len(value[0]) + 1)} for v in value):
        expected = "expected a tuple of two dicts with the keys 1, 2, ..., one for each user"
        raise UserError(f"{path}: {expected}")
    n_items, names, fields, users = _id_map(map_path)
    columns, raw_users = [], []
    for number in range(1, len(value[0]) + 1):
        item, domain = _local_ids(path, number, value, n_items)
        if len(item):
            columns.append(item + n_items[0] * domain)
            raw_users.append(users.get(str(number), str(number)))
    notes = {"users_without_events": len(value[0]) - len(columns)}
    return _built(columns, raw_users, n_items, item_table(names, fields), notes=notes)


def _local_ids(path, number, value, n_items):
    """Local ids and domains of a user, checked."""
    try:
        item, domain = pair = np.array([part[number] for part in value])
        if not pair.size:
            return pair.astype(np.int64)
        good = pair.ndim == 2 and np.issubdtype(pair.dtype, np.integer) and item.min() >= 1
        good = good and np.isin(domain, (0, 1)).all() and (item <= np.take(n_items, domain)).all()
    except ValueError:  # of different lengths
        good = False
    if not good:
        n_a, n_b = n_items
        expected = f"expected equally many item ids 1..{n_a} or 1..{n_b} and domains 0 or 1"
        raise UserError(f"{path}: user {number}: {expected}")
    return pair.astype(np.int64)


def _id_map(path):
    """n_items, raw names by local id, fields of items by name, raw users by number as text."""
    value = texts.json_value(path, unique=True)
    names, fields = [], []
    try:
        n_items = tuple(value["item_dict"]["item_count"][domain] for domain in "01")
        if list(map(type, n_items)) != [int, int]:
            raise TypeError(f"item_count {n_items}")
        for domain, n in zip("01", n_items, strict=True):
            items = value["item_dict"][domain]
            names.append([_name(items["id2str"][str(k)]) for k in range(1, n + 1)])
            labels = items.get("id2label", {}).items()
            tags = {int(k): [t for t in v if words_of(t)] for k, v in labels}
            own = enumerate(names[-1], 1)
            fields.append({name: {"category": tags[k]} for k, name in own if k in tags})
        users = {str(k): _name(v) for k, v in value["user_dict"]["id2str"].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path}: {type(error).__name__}: {error}: expected item_dict with item_count and "
            "id2str of domains 0 and 1, and user_dict with id2str"
        ) from None
    return n_items, tuple(names), tuple(fields), users


def _name(value):
    if type(value) not in (str, int):
        raise TypeError(f"name {value!r}")
    return str(value)


def amid(paths: Paths, reading: Reading, what: str) -> Built:
    """AMID's rows: a user, its items of both domains, and the domain whose last item is the target.

    A row becomes a sequence: first the other domain's items, then those of the target's domain,
    because the files have no times. Rows of the test file have a test target. A tenth of the users
    of the training file is used for validation, because no validation file is published. An id that
    occurs in both domains becomes an item of each.
    """
    parts = [list(_amid_rows(path, reading)) for path in paths]
    for path, own in zip(paths, parts, strict=True):
        if not own:
            raise UserError(f"{path}: line 2: found a header alone, expected rows")
    rows = parts[0] + parts[1]
    raw_users = [row[0] for row in rows]
    known = [np.unique(np.concatenate([row[1 + d] for row in rows])) for d in (0, 1)]
    n_items, columns = (len(known[0]), len(known[1])), []
    for _, a, b, target in rows:
        own = np.searchsorted(known[0], a) + 1, np.searchsorted(known[1], b) + n_items[0] + 1
        columns.append(np.concatenate([own[1 - target], own[target]]))
    part = tenths(raw_users, "validation", test=False)
    part[len(parts[0]) :] = TEST
    counts = {path.name: len(own) for path, own in zip(paths, parts, strict=True)}
    notes = {"shared_items": len(np.intersect1d(*known)), "rows": counts}
    split = "files; a tenth of the training users validates"
    table = item_table((known[0].tolist(), known[1].tolist()))
    return _built(columns, raw_users, n_items, table, part, split=split, notes=notes)


def _amid_rows(path, reading) -> Iterator:
    """(user, items 1, items 2, domain of the target) of every row."""
    lines = _lines(path, reading)
    header = next(lines)[1]
    if header != AMID_HEADER:
        raise wrong(path, "line 1", header, AMID_HEADER)
    for number, line in lines:
        match = AMID_LINE.fullmatch(line)
        if not match or match[2 + int(match[4])] == "[]":
            expected = 'user,"[items]","[items]",domain with items of the target\'s domain'
            raise wrong(path, f"line {number}", line, expected)
        yield match[1], _numbers(match[2][1:-1]), _numbers(match[3][1:-1]), int(match[4])


def _lines(path, reading) -> Iterator[tuple[int, str]]:
    lines = texts.text(path).splitlines()
    reading.lines[reading.file(path)] = len(lines)
    return enumerate(map(str.strip, lines), 1)


def _numbers(text):
    return np.array([int(word) for word in text.split(",")] if text else [], np.int64)


def llmcdsr(paths: Paths, reading: Reading, what: str) -> Built:
    """LLMCDSR's sequences: three training files, valid and test, and its items with titles.

    All events of a training line are training events; the last item of a valid or test line is its
    target. Ids count from 0, B after A. Lines name no users, so each line is a user.
    """
    tables = [_llmcdsr_items(path) for path in paths[5:7]]  # pickles of titles lie beside these
    n_items = (len(tables[0]), len(tables[1]))
    columns, raw_users, part = [], [], []
    for path in paths[:5]:
        stem = path.name.split(".")[0]
        for number, line in _lines(path, reading):
            match = LLMCDSR_LINE.fullmatch(line)
            if not match:
                expected = "user, a tab, item ids separated by commas"
                raise wrong(path, f"line {number}", line, expected)
            items = _numbers(match[2])
            if items.max() >= sum(n_items):
                expected = f"ids 0..{sum(n_items) - 1} for the items of both tables"
                raise wrong(path, f"line {number}", int(items.max()), expected)
            columns.append(items + 1)
            raw_users.append(f"{stem}:{number}")
            part.append({"valid": VALIDATION, "test": TEST}.get(stem, TRAINING))
    fields = tuple({n: {"title": t} for n, t in table.items() if t} for table in tables)
    table = item_table(tuple(map(list, tables)), fields)
    return _built(columns, raw_users, n_items, table, part=np.array(part), split="files")


def _llmcdsr_items(path) -> dict[str, str | None]:
    """raw id -> title in the order of local ids: from JSON lines, or from the two pickles."""
    if path.name.startswith("item_set"):
        ids = pickles.load(path)
        titles = pickles.load(path.with_name(path.name.replace("item_set", "text")))
    else:
        ids, titles = {}, {}
        for number, line in enumerate(texts.text(path).rstrip("\n").split("\n"), 1):
            row = texts.json_object(line) or {}
            asin = id_of(row.get("asin"))
            if asin is None or type(row.get("id")) is not int or asin in ids:
                expected = "a JSON object with id, an asin of its own and title"
                raise wrong(path, f"line {number}", line, expected)
            ids[asin], titles[asin] = row["id"], row.get("title")
    good = isinstance(ids, dict) and isinstance(titles, dict)
    if not good or not _count_up(ids.values(), len(ids)):
        raise UserError(f"{path}: expected local ids 0, 1, 2, ... once each")
    return {str(name): words_of(titles.get(name)) for name in sorted(ids, key=ids.__getitem__)}
