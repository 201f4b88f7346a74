"""Whose lists are asked for: users of the set, or histories that the model has never seen."""

import dataclasses
import pathlib
from typing import Any

import numpy as np

from oa_jax import files
from oa_jax.data.texts import Reading, shown
from oa_jax.errors import UserError, needs
from oa_jax.events.log import DOMAINS, InteractionLog
from oa_jax.events.rows import end_columns, scatter
from oa_jax.runs.names import Names


def polars() -> Any:
    """The library, which lists and item tables need. Raises UserError where it is missing."""
    with needs("export"):
        import polars
    return polars


@dataclasses.dataclass(frozen=True)
class Histories:
    """Users (N) and what they took, joint ids, oldest first: items offsets[n]:offsets[n + 1] are
    user n's.  notes: in words, what of the input is not here, and which users are several."""

    users: list[str]
    item: np.ndarray
    offsets: np.ndarray
    notes: tuple[str, ...] = ()

    def __len__(self):
        return len(self.users)

    def grid(self, begin: int, end: int, rows: int) -> np.ndarray:
        """(rows, H) int32, left-padded with 0: the histories of users begin:end, then empty ones.
        H is a power of two, so that few shapes are compiled."""
        count = np.diff(self.offsets[begin : end + 1])
        width = 1 << max(3, int(count.max(initial=1) - 1).bit_length())
        row = np.repeat(np.arange(end - begin), count)
        items = self.item[self.offsets[begin] : self.offsets[end]]
        return scatter((rows, width), (row, end_columns(row, rows, width)), items)


def of_set(log: InteractionLog, names: Names, users: list[str] | None = None) -> Histories:
    """Whole histories of users of the set, by raw id; None: of all. A user with several sequences
    is there once for each, one after the other. Unknown users are left out."""
    numbers: dict[str, list[int]] = {}
    for number, raw in enumerate(names.users):
        numbers.setdefault(raw, []).append(number)
    wanted = dict.fromkeys(numbers if users is None else users)
    known = [raw for raw in wanted if raw in numbers]
    unknown = [raw for raw in wanted if raw not in numbers]
    if not known:
        first = f": the first is {unknown[0]!r}" if unknown else ""
        raise UserError(f"--users: none of {len(users)} is a user of {log.name}{first}")
    several = [raw for raw in known if len(numbers[raw]) > 1]
    notes = _said("left out: {} users", unknown)
    notes += _said("a list for each sequence of {} users that have several", several)
    some = log.take(np.concatenate([numbers[raw] for raw in known]))
    each = [raw for raw in known for _ in numbers[raw]]
    return Histories(each, some.item, some.offsets, notes)


def of_events(events: Any, names: Names, time_unit: str | None = None) -> Histories:
    """Histories out of events with raw ids: a file, or what polars makes a frame of.

    Files and columns are read as by `data import`: user, item, and where they are there time and
    domain (A or B, or as the set calls them). Each user's events are taken in the order of time,
    equal ones in that of the input; without times in that of the input. time_unit: of numbers, None
    tells it apart. Unknown items, and users without a known one, are left out and counted. Raises
    UserError naming line and column, also where an id is of both domains and there is no column of
    domains.
    """
    pl = polars()
    from oa_jax.data import own

    frame, source = _read(events, names, time_unit)
    ids = pl.DataFrame({"item": names.raw, "domain": names.domain}).with_row_index("id", 1)
    on = ["item", "domain"] if "domain" in source.roles else ["item"]
    if len(on) == 1:
        twice = ids.filter(pl.col("item").is_duplicated())["item"]
        both = pl.col("item").is_in(twice.implode())
        _refuse(frame.filter(both), "item", source, "a column domain, A or B: it is of both")
    found = frame.join(ids.select(*on, "id"), on=on, how="left", maintain_order="left")
    unknown = found.filter(pl.col("id").is_null())["item"].to_list()
    users = frame["user"].unique(maintain_order=True)
    found = found.filter(pl.col("id").is_not_null()).sort("time", maintain_order=True)
    if not len(found):
        said = f"no known item in {len(frame)} events: the first is {unknown[0]!r}"
        raise UserError(f"{source.table.path}: {said}")
    known = users.filter(users.is_in(found["user"].implode()))
    number = pl.DataFrame({"user": known}).with_row_index("number")
    found = found.join(number, on="user", maintain_order="left").sort("number", maintain_order=True)
    count = np.bincount(found["number"].to_numpy(), minlength=len(known))
    nobody = users.filter(~users.is_in(known.implode())).to_list()
    said = own.choices(source)
    said += _said("left out: {} events of unknown items", unknown)
    said += _said("left out: {} users without a known item", nobody)
    return Histories(known.to_list(), found["id"].to_numpy(), np.r_[0, np.cumsum(count)], said)


def _read(events, names, time_unit):
    """The events in the order of the input, and what they were read from."""
    pl = polars()
    from oa_jax.data import own, tables, values

    if isinstance(events, (str, pathlib.Path)):
        table = tables.look(files.local(events, "--histories"))
    else:
        table = tables.of_frame(events, "histories")
    roles = own.roles_of(table, own.Options(title="", time_unit=time_unit), flags=False)
    source = values.InputFile(table, None if "domain" in roles else "", roles, table.path.name)
    frame, *_ = values.read([source], time_unit, "refuse", Reading(), values.LeftOut([source]))
    frame = frame.sort("row").cast(dict.fromkeys(("user", "item", "domain"), pl.String))
    if "domain" in roles:
        known = {d: d for d in DOMAINS} | dict(zip(names.domains, DOMAINS, strict=True))
        expected = " or ".join(dict.fromkeys((*DOMAINS, *names.domains)))
        _refuse(frame.filter(~pl.col("domain").is_in(list(known))), "domain", source, expected)
        frame = frame.with_columns(pl.col("domain").replace(known))
    return frame, source


def _refuse(bad, role, source, expected):
    if len(bad):
        where = f"{source.table.path}: {source.table.unit} {bad['row'][0]}: {source.roles[role]}"
        raise UserError(f"{where}: found {shown(bad[role][0])}, expected {expected}")


def _said(what, those):
    return (f"{what.format(len(those))}, the first {str(those[0])[:60]!r}",) if those else ()
