"""Raw files with everything that real ones have: bad lines, missing fields, other bytes."""

import gzip
import json

import pytest

from oa_jax.data import blocks as block_reader
from oa_jax.data import readers
from oa_jax.data.texts import Reading
from oa_jax.errors import UserError

HUGE = "u" * 5000
GOOD = [
    ("u1", "i1", 5.0, 10),
    (HUGE, "i2", 1.0, 20),
    ("u1", "i1", 5.0, 10),
    ("ü", "0" * 40, 3.5, -7),
]
BAD_RATINGS = [
    "u1,i1,5.0",
    "u1,i1,5.0,10,9",
    ",i1,5.0,10",
    "u1,,5.0,10",
    "u1,i1,good,10",
    "u1,i1,nan,10",
    "u1,i1,-Infinity,10",
    "u1,i1,true,10",
    "u1,i1,5.0,10.5",
    "u1,i1,5.0,1e9",
    f"u1,i1,5.0,{2**63}",
    b"u\xff1,i1,5.0,10",
    b"u1,i\xc3,5.0,10",
    "just text",
]


@pytest.fixture(
    params=[40, block_reader.BLOCK_BYTES], ids=["tiny blocks", "one block"], autouse=True
)
def blocks(request, monkeypatch):
    """Everything holds wherever a block ends."""
    monkeypatch.setattr(block_reader, "BLOCK_BYTES", request.param)


def test_files_of_one_name_are_counted_apart(raw_files, tmp_path):
    lines, reading = [f"{u},{i},{r},{t}" for u, i, r, t in GOOD] * 2, Reading()
    paths = [tmp_path / folder / "r.csv" for folder in ("a", "b")]
    for path, content in zip(paths, (lines, [lines[0], *BAD_RATINGS[:2]]), strict=True):
        path.parent.mkdir()
        raw_files.write(path, content)
    readers.ratings(paths[0], reading)
    with pytest.raises(UserError, match="2 of 3 lines are not"):
        readers.ratings(paths[1], reading)
    assert reading.lines == {"r.csv": len(lines), str(paths[1]): 3}
    assert list(reading.malformed) == [str(paths[1])]


@pytest.mark.parametrize("name", ["r.csv", "r.csv.gz"])
def test_ratings(raw_files, tmp_path, name):
    lines = [f"{u},{i},{r},{t}" for u, i, r, t in GOOD]
    mixed = [lines[0], "", *BAD_RATINGS, lines[1] + "\r", *lines[2:], *lines * 4, "   "]
    reading = Reading()
    path = raw_files.write(tmp_path / name, mixed)
    rows = [(u, i, t) for u, i, _, t in GOOD]
    assert readers.ratings(path, reading).rows() == rows * 5
    assert reading.lines == {name: len(mixed)}
    bad = {"lines": len(BAD_RATINGS), "first": "line 3: 'u1,i1,5.0'"}
    assert reading.malformed == {name: bad}
    high = [row for row, good in zip(rows, GOOD, strict=True) if good[2] >= 3.5]
    assert readers.ratings(path, Reading(), least=3.5).rows() == high * 5


def test_the_last_line_may_have_no_end(tmp_path):
    (tmp_path / "r.csv").write_bytes(b"u1,i1,5.0,1\nu2,i2,4.0,2")
    assert readers.ratings(tmp_path / "r.csv", Reading())["user"].to_list() == ["u1", "u2"]


MARK = b"\xef\xbb\xbf"


@pytest.mark.parametrize("packed", [False, True])
def test_a_byte_order_mark_is_no_part_of_the_text(raw_files, tmp_path, packed):
    """Excel and PowerShell write one: the first user would be another one, and lost in silence."""
    lines = {
        "ratings": [f"u{k},i,5.0,{k}" for k in range(3)],
        "reviews": [review(f"u{k}", time=11 + k) for k in range(3)],
    }
    read = {"ratings": readers.ratings, "reviews": lambda *a: readers.reviews(*a, 10, 20)}
    for kind, own in lines.items():
        users = []
        for mark in (b"", MARK):
            first = mark + own[0].encode()
            path = raw_files.write(tmp_path / f"{kind}{'.gz' * packed}", [first, *own[1:]])
            reading = Reading()
            users.append(read[kind](path, reading)["user"].to_list())
            assert not reading.malformed and reading.lines[path.name] == 3
        assert users == [["u0", "u1", "u2"]] * 2
    items = [{"asin": "a", "title": "T"}]
    path = raw_files.write(tmp_path / "meta.json", [MARK + json.dumps(items[0]).encode()])
    assert readers.metadata(path, Reading(), {"a"}) == {"a": {"title": "T"}}


