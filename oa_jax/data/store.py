"""Data sets: their columns in memory and their folder on disk. Reading needs numpy only.

    <data_dir>/oa_pairs/<name>/<version>/
        oa_pairs-train.array_record-*   a record per user, in the order of user ids (TFDS)
        dataset_info.json, features.json                                           (TFDS)
        log.npz          the same events as columns, for resident training
        items.jsonl.gz   a JSON object per item, ids 1, 2, ... in order
        metadata.json    counts, sources, quirks, fingerprints

An item has `id` (joint, from 1), `domain` ("A" or "B"), `raw` (id of the source) and, if the source
has them, `title`, `brand`, `price`, `date` (text), `category`, `description` (lists of text).
"""

import dataclasses
import functools
import gzip
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable

import numpy as np

from oa_jax import files
from oa_jax.data import texts
from oa_jax.errors import UserError
from oa_jax.events.log import DOMAINS, InteractionLog, make_log
from oa_jax.events.split import leave_one_out, roles_of

BUILDER, VERSION = "oa_pairs", "1.0.0"
LOG, ITEMS, METADATA = "log.npz", "items.jsonl.gz", "metadata.json"
COLUMNS = ("user", "item", "time", "role")
LEAVE_ONE_OUT = "leave_one_out"
SECONDS, ORDER, DATES = "unix seconds", "order", "yyyymmdd"
MILLISECONDS, MICROSECONDS, NUMBERS = "unix milliseconds", "unix microseconds", "numbers"
# Fields of metadata.json that readers rely on, each with a value of its kind.
WORDS = ("name", "protocol", "source", "split", "times", "fingerprint", "items_digest")
FIELDS = dict.fromkeys(WORDS, "text")
FIELDS |= {"n_users": 1, "n_events": 1, "n_items": [1, 1], "domains": ["A", "B"], "quirks": {}}
Place = str | os.PathLike
place = files.local  # a path that a user gave
AGAIN = "remove the folder and prepare the set again"


@dataclasses.dataclass(frozen=True)
class Built:
    """What a source gives: columns of an InteractionLog with roles, raw ids, and facts about them.

    times: unit of `time`: SECONDS, DATES, …, or ORDER if the source has no times and `time` is the
    place in the sequence. split: the rule of the roles. notes: further metadata. domains: names.
    """

    user: np.ndarray
    item: np.ndarray
    time: np.ndarray
    role: np.ndarray
    n_items: tuple[int, int]
    raw_users: list[str]
    items: list[dict]
    times: str
    split: str = LEAVE_ONE_OUT
    notes: dict = dataclasses.field(default_factory=dict)
    domains: tuple[str, str] = DOMAINS


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A data set read back, from the folder `directory` of its version.

    log: its events; `log.role` is None if the roles are those of leave-one-out.
    role: (N,) int8, CONTEXT, TRAINING, VALIDATION or TEST for every event.
    raw_users: U texts, the user ids of the source.
    metadata: content of metadata.json: `FIELDS`, files, lines, malformed, notes, ...
    """

    log: InteractionLog
    role: np.ndarray
    raw_users: list[str]
    metadata: dict
    directory: pathlib.Path

    @property
    def times(self) -> str:
        """Unit of `log.time`; ORDER if it is the place in the sequence."""
        return self.metadata["times"]

    @property
    def domains(self) -> tuple[str, str]:
        """Names of A and B."""
        return tuple(self.metadata["domains"])

    @functools.cached_property
    def items(self) -> list[dict]:
        """The item table: items[k] is item k+1. The module's docstring lists its fields."""
        items, found = read_items(self.directory)
        if found != (expected := self.metadata["items_digest"]):
            what = f"digest {found}, expected {expected} of {METADATA}: the file was changed"
            raise UserError(f"{self.directory / ITEMS}: {what}; {AGAIN}")
        return items


def item_table(raw: tuple[list, list], fields: tuple[dict, dict] = ({}, {})) -> list[dict]:
    """Items of A, then of B: joint id, domain, raw id, and the item's entries of `fields`."""
    rows = [
        {"domain": domain, "raw": str(name)} | own.get(name, {})
        for domain, names, own in zip(DOMAINS, raw, fields, strict=True)
        for name in names
    ]
    return [{"id": number} | row for number, row in enumerate(rows, 1)]


def folder(data_dir: Place, name: str) -> pathlib.Path:
    """The folder of the prepared set `name` below a data directory; it need not exist."""
    return place(data_dir) / BUILDER / name / VERSION


def is_prepared(data_dir: Place, name: str) -> bool:
    return (folder(data_dir, name) / METADATA).is_file()


def names(data_dir: Place) -> list[str]:
    """Names of all prepared sets below a data directory."""
    return sorted(p.parts[-3] for p in place(data_dir).glob(f"{BUILDER}/*/{VERSION}/{METADATA}"))


