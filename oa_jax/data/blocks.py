"""Reads files block by block: plain, gzip or zstd. A byte order mark is skipped, also inside the
file if it was joined from several files."""

import contextlib
import gzip
import pathlib
from collections.abc import Iterator

import polars as pl

from oa_jax.data.texts import Reading, errors
from oa_jax.errors import UserError, needs

BLOCK_BYTES = 1 << 25
LONGEST_LINE = 1 << 28
GZIP, ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
NO_UTF8 = "\ufffd"
MARK = b"\xef\xbb\xbf"


def blocks(path: pathlib.Path, reading: Reading) -> Iterator[tuple[int, bytes]]:
    """Yields (number of the first line, whole lines) of an unpacked file."""
    number, rest = 1, b""
    with errors(path), open(path, "rb") as raw, contextlib.ExitStack() as stack:
        file = _unpacked(path, raw, stack)
        while block := file.read(BLOCK_BYTES):
            reading.on_bytes(path, raw.tell())
            if number == 1 and not rest and block.startswith((b"\xff\xfe", b"\xfe\xff")):
                raise UserError(f"{path}: line 1: expected UTF-8 text, found UTF-16")
            end = block.rfind(b"\n") + 1
            if end:
                whole, rest = rest + block[:end], block[end:]
                yield number, _unmarked(whole)
                number += whole.count(b"\n")
            elif len(rest) > LONGEST_LINE:
                raise UserError(f"{path}: line {number}: longer than {LONGEST_LINE} bytes")
            else:
                rest += block
        if rest:
            yield number, _unmarked(rest)


def _unmarked(lines):
    return lines.removeprefix(MARK).replace(b"\n" + MARK, b"\n")


def _unpacked(path, raw, stack):
    start = raw.read(len(ZSTD))
    raw.seek(0)
    if path.suffix == ".gz" or start.startswith(GZIP):
        return stack.enter_context(gzip.open(raw))
    if path.suffix == ".zst" or start == ZSTD:
        with needs("data", f"{path}: packed by zstd"):
            import pyarrow  # Python itself unpacks zstd from 3.14 on
        return stack.enter_context(pyarrow.CompressedInputStream(pyarrow.PythonFile(raw), "zstd"))
    return raw


def lines_of(block: bytes) -> pl.Series:
    """Lines of a block without line ends; bytes that are no UTF-8 become U+FFFD."""
    content = block.decode("utf-8", "replace").removesuffix("\n")
    return pl.Series([content]).str.split("\n").explode().str.strip_suffix("\r")


def is_id(name: str) -> pl.Expr:
    """True if the name is not empty and has no U+FFFD, which stands for bytes that are no UTF-8."""
    return (pl.col(name) != "") & ~pl.col(name).str.contains(NO_UTF8, literal=True)


def n_lines(block: bytes) -> int:
    return block.count(b"\n") + (not block.endswith(b"\n"))
