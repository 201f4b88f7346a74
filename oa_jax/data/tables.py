"""Reads rows of any table, block by block: text with delimiters, JSON lines, Parquet.

The first bytes of a file decide its kind, not its name: plain or packed (gzip, zstd); Parquet; JSON
lines, if the first character is a brace; else text. A byte order mark is skipped.
"""

import collections
import contextlib
import csv
import dataclasses
import io
import itertools
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import polars as pl

from oa_jax.data.blocks import blocks, lines_of, n_lines
from oa_jax.data.texts import Reading, errors, id_of, json_object, shown
from oa_jax.errors import UserError

BLOCK_ROWS = 1 << 20
PARQUET = b"PAR1"
FOREIGN = {b"PK\x03\x04": "a ZIP archive or spreadsheet", b"SQLite f": "an SQLite database"}
TEXT, JSON, FRAME = "text", "JSON lines", "frame"
DELIMITERS = ("\t", "::", ";", "|", ",", " ")
LOOKED_AT = 20  # lines that tell a delimiter apart
TYPED = re.compile(r"(.+):(?:token|float)(?:_seq)?")  # a name in a header of RecBole
RETURN = "found a carriage return, expected line ends, or a field in quotes"
TOO_LONG = f"found a field of more than {csv.field_size_limit():,} signs, expected fewer"


@dataclasses.dataclass(frozen=True)
class Table:
    """A file and the kind of its rows. first: number of the line with its first row. unit: "line"
    or "row". frame: the rows themselves, if there is no file."""

    path: pathlib.Path
    kind: str
    columns: tuple[str, ...]
    delimiter: str = ""
    first: int = 1
    frame: pl.DataFrame | None = None

    @property
    def unit(self) -> str:
        return "line" if self.kind in (TEXT, JSON) else "row"


class TableRows(NamedTuple):
    """Some rows of a table. number: of the line on which each row begins. fault: what is wrong with
    the row, or None. fields: columns of text; for Parquet, of its own types."""

    number: pl.Series
    fault: pl.Series
    fields: pl.DataFrame


def look(path: pathlib.Path, columns: Sequence[str] = (), delimiter: str | None = None) -> Table:
    """Find out the kind of a file from its first lines. columns: names, for text without a header.

    delimiter: None guesses it. Raises UserError for a file that is missing, empty, of another kind,
    or has a header that names no columns.
    """
    with errors(path), open(path, "rb") as raw:
        start = raw.read(8)
    for magic, what in FOREIGN.items():
        if start.startswith(magic):
            raise UserError(f"{path}: found {what}, expected text, JSON lines or Parquet")
    if start.startswith(PARQUET):
        with parquet_errors(path):
            table = Table(path, "Parquet", tuple(_scan(path).collect_schema()))
    else:
        table = _look_at_text(path, tuple(columns), delimiter)
    if table.kind != TEXT and (columns or delimiter):
        flag = "--columns" if columns else "--delimiter"
        raise UserError(f"{flag}: {path} is {table.kind}: expected text, or no {flag}")
    return table


def of_frame(events: Any, name: str) -> Table:
    """What polars makes a frame of, as a table; messages call it `name`. Raises UserError."""
    try:
        frame = pl.DataFrame(events)
    except Exception as error:  # polars has many kinds
        expected = "a file, or columns user, item and time of one length"
        said = " ".join(str(error).split())
        raise UserError(f"{name}: {said}: expected {expected}") from None
    return Table(pathlib.Path(name), FRAME, tuple(frame.columns), frame=frame)


