"""Raw files of the public data sets, read block by block: ratings, reviews, item metadata.

Lines that do not hold what they should are left out, counted and named in a `Reading`; a file
that is broken as a whole is a UserError. Files may be gzipped, with `.gz` at the end of the name.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import json
import pathlib
import zlib
from collections.abc import Callable, Iterator

import polars as pl

from oa_jax.errors import UserError

BLOCK_BYTES = 1 << 25
LONGEST_LINE = 1 << 28
# Fields that a line of each Douban file has, and the places of user, item, time and label.
DOUBAN_FIELDS = {"book": (7, 0, 1, 5, 3), "movie": (9, 0, 1, 4, 5), "music": (8, 0, 1, 6, 3)}
REVIEW_FIELDS = {
    "reviewerID": pl.String,
    "asin": pl.String,
    "overall": pl.Float64,
    "unixReviewTime": pl.Int64,
}
TEXT_FIELDS = ("title", "brand", "price", "date")
LIST_FIELDS = ("category", "description")


@dataclasses.dataclass
class Reading:
    """What reading has met so far.

    on_bytes: called with (path, bytes of the file read so far), for a progress bar.
    lines: file name -> number of lines, blank ones included.
    malformed: file name -> {"lines": how many, "first": "line 3: what it is"}.
    """

    on_bytes: Callable[[pathlib.Path, int], None] = lambda path, n: None
    lines: dict[str, int] = dataclasses.field(default_factory=dict)
    malformed: dict[str, dict] = dataclasses.field(default_factory=dict)

    def count(self, path, n_lines, n_bad, first_bad) -> None:
        """Add a block's lines; first_bad() -> (line number, text) is asked once a file."""
        self.lines[path.name] = self.lines.get(path.name, 0) + n_lines
        if n_bad:
            if path.name not in self.malformed:
                number, text = first_bad()
                self.malformed[path.name] = {"lines": 0, "first": f"line {number}: {shown(text)}"}
            self.malformed[path.name]["lines"] += n_bad

    def check(self, path, expected: str) -> None:
        """At a file's end: raise UserError if it is empty or has more bad lines than good."""
        n_lines, bad = self.lines.get(path.name, 0), self.malformed.get(path.name)
        if not n_lines:
            raise UserError(f"{path}: line 1: expected {expected}, found an empty file")
        if bad and 2 * bad["lines"] > n_lines:
            raise UserError(
                f"{path}: {bad['first']}: expected {expected}; "
                f"{bad['lines']} of {n_lines} lines are not"
            )


def shown(text: str) -> str:
    """A short form of a line of a file, on one line."""
    text = repr(text[:80])
    return text if len(text) <= 60 else f"{text[:60]}…"


def ratings(path: pathlib.Path, reading: Reading, least: float | None = None) -> pl.DataFrame:
    """A "ratings only" file of 2014: user,item,rating,unix time, without header.

    -> columns user, item (text), time (int64), in file order; with `least` only rows with a rating
    of at least that. A line with another number of fields, an empty id, a rating or time that is
    no number, or bytes that are no UTF-8 in an id is malformed.
    """
    parts = [_EVENTS.clear()]
    for number, block in _blocks(path, reading):
        lines = _lines(block)
        fields = lines.str.split_exact(",", 4).struct.unnest()
        fields.columns = ["user", "item", "rating", "time", "more"]
        table = fields.with_columns(
            pl.col("rating").cast(pl.Float64, strict=False),
            pl.col("time").cast(pl.Int64, strict=False),
        )
        good = (
            pl.all_horizontal(_is_id("user"), _is_id("item"), pl.col("more").is_null())
            & pl.col("rating").is_finite()
            & pl.col("time").is_not_null()
        ).fill_null(False)
        _note(path, reading, number, lines, table.select(good).to_series())
        kept = good if least is None else good & (pl.col("rating") >= least)
        parts.append(table.filter(kept).select("user", "item", "time"))
    reading.check(path, "user,item,rating,time")
    return pl.concat(parts)


_EVENTS = pl.DataFrame(schema={"user": pl.String, "item": pl.String, "time": pl.Int64})


def reviews(path: pathlib.Path, reading: Reading, after: int, before: int) -> pl.DataFrame:
    """A review file of 2018: a JSON object a line, with reviewerID, asin, overall, unixReviewTime.

    -> columns user, item, time of the reviews with after < time < before and a rating above 0,
    in file order. A line that is no object, or lacks one of the four fields, is malformed.
    """
    parts = [_EVENTS.clear()]
    for number, block in _blocks(path, reading):
        table = _json_fields(path, reading, number, block)
        time = pl.col("unixReviewTime")
        kept = table.filter((time > after) & (time < before) & (pl.col("overall") > 0))
        parts.append(kept.select(user="reviewerID", item="asin", time="unixReviewTime"))
    reading.check(path, "a JSON object with reviewerID, asin, overall, unixReviewTime")
    return pl.concat(parts)


def metadata(path: pathlib.Path, reading: Reading, wanted: set[str]) -> dict[str, dict]:
    """Item texts of a metadata file of 2018, a JSON object a line: asin -> fields that it has.

    Only items in `wanted`; of an item that occurs twice the last line counts, as in the official
    code. A line without an asin, or a wanted one that is no JSON, is malformed.
    """
    found, asins = {}, pl.Series(sorted(wanted), dtype=pl.String).implode()
    for number, block in _blocks(path, reading):
        lines = _lines(block)
        # The object itself is only parsed where one of its fields may say that it is wanted.
        hits = lines.str.extract_all(r'"asin"\s*:\s*"[^"]*"')
        good = ((hits.list.len() > 0) | _blank(lines)).fill_null(False).to_list()
        names = hits.list.eval(pl.element().str.extract(r'"([^"]*)"$'))
        wanted_here = names.list.set_intersection(asins).list.len() > 0
        for row in wanted_here.fill_null(False).arg_true():
            item = _object(lines[row])
            good[row] = item is not None and "asin" in item
            if good[row] and item["asin"] in wanted:
                found[item["asin"]] = item_fields(item)
        _note(path, reading, number, lines, pl.Series(good, dtype=pl.Boolean))
    reading.check(path, 'a JSON object with "asin"')
    return found


