"""Arrays that others computed: .npy, or pickles as LLM4CDSR's scripts write them."""

from __future__ import annotations

import hashlib
import io
import pathlib

import numpy as np

from oa_jax import files
from oa_jax.data import pickles, store, texts
from oa_jax.data.store import Place
from oa_jax.errors import UserError

# How the names of the official code's tables end: A, B and both together.
OFFICIAL = ("_A_pca128.pkl", "_B_pca128.pkl", "_all.pkl")
OFFICIAL_PROFILES, ID_MAP = "usr_profile_emb.pkl", "id_map.json"


def write_array(path: pathlib.Path, array: np.ndarray) -> None:
    """Replace a .npy file by `array`."""
    out = io.BytesIO()
    np.save(out, array, allow_pickle=False)
    files.write(path, out.getvalue())


def read_array(path: pathlib.Path) -> np.ndarray:
    """The array of a .npy file; UserError where there is none. No objects (pickles)."""
    try:
        return np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file: expected an array, a row each") from None
    except (ValueError, EOFError, OSError) as error:
        raise UserError(f"{path}: not a NumPy array: {error}") from None


def check_finite(path: pathlib.Path, rows: np.ndarray) -> np.ndarray:
    """The rows; UserError naming the first with a number that is not finite."""
    finite = np.isfinite(rows).reshape(len(rows), -1).all(1)
    if not finite.all():
        raise UserError(f"{path}: row {np.argmin(finite)}: not finite: expected finite numbers")
    return rows


def read_rows(path: Place, n_rows: int | None = None) -> np.ndarray:
    """(n_rows, W) float32 of a .npy or .pkl file; None takes any number of rows.

    Raises UserError where the file is none, holds another shape, or a number that is not finite.
    """
    path = store.place(path)
    return _as_rows(path, _read(path), n_rows)


def _read(path):
    return pickles.load(path) if path.suffix == ".pkl" else read_array(path)


def _as_rows(path, value, n_rows=None):
    if isinstance(value, dict):
        # Q25: the official scripts leave their half-filled cache under the final name.
        raise UserError(
            f"{path}: a dict of {len(value)} entries: expected an array, a row each: "
            "an interrupted run leaves such a file"
        )
    array = value if isinstance(value, np.ndarray) else None
    if array is None or array.ndim != 2 or array.dtype.kind not in "fiu":
        found = type(value).__name__ if array is None else f"{array.dtype} {array.shape}"
        raise UserError(f"{path}: found {found}: expected an array of numbers, a row each")
    if n_rows is not None and len(value) != n_rows:
        raise UserError(f"{path}: {len(value)} rows: expected {n_rows}")
    return check_finite(path, np.ascontiguousarray(value, np.float32))


def read_profiles(path: Place, raw_users: list[str]) -> np.ndarray:
    """(U, V) float32: profiles that a model wrote, row u for user u of the log (Q10).

    The file holds a row per user of the log in their order; or a row per user of the source, which
    numbers them from 1 (row r is user r+1) in an id_map.json beside the file, as the official code
    writes it, or by the ids themselves; or, a pickle, a dict from the source's id to a vector.

    Raises UserError where a user has no row.
    """
    path = store.place(path)
    value = _read(path)
    if isinstance(value, dict):
        rows = {str(user): np.asarray(vector).ravel() for user, vector in value.items()}
        missing = [user for user in raw_users if user not in rows]
        if missing:
            raise UserError(
                f"{path}: no profile of user {missing[0]!r} and of {len(missing) - 1} more: "
                f"expected all {len(raw_users)} users"
            )
        widths = {len(row) for row in rows.values()}
        if len(widths) > 1:
            raise UserError(f"{path}: profiles of widths {sorted(widths)}: expected one width")
        return _as_rows(path, np.stack([rows[user] for user in raw_users]))
    rows = _as_rows(path, value)
    if len(rows) == len(raw_users):
        return rows
    number = _numbers(path.with_name(ID_MAP))
    places = [number.get(user, int(user) if user.isdecimal() else 0) - 1 for user in raw_users]
    if len(rows) < len(raw_users) or min(places) < 0 or max(places) >= len(rows):
        raise UserError(
            f"{path}: {len(rows)} rows: expected {len(raw_users)}, a row per user of the log, or "
            f"a row per user of the source, numbered from 1 by an {ID_MAP} beside it"
        )
    return rows[places]


def _numbers(path) -> dict[str, int]:
    """{user id of the source: its number} of an id map, {} without one."""
    if not path.exists():
        return {}
    try:
        names = texts.json_value(path)["user_dict"]["id2str"]
        return {str(name): int(number) for number, name in names.items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"{path}: {reason}: expected user_dict with id2str") from None


def official_tables(folder: Place, n_items: tuple[int, int]) -> list[np.ndarray] | None:
    """Tables of A, of B and of both that the official code left in a folder; None if it did not.

    Raises UserError where one of the files is missing or does not fit the items.
    """
    folder, parts = store.place(folder), []
    if not folder.is_dir() or not any(folder.glob(f"*{OFFICIAL[2]}")):
        return None
    for ending, n_rows in zip(OFFICIAL, (*n_items, sum(n_items)), strict=True):
        found = sorted(folder.glob(f"*{ending}"))
        if len(found) != 1:
            raise UserError(f"{folder}: {len(found)} files *{ending}: expected one")
        parts.append(read_rows(found[0], n_rows))
    return parts


def digest(*arrays: np.ndarray) -> str:
    """Hex digest of the content of arrays."""
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()[:16]
