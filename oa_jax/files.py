"""Reading and writing whole files: writes are atomic, failures are a `UserError` of one line."""

import errno
import fcntl
import io
import json
import math
import os
import pathlib
import re
import tempfile
import uuid
from typing import IO, Any

import numpy as np

from oa_jax.errors import UserError


def local(path: str | os.PathLike, flag: str = "") -> pathlib.Path:
    """A path that a user gave, with `flag` if it was one; `~` expanded.

    Raises UserError for what is no path, and for a URL: pathlib would take gs://bucket for a folder
    `gs:` of this one.
    """
    if not isinstance(path, str | os.PathLike):
        raise UserError(f"{flag or 'path'}={path}: expected a path")
    given = f"{flag}={path}" if flag else path
    if re.match(r"[a-z][a-z0-9+.-]+:/", str(path)):
        raise UserError(f"{given}: a URL: expected a path in a file system that is mounted")
    try:
        return pathlib.Path(path).expanduser()
    except RuntimeError:
        raise UserError(f"{given}: there is no home folder: expected a path without ~") from None


def check_writable(path: str | os.PathLike, flag: str) -> None:
    """Raise UserError if a file `path` could not be written now: before work that takes long."""
    file = local(path, flag)
    if not file.parent.is_dir():
        raise UserError(f"{flag}={path}: no such folder: expected a file in one that exists")
    try:
        if file.is_dir():
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
        tempfile.TemporaryFile(dir=file.parent).close()
    except OSError as error:
        raise UserError(f"{flag}={path}: cannot write there: {error.strerror}") from None


def check_folder(folder: pathlib.Path, mark: str, flag: str) -> None:
    """Make a folder. Raises UserError where that cannot be, or where it holds other files but none
    named `mark`, which tells whose it is. What `write` has under way is nobody's."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        names = (path.name for path in folder.iterdir())
        strangers = sorted(name for name in names if name[0] != "." and not name.endswith(".tmp"))
    except OSError as error:
        raise UserError(f"{flag}={folder}: cannot write there: {error.strerror}") from None
    if strangers and mark not in strangers:
        found = f"{flag}={folder}: holds {strangers[0]} but no {mark}"
        raise UserError(f"{found}: expected an empty folder or one of before")


def lock(path: str | os.PathLike, wait: bool = False) -> IO | None:
    """Lock the file `path`, which is made, until the result is closed. None: another has it.

    Raises UserError where the file system has no locks, as Lustre and some NFS; with OA_NO_LOCK=1
    in the environment nothing is locked there.
    """
    file = open(path, "w")  # noqa: SIM115 (the caller holds it)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES):
            file.close()
            return None
        if os.environ.get("OA_NO_LOCK") != "1":
            file.close()
            raise UserError(
                f"{path}: this file system has no locks ({error.strerror}): expected one that has, "
                "or OA_NO_LOCK=1, and then no second command on the same folder"
            ) from None
    return file


def write(path: str | os.PathLike, content: bytes | str) -> pathlib.Path:
    """Replace the file `path` by `content`; a kill or a full disk leaves the old file or the new.

    Folders above it are made. Raises UserError naming the file and the reason.
    """
    path = pathlib.Path(path)
    content = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.tmp")  # others may write too
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


def read_json(
    path: str | os.PathLike, expected: str = "a JSON file", kind: type | tuple[type, ...] = dict
) -> Any:
    """The value in a JSON file, an instance of `kind`: dict, list or (dict, list).

    expected: what the file should be, in words, for the error. Raises UserError naming the file
    when it is missing, not JSON, or of another kind.
    """
    path = pathlib.Path(path)
    try:
        value = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}: expected {expected}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON: {error}: expected {expected}") from None
    if not isinstance(value, kind):
        names = {dict: "an object", list: "a list", (dict, list): "an object or a list"}
        found = type(value).__name__
        raise UserError(f"{path}: holds a {found}, not {names[kind]}: expected {expected}")
    return value


def check(file: Any, values: Any, fields: dict[str, Any], expected: str) -> None:
    """Raise UserError unless `values`, of a file, is an object with fields of these kinds."""
    for field, kind in fields.items():
        if not isinstance(values, dict) or field not in values:
            raise UserError(f"{file}: no field {field!r}: expected {expected}")
        if not isinstance(value := values[field], kind):
            found = json.dumps(value)[:40]
            raise UserError(f"{file}: {field}: found {found}: expected {expected}")


def check_numbers(file: Any, values: dict) -> None:
    """Raise UserError unless all values are numbers, or null: one that is not finite."""
    check(file, values, dict.fromkeys(values, int | float | None), "a number")


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
    except Exception as error:  # a damaged archive can raise anything
        raise UserError(f"{path}: damaged: {error}: expected {expected}") from None


def plain(value: Any) -> Any:
    """Python objects for JSON out of NumPy ones; numbers that are not finite become None."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
