"""Reads ids, times, ratings and titles from the cells of a table, and checks every row."""

import dataclasses
from collections.abc import Iterator

import polars as pl

from oa_jax.data import tables, times
from oa_jax.data.blocks import NO_UTF8
from oa_jax.data.tables import Table, TableRows
from oa_jax.data.texts import Reading, shown
from oa_jax.errors import UserError

# What tables write for nothing.
NO_IDS = ("", "nan", "NaN", "NaT", "null", "Null", "NULL", "none", "None", "<NA>")
NO_IDS += ("NA", "N/A", "n/a", "#N/A", "\\N")
NO_TITLES = "", "nan", "NaN", "null"  # a title may be a word
ROW = 1 << 32  # the number of a file times this, plus the line: where an event comes from
TITLES = {"domain": pl.String, "item": pl.String, "title": pl.String}


@dataclasses.dataclass(frozen=True)
class InputFile:
    """A file, the domain of all its rows (None: a column says it), its columns by role, and its
    name in messages."""

    table: Table
    domain: str | None
    roles: dict[str, str]
    name: str

    def at(self, line: int) -> str:
        return f"{self.name}: {self.table.unit} {line}"


class LeftOut:
    """Rows that are left out: reason -> [number, the first]."""

    def __init__(self, sources: list[InputFile]):
        self.sources, self.reasons = sources, {}

    def note(self, reason: str, n_rows: int, first: str) -> None:
        self.reasons.setdefault(reason, [0, first])[0] += n_rows

    def filtered(
        self, reason: str, events: pl.DataFrame, mask: pl.Series | pl.Expr
    ) -> pl.DataFrame:
        """The events under a mask; the others are counted under `reason`."""
        out = events.filter(~mask)
        if not len(out):
            return events
        file, line = divmod(out["row"].min(), ROW)
        self.note(reason, len(out), self.sources[file].at(line))
        return events.filter(mask)

    def facts(self) -> list[dict]:
        return [{"reason": r, "rows": n, "first": first} for r, (n, first) in self.reasons.items()]


def read(
    sources: list[InputFile], time_unit: str | None, bad_rows: str, reading: Reading, left: LeftOut
) -> tuple[pl.DataFrame, pl.DataFrame, list[str]]:
    """All good rows of the sources, in the order of time: (events, titles, units of the times of
    each file; none without times).

    events: user, item, domain (categories), time (millionths; the place if a file has no times),
    row and, if asked for, rating. titles: domain, item and title, the first title of each item.
    bad_rows: "refuse" raises UserError for the first bad row; "skip" counts bad rows and leaves
    them out, unless they are more than half of a file.
    """
    parts, titles, units = [], [pl.DataFrame(schema=TITLES)], []
    for number, source in enumerate(sources):
        unit = Unit(time_unit)
        for frame in _frames(source, unit, bad_rows, reading, left):
            frame = frame.with_columns(row=pl.col("line").cast(pl.Int64) + number * ROW)
            if source.domain is not None:
                frame = frame.with_columns(domain=pl.lit(source.domain))
            if "title" in frame.columns:
                titled = frame.filter(pl.col("title").is_not_null()).select(*TITLES)
                titles.append(titled.unique(["domain", "item"], keep="first", maintain_order=True))
            if "time" not in frame.columns:
                frame = frame.with_columns(time="row")
            parts.append(frame.cast(dict.fromkeys(("user", "item", "domain"), pl.Categorical)))
        if "time" in source.roles:
            units.append(unit.word)
    order = ["user", "item", "domain", "time", "row"]
    # Files have times all, or none.
    order += ["rating"] if all("rating" in part.columns for part in parts) else []
    events = pl.concat([part.select(order) for part in parts])
    titles = pl.concat(titles).unique(["domain", "item"], keep="first", maintain_order=True)
    return events.sort("time", maintain_order=True), titles, units


def _frames(source, unit, bad_rows, reading, left) -> Iterator[pl.DataFrame]:
    """The good rows of a source: columns by role, and their lines."""
    n_rows, n_good, first = 0, 0, None
    ids = [name for role, name in source.roles.items() if role in ("user", "item", "domain")]
    for rows in tables.rows(source.table, list(source.roles.values()), reading, ids):
        columns, faults = _checked(source, rows, unit)
        good, bad = _note_faults(source, rows, faults, left, bad_rows == "refuse")
        first = first or bad
        frame = pl.DataFrame(columns | {"line": rows.number}).filter(good)
        n_rows, n_good = n_rows + len(good), n_good + len(frame)
        yield frame
    if not n_rows:
        raise UserError(f"{source.table.path}: expected rows, found a header alone")
    if 2 * n_good < n_rows:
        said = f"{n_rows - n_good} of {n_rows} rows are wrong, the first: {first}"
        raise UserError(f"{source.table.path}: {said}: expected more good rows than bad ones")


