"""The tables of text embeddings that LLM4CDSR reads: a folder of .npy files and metadata.json.

    global.npy       (nA+nB, E) float32: row i is item id i+1, A before B
    local_a.npy      (nA, d) float32, local_b.npy (nB, d) float32
    users.npy        (U, V) float32: row u is user u of the log
    n_history.npy    (U,) int32: how many of a user's first events its row was made from
    metadata.json    encoder, widths, explained variance, fingerprints; written last

No table holds a row for padding: the model adds it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib

import numpy as np

from oa_jax.errors import UserError
from oa_jax.events.log import InteractionLog
from oa_jax.events.split import Split

METADATA = "metadata.json"
# Field of Tables -> its file.
FILES = {
    "global_table": "global.npy",
    "local_a": "local_a.npy",
    "local_b": "local_b.npy",
    "users": "users.npy",
    "n_history": "n_history.npy",
}


@dataclasses.dataclass(frozen=True)
class Tables:
    """Frozen inputs of LLM4CDSR (specs llm4cdsr §1.3-1.5), aligned with a log.

    global_table: (nA+nB, E) float32, row i is item id i+1 of the log.
    local_a, local_b: (nA, d), (nB, d) float32, row i is the domain's item i+1.
    users: (U, V) float32, row u is user u of the log: also users without a target have one (Q10).
    n_history: (U,) int32, the leading events of each user behind its row; -1 where the row comes
        from an imported file, of which nobody knows.
    metadata: what metadata.json holds; `log` is the log's fingerprint, `encoder` names the origin.
    """

    global_table: np.ndarray
    local_a: np.ndarray
    local_b: np.ndarray
    users: np.ndarray
    n_history: np.ndarray
    metadata: dict


def load_tables(
    path, log: InteractionLog, split: Split | None = None, sees_validation: bool = False
) -> Tables:
    """Read the tables in folder `path`, checked against the log that they must belong to.

    split: where given, no user's row may be made from a target of it, or from what follows.
    sees_validation: rows hold the validation target, as the official ones do (Q12).

    Raises UserError naming the file when one is missing or unreadable, has another shape or type
    than the log asks for, holds a number that is not finite, or was made from another log.
    """
    path = pathlib.Path(path).expanduser()
    metadata, expected = read_metadata(path), log.fingerprint()
    if metadata["log"] != expected:
        raise UserError(
            f"{path / METADATA}: made from the log {metadata['log']}: expected {expected}, "
            f"the fingerprint of {log.name}"
        )
    arrays = {field: _read(path / file) for field, file in FILES.items()}
    tables = Tables(**arrays, metadata=metadata)
    _check_shapes(path, tables, log)
    if split is not None:
        _check_histories(path / FILES["n_history"], tables.n_history, split, sees_validation)
    return tables


def default_folder(data_dir, name: str) -> pathlib.Path:
    """Where the tables of a data set lie, if nobody says otherwise."""
    return pathlib.Path(data_dir).expanduser() / "oa_tables" / name


def history_of(split: Split, sees_validation: bool = False) -> np.ndarray:
    """(U,) int32: the events of each user before its first target, all that a profile may hold.

    A user without a target has its training part: nobody asks what comes after.
    sees_validation: with the validation target where a test target follows (quirk Q12).
    """
    first = np.where(split.val >= 0, split.val, split.test)
    if sees_validation:
        first = np.where(split.test >= 0, split.test, first)
    return np.where(first >= 0, first, split.n_train).astype(np.int32)


def save_tables(path, tables: Tables) -> None:
    """Write the tables. A kill at any moment leaves a folder that `load_tables` refuses."""
    path = pathlib.Path(path).expanduser()
    path.mkdir(parents=True, exist_ok=True)
    (path / METADATA).unlink(missing_ok=True)
    for field, file in FILES.items():
        with replacing(path / file) as out:
            np.save(out, getattr(tables, field), allow_pickle=False)
    with replacing(path / METADATA) as out:
        out.write((json.dumps(tables.metadata, indent=1) + "\n").encode())


def read_metadata(path: pathlib.Path) -> dict:
    """metadata.json of a folder of tables; UserError where there is none."""
    file = path / METADATA
    try:
        metadata = json.loads(file.read_text())
    except FileNotFoundError:
        raise UserError(
            f"{file}: no such file: expected a folder that `python -m oa_jax text` wrote"
        ) from None
    except (ValueError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: not valid JSON: {error}") from None
    if not isinstance(metadata, dict) or "log" not in metadata:
        raise UserError(f"{file}: no field 'log': expected the metadata of text tables")
    return metadata


@contextlib.contextmanager
def replacing(path: pathlib.Path):
    """A file under a temporary name that takes its name when nothing went wrong."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _read(file: pathlib.Path) -> np.ndarray:
    try:
        return np.load(file, allow_pickle=False)
    except FileNotFoundError:
        raise UserError(f"{file}: no such file: expected one of the folder's tables") from None
    except (ValueError, EOFError, OSError) as error:
        raise UserError(f"{file}: not a NumPy array: {error}") from None


def _check_histories(file, n_history, split, sees_validation):
    most = history_of(split, sees_validation)
    # An imported row's history is not known; where both protocols agree there is nothing to miss.
    less = (n_history >= 0) & (n_history < most) & (history_of(split) < most)
    for bad, bound in ((n_history > most, "at most"), (less, "exactly")):
        if bad.any():
            user = int(np.argmax(bad))
            what = "its test target (quirk q12)" if sees_validation else "its first target"
            raise UserError(
                f"{file}: user {user}: profile of {n_history[user]} events: expected {bound} "
                f"the {most[user]} before {what}"
            )


def _check_shapes(path, tables, log):
    n_a, n_b = log.n_items
    rows = {
        "global_table": n_a + n_b,
        "local_a": n_a,
        "local_b": n_b,
        "users": log.n_users,
        "n_history": log.n_users,
    }
    for field, n_rows in rows.items():
        array, file = getattr(tables, field), path / FILES[field]
        kind, axes = (np.int32, 1) if field == "n_history" else (np.float32, 2)
        if array.dtype != kind or array.ndim != axes or len(array) != n_rows:
            raise UserError(
                f"{file}: found {array.dtype} {array.shape}: expected {np.dtype(kind)}, "
                f"{axes} axes, {n_rows} rows"
            )
        if not np.isfinite(array).all():
            row = int(np.argmin(np.isfinite(array).reshape(n_rows, -1).all(1)))
            raise UserError(f"{file}: row {row}: not finite: expected finite numbers")
    widths = tables.local_a.shape[1], tables.local_b.shape[1]
    if widths[0] != widths[1]:
        raise UserError(f"{path}: local tables of widths {widths[0]} and {widths[1]}: expected one")