def _look_at_text(path, columns, delimiter):
    feed = blocks(path, Reading())
    block = b"".join(block for _, block in itertools.islice(feed, 2))
    feed.close()
    if b"\0" in block:
        line = block.count(b"\n", 0, block.index(b"\0")) + 1
        raise UserError(f"{path}: line {line}: found a zero byte, expected UTF-8 text")
    text = block.decode("utf-8", "replace").split("\n")
    number = next((k for k, line in enumerate(text, 1) if line.strip()), None)
    if number is None:
        raise UserError(f"{path}: line 1: expected rows, found an empty file")
    lines = [line.rstrip("\r") for line in text[number - 1 :] if line.strip()][: LOOKED_AT + 1]
    first = lines[0]
    if first.lstrip().startswith("["):
        raise UserError(f"{path}: line {number}: found a JSON list, expected a JSON object a line")
    if first.lstrip().startswith("{"):
        objects = [json_object(line) or {} for line in lines]
        with contextlib.suppress(pl.exceptions.PolarsError):  # keys that come later in the block
            later = pl.read_ndjson(block, infer_schema_length=None, ignore_errors=True)
            objects.append(later.columns)
        return Table(path, JSON, tuple(dict.fromkeys(itertools.chain(*objects))))
    if "\r" in first:
        raise UserError(f"{path}: line {number}: found carriage returns alone, expected line ends")
    delimiter = delimiter or _delimiter(lines[:LOOKED_AT])
    if len(delimiter) == 1 and delimiter != " ":
        _check_quotes(path, text[number - 1 :][:LOOKED_AT], number, delimiter)
    if columns:
        return Table(path, TEXT, columns, delimiter, number)
    names = [name.strip() for name in _fields(first, delimiter)]
    typed = [TYPED.fullmatch(name) for name in names]
    names = [match[1] for match in typed] if all(typed) else names
    return Table(path, TEXT, tuple(names), delimiter, number + 1)


def _check_quotes(path, lines, number, delimiter):
    """Raises UserError where blanks stand before quotes, which would become a part of the field."""
    skipping = csv.reader(lines, delimiter=delimiter, skipinitialspace=True, strict=True)
    as_it_is = csv.reader(lines, delimiter=delimiter)
    with contextlib.suppress(csv.Error):  # quotes that are signs of an unquoted field
        for fields, clean in zip(as_it_is, skipping, strict=False):
            for field in fields:
                if field.startswith(" ") and field.lstrip().startswith('"') and field not in clean:
                    where = f"{path}: line {number + skipping.line_num - 1}"
                    expected = "expected none between a delimiter and a quote"
                    raise UserError(f"{where}: found blanks in {shown(field)}: {expected}")


def _delimiter(lines):
    """The one that parts most lines into as many fields as the first, more than one, and many."""

    def rank(candidate):
        first, *others = (len(_fields(line, candidate)) for line in lines)
        return others.count(first) if first > 1 else -1, first

    return max(DELIMITERS, key=rank)  # the first of them that are alike


def _fields(line, delimiter):
    if len(delimiter) == 1:
        with contextlib.suppress(csv.Error):  # what is wrong with a row is said where it is read
            return next(csv.reader([line], delimiter=delimiter), [])
    return line.split(delimiter)


def rows(
    table: Table, wanted: Sequence[str], reading: Reading, ids: Sequence[str] = ()
) -> Iterator[TableRows]:
    """All rows of a table, with the columns `wanted`; blank lines are skipped.

    ids: columns of ids, in which a JSON number has to be whole. A row is at fault if its text has
    another number of fields or an open quote, or if its line is no JSON object, has a wanted key
    twice, or has a value that is neither text nor number.
    """
    if table.unit == "row":
        return _parquet(table, wanted, reading)
    if table.kind == JSON:
        return _json_lines(table, wanted, reading, ids)
    return _delimited(table, list(wanted), reading)


def _delimited(table, wanted, reading):
    """Without a quote in a block lines are rows and delimiters part them. With quotes polars reads
    the block if its lines are rows; from the first other one on Python's csv reads, to which a row
    may span lines and which says what is wrong."""
    n, feed = len(table.columns), blocks(table.path, reading)
    places = [table.columns.index(name) for name in wanted]
    for number, block in feed:
        lines, numbers = _numbered_lines(table, number, block)
        parts = _parted(table, lines, b'"' in block)
        if parts is None:
            content = itertools.chain([block], (block for _, block in feed))
            yield from _quoted(table, wanted, places, number, content, reading)
            return
        reading.count(table.path, n_lines(block))
        bad = parts[:, n].is_not_null() | parts[:, n - 1].is_null()
        said = pl.lit(None, pl.String)
        if bad.any():
            counts = lines.str.count_matches(table.delimiter, literal=True) + 1
            said = pl.format("found {} fields, expected {}", counts, pl.lit(n))
        fault = pl.when(lines.str.contains("\r", literal=True)).then(pl.lit(RETURN))
        fault = fault.when(_too_long(lines, parts)).then(pl.lit(TOO_LONG))
        fault = pl.select(fault.when(bad).then(said)).to_series()
        fields = parts[:, places]
        fields.columns = wanted
        yield TableRows(numbers, fault, fields)


