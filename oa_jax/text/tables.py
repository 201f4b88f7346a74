"""The tables of text embeddings that LLM4CDSR reads: a folder of .npy files and metadata.json.

    global.npy       (nA+nB, E) float32: row i is item id i+1, A before B
    local_a.npy      (nA, d) float32, local_b.npy (nB, d) float32
    users.npy        (U, V) float32: row u is user u of the log
    n_history.npy    (U,) int32: how many of a user's first events its row was made from
    metadata.json    encoder, widths, explained variance, fingerprints; written last

No table holds a row for padding: the model adds it.
"""

import dataclasses
import hashlib
import io
import pathlib

import numpy as np

from oa_jax import files
from oa_jax.data import pickles, store, texts
from oa_jax.data.store import Place
from oa_jax.errors import UserError
from oa_jax.events.log import InteractionLog
from oa_jax.events.split import Split

METADATA = "metadata.json"
# Field of Tables -> its file.
FILES = {"global_table": "global.npy"}
FILES |= {name: f"{name}.npy" for name in ("local_a", "local_b", "users", "n_history")}
# How the names of the official code's tables end: A, B and both together.
OFFICIAL = ("_A_pca128.pkl", "_B_pca128.pkl", "_all.pkl")
OFFICIAL_PROFILES, ID_MAP = "usr_profile_emb.pkl", "id_map.json"


@dataclasses.dataclass(frozen=True)
class Tables:
    """Frozen inputs of LLM4CDSR for one log. Each array field is a file, see FILES.

    users: has a row for every user, also without a target (quirk Q10).
    n_history: number of events in each user's row; -1 if the row was imported: unknown.
    metadata: content of metadata.json; `log` is the log's fingerprint, `encoder` names the origin.
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
    """Read the tables in folder `path`, and check that they belong to `log`.

    split: if given, no user's row may use a target of it, or a later event.
    sees_validation: the rows contain the validation target, as the official ones do (Q12).

    Raises UserError naming the file if it is missing or unreadable, has a wrong shape or type,
    holds a number that is not finite, or was made from another log or the texts of other items.
    """
    path = store.place(path)
    metadata, expected = read_metadata(path), log.fingerprint()
    if metadata["log"] != expected:
        found = f"{path / METADATA}: made from the log {metadata['log']}"
        raise UserError(f"{found}: expected {expected}, the fingerprint of {log.name}")
    made_of = metadata.get("items_digest")  # not in tables of vectors or of earlier versions
    there = getattr(log.origin, "metadata", {}).get("items_digest", made_of)
    if made_of not in (None, there):
        found = f"made from the texts of items {made_of}: expected {there}, those of {log.name}"
        raise UserError(f"{path / METADATA}: {found}")
    n_a, n_b = log.n_items
    rows = dict(zip(FILES, (n_a + n_b, n_a, n_b, log.n_users, log.n_users), strict=True))
    arrays = {field: _read_table(path / FILES[field], n) for field, n in rows.items()}
    widths = arrays["local_a"].shape[1], arrays["local_b"].shape[1]
    if widths[0] != widths[1]:
        raise UserError(f"{path}: local tables of widths {widths[0]} and {widths[1]}: expected one")
    found = digest(*arrays.values())
    if found != metadata.get("content", found):  # which tables of earlier versions do not have
        expected = f"expected {metadata['content']} of {METADATA}"
        raise UserError(f"{path}: digest of the arrays {found}: {expected}: make the tables again")
    if split is not None:
        _check_histories(path / FILES["n_history"], arrays["n_history"], split, sees_validation)
    return Tables(**arrays, metadata=metadata)


def default_folder(data_dir: Place, name: str) -> pathlib.Path:
    """The default folder of the tables of a data set."""
    return store.place(data_dir) / "oa_tables" / name


def history_of(split: Split, sees_validation: bool = False) -> np.ndarray:
    """(U,) int32: number of events of each user that a profile may use: those before its first
    target; for a user without a target, its training part.

    sees_validation: include the validation target if a test target follows (quirk Q12).
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
    content = digest(*(getattr(tables, field) for field in FILES))
    files.write_json(path / METADATA, tables.metadata | {"content": content})


def read_metadata(path: pathlib.Path) -> dict:
    """metadata.json of a folder of tables; UserError if there is none."""
    expected = "a folder that `python -m oa_jax text` wrote"
    metadata = files.read_json(path / METADATA, expected)
    if "log" not in metadata:
        raise UserError(f"{path / METADATA}: no field 'log': expected {expected}")
    return metadata


def _read_table(path, n_rows):
    array = read_array(path)
    kind, axes = (np.int32, 1) if path.name == FILES["n_history"] else (np.float32, 2)
    if array.dtype != kind or array.ndim != axes or len(array) != n_rows:
        expected = f"expected {np.dtype(kind)}, {axes} axes, {n_rows} rows"
        raise UserError(f"{path}: found {array.dtype} {array.shape}: {expected}")
    return check_finite(path, array)


def _check_histories(file, n_history, split, sees_validation):
    most = history_of(split, sees_validation)
    # An imported row's history is not known; where both protocols agree there is nothing to miss.
    less = (n_history >= 0) & (n_history < most) & (history_of(split) < most)
    for bad, bound in ((n_history > most, "at most"), (less, "exactly")):
        if bad.any():
            user = int(np.argmax(bad))
            what = "its test target (quirk q12)" if sees_validation else "its first target"
            found = f"user {user}: profile of {n_history[user]} events"
            hint = "; text --sees_validation makes them so" * sees_validation
            expected = f"expected {bound} the {most[user]} before {what}{hint}"
            raise UserError(f"{file}: {found}: {expected}")


