"""The tables of text embeddings that LLM4CDSR reads: a folder of .npy files and metadata.json.

    global.npy       (nA+nB, E) float32: row i is item id i+1, A before B
    local_a.npy      (nA, d) float32, local_b.npy (nB, d) float32
    users.npy        (U, V) float32: row u is user u of the log
    n_history.npy    (U,) int32: how many of a user's first events its row was made from
    metadata.json    encoder, widths, explained variance, fingerprints; written last

No table holds a row for padding: the model adds it.
"""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np

from oa_jax import files
from oa_jax.data import store
from oa_jax.data.store import Place
from oa_jax.errors import UserError
from oa_jax.events.log import InteractionLog
from oa_jax.events.split import Split
from oa_jax.text.files import check_finite, read_array, write_array

METADATA = "metadata.json"
# Field of Tables -> its file.
FILES = {
    "global_table": "global.npy",
    **{name: f"{name}.npy" for name in ("local_a", "local_b", "users", "n_history")},
}


@dataclasses.dataclass(frozen=True)
class Tables:
    """Frozen inputs of LLM4CDSR, aligned with a log; the fields are the files above.

    users: also those without a target have a row (quirk Q10).
    n_history: -1 where the row comes from an imported file, of which nobody knows.
    metadata: what metadata.json holds; `log` is the log's fingerprint, `encoder` names the origin.
    """

    global_table: np.ndarray
    local_a: np.ndarray
    local_b: np.ndarray
    users: np.ndarray
    n_history: np.ndarray
    metadata: dict


def load_tables(
    path: Place, log: InteractionLog, split: Split | None = None, sees_validation: bool = False
) -> Tables:
    """Read the tables in folder `path`, checked against the log that they must belong to.

    split: where given, no user's row may be made from a target of it, or from what follows.
    sees_validation: rows hold the validation target, as the official ones do (Q12).

    Raises UserError naming the file when one is missing or unreadable, has another shape or type
    than the log asks for, holds a number that is not finite, or was made from another log.
    """
    path = store.place(path)
    metadata, expected = read_metadata(path), log.fingerprint()
    if metadata["log"] != expected:
        raise UserError(
            f"{path / METADATA}: made from the log {metadata['log']}: expected {expected}, "
            f"the fingerprint of {log.name}"
        )
    n_a, n_b = log.n_items
    rows = dict(zip(FILES, (n_a + n_b, n_a, n_b, log.n_users, log.n_users), strict=True))
    arrays = {field: _read_table(path / FILES[field], n) for field, n in rows.items()}
    widths = arrays["local_a"].shape[1], arrays["local_b"].shape[1]
    if widths[0] != widths[1]:
        raise UserError(f"{path}: local tables of widths {widths[0]} and {widths[1]}: expected one")
    if split is not None:
        _check_histories(path / FILES["n_history"], arrays["n_history"], split, sees_validation)
    return Tables(**arrays, metadata=metadata)


def default_folder(data_dir: Place, name: str) -> pathlib.Path:
    """Where the tables of a data set lie, if nobody says otherwise."""
    return store.place(data_dir) / "oa_tables" / name


def history_of(split: Split, sees_validation: bool = False) -> np.ndarray:
    """(U,) int32: the events of each user before its first target, all that a profile may hold.

    A user without a target has its training part: nobody asks what comes after.
    sees_validation: with the validation target where a test target follows (quirk Q12).
    """
    first = np.where(split.val >= 0, split.val, split.test)
    if sees_validation:
        first = np.where(split.test >= 0, split.test, first)
    return np.where(first >= 0, first, split.n_train).astype(np.int32)


def save_tables(path: Place, tables: Tables) -> None:
    """Write the tables. A kill at any moment leaves a folder that `load_tables` refuses."""
    path = store.place(path)
    (path / METADATA).unlink(missing_ok=True)
    for field, file in FILES.items():
        write_array(path / file, getattr(tables, field))
    files.write_json(path / METADATA, tables.metadata)


def read_metadata(path: pathlib.Path) -> dict:
    """metadata.json of a folder of tables; UserError where there is none."""
    expected = "a folder that `python -m oa_jax text` wrote"
    metadata = files.read_json(path / METADATA, expected)
    if "log" not in metadata:
        raise UserError(f"{path / METADATA}: no field 'log': expected {expected}")
    return metadata


def _read_table(path, n_rows):
    array = read_array(path)
    kind, axes = (np.int32, 1) if path.name == FILES["n_history"] else (np.float32, 2)
    if array.dtype != kind or array.ndim != axes or len(array) != n_rows:
        raise UserError(
            f"{path}: found {array.dtype} {array.shape}: expected {np.dtype(kind)}, "
            f"{axes} axes, {n_rows} rows"
        )
    return check_finite(path, array)


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
