"""Anyone's files as a set: formats, columns, times, domains, filters, and what is refused."""

import csv
import gzip
import io
import json
import pathlib
import re

import numpy as np
import polars as pl
import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st

import oa_jax as oa
from oa_jax.data import blocks as block_reader
from oa_jax.data import filters, own, sources, store, tables
from oa_jax.data.prepare import prepare_own
from oa_jax.data.texts import Reading
from oa_jax.errors import UserError
from oa_jax.runs import names as names_lib
from tests.data.generate_shop import generate

NAMES = ["user", "item", "rating", "time", "domain", "title"]
BEGIN = 1_700_000_000


def draw(n=240, seed=0, n_users=12, n_items=9):
    """Rows as NAMES in the order of time, ids of several scripts, a title of every item."""
    rng = np.random.default_rng(seed)
    rows = []
    for k in range(n):
        item, kind = int(rng.integers(n_items)), ("books", "músic")[int(rng.integers(2))]
        user = ("ann", "борис", "陳", "u4")[item % 4] + str(rng.integers(n_users // 4))
        title = f'A "{item}", of {kind}; a|b'
        rows.append([user, f"{kind[0]}{item}", int(rng.integers(1, 6)), BEGIN + 7 * k, kind, title])
    return rows


ROWS = draw()
FRAME = pl.DataFrame(ROWS, schema=NAMES, orient="row")


def text(rows=ROWS, names=NAMES, delimiter=",", end="\n", quoting=csv.QUOTE_MINIMAL):
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter, lineterminator=end, quoting=quoting)
    writer.writerows(([names] if names else []) + rows)
    return out.getvalue()


def bare(rows=ROWS):
    """Without titles, so that no delimiter stands in a field."""
    return [row[:5] for row in rows]


def write(path, content):
    content = content.encode() if isinstance(content, str) else content
    if path.name.endswith(".gz"):
        content = gzip.compress(content)
    if path.name.endswith(".zst"):
        content = pyarrow.compress(content, codec="zstd", asbytes=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def read(*files, said=None, **options):
    """(Built, what is left out)."""
    say = [].append if said is None else said.append
    built, left = own.read(list(files), own.Options(**options), Reading(), say)
    return built, {entry["reason"]: (entry["rows"], entry["first"]) for entry in left}


def events(built):
    """(raw user, raw item, domain, time) of all events, in their order."""
    raw = [(item["raw"], item["domain"]) for item in built.items]
    columns = zip(built.user, built.item, built.time, strict=True)
    return [(built.raw_users[u], *raw[i - 1], int(t)) for u, i, t in columns]


def expected(rows=ROWS, a="books"):
    """The same of rows, by sorting alone."""
    rows = sorted(rows, key=lambda row: (row[0].encode(), row[3]))
    return [(row[0], row[1], "AB"[row[4] != a], row[3]) for row in rows]


# --- formats --------------------------------------------------------------------------------------


def lines_of_json(rows=ROWS, names=NAMES):
    return "".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows)


def parquet(frame=FRAME):
    out = io.BytesIO()
    frame.write_parquet(out)
    return out.getvalue()


TYPED = ["user:token", "item:token", "rating:float", "time:float", "domain:token"]
FORMATS = {
    "csv": ("a.csv", text()),
    "all in quotes": ("a.csv", text(quoting=csv.QUOTE_ALL)),
    "a mark and CRLF, as Excel has them": ("a.csv", "\ufeff" + text(end="\r\n")),
    "a mark before each of two parts": (
        "a.csv",
        "\ufeff" + text(ROWS[:90]) + "\ufeff" + text(ROWS[90:], None, quoting=csv.QUOTE_ALL),
    ),
    "no end at the end": ("a.csv", text().rstrip("\n")),
    "blank lines": ("a.csv", "\n" + text().replace("\n", "\n\n  \n")),
    "tabs": ("a.tsv", text(delimiter="\t")),
    "semicolons": ("a.csv", text(delimiter=";")),
    "bars": ("a.txt", text(delimiter="|")),
    "blanks": ("a.txt", text(bare(), NAMES[:5], " ")),
    "double colons": ("a.dat", text(bare(), NAMES[:5]).replace(",", "::")),
    "gzip": ("a.csv.gz", text()),
    "gzip under another name": ("a.csv", gzip.compress(text().encode())),
    "zstd": ("a.csv.zst", text()),
    "Parquet": ("a.parquet", parquet()),
    "Parquet with categories and dates": (
        "a.pq",
        parquet(
            FRAME.with_columns(
                pl.col("user").cast(pl.Categorical),
                pl.from_epoch("time").dt.replace_time_zone("UTC"),
            )
        ),
    ),
    "JSON lines": ("a.jsonl", lines_of_json()),
    "JSON lines with more": ("a.json.gz", lines_of_json().replace("{", '{"x": [1], ', 1)),
    "a typed header": ("a.inter", text(bare(), TYPED, "\t")),
    "columns in another order": ("a.csv", text([row[::-1] for row in ROWS], NAMES[::-1])),
    "other names": ("a.csv", text(names=["userId", "ASIN", "x", "timestamp", "Domain", "title"])),
}


@pytest.fixture(params=[64, block_reader.BLOCK_BYTES], ids=["tiny blocks", "one block"])
def blocks(request, monkeypatch):
    """Everything holds wherever a block ends."""
    monkeypatch.setattr(block_reader, "BLOCK_BYTES", request.param)
    monkeypatch.setattr(tables, "BLOCK_ROWS", 1 << 20 if request.param > 64 else 16)


@pytest.mark.parametrize("case", FORMATS)
def test_formats_give_the_same_events(blocks, tmp_path, case):
    name, content = FORMATS[case]
    reading = Reading()
    built, left = own.read([write(tmp_path / name, content)], own.Options(), reading, print)
    assert events(built) == expected() and built.times == store.SECONDS and not left
    assert list(reading.lines) == [name] and reading.lines[name] >= len(ROWS)
    if "title" in str(content) or case.startswith("Parquet"):
        titles = {row[1]: row[5] for row in ROWS}
        assert {item["raw"]: item["title"] for item in built.items} == titles


def test_files_of_domains(tmp_path):
    """A file for each, several for one, called by their names or as said: the same events."""
    parts = {kind: [row for row in ROWS if row[4] == kind] for kind in ("books", "músic")}
    files = [write(tmp_path / f"{kind}.csv", text(rows)) for kind, rows in parts.items()]
    assert events(read(*files, domain="")[0]) == expected()
    half = len(parts["books"]) // 2
    one, two = parts["books"][:half], parts["books"][half:]
    more = [
        f"one={write(tmp_path / '1.jsonl', lines_of_json(one))}",
        f"two={files[1]}",
        f"one={write(tmp_path / '2.csv', text([row[:4] for row in two], None))}",
    ]
    with pytest.raises(UserError, match="2.csv: line 1: no column of user: found .*: expected --u"):
        read(*more)
    more[2] = f"one={write(tmp_path / '2.csv', text([row[:4] for row in two], NAMES[:4]))}"
    assert events(read(*more)[0]) == expected()
    there = write(tmp_path / "x=y.csv", text())  # a path that is there is one
    assert events(read(there)[0]) == expected()


def test_files_of_one_name_are_told_apart_by_their_folders(tmp_path):
    files = [f"{n}={write(tmp_path / n / 'log.csv', line(',x,4,5,b'))}" for n in "bm"]
    said = []
    _, left = read(*files, domain="", bad_rows="skip", said=said)
    assert left["bad user"] == (2, f"{tmp_path}/b/log.csv: line 4: user: found ''")
    assert said[1].startswith(f"{tmp_path}/m/log.csv: text separated by")


def test_columns_called_otherwise_in_each_file(tmp_path):
    names = ["user", "thing", "rating", "time", "domain"]
    a, b = (write(tmp_path / f"{n}.csv", text(bare(ROWS[n::2]), names)) for n in (0, 1))
    write(b, b.read_text().replace("thing", "item_id", 1))
    assert events(read(a, b, item="thing,item_id")[0]) == events(
        read(write(tmp_path / "c.csv", text(bare(), NAMES[:5])))[0]
    )
    with pytest.raises(UserError, match="--item=thing,other: no such column: .*1.csv has"):
        read(a, b, item="thing,other")


def test_columns_without_a_header(tmp_path):
    path = write(tmp_path / "a.csv", text(names=None))
    built, _ = read(path, columns=tuple(NAMES))
    assert events(built) == expected()


@given(
    st.lists(
        st.lists(st.text(alphabet='ab",; ü\u2028\x0b', max_size=4), min_size=3, max_size=3),
        min_size=1,
        max_size=6,
    )
)
def test_what_a_csv_writer_writes_is_read(tmp_path_factory, rows):
    """With quotes and without, as Python's own reader: rows of blanks alone are none."""
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL):
        write(path, text(rows, ["a", "b", "c"], quoting=quoting))
        found = tables.rows(tables.look(path, delimiter=","), ["c", "a"], Reading())
        fields = [row for part in found for row in part.fields.rows()]
        assert fields == [(row[2], row[0]) for row in rows]


