"""Readers of published data files. Whatever is wrong in one is a UserError of a single line."""

from __future__ import annotations

import gzip
import json
import pathlib
import re
import zlib

import numpy as np

from oa_jax.errors import UserError
from oa_jax.events.log import InteractionLog, make_log

ABXI_KEPT_EVENTS = 50
# 18 digits always fit into int64.
_TOKEN = r"[0-9]{1,18}\|[0-9]{1,18}"
_ABXI_LINE = re.compile(rf"[ \t]*[0-9]{{1,18}}(?:[ \t]+{_TOKEN})+[ \t\r]*")


def read_abxi(directory, name: str) -> InteractionLog:
    """Read the files that ABXI publishes for one pair of domains (spec 1).

    `<name>_50_preprocessed.txt`: a line per user, in any order: the user id, then blank-separated
    `item|time` tokens, oldest first, time in unix seconds. Of a line the last 50 tokens are kept,
    as the official loader does; the others are checked all the same.
    `map_item_50.txt`: one JSON object, raw item name -> [id, domain], ids 1..n with domain 0 (A)
    first; it fixes the numbers of items.
    Either file may be gzipped, with `.gz` appended to its name.

    Raises UserError naming file, line or field, what was found and what was expected.
    """
    directory = pathlib.Path(directory)
    n_items, _ = read_item_map(find_file(directory, "map_item_50.txt"))
    path = find_file(directory, f"{name}_50_preprocessed.txt")
    user, item, time = _read_sequences(path, sum(n_items))
    return make_log(user, item, time, n_items, name)


def find_file(directory: pathlib.Path, name: str) -> pathlib.Path:
    """Path of a file in the directory, plain or with `.gz`. Raises UserError if neither exists."""
    for candidate in (directory / name, directory / f"{name}.gz"):
        if candidate.exists():
            return candidate
    raise UserError(f"{directory}: expected file {name} or {name}.gz, found neither")


def read_text(path: pathlib.Path) -> str:
    """Text of a UTF-8 file, unpacked if its name ends in .gz.

    Raises UserError for unreadable, damaged, empty or otherwise encoded files.
    """
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if path.suffix == ".gz" else data
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path}: expected a whole gzip file, found: {error}") from error
    except OSError as error:
        raise UserError(f"{path}: expected a readable file, found: {error.strerror}") from error
    if not data.strip():
        raise UserError(f"{path}: line 1: expected text, found an empty file")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        found = f"byte 0x{data[error.start]:02x}"
        raise UserError(f"{path}: line {line}: expected UTF-8 text, found {found}") from error


def _wrong(path, where, found, expected):
    # repr keeps line breaks and invisible characters of the file out of the message.
    shown = found if isinstance(found, int) else repr(found)
    shown = str(shown) if len(str(shown)) <= 60 else f"{str(shown)[:60]}…"
    return UserError(f"{path}: {where}: found {shown}, expected {expected}")