def test_another_encoding_is_refused(tmp_path):
    for encoding in ("utf-16", "utf-16-be"):
        mark = b"" if encoding == "utf-16" else b"\xfe\xff"
        (tmp_path / "r.csv").write_bytes(mark + "u,i,5.0,1\n".encode(encoding))
        with pytest.raises(UserError, match="r.csv: line 1: expected UTF-8 text, found UTF-16"):
            readers.ratings(tmp_path / "r.csv", Reading())


def test_progress_reaches_the_size_of_the_packed_file(raw_files, tmp_path):
    path = raw_files.write(tmp_path / "r.csv.gz", [f"u{k},i,5.0,{k}" for k in range(300)])
    seen = []
    readers.ratings(path, Reading(lambda p, n: seen.append((p, n))))
    assert {p for p, _ in seen} == {path} and seen[-1][1] == path.stat().st_size
    assert [n for _, n in seen] == sorted(n for _, n in seen)


def review(user="u", item="i", rating=5.0, time=15, **more):
    return json.dumps(
        {"reviewerID": user, "asin": item, "overall": rating} | more | {"unixReviewTime": time}
    )


BAD_REVIEWS = [
    '{"reviewerID": "u", "asin": "i", "overall": 5.0}',
    '{"reviewerID": "u", "asin": null, "overall": 5.0, "unixReviewTime": 15}',
    '{"reviewerID": "", "asin": "i", "overall": 5.0, "unixReviewTime": 15}',
    '{"reviewerID": "u", "asin": "i", "overall": "five", "unixReviewTime": 15}',
    '{"reviewerID": "u", "asin": "i", "overall": 5.0, "unixReviewTime": "soon"}',
    '{"reviewerID": "u", "asin": "i", "overall": 5.0, "unixReviewTime": 1%s}' % ("0" * 30),
    '{"reviewerID": "u", "asin"',
    '{"reviewerID": "u", "asin": "i", "overall": NaN, "unixReviewTime": 15}',
    '{"reviewerID": "u", "asin": "i", "overall": -Infinity, "unixReviewTime": 15}',
    '{"reviewerID": "u", "asin": "i", "overall": true, "unixReviewTime": 15}',
    '{"reviewerID": "u", "asin": "i", "overall": 5.0, "unixReviewTime": true}',
    '{"reviewerID": "u", "asin": "i", "overall": 5.0, "unixReviewTime": 15.5}',
    "[1, 2]",
    "no JSON",
    b'{"reviewerID": "u\xff", "asin": "i", "overall": 5.0, "unixReviewTime": 15}',
]


def test_reviews(raw_files, tmp_path):
    good = [review(HUGE), review(time=10), review(time=20), review("v", reviewText='"asin": "x"')]
    good += [review("w", rating=0), review("x", time=11), review("x", time=11)]
    other_bytes = review("y").replace('"overall"', '"reviewText": "?", "overall"').encode()
    good += [other_bytes.replace(b"?", b"\xff\xfe")]
    path = raw_files.write(tmp_path / "c.json.gz", [*good, "", *BAD_REVIEWS, *good])
    reading = Reading()
    found = readers.reviews(path, reading, after=10, before=20).rows()
    expected = [(HUGE, "i", 15), ("v", "i", 15), ("x", "i", 11), ("x", "i", 11), ("y", "i", 15)]
    assert found == expected * 2
    assert reading.malformed["c.json.gz"]["lines"] == len(BAD_REVIEWS)
    assert reading.malformed["c.json.gz"]["first"].startswith('line 10: \'{"reviewerID": "u"')


# An id that is no text, half a surrogate pair, keys that stand twice, one of them with an escape.
DOUBTFUL_REVIEWS = {
    review(item=["i"]): None,
    review(item={"i": 1}): None,
    review(item=True): None,
    review(item=1.5): None,
    review(item=7): ("u", "7", 15),
    review("\ud83dx"): None,
    review("\U0001f600"): ("\U0001f600", "i", 15),
    review()[:-1] + ', "asin": "j"}': None,
    review()[:-1] + ', "\\u0061sin": "j"}': None,
    review(style={"asin": "j"}): ("u", "i", 15),
    review(reviewText='"asin": "j"'): ("u", "i", 15),
    review(vote="\ud83d"): ("u", "i", 15),
}