# --- times ----------------------------------------------------------------------------------------

ISO = "2023-11-14T22:13:20"  # BEGIN
TIMES = {
    "seconds": (lambda t: t, "unix seconds", 1, "unix seconds"),
    "with a fraction": (lambda t: f"{t}.5", "unix milliseconds", 1000, "unix seconds"),
    "as floats": (lambda t: f"{t}.0", "unix seconds", 1, "unix seconds"),
    "milliseconds": (lambda t: t * 1000 + 1, "unix milliseconds", 1000, "unix milliseconds"),
    "microseconds": (lambda t: t * 10**6 + 1, "unix microseconds", 10**6, "unix microseconds"),
    "nanoseconds": (lambda t: t * 10**9, "unix seconds", 1, "unix nanoseconds"),
    "numbers": (lambda t: t - BEGIN, "numbers", 1, "numbers below 1e8"),
    "dates": (
        lambda t: np.datetime_as_string(np.datetime64(t, "s")),
        "unix seconds",
        1,
        "dates, UTC where no zone is given",
    ),
    "dates with a zone": (
        lambda t: str(np.datetime64(t + 5400, "s")).replace("T", " ") + "+01:30",
        "unix seconds",
        1,
        "dates, UTC where no zone is given",
    ),
}


@pytest.mark.parametrize("case", TIMES)
def test_times_of_any_kind(tmp_path, case):
    make, word, factor, told = TIMES[case]
    rows = [[*row[:3], make(row[3]), *row[4:]] for row in ROWS]
    said = []
    built, _ = read(write(tmp_path / "a.csv", text(rows)), said=said)
    begin = 0 if word == "numbers" else BEGIN
    assert built.times == word and min(built.time) // factor == begin
    assert [event[:3] for event in events(built)] == [event[:3] for event in expected()]
    assert f"a.csv: times are {told}" in said


def test_a_given_unit(tmp_path):
    path = write(tmp_path / "a.csv", text([[*r[:3], r[3] - BEGIN, *r[4:]] for r in ROWS]))
    built, _ = read(path, time_unit="s")
    assert built.times == "unix seconds" and min(built.time) == 0
    steps = ("time>=70", "time<1970-01-01T00:20:00")  # of the same unit, or a date
    built, _ = read(path, time_unit="s", filters=steps)
    assert (min(built.time), max(built.time)) == (70, 1197)


def test_digits_of_a_date_need_a_unit(tmp_path):
    """Unless they are of no date: month 13, hour 24, minute 60."""
    for time in ("2023111422", "202311142213"):
        path = write(tmp_path / "a.csv", text([[*r[:3], time, *r[4:]] for r in ROWS]))
        with pytest.raises(UserError, match=f"line 2: time: found '{time}', .*or --time_unit"):
            read(path)
        built, _ = read(path, time_unit="number")
        assert built.times == "numbers" and max(built.time) == int(time)
    for time in ("2023131422", "2023111424", "202311142260"):
        path = write(tmp_path / "a.csv", text([[*r[:3], time, *r[4:]] for r in ROWS]))
        assert read(path)[0].times.startswith("unix")


