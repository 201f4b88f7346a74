"""Makes a data set of your own files: reads two domains, checks every row, applies filters.

No guess is silent. The output and the metadata say what each column was taken for, how times were
read, and how many rows were left out, by reason and with the first of each.
"""

import dataclasses
import math
import os
from collections.abc import Sequence

import numpy as np
import polars as pl

from oa_jax import files as local_files
from oa_jax.data import filters, tables, times, values
from oa_jax.data.raw import check_columns, numbered
from oa_jax.data.store import ORDER, Built, Place
from oa_jax.data.texts import Reading, Say, shown
from oa_jax.data.values import InputFile, LeftOut
from oa_jax.errors import UserError
from oa_jax.events.log import DOMAINS, TEST

# Role of a column -> its usual names, the first that is there is taken.
USUAL = {
    "user": ("user", "user_id", "userid", "uid", "reviewerid", "customer_id", "customer"),
    "item": ("item", "item_id", "itemid", "iid", "asin", "product_id", "product", "movie_id"),
    "time": ("time", "timestamp", "unixreviewtime", "datetime", "date", "ts"),
    "rating": ("rating", "overall", "score", "stars"),
    "domain": ("domain",),
    "title": ("title", "item_name"),
}
FEWEST = 3  # events of a user: one to train on, one to validate, one to test
SHARED = ("keep", "drop", "first")
BAD_ROWS = ("refuse", "skip")


@dataclasses.dataclass(frozen=True)
class Options:
    """How files are read.

    user … title: the name of the column, or several names with commas, of which each file has one;
    None looks for one of the USUAL names, "" means that there is none.
    columns: names of all columns, for text without a header. delimiter: None guesses it.
    domains: names of A and B, if there are more than two. time_unit: of numbers, one of
    `times.FACTORS`; None guesses it. shared_items: items with events in both domains become two
    items ("keep"), are dropped ("drop"), or go to the domain of their first event ("first").
    filters: steps in their order, see `filters.STEPS`. bad_rows: "refuse" raises an error for a row
    that cannot be read, "skip" leaves it out and counts it.
    """

    user: str | None = None
    item: str | None = None
    time: str | None = None
    rating: str | None = None
    domain: str | None = None
    title: str | None = None
    columns: tuple[str, ...] = ()
    delimiter: str | None = None
    domains: tuple[str, ...] = ()
    time_unit: str | None = None
    shared_items: str = "keep"
    filters: tuple[str, ...] = ()
    bad_rows: str = "refuse"

    def __post_init__(self):
        for one in dataclasses.fields(self):
            value, expected = getattr(self, one.name), "text"
            good = isinstance(value, str | type(one.default))
            if one.default == ():
                expected = "a list of text"
                good = isinstance(value, tuple) and all(isinstance(part, str) for part in value)
            if not good:
                raise UserError(f"--{one.name}={value!r}: expected {expected}")
        known = {"time_unit": (None, *times.FACTORS), "shared_items": SHARED, "bad_rows": BAD_ROWS}
        for name, choices in known.items():
            if getattr(self, name) not in choices:
                names = ", ".join(filter(None, choices))
                raise UserError(f"--{name}={getattr(self, name)}: expected one of {names}")
        for name in ("columns", "domains"):
            given = getattr(self, name)
            if len(set(given)) < len(given) or "" in given or name == "domains" and len(given) == 1:
                two = "two different names" if name == "domains" else "a name of its own for each"
                raise UserError(f"--{name}={','.join(given)}: expected {two}")
        if len(self.domains) > 2:
            raise UserError(f"--domains={','.join(self.domains)}: expected two of them")


Given = Place | tuple[str | None, tables.Table]  # FILE, DOMAIN=FILE, or a frame with its domain


