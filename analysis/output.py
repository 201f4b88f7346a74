"""Writing results: every file under a temporary name first, then renamed."""

from __future__ import annotations

import io
import math
import os
import pathlib

import polars as pl

from oa_jax.errors import UserError


def write(path: pathlib.Path, content: bytes | str) -> pathlib.Path:
    """Replace `path` by `content` at once; a kill leaves the old file or the new one."""
    path = pathlib.Path(path)
    content = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path}: cannot write: {error.strerror}") from None
    return path


def write_frame(out: pathlib.Path, name: str, frame: pl.DataFrame) -> None:
    """`NAME.parquet` and `NAME.csv` in `out`."""
    buffer = io.BytesIO()
    frame.write_parquet(buffer)
    write(pathlib.Path(out) / f"{name}.parquet", buffer.getvalue())
    write(pathlib.Path(out) / f"{name}.csv", frame.write_csv())


def read_frame(out: pathlib.Path, name: str) -> pl.DataFrame | None:
    """`NAME.parquet` of `out`, None when there is none. Raises UserError when it is damaged."""
    path = pathlib.Path(out) / f"{name}.parquet"
    if not path.exists():
        return None
    try:
        return pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError):
        raise UserError(f"{path}: not a parquet file: remove it and run `{name}` again") from None


def number(value, digits: int = 3, sign: bool = False) -> str:
    """A number for people, with a true minus; a dash for None and what is no number."""
    if value is None or not math.isfinite(value):
        return "–"
    value = round(value, digits) + 0.0  # no −0.000
    return f"{value:{'+' if sign else ''}.{digits}f}".replace("-", "−")


def interval(low, high, digits: int = 3, sign: bool = False) -> str:
    """`[low, high]`, empty when either is missing."""
    if low is None or high is None or math.isnan(low) or math.isnan(high):
        return ""
    return f"[{number(low, digits, sign)}, {number(high, digits, sign)}]"