def test_without_times_the_rows_are_the_order(tmp_path):
    rows = [[*row[:3], *row[4:]] for row in ROWS]
    said = []
    path = write(tmp_path / "a.csv", text(rows, ["user", "item", "rating", "domain", "title"]))
    built, _ = read(path, said=said)
    assert built.times == store.ORDER and "times: none: the order is that of the rows" in said
    assert [event[:3] for event in events(built)] == [event[:3] for event in expected()]
    assert built.time[:3].tolist() == [0, 1, 2]
    same, _ = read(write(tmp_path / "b.csv", text()), time="")
    assert events(same) == events(built)


# --- domains and items ----------------------------------------------------------------------------


def test_more_than_two_domains(tmp_path):
    rows = ROWS + [["ann1", "t1", 3, BEGIN, "toys", ""]] * 2
    path = write(tmp_path / "a.csv", text(rows))
    with pytest.raises(UserError, match=r"domains: found 3: books \(\d+\), músic .*, toys \(2\)"):
        read(path)
    built, left = read(path, domains=("músic", "books"))
    assert events(built) == expected(a="músic")
    assert left == {"domain toys": (2, "a.csv: line 242")}
    with pytest.raises(UserError, match="--domains=books,film: found 3: .*: expected two of these"):
        read(path, domains=("books", "film"))


@pytest.mark.parametrize("names", ["BA", "Bm", "bA"])
def test_the_letters_of_domains_are_not_those_of_the_other(tmp_path, names):
    """Lists call the first domain A and the second B."""
    files = [f"{n}={write(tmp_path / f'{k}.csv', GOOD)}" for k, n in enumerate(names)]
    with pytest.raises(UserError, match=f"domains: found {names[0]}, then {names[1]}: expected an"):
        read(*files, domain="")
    with pytest.raises(UserError, match="domains: found B, then A: expected another order"):
        read(write(tmp_path / "a.csv", GOOD.replace(",b\n", ",A\n").replace(",m\n", ",B\n")),
             domains=("B", "A"))  # fmt: skip


def test_items_of_both_domains(tmp_path):
    rows = [[*row[:1], "x" if row[1][1:] == "0" else row[1], *row[2:]] for row in ROWS]
    shared = [k for k, row in enumerate(rows) if row[1] == "x"]
    assert {rows[k][4] for k in shared} == {"books", "músic"}
    path, said = write(tmp_path / "a.csv", text(rows)), []
    built, _ = read(path, said=said)
    assert [i["domain"] for i in built.items if i["raw"] == "x"] == ["A", "B"]
    assert "shared items: 1, the first is 'x': kept apart, as an item of each" in said
    built, left = read(path, shared_items="drop")
    assert left["items of both domains (shared_items=drop)"][0] == len(shared)
    assert "x" not in [item["raw"] for item in built.items]
    built, left = read(path, shared_items="first")
    others = sum(rows[k][4] != rows[shared[0]][4] for k in shared)
    assert left["items of both domains (shared_items=first)"][0] == others
    of = {"books": "A", "músic": "B"}[rows[shared[0]][4]]
    assert [i["domain"] for i in built.items if i["raw"] == "x"] == [of]


# --- filters --------------------------------------------------------------------------------------


def brute(rows, step):
    """What a step keeps, written once more with lists."""

    def n(**same):
        return sum(all(row[NAMES.index(k)] == v for k, v in same.items()) for row in rows)

    word, _, value = step.partition("=")
    numbers = [int(v) for v in value.split(",") if v.isdecimal()]
    if step.startswith("rating>="):
        return [row for row in rows if row[2] >= 3]
    if step.startswith("time<"):
        return [row for row in rows if row[3] < BEGIN + 1200]
    if word == "both":
        return [r for r in rows if len({o[4] for o in rows if o[0] == r[0]}) == 2]
    if word == "each":
        return [row for row in rows if n(user=row[0], domain=row[4]) >= numbers[0]]
    if word == "last":
        later = {id(r): sum(o[0] == r[0] for o in rows[k + 1 :]) for k, r in enumerate(rows)}
        return [row for row in rows if later[id(row)] < numbers[0]]
    if word in ("duplicates", "repeats"):
        same = [0, 1, 4, 3][: 4 if word == "duplicates" else 3]
        found = {}
        for row in rows if value == "last" else rows[::-1]:
            found[tuple(row[k] for k in same)] = id(row)
        return [row for row in rows if id(row) in found.values()]
    kept = [r for r in rows if n(user=r[0]) >= numbers[0]
            and n(item=r[1], domain=r[4]) >= numbers[-1]]  # fmt: skip
    return kept if word == "core_once" or len(kept) == len(rows) else brute(kept, step)


CHAINS = [
    ["rating>=3", "core=5,4", "both"],
    ["core_once=16,10"],
    ["core=16,10"],
    ["core=5"],
    ["time<2023-11-14T22:33:20", "each=3", "last=9"],
    ["last=9", "each=4"],
    ["duplicates=first", "repeats=last"],
    ["duplicates=last", "repeats=first", "rating>=3"],
]


@pytest.mark.parametrize("steps", CHAINS, ids="+".join)
def test_filters_in_the_order_given(tmp_path, steps):
    copies = [[*row[:2], 5, *row[3:]] for row in ROWS[::5]]
    rows = sorted(ROWS + copies, key=lambda row: row[3])
    path = write(tmp_path / "a.csv", text(rows))
    built, left = read(path, filters=tuple(steps))
    numbered = [list(row) for row in rows]
    kept, counts = numbered, {}
    for step in [*steps, "core=3,1"]:
        before, kept = kept, brute(kept, step)
        gone = [row for row in before if not any(row is other for other in kept)]
        if gone:
            line = 2 + next(k for k, row in enumerate(numbered) if row is gone[0])
            counts[step] = len(gone), f"a.csv: line {line}"
    assert events(built) == expected(kept)
    short = [reason for reason in left if reason.startswith("users with fewer than 3")]
    counts = {(short[0] if k == "core=3,1" and short else k): v for k, v in counts.items()}
    assert left == counts