def sources_of(given: Sequence[Given], options: Options) -> list[InputFile]:
    """The files of `FILE` or `DOMAIN=FILE` arguments, and frames, with their columns by role.

    For plain `FILE`s the domain is in a column, or else each file is a domain with its name.
    Raises UserError naming the file or flag.
    """
    if not given:
        raise UserError("import: no file given: expected FILE or DOMAIN=FILE, one or more")
    steps = [filters.parsed(step) for step in options.filters]
    named = [one if isinstance(one, tuple) else _named(one) for one in given]
    if len({name is None for name, _ in named}) > 1:
        plain = next(path for name, path in named if name is None)
        raise UserError(f"{plain}: expected DOMAIN=FILE, as of the other files, or FILE for all")
    paths = [os.path.realpath(path) for _, path in named if not isinstance(path, tables.Table)]
    if twice := [path for path in paths if paths.count(path) > 1]:
        raise UserError(f"{twice[0]}: given twice, expected each file once")
    looked = [
        path
        if isinstance(path, tables.Table)
        else tables.look(path, options.columns, options.delimiter)
        for _, path in named
    ]
    found = []
    for (name, _), table in zip(named, looked, strict=True):
        roles = roles_of(table, options, "rating" in [step[0] for step in steps])
        if name is not None and options.domain:
            expected = "expected FILE, or DOMAIN=FILE without the flag"
            raise UserError(f"--domain={options.domain}: {name}={table.path.name}: {expected}")
        if name is not None:
            roles.pop("domain", None)
        found.append((name, table, roles))
    if all(name is None and "domain" not in roles for name, _, roles in found):
        stems = [table.path.name.split(".")[0] for _, table, _ in found]
        if len(set(stems)) != len(stems) or len(stems) < 2:
            what = "a column of domains (--domain=), or DOMAIN=FILE for files of two domains"
            raise UserError(f"{found[0][1].path}: nothing says of which domain its rows are: "
                            f"expected {what}")  # fmt: skip
        found = [(stem, *rest) for stem, (_, *rest) in zip(stems, found, strict=True)]
    for role in ("domain", "time"):
        having = [role in roles for *_, roles in found]
        if any(having) and not all(having):
            table = found[having.index(False)][1]
            raise UserError(f"{table.path}: no column of {role}, which other files have: expected "
                            f"one among {_list(table.columns)}")  # fmt: skip
    alike = len({table.path.name for _, table, _ in found}) < len(found)
    return [
        InputFile(table, name, roles, str(table.path) if alike else table.path.name)
        for name, table, roles in found
    ]


def _named(text):
    """(domain or None, path) of an argument."""
    path = local_files.local(text)
    name, equals, rest = os.fspath(text).partition("=")
    if not equals or path.exists():
        return None, path
    if not name or not rest:
        raise UserError(f"{text}: expected DOMAIN=FILE")
    return name, local_files.local(rest)


def roles_of(
    table: tables.Table, options: Options, needs_rating: bool = False, flags: bool = True
) -> dict[str, str]:
    """{role: column} of a table. flags: whether error messages may name the flags of `Options`.

    Raises UserError for a column that is missing, occurs twice, or has two roles.
    """
    roles = {}
    for role, usual in USUAL.items():
        name = getattr(options, role)
        if name is None:
            near = {column.lower(): column for column in reversed(table.columns)}
            name = next((near[one] for one in usual if one in near), "")
            if role == "rating" and not needs_rating:
                continue  # it may hold anything
        elif name and name not in table.columns:
            names = [one for one in name.split(",") if one in table.columns]
            if not names:
                found = f"{table.path} has {_list(table.columns)}"
                raise UserError(f"--{role}={name}: no such column: {found}")
            name = names[0]
        if name:
            roles[role] = name
        elif role in ("user", "item") or (role == "rating" and needs_rating):
            found = f"found {_list(table.columns)}"
            header = table.kind == tables.TEXT and not options.columns
            line = f"line {table.first - 1}: " if header else ""
            hint = ", or --columns= where the file has no header" if header and flags else ""
            flag = f"--{role}= or " if flags else ""
            expected = f"expected {flag}a column called {' or '.join(usual[:2])}{hint}"
            raise UserError(f"{table.path}: {line}no column of {role}: {found}: {expected}")
    for role, name in roles.items():
        if table.columns.count(name) > 1:
            raise UserError(f"{table.path}: line {table.first - 1}: column {name!r} twice, "
                            f"expected one of {role}s")  # fmt: skip
        twin = next((other for other in roles if roles[other] == name and other != role), None)
        if twin:
            raise UserError(f"{table.path}: column {name!r} as {role} and as {twin}: expected two")
    return roles


