"""Reads times of events as whole numbers: unix times in any unit, dates, or plain numbers.

Internally times are millionths: microseconds since 1970, or millionths of a number that is no unix
time. So one column holds all of them without loss.
"""

import polars as pl

from oa_jax.data.store import MICROSECONDS, MILLISECONDS, NUMBERS, SECONDS

MILLION = 1_000_000
NUMBER, DATE = "number", "date"
# Unit -> factor to millionths, a negative one divides. Unix times from 1973 to 2103 are told apart
# by their size; below are numbers that are no unix times.
FACTORS = {"s": MILLION, "ms": 1000, "us": 1, "ns": -1000, NUMBER: MILLION}
FROM, TO, LARGEST = 1e8, 4.2e9, 9.2e18
SCALES = {"s": 1, "ms": 1e3, "us": 1e6, "ns": 1e9}
WORDS = {"s": "unix seconds", "ms": "unix milliseconds", "us": "unix microseconds"}
WORDS |= {"ns": "unix nanoseconds", NUMBER: "numbers below 1e8", DATE: "dates"}
EXPECTED = "a unix time of 1973 to 2103, a number below 1e8 or a date such as 2024-05-31T12:00:00Z"
EXPECTED += ", or --time_unit"
ISO = (
    r"^([0-9]{4}-[0-9]{2}-[0-9]{2})"
    r"(?:[T ]([0-9]{2}:[0-9]{2})(?::([0-9]{2})(?:[.,]([0-9]{1,9}))?)?)?"
    r" ?(?:Z|z|UTC|([+-])([0-9]{2}):?([0-5][0-9])?)?$"
)


def parsed(column: pl.Series, unit: str | None = None) -> tuple[pl.Series, pl.Series]:
    """(millionths, unit) of every value, null if it is no time. Finer parts are lost.

    column: text, numbers, or dates of Parquet; dates without a zone are UTC. unit: of numbers;
    None guesses it for each value. Raises TypeError for a column of another type.
    """
    kind = column.dtype
    if kind.is_temporal() and kind not in (pl.Time, pl.Duration):
        fine = pl.Datetime("us", getattr(kind, "time_zone", None))
        micros = column.cast(fine, strict=False).dt.epoch("us")
        return micros, _said(micros, pl.lit(DATE))
    if kind == pl.String:
        text = column.str.strip_chars()
        whole, real = (text.cast(t, strict=False) for t in (pl.Int64, pl.Float64))
    elif kind.is_numeric():
        real, text = column.cast(pl.Float64, strict=False), None
        nothing = pl.repeat(None, len(column), dtype=pl.Int64, eager=True)
        whole = column.cast(pl.Int64, strict=False) if kind.is_integer() else nothing
    else:
        raise TypeError(kind)
    micros, units = _numbers(whole, real, unit)
    if text is not None and micros.null_count():
        dates = _dates(text.filter(micros.is_null()))
        if dates.null_count() < len(dates):
            micros = micros.scatter(micros.is_null().arg_true(), dates)
            units = pl.select(units.fill_null(_said(micros, pl.lit(DATE)))).to_series()
    return micros, units


def _said(micros, unit):
    return pl.select(pl.when(micros.is_not_null()).then(unit)).to_series().cast(pl.String)


def _numbers(whole, real, unit):
    table, size = pl.DataFrame({"whole": whole, "real": real}), pl.col("real").abs()
    if unit:
        kind = pl.lit(unit)
    else:
        kind = pl.when(size < FROM).then(pl.lit(NUMBER))
        for name, scale in SCALES.items():
            inside = size.is_between(FROM * scale, TO * scale, closed="left")
            kind = kind.when(inside).then(pl.lit(name))
        doubtful = size.is_between(1.97e9, 2.11e9) | size.is_between(1.97e11, 2.11e11)
        if table.select(doubtful.any()).item():
            kind = pl.when(~_is_clock(size)).then(kind)
    table = table.with_columns(unit=kind)
    value = pl.lit(None, pl.Int64)
    for name, factor in FACTORS.items():
        small = size * max(factor, 1) < LARGEST
        if factor > 0:
            exact, near = pl.col("whole") * factor, (pl.col("real") * factor).round()
        else:
            exact, near = pl.col("whole") // -factor, pl.col("real") / -factor
        one = exact.fill_null(near.cast(pl.Int64, strict=False))
        value = pl.when((pl.col("unit") == name) & small).then(one).otherwise(value)
    micros = table.select(value).to_series()
    return micros, _said(micros, table["unit"])


def _is_clock(size):
    """Whether digits are yyyymmddhh or yyyymmddhhmm of 1970 to 2100. As unix times these would be
    seconds of 2032 to 2036 or milliseconds of 1976."""
    hour = pl.when(size < 1e11).then(size).otherwise(size // 100)
    year, month, day = hour // 1_000_000, hour // 10_000 % 100, hour // 100 % 100
    real = year.is_between(1970, 2100) & month.is_between(1, 12) & day.is_between(1, 31)
    return real & (hour % 100 < 24) & ((size < 1e11) | (size % 100 < 60))


def _dates(text):
    """Millionths of ISO dates, null where the text is none."""
    found = text.str.extract_groups(ISO).struct.unnest()
    found.columns = ["day", "minute", "second", "part", "sign", "hours", "minutes"]
    clock = pl.format("{}T{}:{}", "day", pl.col("minute").fill_null("00:00"),
                      pl.col("second").fill_null("00"))  # fmt: skip
    begin = clock.str.to_datetime("%Y-%m-%dT%H:%M:%S", strict=False).dt.epoch("us")
    part = pl.col("part").str.pad_end(9, "0").cast(pl.Int64).fill_null(0)
    zone = pl.col("hours").cast(pl.Int64) * 60 + pl.col("minutes").cast(pl.Int64).fill_null(0)
    zone = pl.when(pl.col("sign") == "-").then(-zone).otherwise(zone).fill_null(0)
    valid = zone.abs() < 24 * 60
    micros = pl.when(valid).then(begin + part // 1000 - zone * 60 * MILLION)
    return found.select(micros).to_series()


def stored(micros: pl.Series, is_unix: bool) -> tuple[pl.Series, str]:
    """Times in the coarsest unit that loses nothing, and the name of that unit."""
    units = ((MILLION, SECONDS), (1000, MILLISECONDS), (1, MICROSECONDS))
    units = units if is_unix else ((MILLION, NUMBERS), (1, f"{NUMBERS}, millionths"))
    factor, word = next(unit for unit in units if (micros % unit[0] == 0).all())
    return micros // factor, word