def test_a_date_in_a_filter_may_have_a_blank(tmp_path):
    path = write(tmp_path / "a.csv", text())
    found, _ = read(path, filters=(" time >= 2023-11-14 22:20:00",))
    assert events(found) == events(read(path, filters=("time>=2023-11-14T22:20:00",))[0])
    for limit in ("nan", "inf", "1e400"):
        with pytest.raises(UserError, match=f"found '{limit}', expected a finite number"):
            read(path, filters=(f"rating<{limit}",))


def test_a_core_that_is_empty(tmp_path):
    with pytest.raises(UserError, match="no events of domain A are left"):
        read(write(tmp_path / "a.csv", text()), filters=("core=500",))


@pytest.mark.parametrize(
    "step", ["rating", "core", "core=x", "rating>=", "each=-1", "duplicates=keep", "top=3", ""]
)
def test_a_step_that_is_none(step):
    with pytest.raises(UserError, match=f"--filter={step}: expected one such as rating>=4"):
        filters.parsed(step)


# --- what is wrong --------------------------------------------------------------------------------

GOOD = "user,item,rating,time,domain\n" + "".join(
    f"u{k % 3},{'bm'[k % 2]}{k % 4},4,{BEGIN + k},{'bm'[k % 2]}\n" for k in range(30)
)


def line(found, number=4):
    """GOOD with another line."""
    lines = GOOD.split("\n")
    lines[number - 1] = found
    return "\n".join(lines)


def change(field, value):
    row = dict(zip(NAMES[:5], GOOD.split("\n")[3].split(","), strict=True)) | {field: value}
    return line(",".join(row.values()))


def in_json(found):
    rows = [row.split(",") for row in GOOD.split("\n")[1:-1]]
    lines = lines_of_json(rows, NAMES[:5]).split("\n")
    lines[2] = found
    return "\n".join(lines)


def in_parquet(**columns):
    frame = pl.read_csv(GOOD.encode())
    return parquet(frame.with_columns(**columns))


