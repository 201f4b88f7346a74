"""Prepared data sets: where they lie, what a folder holds, and reading one back with numpy alone.

    <data_dir>/oa_pairs/<name>/<version>/
        oa_pairs-train.array_record-*   a record per user, in the order of user ids (TFDS)
        dataset_info.json, features.json                                           (TFDS)
        log.npz          the same events as columns, for resident training
        items.jsonl.gz   a JSON object per item, ids 1, 2, ... in order
        metadata.json    counts, sources, quirks, fingerprints

An item has `id` (joint, from 1), `domain` ("A" or "B"), `raw` (id of the source) and, where the
source says so, `title`, `brand`, `price`, `date` (text), `category`, `description` (lists of text).
"""

from __future__ import annotations

import dataclasses
import functools
import gzip
import hashlib
import io
import json
import pathlib
import zipfile
import zlib
from collections.abc import Iterable, Iterator

import numpy as np

from oa_jax.errors import UserError
from oa_jax.events.log import InteractionLog, make_log
from oa_jax.events.split import leave_one_out, roles_of

BUILDER, VERSION = "oa_pairs", "1.0.0"
LOG, ITEMS, METADATA = "log.npz", "items.jsonl.gz", "metadata.json"
COLUMNS = ("user", "item", "time", "role")


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A data set read back.

    log: its events; `log.role` is None where the roles are those of leave-one-out.
    role: (N,) int8, CONTEXT, TRAINING, VALIDATION or TEST for every event.
    raw_users: U texts, the user ids of the source.
    metadata: what metadata.json holds: name, protocol, source, domains, n_items, n_users,
    n_events, split, times ("unix seconds", "yyyymmdd" or "order"), quirks, notes, fingerprint,
    items_digest, ...
    directory: the folder of the version.
    """

    log: InteractionLog
    role: np.ndarray
    raw_users: list[str]
    metadata: dict
    directory: pathlib.Path

    @functools.cached_property
    def items(self) -> list[dict]:
        """The item table: items[k] is item k+1. See the module for its fields."""
        return list(iter_items(self.directory))


def folder(data_dir, name: str) -> pathlib.Path:
    """Where the prepared set `name` lies, or would lie, below a data directory."""
    return pathlib.Path(data_dir).expanduser() / BUILDER / name / VERSION


def is_prepared(data_dir, name: str) -> bool:
    return (folder(data_dir, name) / METADATA).is_file()


def names(data_dir) -> list[str]:
    """Names of all prepared sets below a data directory."""
    root = pathlib.Path(data_dir).expanduser() / BUILDER
    found = root.iterdir() if root.is_dir() else ()
    return sorted(p.name for p in found if is_prepared(data_dir, p.name))


def load(data_dir, name: str) -> Prepared:
    """Read the prepared set `name` below a data directory and check its fingerprint.

    Raises UserError if it is not there, damaged, or not what metadata.json says.
    """
    path = folder(data_dir, name)
    if not is_prepared(data_dir, name):
        have = ", ".join(names(data_dir)) or "nothing"
        raise UserError(
            f"{path}: not prepared: below {data_dir} is {have}; "
            f"python -m oa_jax data prepare {name} --raw_dir=DIR --data_dir={data_dir}"
        )
    metadata = read_metadata(path)
    columns = _read_columns(path / LOG)
    raw_users = json.loads(columns.pop("raw_users").tobytes())
    log, role = with_roles(**columns, n_items=tuple(metadata["n_items"]), name=name)
    found = log.fingerprint()
    if found != metadata["fingerprint"]:
        raise UserError(
            f"{path / LOG}: fingerprint {found}, expected {metadata['fingerprint']} of {METADATA}: "
            "the files were changed; remove the folder and prepare again"
        )
    return Prepared(log, role, raw_users, metadata, path)


def with_roles(user, item, time, role, n_items, name) -> tuple[InteractionLog, np.ndarray]:
    """A log, and its roles. The log carries them only where leave-one-out gives others.

    So a set that is split by leave-one-out has the fingerprint of its events alone.
    """
    log = make_log(user, item, time, n_items, name, role)
    role, bare = log.role, dataclasses.replace(log, role=None)
    if (np.diff(log.offsets) >= 3).all() and (roles_of(bare, leave_one_out(bare)) == role).all():
        log = bare
    return log, role


def write_columns(path: pathlib.Path, log: InteractionLog, role, raw_users: list[str]) -> None:
    """Write log.npz into the folder `path`."""
    # JSON: ids of a source may be of any length, which a numpy text array would pad to the longest.
    text = np.frombuffer(json.dumps(raw_users).encode(), np.uint8)
    columns = {"user": log.user, "item": log.item, "time": log.time, "role": role}
    np.savez_compressed(path / LOG, **columns, raw_users=text)


def write_items(path: pathlib.Path, items: Iterable[dict]) -> str:
    """Write items.jsonl.gz into the folder `path`; returns the digest of its text."""
    digest = hashlib.sha256()
    # Without time and name in its head the file is a function of its content.
    with (
        open(path / ITEMS, "wb") as raw,
        gzip.GzipFile("", "wb", compresslevel=6, fileobj=raw, mtime=0) as file,
    ):
        for item in items:
            line = (json.dumps(item, ensure_ascii=False) + "\n").encode("utf-8", "replace")
            digest.update(line)
            file.write(line)
    return digest.hexdigest()[:16]


def iter_items(path: pathlib.Path) -> Iterator[dict]:
    """Items of the folder of a prepared set, one by one. Raises UserError naming the line."""
    file = path / ITEMS
    number = 0
    try:
        with gzip.open(file, "rt", encoding="utf-8", newline="\n") as lines:
            for number, line in enumerate(lines, 1):  # noqa: B007 (named in the message)
                yield json.loads(line)
    except (ValueError, OSError, EOFError, zlib.error) as error:
        raise UserError(f"{file}: line {number}: {error}: prepare the set again") from None


def items_digest(path: pathlib.Path) -> str:
    """Digest of the item table's text, as `write_items` gave it."""
    try:
        with gzip.open(path / ITEMS, "rb") as file:
            digest = hashlib.sha256()
            for block in iter(functools.partial(file.read, 1 << 20), b""):
                digest.update(block)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path / ITEMS}: {error}: prepare the set again") from None
    return digest.hexdigest()[:16]


def read_metadata(path: pathlib.Path) -> dict:
    """metadata.json of the folder of a prepared set."""
    try:
        metadata = json.loads((path / METADATA).read_text("utf-8"))
        missing = [key for key in ("n_items", "fingerprint") if key not in metadata]
    except (ValueError, OSError, TypeError) as error:
        raise UserError(f"{path / METADATA}: {error}: prepare the set again") from None
    if missing:
        raise UserError(f"{path / METADATA}: no field {missing[0]!r}: prepare the set again")
    return metadata


def _read_columns(path):
    try:
        with np.load(io.BytesIO(path.read_bytes())) as archive:
            return {name: archive[name] for name in (*COLUMNS, "raw_users")}
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path}: {error}: prepare the set again") from None