def _list(names):
    return shown(", ".join(names)) if names else "none"


def read(
    given: Sequence[Given], options: Options, reading: Reading, say: Say
) -> tuple[Built, list[dict]]:
    """Events of files: (columns with numbered users and items, what is left out).

    given: see `sources_of`. say: called with one line for each choice and each
    kind of row left out. Raises UserError naming file, line, column, found and expected.
    """
    sources = sources_of(given, options)
    for source in sources:
        say(_described(source))
    left = LeftOut(sources)
    events, titles, units = values.read(sources, options.time_unit, options.bad_rows, reading, left)
    _say_times(sources, units, say)
    events, names = _two_domains(events, sources, options.domains, left)
    say(f"domains: A {names[0]}, B {names[1]}")
    check_columns(events, f"{names[0]} and {names[1]}", named=True)
    events = _shared_items(events, options.shared_items, left, say)
    for step in options.filters:
        parsed = _limit_in_millionths(filters.parsed(step), units, options.time_unit)
        events = left.filtered(step, events, filters.kept(events, *parsed))
    reason = f"users with fewer than {FEWEST} events, which leave nothing to train on"
    events = left.filtered(reason, events, pl.len().over("user") >= FEWEST)
    for entry in left.facts():
        say("left out: {rows:,} rows: {reason}; the first is {first}".format(**entry))
    built = _numbered(events, titles, names, units)
    _say_order(built, say)
    return built, left.facts()


def choices(source: InputFile) -> tuple[str, ...]:
    """Lines about choices in a file: several columns fit one role, or no column of times was found
    though the file has more columns than were read."""
    line, spare = _described(source), set(source.table.columns) - set(source.roles.values())
    said = (line,) if "(not " in line else ()
    if "time" not in source.roles and spare:
        said += (f"{source.name}: times: none: the order is that of the rows",)
    return said


def _described(source):
    table = source.table
    words = [table.kind + (f" separated by {table.delimiter!r}" if table.delimiter else "")]
    for role, name in source.roles.items():
        others = [c for c in table.columns if c.lower() in USUAL[role] and c != name]
        words.append(f"{role}={name}" + (f" (not {', '.join(others)})" if others else ""))
    words += [f"domain {source.domain!r}"] if source.domain else []
    return f"{source.name}: {', '.join(words)}"


def _say_times(sources, units, say):
    """Raises UserError where one file has unix times and another one other numbers."""
    for source, unit in zip(sources, units, strict=bool(units)):
        if (unit == times.NUMBER) is not (units[0] == times.NUMBER):
            expected = f"expected {times.WORDS[units[0]]} as in {sources[0].name}"
            found = f"{source.roles['time']}: found {times.WORDS[unit]}"
            raise UserError(f"{source.table.path}: column {found}, {expected}")
        zone = ", UTC where no zone is given" if unit == times.DATE else ""
        say(f"{source.name}: times are {times.WORDS[unit]}{zone}")
    if not units:
        after = "; of a user, events of one file come before those of the next"
        say(f"times: none: the order is that of the rows{after if len(sources) > 1 else ''}")