R = {"filters": ("rating>=1",)}
TIME = "time: found {}, expected a unix time of 1973 to 2103, a number below 1e8 or a date such as"
# What is wrong -> file, content, options, what is said of it.
BAD = {
    "empty": ("a.csv", "", {}, "a.csv: line 1: expected rows, found an empty file"),
    "blank": ("a.csv", " \n\n", {}, "a.csv: line 1: expected rows, found an empty file"),
    "header alone": ("a.csv", GOOD.split("\n")[0], {}, "expected rows, found a header alone"),
    "UTF-16": (
        "a.csv",
        GOOD.encode("utf-16"),
        {},
        "a.csv: line 1: expected UTF-8 text, found UTF-16",
    ),
    "zero bytes": ("a.csv", GOOD.replace("u0", "u\0", 1), {}, "a.csv: line 2: found a zero byte"),
    "a spreadsheet": (
        "a.xlsx",
        b"PK\x03\x04aaaa",
        {},
        "a.xlsx: found a ZIP archive",
    ),
    "carriage returns": (
        "a.csv",
        GOOD.replace("\n", "\r"),
        {},
        "a.csv: line 1: found carr",
    ),
    "gzip cut": ("a.csv.gz", gzip.compress(GOOD.encode())[:60], {}, "expected a whole gzip file"),
    "gzip in name alone": ("b.csv.gz", None, {}, "b.csv.gz: expected a whole gzip file"),
    "zstd cut": ("a.csv.zst", None, {}, "a.csv.zst: expected a readable file, found: Truncated"),
    "Parquet cut": ("a.parquet", parquet()[:300], {}, "a.parquet: expected a whole Parquet file"),
    "not there": ("no.csv", None, {}, "no.csv: expected a readable file, found: No such file"),
    "a folder": ("folder", None, {}, "folder: expected a readable file, found: Is a directory"),
    "a JSON list": ("a.json", "[1, 2]\n", {}, "a.json: line 1: found a JSON list, expected a JSON"),
    "too few fields": ("a.csv", line("u1,b1,4"), {}, "line 4: found 3 fields, expected 5"),
    "too many fields": ("a.csv", line("u1,b,4,5,b,6,7"), {}, "line 4: found 7 fields, expected 5"),
    "fields beside quotes": ("a.csv", line('"u1",b,4'), {}, "line 4: found 3 fields, expected 5"),
    "an open quote": ("a.csv", line('u1,"b1,4,5,b'), {}, "line 4: found unexpected end of data"),
    "a quote inside": ("a.csv", line('u1,"b"1,4,5,b'), {}, "line 4: found ',' expected after '\"'"),
    "a blank before quotes": (
        *("a.csv", line(f'u1, "b,1", 4, {BEGIN}, "b"'), {}),
        "a.csv: line 4: found blanks in ' \"b': expected none between a delimiter and a quote",
    ),
    "no user": ("a.csv", change("user", ""), {}, "line 4: user: found '', expected an id"),
    "blank user": ("a.csv", change("user", "  "), {}, "line 4: user: found '  ', expected an id"),
    "nan as user": (
        "a.csv",
        change("user", "nan"),
        {},
        "user: found 'nan', expected an id",
    ),
    "no item": ("a.csv", change("item", ""), {}, "a.csv: line 4: item: found '', expected an id"),
    "null as item": ("a.csv", change("item", "null"), {}, "item: found 'null', expected an id"),
    "N/A as item": ("a.csv", change("item", "#N/A"), {}, "item: found '#N/A', expected an id"),
    "NA as user": ("a.csv", change("user", "NA"), {}, "user: found 'NA', expected an id"),
    "null of MySQL": ("a.csv", change("user", r"\N"), {}, r"found '\\N', expected an id"),
    "no UTF-8": (
        "a.csv",
        change("item", "ü").encode("latin-1"),
        {},
        "4: item: found '\ufffd'",
    ),
    "a line end in an id": ("a.csv", change("item", '"b\n1"'), {}, "line 4: item: found 'b\\n1'"),
    "no domain": ("a.csv", change("domain", ""), {}, "line 4: domain: found '', expected an id"),
    "no time": ("a.csv", change("time", ""), {}, "a.csv: line 4: " + TIME.format("''")),
    "time in words": ("a.csv", change("time", "soon"), {}, TIME.format("'soon'")),
    "no such day": ("a.csv", change("time", "2023-02-30"), {}, TIME.format("'2023-02-30'")),
    "day first": ("a.csv", change("time", "31/12/2023"), {}, TIME.format("'31/12/2023'")),
    "infinite time": ("a.csv", change("time", "inf"), {}, TIME.format("'inf'")),
    "digits of a date": ("a.csv", change("time", "20231114221320"), {}, "found '20231114221320'"),
    "digits to the hour": ("a.csv", change("time", "2023111422"), {}, "found '2023111422', exp"),
    "digits to the minute": ("a.csv", change("time", "202311142213"), {}, "'202311142213', exp"),
    "milliseconds among seconds": (
        *("a.csv", change("time", "1700000000123"), {}),
        "line 4: time: found '1700000000123', expected unix seconds as in line 2, or --time_unit",
    ),
    "zero among seconds": ("a.csv", change("time", "0"), {}, "found '0', expected unix seconds as"),
    "a date among seconds": ("a.csv", change("time", "2023-11-14"), {}, "expected unix seconds as"),
    "NaN as rating": (
        "a.csv",
        change("rating", "NaN"),
        R,
        "found 'NaN', expected a finite",
    ),
    "infinite rating": (
        "a.csv",
        change("rating", "-inf"),
        R,
        "found '-inf', expected a finite",
    ),
    "true as rating": ("a.csv", change("rating", "true"), R, "found 'true', expected a finite"),
    "a decimal comma": ("a.csv", change("rating", '"4,5"'), R, "rating: found '4,5', expected a"),
    "no rating": ("a.csv", change("rating", ""), R, "a.csv: line 4: rating: found '', expected"),
    "no column of ratings": ("a.csv", GOOD.replace("rating", "x", 1), R, "no column of rating"),
    "no column of users": (
        "a.csv",
        GOOD.replace("user", "who", 1),
        {},
        "no column of user",
    ),
    "no column of that name": ("a.csv", GOOD, {"item": "sku"}, "--item=sku: no such column: "),
    "one column twice": ("a.csv", GOOD.replace("item", "user", 1), {}, "line 1: no column of item"),
    "a name twice": ("a.csv", GOOD.replace("rating", "item", 1), {}, "line 1: column 'item' twice"),
    "one column in two parts": ("a.csv", GOOD, {"item": "user"}, "'user' as user and as item"),
    "no domains": ("a.csv", GOOD, {"domain": ""}, "a.csv: nothing says of which domain its rows"),
    "one domain": (
        "a.csv",
        GOOD.replace(",m\n", ",b\n"),
        {},
        "domains: found 1: b (30): exp",
    ),
    "other people": (
        *("a.csv", GOOD.replace(",b\n", ",b\nx").replace("\nxu", "\nx"), {}),
        "b and m: no user occurs in both domains: the first users are",
    ),
    "no filter": ("a.csv", GOOD, {"filters": ("best",)}, "--filter=best: expected one such as"),
    "a limit in words": (
        "a.csv",
        GOOD,
        {"filters": ("rating>=x",)},
        "filter=rating>=x: found",
    ),
    "a limit that is no time": (
        "a.csv",
        GOOD,
        {"filters": ("time<9",)},
        "filter=time<9: expected",
    ),
    "times that are none": (
        *("a.csv", GOOD, {"time": "", "filters": ("time<2023-01-01",)}),
        "--filter=time<2023-01-01: the files have no times",
    ),
    "copies without times": (
        *("a.csv", GOOD, {"time": "", "filters": ("duplicates=last",)}),
        "--filter=duplicates=last: the files have no times: expected repeats=first or repeats=last",
    ),
    "names of JSON": ("a.jsonl", in_json("{}"), {"columns": ("a",)}, "--columns: "),
    "no JSON": ("a.jsonl", in_json('{"user": "u'), {}, "line 3: found no JSON object"),
    "a list of JSON": ("a.jsonl", in_json('["u", "i"]'), {}, "line 3: found no JSON object"),
    "a key twice": (
        "a.jsonl",
        in_json('{"user": "u", "user": "v"}'),
        {},
        "line 3: found no JSON",
    ),
    "no key": (
        "a.jsonl",
        in_json('{"user": "u", "domain": "b", "time": 5}'),
        {},
        "item: found None",
    ),
    "true as an id": (
        "a.jsonl",
        in_json('{"user": true}'),
        {},
        "line 3: user: found True",
    ),
    "a fraction as an id": (
        "a.jsonl",
        in_json('{"user": 1.5}'),
        {},
        "line 3: user: found 1.5",
    ),
    "half a character": ("a.jsonl", in_json('{"user": "\\ud83d"}'), {}, "line 3: user: found"),
    "a list as time": (
        "a.jsonl",
        in_json('{"user": "u", "time": [1]}'),
        {},
        "time: found [1]",
    ),
    "null in Parquet": (
        *("a.parquet", in_parquet(user=pl.when(pl.col("time") > BEGIN + 1).then("user")), {}),
        "a.parquet: row 1: user: found None, expected an id",
    ),
    "lists in Parquet": (
        "a.parquet",
        in_parquet(item=pl.concat_list("item")),
        {},
        "column item",
    ),
    "truth in Parquet": (
        "a.parquet",
        in_parquet(time=pl.lit(True)),
        {},
        "found Boolean",
    ),
    "fractions in Parquet": (
        "a.parquet",
        in_parquet(user=pl.lit(1.5)),
        {},
        "user: found 1.5",
    ),
    "floats that two numbers have": (
        "a.parquet",
        in_parquet(user=pl.lit(2.0**53)),
        {},
        "user: found 9007199254740992.0, expected an id",
    ),
    "such of half the size": (
        "a.parquet",
        in_parquet(user=pl.lit(2.0**24, pl.Float32)),
        {},
        "row 1: user: found 16777216.0, expected an id",
    ),
    "a date that there is none of": (
        "a.parquet",
        in_parquet(time=pl.lit(2**31 - 1, pl.Int32).cast(pl.Date)),
        {},
        f"row 1: {TIME.format(2147483647)}",
    ),
    "such a moment": (
        "a.parquet",
        in_parquet(time=pl.lit(2**62).cast(pl.Datetime("ms"))),
        {},
        f"row 1: {TIME.format(2**62)}",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(tmp_path, case):
    name, content, options, said = BAD[case]
    (tmp_path / "folder").mkdir()
    if case == "gzip in name alone":
        (tmp_path / name).write_text(GOOD)
    elif case == "zstd cut":
        packed = write(tmp_path / name, GOOD * 50)
        packed.write_bytes(packed.read_bytes()[:-20])
    elif content is not None:
        content = content if isinstance(content, bytes) else content.encode()
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        prepare_own(
            "mine", [tmp_path / name], own.Options(**options), tmp_path, Reading(), [].append
        )
    message = str(caught.value)
    assert said in message and "\n" not in message, message
    assert not [path for path in tmp_path.glob("oa_pairs/*") if path.suffix != ".lock"]


def test_good_is_good(tmp_path):
    """What the cases above change would be read."""
    for content, name in ((GOOD, "a.csv"), (in_parquet(), "a.parquet")):
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        assert len(read(tmp_path / name)[0].user) == 30
    lines = in_json(
        json.dumps(dict(zip(NAMES[:5], ["u2", "b2", "4", "1700000002", "b"], strict=True)))
    )
    assert len(read(write(tmp_path / "a.jsonl", lines))[0].user) == 30


ARGUMENTS = {
    "none": ([], "import: no file given: expected FILE or DOMAIN=FILE"),
    "mixed": (["a.csv", "b=a.csv"], "a.csv: expected DOMAIN=FILE, as of the other files"),
    "no name": (["=a.csv"], "=a.csv: expected DOMAIN=FILE"),
    "no file": (["b="], "b=: expected DOMAIN=FILE"),
    "a URL": (["https://x.org/a.csv"], "https://x.org/a.csv: a URL: expected a path"),
    "one domain": (["b=a.csv", "b=n.csv"], "n.csv: column time: found numbers below 1e8"),
    "twice": (["a.csv", "./a.csv"], "a.csv: given twice, expected each file once"),
    "other times": (
        ["b=a.csv", "m=n.csv"],
        "n.csv: column time: found numbers below 1e8",
    ),
    "no times": (["b=a.csv", "m=x.csv"], "x.csv: no column of time, which other files have"),
}


@pytest.mark.parametrize("case", ARGUMENTS)
def test_bad_arguments(tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.csv", GOOD)
    write(tmp_path / "n.csv", "user,item,time\n" + "u0,i,1\n" * 9)
    write(tmp_path / "x.csv", "user,item\n" + "u0,i\n" * 9)
    argv, said = ARGUMENTS[case]
    with pytest.raises(UserError) as caught:
        read(*argv)
    assert said in str(caught.value)


OPTIONS = {
    "item": (1, "--item=1: expected text"),
    "delimiter": (9, "--delimiter=9: expected text"),
    "title": (("a",), r"--title=\('a',\): expected text"),
    "filters": ((5,), r"--filters=\(5,\): expected a list of text"),
    "time_unit": ("days", "--time_unit=days: expected one of s, ms, us, ns, number"),
    "shared_items": ("both", "--shared_items=both: expected one of keep, drop, first"),
    "bad_rows": ("keep", "--bad_rows=keep: expected one of refuse, skip"),
    "domains": (("a", "a"), "--domains=a,a: expected two different names"),
    "columns": (("a", ""), "--columns=a,: expected a name of its own for each"),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_bad_options(name):
    value, said = OPTIONS[name]
    with pytest.raises(UserError, match=said):
        own.Options(**{name: value})


def test_bad_rows_are_counted_by_reason(tmp_path):
    lines = GOOD.split("\n")
    bad = {3: "u1,b1,4", 5: ",b1,4,5,b", 6: ",b1,4,5,b", 9: "u1,b,4,soon,b"}
    for number, found in bad.items():
        lines.insert(number - 1, found)
    path = write(tmp_path / "a.csv", "\n".join(lines))
    built, left = read(path, bad_rows="skip")
    assert left == {
        "bad row": (1, "a.csv: line 3: found 3 fields, expected 5"),
        "bad user": (2, "a.csv: line 5: user: found ''"),
        "bad time": (1, "a.csv: line 9: time: found 'soon'"),
    }
    assert events(built) == events(read(write(tmp_path / "b.csv", GOOD))[0])
    path = write(tmp_path / "a.csv", GOOD[:200].rsplit("\n", 1)[0] + "\nx" * 20)
    with pytest.raises(UserError, match="20 of .* rows are wrong, the first: a.csv: line "):
        read(path, bad_rows="skip")


@pytest.mark.parametrize("bad", ["u1,j1,x\n,j2,5\n", "u1,j1,x\nu1,j2,y\n"])
def test_the_first_wrong_row_of_a_file_is_the_one_that_is_named(tmp_path, bad):
    """Whatever is wrong with it, and though another file has met that before."""
    good = "".join(f"u1,i{k},{k}\n" for k in range(9))
    first = write(tmp_path / "a.csv", f"user,item,time\nu1,i1,x\n{good}")
    second = write(tmp_path / "b.csv", f"user,item,time\n{bad}u2,j1,300\n")
    found = "b.csv: 2 of 3 rows are wrong, the first: b.csv: line 2: time: found 'x'"
    with pytest.raises(UserError, match=found):
        read(f"A={first}", f"B={second}", bad_rows="skip")


# --- what one row does to others -----------------------------------------------------------------


@pytest.mark.parametrize("closed", [False, True])
def test_a_quote_that_is_open_takes_its_own_line_alone(blocks, tmp_path, closed):
    rows = [f"u{k % 3},b{k % 4},{k}" for k in range(60)]
    rows[20] = 'u1,"b1,20'
    rows[40] = 'u1,b"1",40' if closed else rows[40]
    path = write(tmp_path / "b.csv", "user,item,time\n" + "\n".join(rows) + "\n")
    other = write(tmp_path / "m.csv", "user,item,time\nu0,x,1\nu1,x,2\nu2,x,3\n")
    built, left = read(path, other, bad_rows="skip")
    assert [n for n, _ in left.values()] == [1] and len(built.user) == 62
    with pytest.raises(UserError, match="b.csv: line 22: found .*, expected"):
        read(path, other)


def test_a_quote_that_a_later_row_closes_is_seen_among_tabs(blocks, tmp_path):
    rows = [f"u{k % 3}\tb{k % 4}\t{k}\tt" for k in range(60)]
    rows[20], rows[40] = 'u1\tb1\t20\t"a', 'u1\tb1\t40\tb"'
    rows[50] = 'u1\tb1\t50\t"two\nlines"'
    path = write(tmp_path / "b.tsv", "user\titem\ttime\ttitle\n" + "\n".join(rows))
    other = write(tmp_path / "m.csv", "user,item,time\nu0,x,1\nu1,x,2\nu2,x,3\n")
    built, left = read(path, other, bad_rows="skip")
    assert [n for n, _ in left.values()] == [1] and len(built.user) == 62
    with pytest.raises(UserError, match="b.tsv: line 22: found a quote that ends in a later row"):
        read(path, other)


def test_blanks_and_quotes_inside_quotes_are_text(tmp_path):
    """A title in quotes may hold them, and may end in a delimiter."""
    titles = ['he said, "no"', ' "b"', "two,\n", "x, "]
    rows = [[*row[:5], titles[k % 4]] for k, row in enumerate(ROWS)]
    for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL):
        built, _ = read(write(tmp_path / "a.csv", text(rows, quoting=quoting)))
        assert events(built) == expected()
    odd = ' "No" he said'  # of a writer that never quotes
    path = write(tmp_path / "a.tsv", "\n".join("\t".join(map(str, [*r[:5], odd])) for r in ROWS))
    assert events(read(path, columns=tuple(NAMES))[0]) == expected()


def test_a_parquet_file_with_a_wrong_byte_is_read_or_refused(tmp_path):
    """Some of them make polars panic, with what is no Exception."""
    content, refused = parquet(), 0
    for at in (450, 755, *range(0, len(content), 97)):
        path = tmp_path / "a.parquet"
        path.write_bytes(content[:at] + b"\0" + content[at + 1 :])
        try:
            read(path)
        except UserError as error:
            refused += "\n" not in str(error)
    assert refused > 5


def test_a_title_may_be_a_word_that_is_no_id(tmp_path):
    titles = ["None", "N/A", "NA", "nan"]
    rows = [[*row[:5], titles[k % 4]] for k, row in enumerate(ROWS)]
    built, _ = read(write(tmp_path / "a.csv", text(rows)))
    found = {item.get("title") for item in built.items}
    assert found >= set(titles[:3]) and "nan" not in found


@pytest.mark.parametrize("quoted", [False, True])
@pytest.mark.parametrize(
    ("title", "found"),
    [("a\rb", "found a carriage return"), ("x" * 140_000, "found a field of more than 131,072")],
    ids=["return", "long"],
)
@pytest.mark.parametrize("at", [3, 40])  # among the lines that tell the delimiter apart, or not
def test_a_row_is_wrong_whatever_stands_beside_it(tmp_path, quoted, title, found, at):
    rows = [f"u{k % 3},b{k % 4},{k},t" for k in range(60)]
    rows[at] = f"u1,b1,{at},{title}"
    rows[50] = 'u1,b1,50,"two\nlines"' if quoted else rows[50]
    path = write(tmp_path / "b.csv", "user,item,time,title\n" + "\n".join(rows))
    other = write(tmp_path / "m.csv", "user,item,time\nu0,x,1\nu1,x,2\nu2,x,3\n")
    _, left = read(path, other, bad_rows="skip")
    ((n, first),) = left.values()
    assert n == 1 and first.startswith(f"b.csv: line {at + 2}: {found}")


def test_a_delimiter_of_two_bytes_with_quotes(tmp_path):
    content = text(bare(), NAMES[:5], "ß", quoting=csv.QUOTE_ALL)
    built, _ = read(write(tmp_path / "a.csv", content), delimiter="ß")
    assert [e[:2] for e in events(built)] == [e[:2] for e in expected()]


def test_keys_of_json_that_come_late(tmp_path):
    first = [json.dumps({"user": f"u{k % 3}", "item": f"b{k % 4}"}) for k in range(30)]
    late = json.dumps({"user": "u1", "item": "b1", "time": 5})
    path = write(tmp_path / "b.jsonl", "\n".join([*first, late]))
    other = write(tmp_path / "m.csv", "user,item,time\nu0,x,1\nu1,x,2\nu2,x,3\n")
    with pytest.raises(UserError, match="b.jsonl: line 1: time: found None"):
        read(path, other)


@pytest.mark.parametrize("beside", ["1", "1e0"])
def test_json_is_read_in_one_way(tmp_path, beside):
    """Halves of signs in a text, escapes in the name of a key that has more than letters."""
    good = '{"user":"u","item":"b","время":%s,"title":"t"}'
    other = write(tmp_path / "m.jsonl", "\n".join([good % 1] * 3))
    half = good.replace('"t"', r'"caf\ud800e"') % 2
    twice = r'{"user":"u","item":"b","время":1,"\u0432\u0440\u0435\u043c\u044f":9,"title":"t"}'
    for bad in (half, twice):
        path = write(tmp_path / "b.jsonl", "\n".join([good % beside] * 3 + [bad]))
        with pytest.raises(UserError, match="b.jsonl: line 4: "):
            read(path, other, time="время")


def test_names_with_brackets_are_names(tmp_path):
    path = write(tmp_path / "b[12].parquet", parquet(FRAME))
    write(tmp_path / "b1.parquet", parquet(FRAME.with_columns(item=pl.lit("WRONG"))))
    built, _ = read(path)
    assert events(built) == expected()


# --- the set --------------------------------------------------------------------------------------


def test_again_does_nothing_and_others_are_refused(tmp_path):
    path, said = write(tmp_path / "a.csv", text()), []

    def make(name="mine", **options):
        return prepare_own(name, [path], own.Options(**options), tmp_path, Reading(), said.append)

    assert make() and not make()
    data = store.load(tmp_path, "mine")
    facts = data.metadata
    assert facts["domains"] == ["books", "músic"] and facts["protocol"] == "own"
    assert facts["options"]["shared_items"] == "keep" and len(facts["files"][0]["sha256"]) == 64
    assert data.log.role is None and data.items[0]["title"].startswith('A "')
    with pytest.raises(
        UserError, match="--name=mine: .* is of other options .filters: .*: expected the same"
    ):
        make(filters=("both",))
    write(path, text(ROWS[:-1]))
    with pytest.raises(UserError, match="--name=mine: .* is of other files: expected the same"):
        make()
    both = [
        write(tmp_path / f"{name}.csv", text(bare()[k:], NAMES[:5])) for k, name in enumerate("bc")
    ]
    for names in ("AB", "AB", "BA"):
        given = [f"{name}={path}" for name, path in zip(names, both, strict=True)]
        args = own.Options(), tmp_path, Reading(), said.append
        if names == "BA":
            with pytest.raises(UserError, match="--name=two: .* is of other domains"):
                prepare_own("two", given, *args)
        else:
            prepare_own("two", given, *args)
    with pytest.raises(UserError, match="--domain=domain: B=b.csv: expected FILE, or DOMAIN=FILE"):
        prepare_own("two", given, own.Options(domain="domain"), tmp_path, Reading(), said.append)
    for name, what in (("beauty_elec", "the name of a public set"), ("a/b", "expected letters")):
        with pytest.raises(UserError, match=f"--name={name}: {what}"):
            make(name)


def test_read_events(tmp_path):
    path, said = write(tmp_path / "a.csv", text()), []
    log = oa.read_events(path, say=said.append, filters=["both"])
    assert log.name == "events" and log.n_items == (9, 9) and len(said) == 3
    kept = oa.read_events([path], "mine", tmp_path, print, filters=["both"])
    for one in (log, kept, oa.load("mine", tmp_path)):  # raw ids travel with the events
        found = names_lib.of(one)
        assert found.domains == ("books", "músic")
        assert found.are_raw and found.raw == names_lib.of(kept).raw and "1" not in found.raw
    assert kept.fingerprint() == log.fingerprint() == oa.load("mine", tmp_path).fingerprint()
    with pytest.raises(UserError, match="option=filter: expected one of user, "):
        oa.read_events(path, filter=["both"])


def test_the_command(run, tmp_path):
    path = write(tmp_path / "a.csv", line(",b1,4,5,b"))
    argv = ("import", path, "--name=mine", f"--data_dir={tmp_path}", "--filter=rating>=4")
    refused = run(*argv)
    assert refused.returncode == 2 and not refused.stdout.count("prepared")
    assert refused.stderr == f"error: {path}: line 4: user: found '', expected an id\n"
    done = run(*argv, "--bad_rows=skip", "--filter=last=9", "--duplicates=first")
    assert (done.returncode, done.stderr) == (0, "")
    *_, first, second, end = done.stdout.splitlines()
    assert first == "left out: 1 rows: bad user; the first is a.csv: line 4: user: found ''"
    assert second.startswith("left out: 2 rows: last=9; the first is a.csv: line 2")
    assert end.startswith("mine: prepared: 3 sequences, 2 + 2 items, 27 events")
    shown = run("describe", "mine", f"--data_dir={tmp_path}").stdout
    assert "mine: own protocol, from own files" in shown and first in shown
    checked = run("check", "mine", f"--data_dir={tmp_path}")
    assert checked.returncode == 0 and "finding: files: 1 rows with a bad user" in checked.stdout
    listed = run("list", f"--data_dir={tmp_path}", f"--raw_dir={tmp_path}").stdout
    assert "b + m" in listed and "prepared: 3 sequences" in listed
    assert "--name: missing" in run("import", path, f"--data_dir={tmp_path}").stderr


def test_what_decides_the_order_and_a_domain_without_a_target_are_said(tmp_path):
    """Of a day each: events of both domains share a time, and every user's last one is a film."""
    days = [f"2024-01-{day:02d}" for day in (1, 2, 3)]
    rows = [
        [user, f"{kind}{k}", 5, day, kind]
        for user in ("ann", "bob")
        for k, day in enumerate(days)
        for kind in ("book", "film")
    ]
    said = []
    read(write(tmp_path / "days.csv", text(rows, NAMES[:5])), said=said)
    share = "60% of the neighbours of a user's events are of both domains at one time"
    assert any(line.startswith(share) for line in said)
    assert "no test target lies in book: no user's last event is of it" in said
    apart = [[*row[:3], BEGIN + k, row[4]] for k, row in enumerate(rows + rows[:1])]
    said = []
    read(write(tmp_path / "seconds.csv", text(apart, NAMES[:5])), said=said)
    assert not any("of the neighbours" in line or "no test target" in line for line in said)


def test_the_sweep_of_the_page_s_notebook_finds_its_set(tmp_path, monkeypatch):
    page = pathlib.Path(own.__file__).with_name("README.md").read_text()
    cells = re.findall(
        r"^```python\n(.*?)^```$", page[page.index("The same in a notebook") :], re.M | re.S
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OA_DATA_DIR", raising=False)
    (tmp_path / "raw").mkdir()
    generate(tmp_path / "raw", 1000)
    names = {}
    exec(cells[0], names)
    exec(cells[1].split("found =")[0], names)  # the configurations of the sweep
    for config in names["runs"].values():
        log = sources.load(config.data.name, config.data.dir)
        assert log.fingerprint() == names["log"].fingerprint()