def _parted(table, lines, quotes):
    """Fields of lines, and a column of what is more; None if Python's csv has to read them."""
    n = len(table.columns)
    if not quotes or len(table.delimiter) > 1:
        return lines.str.split_exact(table.delimiter, n).struct.unnest()
    if len(table.delimiter.encode()) > 1:  # which polars does not take
        return None
    delimiter = re.escape(table.delimiter)
    field = rf'(?:"(?:[^"\r]|"")*"|[^"\r{delimiter}]*)'
    row = f"^{field}(?:{delimiter}{field}){{{n - 1}}}$"
    if not len(lines) or not lines.str.contains(row).all() or _too_long(lines).any():
        return None
    content, schema = lines.str.join("\n").item().encode(), {str(k): pl.String for k in range(n)}
    parts = pl.read_csv(content, separator=table.delimiter, has_header=False, schema=schema)
    if len(parts) != len(lines):
        return None
    return parts.fill_null("").with_columns(pl.lit(None, pl.String).alias("more"))


def _numbered_lines(table, number, block):
    """Lines that are not blank, from the table's first one on, and their numbers."""
    lines = lines_of(block)
    numbers = pl.int_range(number, number + len(lines), dtype=pl.UInt32, eager=True)
    there = (lines.str.strip_chars() != "") & (numbers >= table.first)
    return lines.filter(there), numbers.filter(there)


def _too_long(lines, parts=None):
    """Which lines have a field that is longer than Python's csv reader takes; without the fields:
    may have."""
    most = csv.field_size_limit()
    long = lines.str.len_chars() > most
    if parts is None or not long.any():
        return long
    return long & parts.select(pl.any_horizontal(pl.all().str.len_chars() > most)).to_series()