def write_array(path: pathlib.Path, array: np.ndarray) -> None:
    """Replace a .npy file by `array`."""
    out = io.BytesIO()
    np.save(out, array, allow_pickle=False)
    files.write(path, out.getvalue())


def read_array(path: pathlib.Path) -> np.ndarray:
    """The array of a .npy file; UserError if there is none, or if it holds objects (pickles)."""
    try:
        array = np.load(path, allow_pickle=False)
        if not isinstance(array, np.ndarray):
            raise ValueError("several, as of an .npz file")
        return array
    except FileNotFoundError:
        raise UserError(f"{path}: no such file: expected an array, a row each") from None
    except Exception as error:  # a damaged file can raise anything
        raise UserError(f"{path}: not a NumPy array: {error}") from None


def check_finite(path: pathlib.Path, rows: np.ndarray) -> np.ndarray:
    """Returns the rows; UserError naming the first row with a number that is not finite."""
    finite = np.isfinite(rows).reshape(len(rows), -1).all(1)
    if not finite.all():
        raise UserError(f"{path}: row {np.argmin(finite)}: not finite: expected finite numbers")
    return rows


def read_rows(path: Place, n_rows: int) -> np.ndarray:
    """(n_rows, W) float32 of a .npy file, or of a .pkl as LLM4CDSR's scripts write them.

    Raises UserError if it is no such file, has another shape, or holds a number that is not finite.
    """
    path = store.place(path)
    return _as_rows(path, _read(path), n_rows)


def _read(path):
    return pickles.load(path) if path.suffix == ".pkl" else read_array(path)


def _as_rows(path, value, n_rows=None):
    if isinstance(value, dict):
        # Q25: the official scripts leave their half-filled cache under the final name.
        found = f"a dict of {len(value)} entries: expected an array, a row each"
        raise UserError(f"{path}: {found}: an interrupted run leaves such a file")
    array = value if isinstance(value, np.ndarray) else None
    if array is None or array.ndim != 2 or array.dtype.kind not in "fiu":
        found = type(value).__name__ if array is None else f"{array.dtype} {array.shape}"
        raise UserError(f"{path}: found {found}: expected an array of numbers, a row each")
    if n_rows is not None and len(value) != n_rows:
        raise UserError(f"{path}: {len(value)} rows: expected {n_rows}")
    return check_finite(path, np.ascontiguousarray(value, np.float32))


def read_profiles(path: Place, raw_users: list[str]) -> np.ndarray:
    """Imported profiles, (U, V) float32, row u for user u of the log (Q10).

    The first of these that gives every user a row tells which row of the file belongs to a user:
    1. the file is a pickled dict from the source's user id to a vector;
    2. users have several sequences, and the file has one row per sequence, in the log's order;
    3. an id_map.json beside the file (the official code writes it) numbers users from 1: row r
       (from 0) is user r+1; 4. ids are whole numbers: row r is the user with id r+1;
    5. the file has one row per user of the log, in the log's order.

    Raises UserError if a user has no row.
    """
    path = store.place(path)
    value = _read(path)
    if isinstance(value, dict):
        rows = {str(user): np.asarray(vector).ravel() for user, vector in value.items()}
        missing = [user for user in raw_users if user not in rows]
        if missing:
            found = f"no profile of user {missing[0]!r} and of {len(missing) - 1} more"
            raise UserError(f"{path}: {found}: expected all {len(raw_users)} users")
        widths = {len(row) for row in rows.values()}
        if len(widths) > 1:
            raise UserError(f"{path}: profiles of widths {sorted(widths)}: expected one width")
        return _as_rows(path, np.stack([rows[user] for user in raw_users]))
    rows, by_map = _as_rows(path, value), _numbers(path.with_name(ID_MAP))
    by_id = {user: int(user) for user in raw_users if user.isdecimal() and len(user) < 19}
    of_sequences = len(set(raw_users)) < len(raw_users) == len(rows)
    for number in () if of_sequences else (by_map, by_id):
        places = np.array([number.get(user, 0) for user in raw_users])
        if places.min() > 0 and places.max() <= len(rows):
            return rows[places - 1]
    if len(rows) == len(raw_users):
        return rows
    raise UserError(
        f"{path}: {len(rows)} rows: expected {len(raw_users)}, a row per user of the log, or "
        f"a row per user of the source, numbered from 1 by an {ID_MAP} beside it"
    )


def _numbers(path) -> dict[str, int]:
    """{user id of the source: its number} of an id map, {} without one."""
    if not path.exists():
        return {}
    try:
        names = texts.json_value(path, unique=True)["user_dict"]["id2str"]
        return {str(name): int(number) for number, name in names.items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"{path}: {reason}: expected user_dict with id2str") from None


def official_tables(folder: Place, n_items: tuple[int, int]) -> list[np.ndarray] | None:
    """The official code's tables of A, of B and of both in a folder; None if it holds none.

    Raises UserError if one of the files is missing or does not fit the items.
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
    """Hex digest of the content of the arrays."""
    content = hashlib.sha256()
    for array in arrays:
        content.update(np.ascontiguousarray(array))
    return content.hexdigest()[:16]