class Unit:
    """The unit of the times of a file: that of its first time, which all others must have."""

    def __init__(self, given: str | None):
        self.given, self.word, self.line = given, None, None

    def other(self, units: pl.Series, lines: pl.Series) -> pl.Series:
        """Mask of the times that are of another unit."""
        if self.word is None and units.null_count() < len(units):
            first = units.is_not_null().arg_max()
            self.word, self.line = units[first], lines[first]
        return units.is_not_null() & (units != (self.word or ""))


def _checked(source: InputFile, rows: TableRows, unit: Unit):
    """Columns by role, and what is wrong with them: [(role, bad rows, what was expected)]."""
    out, faults = {}, []
    for role, name in source.roles.items():
        column = rows.fields[name]
        column = column.cast(pl.String) if column.dtype == pl.Null else column
        if role == "time":
            try:
                out[role], units = times.parsed(column, unit.given)
            except TypeError:
                _wrong_type(source, name, column, "times as numbers, text or dates")
            other = unit.other(units, rows.number)
            expected = f"{times.WORDS.get(unit.word)} as in {source.table.unit} {unit.line}"
            faults.append((role, out[role].is_null(), times.EXPECTED))
            faults.append((role, other, f"{expected}, or --time_unit"))
        elif role == "rating":
            if not (column.dtype.is_numeric() or column.dtype == pl.String):
                _wrong_type(source, name, column, "numbers")
            text = column.str.strip_chars() if column.dtype == pl.String else column
            out[role] = text.cast(pl.Float64, strict=False)
            faults.append((role, ~out[role].is_finite().fill_null(False), "a finite number"))
        else:
            is_id = role != "title"  # which may be missing
            out[role] = _text(source, name, column, NO_IDS if is_id else NO_TITLES)
            broken = out[role].str.contains(f"[{NO_UTF8}\r\n]" if is_id else NO_UTF8)
            faults.append((role, broken.fill_null(is_id), "an id" if is_id else "UTF-8 text"))
    return out, faults


def _text(source, name, column, none):
    """Text without blanks around it, null where there is none, as the words of `none` say."""
    if column.dtype.is_float():  # whole numbers beside missing ones, as pandas has them
        whole = column.cast(pl.Int64, strict=False)
        exact = column.abs() < (1 << (53 if column.dtype == pl.Float64 else 24))  # above, two meet
        exact &= whole.cast(column.dtype) == column
        column = pl.select(pl.when(exact).then(whole)).to_series()
    elif not (column.dtype.is_integer() or column.dtype in (pl.String, pl.Categorical, pl.Enum)):
        _wrong_type(source, name, column, "text or whole numbers")
    text = column.cast(pl.String).str.strip_chars()
    return pl.select(pl.when(~text.is_in(none)).then(text)).to_series()


def _wrong_type(source, name, column, expected):
    found = f"found {column.dtype}, expected {expected}"
    raise UserError(f"{source.table.path}: column {name}: {found}")


def _cell(rows, name, row):
    column = rows.fields[name]  # a wrong date is beyond all calendars
    return (column.to_physical() if column.dtype.is_temporal() else column)[row]


def _note_faults(source, rows, faults, left, refuse):
    """(mask of the good rows, the first other one or None). Raises UserError for that, if such
    are refused."""
    good, firsts = pl.repeat(True, len(rows.number), dtype=pl.Boolean, eager=True), []
    for role, bad, expected in [(None, rows.fault.is_not_null(), None), *faults]:
        bad = bad & good
        if not bad.any():
            continue
        first, good = bad.arg_max(), good & ~bad
        if role is None:
            found, message = rows.fault[first], rows.fault[first]
        else:
            found = f"{source.roles[role]}: found {shown(_cell(rows, source.roles[role], first))}"
            message = f"{found}, expected {expected}"
        at = f"{source.at(rows.number[first])}: {found}"
        firsts.append((first, message, at))
        left.note(f"bad {role or 'row'}", int(bad.sum()), at)
    if not firsts:
        return good, None
    first, message, at = min(firsts)
    if refuse:
        where = f"{source.table.unit} {rows.number[first]}"
        raise UserError(f"{source.table.path}: {where}: {message}")
    return good, at