def _quoted(table, wanted, places, number, content, reading):
    """Rows of blocks from the first with a quote on; `number` is that of its first line."""
    schema = {"": pl.UInt32, " ": pl.String} | {f"_{name}": pl.String for name in wanted}

    def lines():
        for block in content:
            reading.count(table.path, n_lines(block))
            yield from io.StringIO(block.decode("utf-8", "replace"))

    records = _records(lines(), table, number, places)
    while batch := list(itertools.islice(records, BLOCK_ROWS // 4)):
        there = [row for row in batch if row[0] >= table.first]
        whole = pl.DataFrame(there, schema=schema, orient="row")
        fields = whole[:, 2:]
        fields.columns = wanted
        yield TableRows(whole[:, 0], whole[:, 1], fields)


def _records(lines, table, number, places):
    """(line, fault, *fields) of every record that is not blank; `number` is the first line's.

    Of a record at fault its first line is one, and the next one is read anew: a quote that nobody
    closed takes no other line with it. One that a later quote closes is not seen, but among tabs.
    """
    n, again, held = len(table.columns), collections.deque(), []

    def feed():
        while again or (line := next(lines, None)) is not None:
            held.append(again.popleft() if again else line)
            yield held[-1]

    reader = csv.reader(feed(), delimiter=table.delimiter, strict=True)
    while True:
        held.clear()
        try:
            record, fault = next(reader), None
            if len(record) != n:
                fault = f"found {len(record)} fields, expected {n}"
            elif _swallowed(record, held[1:], table.delimiter):
                fault = "found a quote that ends in a later row, expected it to end in its own"
        except StopIteration:
            return
        except csv.Error as error:
            known = {"new-line": RETURN, "field larger": TOO_LONG}
            fault = f"found {error}, expected a field in quotes to end in one"
            fault = next((said for word, said in known.items() if word in str(error)), fault)
            record = ["?"]
        if len(record) > 1 or any(map(str.strip, record)):
            yield number, fault, *([None] * len(places) if fault else (record[p] for p in places))
        if fault:
            again.extendleft(reversed(held[1:]))
            reader = csv.reader(feed(), delimiter=table.delimiter, strict=True)
        number += 1 if fault else len(held)


def _swallowed(record, later, delimiter):
    """Whether a quoted field of text parted by tabs holds a row: a tab in it is rare, a line of it
    with as many fields as the record even more so."""
    if delimiter != "\t" or not any(line.count("\t") == len(record) - 1 for line in later):
        return False
    return any("\t" in field and "\n" in field for field in record)


def _json_lines(table, wanted, reading, ids):
    names = "|".join(map(re.escape, wanted))
    # Values that are no plain text or number, numbers that two parsers might write in two ways.
    doubtful = rf'"(?:{names})"\s*:\s*(?:[^\s"0-9n-]|-?[0-9.]*[eE]|-?[0-9]{{19}})'
    if ids:
        names = "|".join(map(re.escape, ids))
        doubtful += rf'|"(?:{names})"\s*:\s*(?:-?[0-9]+\.|"[^"\\]*\\)'
    schema = dict.fromkeys(wanted, pl.String)
    for number, block in blocks(table.path, reading):
        n, fields = n_lines(block), plain_json(block, schema, doubtful)
        reading.count(table.path, n)
        numbers = pl.int_range(number, number + n, dtype=pl.UInt32, eager=True)
        fault = pl.repeat(None, n, dtype=pl.String, eager=True)
        whole = fields is not None and len(fields) == n
        if not whole or any(fields[name].null_count() for name in ids):
            lines, numbers = _numbered_lines(table, number, block)
            found = [_texts(json_object(line, {*wanted}), wanted, ids) for line in lines]
            fault = pl.Series([one if isinstance(one, str) else None for one in found])
            found = [[None] * len(wanted) if isinstance(one, str) else one for one in found]
            fields = pl.DataFrame(found, schema=schema, orient="row")
        yield TableRows(numbers, fault.cast(pl.String), fields)


def plain_json(block: bytes, schema: dict, doubtful: str) -> pl.DataFrame | None:
    """The objects of a block as polars reads them. None if a line is no JSON, a key occurs twice or
    is written with escapes, or the pattern `doubtful` occurs."""
    content = pl.Series([block.decode("utf-8", "replace")])
    # Escapes of letters and _, in which a key may be written; of any sign where it has others; and
    # halves of signs, which two parsers read in two ways.
    letters = all(re.fullmatch("[A-Za-z_]+", name) for name in schema)
    escapes = r"\\u(?:00[4-7]|[dD][89a-fA-F])" if letters else r"\\"
    if content.str.contains(f"{doubtful}|{escapes}").item():
        return None
    try:
        table = pl.read_ndjson(block, schema=schema, ignore_errors=True)
    except pl.exceptions.PolarsError:
        return None
    for name in schema:
        if block.count(f'"{name}"'.encode()) != len(table) - table[name].null_count():
            return None
    return table


def _texts(item, wanted, ids):
    """Values of a JSON object as text, or what is wrong with it."""
    if item is None:
        return "found no JSON object with each of these keys once, expected one"
    out = []
    for name in wanted:
        value = item.get(name)
        kinds = (str, int, type(None), *(() if name in ids else (float,)))
        if type(value) not in kinds or (value and type(value) is str and not id_of(value)):
            what = "a text or a whole number" if name in ids else "a text or a number"
            return f"{name}: found {shown(value)}, expected {what}"
        out.append(None if value is None else str(value))
    return out


def _parquet(table, wanted, reading):
    with parquet_errors(table.path):
        scan = _scan(table.path) if table.frame is None else table.frame.lazy()
        for begin in itertools.count(0, BLOCK_ROWS):
            fields = scan.select(wanted).slice(begin, BLOCK_ROWS).collect()
            n = len(fields)
            reading.count(table.path, n)
            numbers = pl.int_range(begin + 1, begin + n + 1, dtype=pl.UInt32, eager=True)
            yield TableRows(numbers, pl.repeat(None, n, dtype=pl.String, eager=True), fields)
            if n < BLOCK_ROWS:
                return


def _scan(path):
    return pl.scan_parquet(path, glob=False)  # a name may hold brackets


@contextlib.contextmanager
def parquet_errors(path):
    try:
        yield
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        reason = shown(" ".join(str(error).split()))
        raise UserError(f"{path}: expected a whole Parquet file, found: {reason}") from None