@pytest.mark.parametrize("neighbour", [review("n"), "not json", ""])
@pytest.mark.parametrize("line", DOUBTFUL_REVIEWS)
def test_a_line_means_the_same_whatever_stands_beside_it(raw_files, tmp_path, line, neighbour):
    """polars reads a block of plain objects, Python one with others: one rule for both."""
    path = raw_files.write(tmp_path / "c.json", [line, neighbour, *[review("n")] * 4])
    reading = Reading()
    found = readers.reviews(path, reading, 10, 20).rows()
    expected = DOUBTFUL_REVIEWS[line]
    assert [row for row in found if row[0] != "n"] == [expected] * (expected is not None)
    bad = (expected is None) + (neighbour == "not json")
    assert reading.malformed.get("c.json", {"lines": 0})["lines"] == bad


def test_metadata(raw_files, tmp_path):
    items = [
        {"asin": "a", "title": "T", "price": 3.5, "brand": "", "category": ["x", "y"], "rank": [1]},
        {"asin": "b", "description": "one", "also_buy": ["a"]},
        {"asin": "c", "title": "not wanted"},
        {"title": "the key comes later", "similar": '"asin": "a"', "asin": "c"},
        {"asin": "a", "title": "the later one counts", "date": "May 2018", "price": None},
    ]
    items += [{"asin": "d", "title": float("nan"), "brand": None, "price": 12, "date": "  "}]
    items += [{"asin": "e", "description": [None, "", "what it is", float("nan"), 3]}]
    items += [{"asin": ["d"], "title": "of a list of ids"}]
    extra = ["{}", '{"asin": "a", broken', '{"asin": "c", broken', "text", b'{"title": "\xff"}']
    path = raw_files.metadata_2018(tmp_path, "X", items, extra)
    reading = Reading()
    assert readers.metadata(path, reading, {"a", "b", "d", "e", "absent"}) == {
        "a": {"title": "the later one counts", "date": "May 2018"},
        "b": {"description": ["one"]},
        "d": {"price": "12"},  # nothing else that is a text
        "e": {"description": ["what it is", "3"]},
    }
    # The broken line of an item that nobody wants is not looked into.
    assert reading.malformed[path.name]["lines"] == 5


def test_douban(raw_files, tmp_path):
    row = [(7, 9, "tag", "2016-05-01"), (8, 9, "x", "2016-05-01 10:00:00")]
    extra = ["1\t2\t3", "a\t2\t5\tc\t2016-05-01\tx\t0\t0\t1", "1\t2\t5\tc\tnever\tx\t0\t0\t1"]
    raw_files.douban(tmp_path, row, row * 2, row, extra)
    expected = [(7, 9, 20160501, "tag"), (8, 9, 20160501100000, "x")]
    for kind, times in (("book", 1), ("movie", 2), ("music", 1)):
        reading = Reading()
        path = tmp_path / f"{kind}reviews_cleaned.txt"
        assert readers.douban(path, reading, kind).rows() == expected * times
        n_bad = reading.malformed.get(path.name, {"lines": 0})["lines"]
        assert n_bad == (3 if kind == "movie" else 0)


BROKEN = {
    "empty": (b"", "line 1: expected user,item,rating,time, found an empty file"),
    "of another format": (b"<html>\n<body>\n", "line 1: '<html>': expected user,item,rating,time"),
    "mostly broken": (b"u,i,5.0,1\nx\ny\n", "line 2: 'x': expected .*; 2 of 3 lines are not"),
    "binary": (bytes(range(256)), "expected user,item,rating,time"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_file_that_is_broken_as_a_whole(tmp_path, case):
    content, expected = BROKEN[case]
    path = tmp_path / "r.csv"
    path.write_bytes(content)
    with pytest.raises(UserError, match=expected) as caught:
        readers.ratings(path, Reading())
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", ["cut", "not gzip", "missing"])
def test_a_packed_file_that_cannot_be_read(tmp_path, damage):
    path = tmp_path / "r.csv.gz"
    packed = gzip.compress(b"".join(b"u%d,i,5.0,%d\n" % (k, k * 7919) for k in range(500)))
    if damage != "missing":
        path.write_bytes(packed[: len(packed) // 2] if damage == "cut" else b"u,i,5.0,1\n")
    expected = "a readable file" if damage == "missing" else "a whole gzip file"
    with pytest.raises(UserError, match=f"r.csv.gz: expected {expected}, found: "):
        readers.ratings(path, Reading())
