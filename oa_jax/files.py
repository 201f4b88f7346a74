"""Reading and writing whole files: writes are atomic, failures are a `UserError` of one line."""

from __future__ import annotations

import io
import json
import math
import os
import pathlib
import zipfile
import zlib
from typing import Any

import numpy as np

from oa_jax.errors import UserError


def write(path: str | os.PathLike, content: bytes | str) -> pathlib.Path:
    """Replace the file `path` by `content`; a kill or a full disk leaves the old file or the new.

    Folders above it are made. Raises UserError naming the file and the reason.
    """
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
        temporary.unlink(missing_ok=True)
        raise UserError(f"{path}: cannot write: {error.strerror or error}") from None
    return path


def write_json(path: str | os.PathLike, value: Any) -> pathlib.Path:
    """Write `value`, as `plain` makes it, as JSON with a line for each field."""
    return write(path, json.dumps(plain(value), indent=1) + "\n")


def write_npz(path: str | os.PathLike, arrays: dict[str, np.ndarray]) -> pathlib.Path:
    """Write named arrays as a compressed .npz file."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return write(path, buffer.getvalue())


def read_json(path: str | os.PathLike, expected: str = "a JSON file", kind: type = dict) -> Any:
    """The value in a JSON file, an instance of `kind`.

    expected: what the file should be, in words, for the error. Raises UserError naming the file
    when it is missing, not JSON, or of another kind.
    """
    path = pathlib.Path(path)
    try:
        value = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {(error.strerror or error)!s}: expected {expected}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON: {error}: expected {expected}") from None
    if not isinstance(value, kind):
        found, names = type(value).__name__, {dict: "an object", list: "a list"}
        raise UserError(
            f"{path}: holds a {found}, not {names.get(kind, kind)}: expected {expected}"
        )
    return value


def read_npz(path: str | os.PathLike, expected: str = "an .npz file") -> dict[str, np.ndarray]:
    """All arrays of an .npz file. Objects (pickles) are refused.

    Raises UserError naming the file when it is missing or damaged.
    """
    try:
        archive = np.load(path, allow_pickle=False)
        if not hasattr(archive, "files"):
            raise ValueError("a single array")
        with archive:
            return {name: archive[name] for name in archive.files}
    except FileNotFoundError:
        raise UserError(f"{path}: no such file: expected {expected}") from None
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path}: damaged: {error}: expected {expected}") from None


def plain(value: Any) -> Any:
    """Python objects for JSON out of NumPy ones; numbers that are not finite become None."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