def item_fields(item: dict) -> dict:
    """The fields of a raw item that the item table keeps, as text and lists of text."""
    fields = {name: str(item[name]) for name in TEXT_FIELDS if item.get(name) not in (None, "")}
    for name in LIST_FIELDS:
        value = item.get(name)
        if value:
            fields[name] = [str(v) for v in (value if isinstance(value, list) else [value])]
    return fields


def douban(path: pathlib.Path, reading: Reading, kind: str) -> pl.DataFrame:
    """A cleaned review file of Douban, tab-separated under a header: kind book, movie or music.

    -> columns user, item (int64), time (int64, yyyymmdd, longer where the file has hours), label.
    A line with another number of fields, or whose ids or date are no numbers, is malformed.
    """
    n_fields, *places = DOUBAN_FIELDS[kind]
    schema = {"user": pl.Int64, "item": pl.Int64, "time": pl.Int64, "label": pl.String}
    parts = [pl.DataFrame(schema=schema)]
    for number, block in _blocks(path, reading):
        lines = _lines(block)
        fields = lines.str.strip_chars().str.split("\t")
        texts = [fields.list.get(p, null_on_oob=True).str.replace_all('"', "") for p in places]
        user, item, time = (
            text.str.replace_all("[-: ]", "") if text is texts[2] else text for text in texts[:3]
        )
        table = pl.DataFrame(
            [s.cast(pl.Int64, strict=False) for s in (user, item, time)] + [texts[3]],
            schema=list(schema),
        )
        good = table.select(pl.all_horizontal(pl.all().is_not_null())).to_series()
        good &= (fields.list.len() == n_fields).fill_null(False)
        header = pl.int_range(len(lines), eager=True) + number == 1
        _note(path, reading, number, lines, good | header)
        parts.append(table.filter(good & ~header))
    reading.check(path, f"{n_fields} tab-separated fields")
    return pl.concat(parts)


def _blocks(path, reading) -> Iterator[tuple[int, bytes]]:
    """(number of the first line, whole lines) of a file."""
    number, rest = 1, b""
    try:
        with contextlib.ExitStack() as stack:
            raw = stack.enter_context(open(path, "rb"))
            file = stack.enter_context(gzip.open(raw)) if path.suffix == ".gz" else raw
            while block := file.read(BLOCK_BYTES):
                reading.on_bytes(path, raw.tell())
                end = block.rfind(b"\n") + 1
                if end:
                    whole, rest = rest + block[:end], block[end:]
                    yield number, whole
                    number += whole.count(b"\n")
                elif len(rest) > LONGEST_LINE:
                    raise UserError(f"{path}: line {number}: longer than {LONGEST_LINE} bytes")
                else:
                    rest += block
            if rest:
                yield number, rest
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path}: expected a whole gzip file, found: {error}") from None
    except OSError as error:
        raise UserError(f"{path}: expected a readable file, found: {error.strerror}") from None


def _lines(block) -> pl.Series:
    """Lines of a block, without their ends; bytes that are no UTF-8 become U+FFFD."""
    text = block.decode("utf-8", "replace").removesuffix("\n")
    return pl.Series([text]).str.split("\n").explode().str.strip_chars_end("\r")


def _is_id(name):
    """Not empty, and free of what stands for bytes that are no UTF-8."""
    return (pl.col(name) != "") & ~pl.col(name).str.contains("\ufffd", literal=True)


def _blank(lines):
    return lines.str.strip_chars() == ""


def _note(path, reading, number, lines, good):
    """Count the lines of a block that are neither good nor blank."""
    bad = (~(good | _blank(lines))).fill_null(True)
    first = bad.arg_max() or 0
    reading.count(path, len(lines), int(bad.sum()), lambda: (number + first, lines[first]))


def _json_fields(path, reading, number, block):
    """Columns REVIEW_FIELDS of the objects of a block that have all four."""
    table = None
    complete = pl.all_horizontal(pl.all().is_not_null(), _is_id("reviewerID"), _is_id("asin"))
    with contextlib.suppress(pl.exceptions.ComputeError):  # a line of it is no JSON
        table = pl.read_ndjson(block, schema=REVIEW_FIELDS, ignore_errors=True)
    if table is not None and table.select(complete.all()).item():
        n_lines = block.count(b"\n") + (not block.endswith(b"\n"))
        reading.count(path, n_lines, 0, None)
        return table
    lines = _lines(block)
    rows = [_review(_object(line)) for line in lines]
    good = pl.Series([row is not None for row in rows], dtype=pl.Boolean)
    _note(path, reading, number, lines, good)
    kept = [row for row in rows if row is not None]
    return pl.DataFrame(kept, schema=REVIEW_FIELDS, orient="row")


def _object(line):
    """A line's JSON object, None if it is none."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _review(item):
    """The four fields of a review, None if one is missing or of another type."""
    if item is None:
        return None
    user, asin, rating, time = (item.get(name) for name in REVIEW_FIELDS)
    user, asin = (str(v) if isinstance(v, int) else v for v in (user, asin))  # as polars does
    ids = all(isinstance(v, str) and v and "\ufffd" not in v for v in (user, asin))
    numbers = isinstance(rating, (int, float)) and isinstance(time, int)
    if not ids or not numbers or abs(time) >= 2**63:
        return None
    return user, asin, float(rating), time
