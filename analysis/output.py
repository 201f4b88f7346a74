"""What the results share: frames as files, and numbers as people read them."""

import io
import math
import pathlib
from collections.abc import Callable

import polars as pl

from oa_jax import files
from oa_jax.errors import UserError
from oa_jax.sheets import Sheet

from .runs import Run


def columns(words: str = "", whole: str = "", real: str = "") -> dict[str, pl.DataType]:
    """A frame's schema from the names of its columns of text, of integers and of numbers."""
    kinds = ((words, pl.String), (whole, pl.Int64), (real, pl.Float64))
    return {name: kind for names, kind in kinds for name in names.split()}


def write_frame(out: pathlib.Path, name: str, frame: pl.DataFrame) -> None:
    """`NAME.parquet` and `NAME.csv` in `out`."""
    buffer = io.BytesIO()
    frame.write_parquet(buffer)
    files.write(pathlib.Path(out) / f"{name}.parquet", buffer.getvalue())
    files.write(pathlib.Path(out) / f"{name}.csv", frame.write_csv())


def read_frame(out: pathlib.Path, name: str, runs: list[Run]) -> pl.DataFrame | None:
    """What `NAME.parquet` of `out` has of these runs, which an earlier call may have left of others
    by the same name, with their setting; None when there is none. Raises UserError when damaged."""
    path = pathlib.Path(out) / f"{name}.parquet"
    if not path.exists():
        return None
    try:
        frame = pl.read_parquet(path, glob=False)
    except (pl.exceptions.PolarsError, OSError):
        raise UserError(f"{path}: not a parquet file: remove it and run `{name}` again") from None
    keys = [key for key in ("run", "digest") if key in frame.columns]  # older ones have no digest
    mine = [(run.name, run.digest, run.setting) for run in runs]
    mine = pl.DataFrame(mine, columns("run digest setting"), orient="row").select(*keys, "setting")
    return frame.join(mine, on=keys, maintain_order="left")


def number(value: float | None, digits: int = 3, sign: bool = False) -> str:
    """A number for people, with a true minus; a dash for None and what is no number."""
    if value is None or not math.isfinite(value):
        return "–"
    value = round(value, digits) + 0.0  # no −0.000
    return f"{value:{'+' if sign else ''}.{digits}f}".replace("-", "−")


def interval(low: float | None, high: float | None, digits: int = 3, sign: bool = False) -> str:
    """`[low, high]`, empty when either is missing."""
    if low is None or high is None or math.isnan(low) or math.isnan(high):
        return ""
    return f"[{number(low, digits, sign)}, {number(high, digits, sign)}]"


def mean_sd(mean: float | None, sd: float | None, digits: int = 4) -> str:
    """`mean ± sd`, the mean alone where there is no sd."""
    known = sd is not None and math.isfinite(sd) and mean is not None
    return number(mean, digits) + (f" ± {number(sd, digits)}" if known else "")


def percent(share: float | None) -> str:
    """A share as `+1.2 %`."""
    return "–" if share is None else number(100 * share, 1, sign=True) + " %"


def sheet_of(
    frame: pl.DataFrame, title: str, words: int, cells: dict[str, str | Callable[[dict], str]]
) -> Sheet:
    """A table for people. cells: heading -> a column, or a function of a row. words: as `Sheet`."""
    made = [c if callable(c) else lambda row, name=c: str(row[name]) for c in cells.values()]
    rows = [[cell(row) for cell in made] for row in frame.iter_rows(named=True)]
    return Sheet(title, [*cells], rows, words)


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")
