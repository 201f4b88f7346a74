"""Reads the large text files of public data sets block by block into polars frames.

Malformed lines are left out, counted and named in a `Reading`. The rules for JSON are those of
`oa_jax.data.texts`.
"""

import math
import pathlib

import polars as pl

from oa_jax.data import tables
from oa_jax.data.blocks import blocks, is_id, lines_of, n_lines
from oa_jax.data.texts import REVIEW_FIELDS, Reading, id_of, item_fields, json_object

EVENTS = {"user": pl.String, "item": pl.String, "time": pl.Int64}
REVIEWS = dict(zip(REVIEW_FIELDS, (pl.String, pl.String, pl.Float64, pl.Int64), strict=True))
# Fields that a line of each Douban file has, and the places of user, item, time and label.
DOUBAN_FIELDS = {"book": (7, 0, 1, 5, 3), "movie": (9, 0, 1, 4, 5), "music": (8, 0, 1, 6, 3)}
# Where polars reads JSON in another way than `_review` does: ids that are no plain text.
DOUBTFUL = r'"(?:asin|reviewerID)"\s*:\s*(?:[^\s"]|"[^"\\]*\\)'


def ratings(path: pathlib.Path, reading: Reading, least: float | None = None) -> pl.DataFrame:
    """A "ratings only" file of 2014: user,item,rating,unix time, without header.

    Returns columns user, item (text), time (int64) in file order. least: the lowest rating to keep.
    A line is malformed if it has another number of fields, an empty id or one that is no UTF-8, or
    a rating or time that is no number.
    """
    rating = pl.col("rating")
    rules = (is_id("user"), is_id("item"), rating.is_finite(), pl.col("time").is_not_null())
    good = pl.all_horizontal(*rules, pl.col("more").is_null()).fill_null(False)
    parts = [pl.DataFrame(schema=EVENTS)]
    for number, block in blocks(path, reading):
        lines = lines_of(block)
        fields = lines.str.split_exact(",", 4).struct.unnest()
        fields.columns = ["user", "item", "rating", "time", "more"]
        table = fields.cast({"rating": pl.Float64, "time": pl.Int64}, strict=False)
        reading.note(path, number, lines, table.select(good).to_series())
        kept = table.filter(good if least is None else good & (rating >= least))
        parts.append(kept.select("user", "item", "time"))
    reading.check(path, "user,item,rating,time")
    return pl.concat(parts)


def reviews(path: pathlib.Path, reading: Reading, after: int, before: int) -> pl.DataFrame:
    """A review file of 2018: a JSON object per line: reviewerID, asin, overall, unixReviewTime.

    Returns columns user, item, time of the reviews with after < time < before and a rating above 0,
    in file order. A line that is no object, or lacks one of the four fields, is malformed.
    """
    parts, time = [pl.DataFrame(schema=EVENTS)], pl.col("unixReviewTime")
    complete = pl.all_horizontal(pl.all().is_not_null(), is_id("reviewerID"), is_id("asin")).all()
    for number, block in blocks(path, reading):
        table = tables.plain_json(block, REVIEWS, DOUBTFUL)
        if table is None or not table.select(complete).item():
            lines = lines_of(block)
            rows = [_review(json_object(line)) for line in lines]
            good = pl.Series([row is not None for row in rows], dtype=pl.Boolean)
            reading.note(path, number, lines, good)
            table = pl.DataFrame([r for r in rows if r], schema=REVIEWS, orient="row")
        else:
            reading.count(path, n_lines(block))
        kept = table.filter((time > after) & (time < before) & (pl.col("overall") > 0))
        parts.append(kept.select(user="reviewerID", item="asin", time="unixReviewTime"))
    reading.check(path, f"a JSON object with {', '.join(REVIEW_FIELDS)}")
    return pl.concat(parts)


def _review(item):
    """The four fields of a review, None if one is missing or of another type."""
    user, asin, rating, time = ((item or {}).get(name) for name in REVIEW_FIELDS)
    ids = id_of(user), id_of(asin)
    numbers = type(rating) in (int, float) and type(time) is int
    if None in ids or not numbers or not math.isfinite(rating) or not -(2**63) <= time < 2**63:
        return None
    return *ids, float(rating), time


def metadata(path: pathlib.Path, reading: Reading, wanted: set[str]) -> dict[str, dict]:
    """Item texts of a metadata file of 2018, each line a JSON object: asin -> its fields.

    Reads only items in `wanted`. If an item occurs twice, the last line counts, as in the official
    code. A line without an asin, or a wanted line that is no JSON, is malformed.
    """
    found, asins = {}, pl.Series(sorted(wanted), dtype=pl.String).implode()
    for number, block in blocks(path, reading):
        lines = lines_of(block)
        # The object itself is only parsed where one of its fields may say that it is wanted.
        hits = lines.str.extract_all(r'"asin"\s*:\s*"[^"]*"')
        good = (hits.list.len() > 0).to_list()
        names = hits.list.eval(pl.element().str.extract(r'"([^"]*)"$'))
        wanted_here = names.list.set_intersection(asins).list.len() > 0
        for row in wanted_here.fill_null(False).arg_true():
            item = json_object(lines[row])
            asin = id_of((item or {}).get("asin"))
            good[row] = asin is not None
            if asin in wanted:
                found[asin] = item_fields(item)
        reading.note(path, number, lines, pl.Series(good, dtype=pl.Boolean))
    reading.check(path, 'a JSON object with "asin"')
    return found


def douban(path: pathlib.Path, reading: Reading, kind: str) -> pl.DataFrame:
    """A cleaned review file of Douban, tab-separated under a header: kind book, movie or music.

    Returns columns user, item (int64), time (int64, yyyymmdd, longer if the file has hours), label.
    A line with another number of fields, or whose ids or date are no numbers, is malformed.
    """
    n_fields, *places = DOUBAN_FIELDS[kind]
    schema = {"user": pl.Int64, "item": pl.Int64, "time": pl.Int64, "label": pl.String}
    parts = [pl.DataFrame(schema=schema)]
    for number, block in blocks(path, reading):
        lines = lines_of(block)
        fields = lines.str.strip_chars().str.split("\t")
        texts = [fields.list.get(p, null_on_oob=True).str.replace_all('"', "") for p in places]
        texts[2] = texts[2].str.replace_all("[-: ]", "")
        table = pl.DataFrame(texts, schema=list(schema)).cast(schema, strict=False)
        good = table.select(pl.all_horizontal(pl.all().is_not_null())).to_series()
        good &= (fields.list.len() == n_fields).fill_null(False)
        header = pl.int_range(len(lines), eager=True) + number == 1
        reading.note(path, number, lines, good | header)
        parts.append(table.filter(good & ~header))
    reading.check(path, f"{n_fields} tab-separated fields")
    return pl.concat(parts)
