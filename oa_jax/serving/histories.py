"""Whose lists are asked for: users of the set, or histories that the model has never seen."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import TYPE_CHECKING, Any

import numpy as np

from oa_jax import files
from oa_jax.errors import UserError
from oa_jax.events.log import InteractionLog
from oa_jax.runs.names import Names

if TYPE_CHECKING:
    import polars as pl

READERS = {
    ".parquet": "read_parquet",
    ".jsonl": "read_ndjson",
    **dict.fromkeys((".csv", ".tsv"), "read_csv"),
}
EXPECTED = "events: user, item, time (and domain) in columns of a .parquet, .jsonl, .csv or .tsv"


def polars() -> Any:
    """The library, which lists and item tables need. Raises UserError where it is missing."""
    try:
        import polars
    except ImportError:
        raise UserError("polars: not installed: expected pip install 'oa-jax[export]'") from None
    return polars


@dataclasses.dataclass(frozen=True)
class Histories:
    """Users (N) and what they took, joint ids, oldest first: items offsets[n]:offsets[n + 1] are
    user n's.  left_out: in words, what of the input is not here."""

    users: list[str]
    item: np.ndarray
    offsets: np.ndarray
    left_out: tuple[str, ...] = ()

    def __len__(self):
        return len(self.users)

    def grid(self, begin: int, end: int, rows: int) -> np.ndarray:
        """(rows, H) int32, left-padded with 0: the histories of users begin:end, then empty ones.
        H is a power of two, so that few shapes are compiled."""
        count = np.diff(self.offsets[begin : end + 1])
        width = 1 << max(3, int(count.max(initial=1) - 1).bit_length())
        out = np.zeros((rows, width), np.int32)
        row = np.repeat(np.arange(end - begin), count)
        event = np.arange(self.offsets[begin], self.offsets[end])
        out[row, width + event - self.offsets[begin:end][row] - count[row]] = self.item[event]
        return out


def of_set(log: InteractionLog, names: Names, users: list[str] | None = None) -> Histories:
    """Whole histories of users of the set, by raw id; None: of all. Unknown users are left out."""
    if users is None:
        return Histories(names.users, log.item, log.offsets)
    number = {raw: n for n, raw in enumerate(names.users)}
    known = list(dict.fromkeys(raw for raw in users if raw in number))
    unknown = [raw for raw in users if raw not in number]
    if not known:
        first = f": the first is {unknown[0]!r}" if unknown else ""
        raise UserError(f"--users: none of {len(users)} is a user of {log.name}{first}")
    some = log.take(np.array([number[raw] for raw in known]))
    return Histories(known, some.item, some.offsets, _said("users", unknown))


def of_events(events: Any, names: Names, where: str = "histories") -> Histories:
    """Histories out of events with raw ids: a file (`EXPECTED`), or what polars makes a frame of.

    Each user's events are taken in the order of `time`, equal ones in that of the input; without
    times in that of the input. Unknown items, and users without a known one, are left out and
    counted. Raises UserError naming column and row, also where an id is of both domains and there
    is no column `domain`.
    """
    pl = polars()
    if isinstance(events, (str, pathlib.Path)):
        events, where = read(events), str(events)
    frame = _checked(pl.DataFrame(events), where)
    ids = pl.DataFrame({"item": names.raw, "domain": names.domain}).with_row_index("id", 1)
    on = ["item", "domain"] if "domain" in frame.columns else ["item"]
    if len(on) == 1:
        twice = ids.filter(pl.col("item").is_duplicated())["item"]
        both = frame.filter(pl.col("item").is_in(twice.implode()))
        if len(both):
            row, item = both["row"][0], both["item"][0]
            found = f"row {row}, item {item!r}: of both domains"
            raise UserError(f"{where}: {found}: expected a column domain, A or B")
    found = frame.join(ids.select(*on, "id"), on=on, how="left", maintain_order="left")
    unknown = found.filter(pl.col("id").is_null())["item"].to_list()
    users = frame["user"].unique(maintain_order=True)
    found = found.filter(pl.col("id").is_not_null())
    if not len(found):
        raise UserError(
            f"{where}: no known item in {len(frame)} events: the first is {unknown[0]!r}"
        )
    found = found.sort("time", maintain_order=True) if "time" in found.columns else found
    known = users.filter(users.is_in(found["user"].implode()))
    number = pl.DataFrame({"user": known}).with_row_index("number")
    found = found.join(number, on="user", maintain_order="left").sort("number", maintain_order=True)
    count = np.bincount(found["number"].to_numpy(), minlength=len(known))
    nobody = users.filter(~users.is_in(known.implode())).to_list()
    said = _said("events of unknown items", unknown) + _said("users without a known item", nobody)
    return Histories(known.to_list(), found["id"].to_numpy(), np.r_[0, np.cumsum(count)], said)


def read(path: str | pathlib.Path) -> pl.DataFrame:
    """The events of a file; see `EXPECTED`. Ids are text."""
    pl, file = polars(), files.local(path, "--histories")
    if file.suffix not in READERS:
        raise UserError(f"--histories={path}: expected {EXPECTED}")
    options = {}
    if READERS[file.suffix] == "read_csv":
        separator = "\t" if file.suffix == ".tsv" else ","
        options = {"infer_schema": False, "separator": separator}
    try:
        return getattr(pl, READERS[file.suffix])(file, **options)
    except (OSError, pl.exceptions.PolarsError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"--histories={path}: {reason}: expected {EXPECTED}") from None


def _checked(frame, where):
    """The events with ids as text and times as numbers. Raises UserError for what is neither."""
    pl = polars()
    missing = [column for column in ("user", "item") if column not in frame.columns]
    if missing:
        found = ", ".join(frame.columns) or "nothing"
        raise UserError(f"{where}: no column {missing[0]}: found {found}: expected {EXPECTED}")
    if not len(frame):
        raise UserError(f"{where}: no events: expected {EXPECTED}")
    text = [column for column in ("user", "item", "domain") if column in frame.columns]
    out = frame.with_columns(pl.col(text).cast(pl.String)).with_row_index("row", 1)
    for column in text:
        expected = "A or B" if column == "domain" else "an id"
        good = pl.col("domain").is_in(["A", "B"]) if column == "domain" else pl.col(column) != ""
        _refuse(out.filter(~good.fill_null(False)), column, where, expected)
    if "time" in frame.columns:
        time = pl.col("time")
        if frame["time"].dtype == pl.String:
            dates = time.str.to_datetime(strict=False, time_zone="UTC").dt.timestamp("us")
            number = time.cast(pl.Float64, strict=False)
            # One or the other in the whole file: a number is no date.
            time = dates if frame.select(number.is_null().all()).item() else number
        else:
            time = time.to_physical().cast(pl.Float64, strict=False)
        times = out.with_columns(parsed=time)
        bad = times.filter(pl.col("parsed").is_null() | ~pl.col("parsed").is_finite())
        _refuse(bad, "time", where, "a number or an ISO date")
        out = times.with_columns(time="parsed").drop("parsed")
    return out


def _refuse(bad, column, where, expected):
    if len(bad):
        row, found = bad["row"][0], bad[column][0]
        raise UserError(f"{where}: row {row}, {column} {found!r}: expected {expected}")


def _said(what, left_out):
    if not left_out:
        return ()
    return (f"left out: {len(left_out)} {what}, the first {str(left_out[0])[:60]!r}",)