def load(data_dir: Place, name: str) -> Prepared:
    """Read the prepared set `name` below a data directory and check its fingerprint.

    Raises UserError if it is missing or damaged, or differs from its metadata.json.
    """
    path = folder(data_dir, name)
    if not is_prepared(data_dir, name):
        have = ", ".join(names(data_dir)) or "nothing"
        command = f"python -m oa_jax data prepare {name} --raw_dir=DIR --data_dir={data_dir}"
        raise UserError(f"{path}: not prepared: below {data_dir} is {have}; {command}")
    metadata = read_metadata(path)
    columns = files.read_npz(path / LOG, f"the columns of a set: {AGAIN}")
    try:
        raw_users = json.loads(columns["raw_users"].tobytes())
        log, role = with_roles(columns, tuple(metadata["n_items"]), name)
        if not isinstance(raw_users, list) or list(map(type, raw_users)) != [str] * log.n_users:
            raise ValueError(f"raw_users: expected {log.n_users} texts")
    except (KeyError, ValueError, RecursionError) as error:
        raise UserError(f"{path / LOG}: {type(error).__name__}: {error}: {AGAIN}") from None
    found, expected = log.fingerprint(), metadata["fingerprint"]
    if found != expected:
        what = f"fingerprint {found}, expected {expected} of {METADATA}: the files were changed"
        raise UserError(f"{path / LOG}: {what}; {AGAIN}")
    for field, n in (("n_users", log.n_users), ("n_events", len(log.user))):
        if metadata[field] != n:
            raise UserError(f"{path / METADATA}: {field} is {metadata[field]}, not {n}: {AGAIN}")
    found = Prepared(log, role, raw_users, metadata, path)
    return dataclasses.replace(found, log=dataclasses.replace(log, origin=found))


def with_roles(
    columns: dict[str, np.ndarray], n_items: tuple[int, int], name: str
) -> tuple[InteractionLog, np.ndarray]:
    """(log, roles). The log holds the roles only if they differ from leave-one-out; so a set that
    is split by leave-one-out has the fingerprint of its events alone."""
    log = make_log(**{c: columns[c] for c in COLUMNS}, n_items=n_items, name=name)
    role, bare = log.role, dataclasses.replace(log, role=None)
    if (np.diff(log.offsets) >= 3).all() and (roles_of(bare, leave_one_out(bare)) == role).all():
        log = bare
    return log, role


def check_times(log: InteractionLog, split: str, flag: str) -> None:
    """Raises UserError if a split needs times and the set of the log has none."""
    if split == "global_time" and getattr(log.origin, "times", None) == ORDER:
        raise UserError(f"{flag}={split}: {log.name} has no times: expected another split")


def write_columns(
    path: pathlib.Path, log: InteractionLog, role: np.ndarray, raw_users: list[str]
) -> None:
    """Write log.npz into the folder `path`."""
    # JSON: ids of a source may be of any length, which a numpy text array would pad to the longest.
    text = np.frombuffer(json.dumps(raw_users).encode(), np.uint8)
    columns = {"user": log.user, "item": log.item, "time": log.time, "role": role}
    files.write_npz(path / LOG, columns | {"raw_users": text})


def write_items(path: pathlib.Path, items: Iterable[dict]) -> str:
    """Write items.jsonl.gz into the folder `path`; returns the digest of its text."""
    text = "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items)
    text = text.encode("utf-8", "replace")
    # Without time and name in its head the file is a function of its content.
    files.write(path / ITEMS, gzip.compress(text, 6, mtime=0))
    return hashlib.sha256(text).hexdigest()[:16]


def read_items(path: pathlib.Path) -> tuple[list[dict], str]:
    """Items of the folder of a prepared set, and the digest of their text as from `write_items`.
    Raises UserError naming the bad line."""
    items, path = [], path / ITEMS
    with texts.errors(path):
        content = gzip.decompress(path.read_bytes())
    for number, line in enumerate(content.splitlines(), 1):
        try:
            items.append({**json.loads(line)})
        except (ValueError, TypeError, RecursionError) as error:
            raise UserError(f"{path}: line {number}: {error}: {AGAIN}") from None
    return items, hashlib.sha256(content).hexdigest()[:16]


def read_metadata(path: pathlib.Path) -> dict:
    """metadata.json of the folder of a prepared set; UserError if a field of FIELDS is wrong."""

    def kind(value):
        return [type(v) for v in value] if isinstance(value, list) else type(value)

    file = path / METADATA
    metadata = files.read_json(file, f"the metadata of a set: {AGAIN}")
    for field, example in FIELDS.items():
        if field not in metadata:
            raise UserError(f"{file}: no field {field!r}: {AGAIN}")
        if kind(metadata[field]) != kind(example):
            found = f"{field} is {metadata[field]!r:.60}"
            raise UserError(f"{file}: {found}: expected one such as {example!r}: {AGAIN}")
    return metadata
