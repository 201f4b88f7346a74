"""Vectors that others computed: .npy, or pickles as LLM4CDSR publishes them (specs §1.5)."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib

import numpy as np

from oa_jax.data import pickles
from oa_jax.errors import UserError

# Part -> how its file's name ends in a folder of the official code.
OFFICIAL = {"a": "_A_pca128.pkl", "b": "_B_pca128.pkl", "global": "_all.pkl"}
OFFICIAL_PROFILES, ID_MAP = "usr_profile_emb.pkl", "id_map.json"


def read_rows(path, n_rows: int | None) -> np.ndarray:
    """(n_rows, W) float32 of a .npy or .pkl file; None takes any number of rows.

    Raises UserError where the file is none, holds another shape, or a number that is not finite.
    """
    path = pathlib.Path(path).expanduser()
    value = _read(path)
    if isinstance(value, dict):
        # Q25: the official scripts leave their half-filled cache under the final name.
        raise UserError(
            f"{path}: a dict of {len(value)} entries: expected an array, a row each: "
            "an interrupted run leaves such a file"
        )
    if not isinstance(value, np.ndarray) or value.ndim != 2 or value.dtype.kind not in "fiu":
        is_array = isinstance(value, np.ndarray)
        found = f"{value.dtype} {value.shape}" if is_array else type(value).__name__
        raise UserError(f"{path}: found {found}: expected an array of numbers, a row each")
    if n_rows is not None and len(value) != n_rows:
        raise UserError(f"{path}: {len(value)} rows: expected {n_rows}")
    return _finite(path, value)


def read_profiles(path, raw_users: list[str]) -> np.ndarray:
    """(U, V) float32: profiles that a model wrote, row u for user u of the log (Q10).

    The file holds a row per user of the log in their order; or a row per user of the source, which
    numbers them from 1 (row r is user r+1) in an id_map.json beside the file, as the official code
    writes it, or by the ids themselves; or, a pickle, a dict from the source's id to a vector.

    Raises UserError where a user has no row.
    """
    path = pathlib.Path(path).expanduser()
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
        return _finite(path, np.stack([rows[user] for user in raw_users]))
    rows = read_rows(path, None)
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
        names = json.loads(path.read_text("utf-8"))["user_dict"]["id2str"]
        return {str(name): int(number) for number, name in names.items()}
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"{path}: {reason}: expected user_dict with id2str") from None


@dataclasses.dataclass(frozen=True)
class OfficialTables:
    """The tables of the official code, already reduced, taken as they are."""

    local_a: np.ndarray
    local_b: np.ndarray
    global_table: np.ndarray
    profiles: pathlib.Path
    identity: dict

    @staticmethod
    def lie_in(folder) -> bool:
        folder = pathlib.Path(folder).expanduser()
        return folder.is_dir() and any(folder.glob(f"*{OFFICIAL['global']}"))

    @classmethod
    def read(cls, folder, n_items: tuple[int, int]) -> OfficialTables:
        """Raises UserError where one of the files is missing or does not fit the items."""
        folder, parts = pathlib.Path(folder).expanduser(), {}
        rows = {"a": n_items[0], "b": n_items[1], "global": sum(n_items)}
        for part, ending in OFFICIAL.items():
            found = sorted(folder.glob(f"*{ending}"))
            if len(found) != 1:
                raise UserError(f"{folder}: {len(found)} files *{ending}: expected one")
            parts[part] = read_rows(found[0], rows[part])
        digest = hashlib.sha256(b"".join(part.tobytes() for part in parts.values()))
        identity = {"kind": "official tables", "content": digest.hexdigest()[:16]}
        profiles = folder / OFFICIAL_PROFILES
        return cls(parts["a"], parts["b"], parts["global"], profiles, identity)


def _read(path):
    if path.suffix == ".pkl":
        return pickles.load(path)
    try:
        return np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file: expected vectors, a row each") from None
    except (ValueError, EOFError, OSError) as error:
        raise UserError(f"{path}: not a NumPy array: {error}") from None


def _finite(path, rows):
    rows = np.ascontiguousarray(rows, np.float32)
    if not np.isfinite(rows).all():
        row = int(np.argmin(np.isfinite(rows).all(1)))
        raise UserError(f"{path}: row {row}: not finite: expected finite numbers")
    return rows
