"""Reads small files of text and JSON, counts lines, and decides what counts as a value.

Any file may be gzipped, with `.gz` at the end of its name, and may begin with a byte order mark.

The same rules hold for all JSON: a key that is read occurs once in its object; an id is a text or a
whole number; a number is finite and not `true`; a text is not blank.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import json
import math
import pathlib
import zlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from oa_jax.errors import UserError

if TYPE_CHECKING:  # training on published text does without
    import polars as pl

Say = Callable[[str], None]  # called with a line for people
REVIEW_FIELDS = ("reviewerID", "asin", "overall", "unixReviewTime")
TEXT_FIELDS = ("title", "brand", "price", "date")
LIST_FIELDS = ("category", "description")
KEYS = {*REVIEW_FIELDS, *TEXT_FIELDS, *LIST_FIELDS, "id"}


@dataclasses.dataclass
class Reading:
    """Counts of what has been read so far.

    on_bytes: called with (path, bytes of the file read so far), for a progress bar.
    lines: file -> number of lines, blank ones included. The key is the name of the file, or its
    path if an earlier file has the same name.
    malformed: file -> {"lines": number, "first": "line 3: what is wrong"}.
    """

    on_bytes: Callable[[pathlib.Path, int], None] = lambda path, n: None
    lines: dict[str, int] = dataclasses.field(default_factory=dict)
    malformed: dict[str, dict] = dataclasses.field(default_factory=dict)
    _named: dict[str, pathlib.Path] = dataclasses.field(default_factory=dict)

    def file(self, path: pathlib.Path) -> str:
        """The key of a file in `lines` and `malformed`."""
        return path.name if self._named.setdefault(path.name, path) == path else str(path)

    def count(self, path: pathlib.Path, n_lines: int) -> None:
        file = self.file(path)
        self.lines[file] = self.lines.get(file, 0) + n_lines

    def note(self, path: pathlib.Path, number: int, lines: pl.Series, good: pl.Series) -> None:
        """Count the malformed lines of a block; `number` is the number of its first line."""
        bad = (~(good | (lines.str.strip_chars() == ""))).fill_null(True)
        self.count(path, len(lines))
        if bad.any():
            first = bad.arg_max()
            text = f"line {number + first}: {shown(lines[first])}"
            entry = self.malformed.setdefault(self.file(path), {"lines": 0, "first": text})
            entry["lines"] += int(bad.sum())

    def check(self, path: pathlib.Path, expected: str) -> None:
        """At the end of a file: UserError if it is empty or has more bad lines than good ones."""
        file = self.file(path)
        n_lines, bad = self.lines.get(file, 0), self.malformed.get(file)
        if not n_lines:
            raise UserError(f"{path}: line 1: expected {expected}, found an empty file")
        if bad and 2 * bad["lines"] > n_lines:
            of = f"{bad['lines']} of {n_lines} lines are not"
            raise UserError(f"{path}: {bad['first']}: expected {expected}; {of}")


def shown(value: Any) -> str:
    """A value of a file in short form, on one line."""
    text = str(value) if isinstance(value, int) else repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"


def text(path: pathlib.Path) -> str:
    """Text of a UTF-8 file, unpacked if its name ends in .gz, without its byte order mark.

    Raises UserError for a file that is unreadable, damaged, empty or has another encoding.
    """
    with errors(path):
        data = path.read_bytes()
        data = gzip.decompress(data) if path.suffix == ".gz" else data
    if not data.strip():
        raise UserError(f"{path}: line 1: expected text, found an empty file")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        found = f"byte 0x{data[error.start]:02x}"
        raise UserError(f"{path}: line {line}: expected UTF-8 text, found {found}") from None


def json_value(path: pathlib.Path, unique: bool = False) -> Any:
    """The value of a JSON file. unique: no key may occur twice in one object.

    Raises UserError naming the place where the JSON is wrong.
    """
    try:
        return json.loads(text(path), object_pairs_hook=_once if unique else None)
    except KeyError as error:
        found = f"item {shown(error.args[0])}: the name twice"
        raise UserError(f"{path}: {found}: expected each name once") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise UserError(f"{path}: {where}: expected JSON, found: {error.msg}") from None
    except (ValueError, RecursionError) as error:
        # A number of thousands of digits, or brackets nested as deep.
        raise UserError(f"{path}: expected JSON, found: {error}") from None


def json_object(line: str, keys: set[str] = KEYS) -> dict | None:
    """The JSON object of a line; None if it is no object, or has one of `keys` twice."""
    try:
        value = json.loads(line, object_pairs_hook=lambda pairs: _once(pairs, keys))
    except (ValueError, RecursionError, KeyError):
        return None
    return value if isinstance(value, dict) else None


def _once(pairs, keys=None):
    """An object of its (key, value) pairs. Raises KeyError if one (of `keys`) stands twice."""
    out = {}
    for key, value in pairs:
        if key in out and (keys is None or key in keys):
            raise KeyError(key)
        out[key] = value
    return out


def id_of(value: Any) -> str | None:
    """An id as text; None if it is neither text nor whole number, or no valid Unicode."""
    value = str(value) if type(value) is int else value
    # Half of a surrogate pair stands for no character, U+FFFD for bytes that are no UTF-8.
    broken = not isinstance(value, str) or any("\ud800" <= c <= "\udfff" for c in value)
    return None if broken or not value or "\ufffd" in value else value


def words_of(value: Any) -> str | None:
    """A text, or a finite number as text (a book may be called 1984); None for anything else."""
    if type(value) in (int, float) and math.isfinite(value):
        return str(value)
    return value if isinstance(value, str) and value.strip() else None


def item_fields(item: dict) -> dict:
    """The fields of a raw item that the item table keeps, as texts and lists of texts."""
    fields = {name: words_of(item.get(name)) for name in TEXT_FIELDS}
    for name in LIST_FIELDS:
        value = item.get(name)
        entries = map(words_of, value if isinstance(value, list) else [value])
        fields[name] = [entry for entry in entries if entry]
    return {name: value for name, value in fields.items() if value}


@contextlib.contextmanager
def errors(path: pathlib.Path) -> Iterator[None]:
    """Context manager: turns errors of reading a file into a UserError of one line."""
    try:
        yield
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path}: expected a whole gzip file, found: {error}") from None
    except OSError as error:  # of pyarrow without a number, where a .zst file is damaged
        found = error.strerror or error
        raise UserError(f"{path}: expected a readable file, found: {found}") from None