def _read_sequences(path, n_items):
    """User, item, time columns, users ascending, at most the last 50 events of each."""
    lines = read_text(path).rstrip("\n").split("\n")
    for number, line in enumerate(lines, 1):
        if not _ABXI_LINE.fullmatch(line):
            _explain_line(path, number, line)
    fields = [line.replace("|", " ").split() for line in lines]
    user = np.array([int(row[0]) for row in fields])
    count = np.array([len(row) // 2 for row in fields])
    pairs = np.array([int(text) for row in fields for text in row[1:]]).reshape(-1, 2)
    line = np.repeat(np.arange(len(lines)), count)
    _check_users(path, user)
    _check_events(path, line, pairs, n_items)
    from_end = np.cumsum(count)[line] - np.arange(len(line))
    kept = np.flatnonzero(from_end <= ABXI_KEPT_EVENTS)
    # Stable: the events of a user keep their order.
    kept = kept[np.argsort(user[line[kept]], kind="stable")]
    return user[line[kept]], pairs[kept, 0], pairs[kept, 1]


def _explain_line(path, number, line):
    """Raise the UserError for a line that does not read `user item|time item|time …`."""
    words = line.split()
    if not words:
        raise _wrong(path, f"line {number}", line, "a user id and item|time tokens")
    if not _is_number(words[0]):
        raise _wrong(path, f"line {number}, user", words[0], "a whole number from 0 on")
    if len(words) == 1:
        raise _wrong(path, f"line {number}, items", "", "at least one item|time token")
    for place, word in enumerate(words[1:], 1):
        where = f"line {number}, token {place}"
        parts = word.split("|")
        if len(parts) != 2:
            raise _wrong(path, where, word, "item|time")
        for field, part in zip(("item", "time"), parts, strict=True):
            if not _is_number(part):
                raise _wrong(path, f"{where}, {field}", part, "a whole number from 0 on")
    raise _wrong(path, f"line {number}", line, "fields parted by blanks")


def _is_number(text):
    return re.fullmatch(r"[0-9]{1,18}", text) is not None


def _check_users(path, user):
    """Every id of 0..U-1 once, U being the number of lines."""
    _, first, inverse = np.unique(user, return_index=True, return_inverse=True)
    repeated = first[inverse] != np.arange(len(user))
    if repeated.any():
        row = int(np.argmax(repeated))
        earlier = int(first[inverse[row]]) + 1
        expected = f"a user of its own, not that of line {earlier}"
        raise _wrong(path, f"line {row + 1}, user", int(user[row]), expected)
    if user.max() >= len(user):
        row = int(np.argmax(user >= len(user)))
        missing = int(np.setdiff1d(np.arange(len(user)), user)[0])
        expected = f"ids 0..{len(user) - 1} for {len(user)} lines; user {missing} is missing"
        raise _wrong(path, f"line {row + 1}, user", int(user[row]), expected)


def _check_events(path, line, pairs, n_items):
    """Items within the map's ids, times that do not run backwards within a line."""
    item, time = pairs.T
    same_line = np.diff(line) == 0
    checks = (
        ("item", item, (item < 1) | (item > n_items), f"an id in 1..{n_items}"),
        ("time", time, np.r_[False, same_line & (np.diff(time) < 0)], "a time not before {}"),
    )
    for field, values, bad, expected in checks:
        if bad.any():
            row = int(np.argmax(bad))
            token = int(np.sum(line[: row + 1] == line[row]))
            where = f"line {line[row] + 1}, token {token}, {field}"
            raise _wrong(path, where, int(values[row]), expected.format(int(values[row - 1])))


def read_item_map(path) -> tuple[tuple[int, int], list[str]]:
    """((nA, nB), raw names of items 1, 2, ...) of ABXI's item map.

    Raises UserError naming the entry that is wrong.
    """

    def unique_keys(pairs):
        seen = set()
        for key, _ in pairs:
            if key in seen:
                raise _wrong(path, f"item {_short(key)}", "the name twice", "each name once")
            seen.add(key)
        return dict(pairs)

    try:
        mapping = json.loads(read_text(path), object_pairs_hook=unique_keys)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise UserError(f"{path}: {where}: expected JSON, found: {error.msg}") from error
    except (ValueError, RecursionError) as error:
        # A number of thousands of digits, or brackets nested as deep.
        raise UserError(f"{path}: expected JSON of an item map, found: {error}") from error
    if not isinstance(mapping, dict) or not mapping:
        expected = "an object {item: [id, domain], …} that is not empty"
        raise _wrong(path, "line 1", f"{type(mapping).__name__} {mapping!r}", expected)
    return _check_item_map(path, mapping)


def _short(key):
    return repr(key if len(key) <= 40 else f"{key[:40]}…")


def _check_item_map(path, mapping):
    """Ids 1..n once each, domain A (0) before domain B (1). Returns counts, names by id."""
    keys, owner = list(mapping), {}
    for key, entry in mapping.items():
        where = f"item {_short(key)}"
        # bool is an int in Python, but `true` is not an id.
        if not isinstance(entry, list) or [type(value) for value in entry] != [int, int]:
            raise _wrong(path, where, entry, "[id, domain], two whole numbers")
        if entry[1] not in (0, 1):
            raise _wrong(path, f"{where}, domain", entry[1], "0 or 1")
        if not 1 <= entry[0] <= len(keys):
            expected = f"an id in 1..{len(keys)}, the number of entries"
            raise _wrong(path, f"{where}, id", entry[0], expected)
        if entry[0] in owner:
            expected = f"an id of its own, not that of {_short(owner[entry[0]])}"
            raise _wrong(path, f"{where}, id", entry[0], expected)
        owner[entry[0]] = key
    domain = np.array([mapping[owner[number]][1] for number in range(1, len(keys) + 1)])
    n_a = int(np.sum(domain == 0))
    if not 0 < n_a < len(keys):
        raise _wrong(path, "domains", f"{n_a} items of A, {len(keys) - n_a} of B", "some of each")
    if domain[:n_a].any():
        number = int(np.argmax(domain)) + 1
        where = f"item {_short(owner[number])}, id"
        raise _wrong(path, where, number, f"above {n_a} for domain 1: domain 0 has ids 1..{n_a}")
    return (n_a, len(keys) - n_a), [owner[number] for number in range(1, len(keys) + 1)]