def _two_domains(events, sources, wanted, left):
    """Events of two domains, numbered 0 and 1, and their names: those wanted, in the order of the
    files, or of the names in a column."""
    counts = dict(events["domain"].value_counts().iter_rows())
    there = list(dict.fromkeys(s.domain for s in sources if s.domain)) or sorted(counts)
    names = list(wanted or there)
    if len(names) != 2 or not set(names) <= set(counts):
        shown_names = ", ".join(f"{name} ({counts.get(name, 0):,})" for name in there[:20])
        flag = f"--domains={','.join(wanted)}" if wanted else "domains"
        expected = "two of these" if wanted else "two, or --domains=A,B that names them"
        raise UserError(f"{flag}: found {len(there)}: {shown_names}: expected {expected}")
    if names[0] == DOMAINS[1] or names[1] == DOMAINS[0]:
        expected = "another order or other names, as lists call the first A and the second B"
        raise UserError(f"domains: found {names[0]}, then {names[1]}: expected {expected}")
    for name in there:
        if name not in names:
            events = left.filtered(f"domain {name}", events, pl.col("domain") != name)
    second = (pl.col("domain") == names[1]).cast(pl.Int8)
    return events.with_columns(domain=second), tuple(names)


def _shared_items(events, rule, left, say):
    shared = filters.in_both(events, "item")
    if not len(shared):
        return events
    own = {"keep": "kept apart, as an item of each", "drop": "left out",
           "first": "left to the domain of their first event"}[rule]  # fmt: skip
    say(f"shared items: {len(shared):,}, the first is {min(shared)!r}: {own}")
    if rule == "keep":
        return events
    mask = ~pl.col("item").is_in(shared.implode())
    if rule == "first":
        mask = pl.col("domain") == pl.col("domain").first().over("item")
    return left.filtered(f"items of both domains (shared_items={rule})", events, mask)


def _limit_in_millionths(step, units, time_unit):
    """A parsed step with its limit as a number. Raises UserError where it needs times or a limit
    that are not there."""
    word, *rest = step
    if word == "duplicates" and not units:  # where all events would differ
        expected = "expected repeats=first or repeats=last"
        raise UserError(f"--filter=duplicates={rest[0]}: the files have no times: {expected}")
    if word not in ("rating", "time"):
        return step
    text = "".join((word, *rest))
    if word == "rating":
        limit = pl.Series([rest[1]]).cast(pl.Float64, strict=False)
    elif not units:
        raise UserError(f"--filter={text}: the files have no times")
    else:
        limit, found = times.parsed(pl.Series([rest[1]]), time_unit)
        if (found[0] == times.NUMBER) is not (units[0] == times.NUMBER):
            raise UserError(f"--filter={text}: expected a time as the files have: "
                            f"{times.WORDS[units[0]]}")  # fmt: skip
    if limit[0] is None or not math.isfinite(limit[0]):
        raise UserError(f"--filter={text}: found {rest[1]!r}, expected a finite number or a date")
    return word, rest[0], limit[0]


def _say_order(built, say):
    """What the order of events gets from the files, and which domain has no target for it."""
    domain = built.item > built.n_items[0]
    same = np.diff(built.user) == 0
    tied = same & (np.diff(built.time) == 0) & (np.diff(domain) != 0)
    if built.times != ORDER and tied.sum() > same.sum() / 100:
        share = f"{tied.sum() / same.sum():.0%} of the neighbours of a user's events"
        say(f"{share} are of both domains at one time: their order is that of the files")
    for number, name in enumerate(built.domains):
        if not (domain[built.role == TEST] == number).any():
            say(f"no test target lies in {name}: no user's last event is of it")


def _numbered(events, titles, names, units):
    def texts(domain, items):
        own = titles.filter(pl.col("domain") == names[domain], pl.col("item").is_in(items))
        return {item: {"title": title} for item, title in own.select("item", "title").iter_rows()}

    time, word = pl.int_range(pl.len()).over("user"), ORDER
    if units:
        time, word = times.stored(events["time"], units[0] != times.NUMBER)
    events, what = events.with_columns(time=time), " and ".join(names)
    return numbered(events, what, by_name=True, texts=texts, times=word, domains=names)
