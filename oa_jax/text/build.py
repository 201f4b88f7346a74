"""From a prepared data set to the tables of text embeddings that LLM4CDSR reads."""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib

import numpy as np

from oa_jax.data.prepared import Prepared
from oa_jax.errors import UserError
from oa_jax.events import split as splits
from oa_jax.text import items, profiles, reduction
from oa_jax.text.encoders import open_encoder
from oa_jax.text.files import OfficialTables, read_profiles
from oa_jax.text.tables import (
    FILES,
    METADATA,
    Tables,
    history_of,
    load_tables,
    read_metadata,
    save_tables,
)

ATTRIBUTES = ("title", "brand", "price", "date", "category", "description")


@dataclasses.dataclass(frozen=True)
class Options:
    """encoder: see `encoders.open_encoder`; or a folder with the official code's tables.
    profiles: a file of imported profiles, None for the mean of the history. split: whose
    targets are held out, None for the published split where there is one, or leave_one_out.
    sees_validation: the mean holds the validation target, as the official profile (quirk Q12).
    cache: folder of the chunks of `chunk` texts that a model has encoded."""

    encoder: str
    cache: pathlib.Path
    profiles: str | None = None
    global_width: int = 1024
    local_width: int = 128
    split: str | None = None
    sees_validation: bool = False
    chunk: int = 1024


def write(prepared: Prepared, options: Options, out, say) -> Tables:
    """Make the tables in folder `out`, or return those that are there and have these inputs.

    Raises UserError where `out` holds anything else, and for whatever is wrong in the inputs.
    """
    out = pathlib.Path(out).expanduser()
    there = read_metadata(out) if (out / METADATA).exists() else None
    work = Work(prepared, options, say)
    if there is None:
        # Tables cut off by a kill are made again.
        names = sorted(p.name for p in out.iterdir()) if out.is_dir() else []
        strangers = [n for n in names if n not in FILES.values() and not n.endswith(".tmp")]
        if strangers or out.is_file():
            found = f"holds {strangers[0]}" if strangers else "a file"
            raise UserError(f"--out={out}: {found}: expected an empty folder")
    elif there.get("inputs") != work.inputs:
        raise UserError(
            f"--out={out}: holds tables of other inputs ({_difference(there, work.inputs)}): "
            "expected an empty folder or the same inputs"
        )
    else:
        say(f"{out} holds these tables: nothing to do")
        return load_tables(out, prepared.log, work.split, options.sees_validation)
    save_tables(out, work.tables())
    return load_tables(out, prepared.log, work.split, options.sees_validation)


class Work:
    """One set of inputs; `tables` does the work."""

    def __init__(self, prepared: Prepared, options: Options, say):
        self.prepared, self.options, self.say = prepared, options, say
        self.log = prepared.log
        own = "leave_one_out" if self.log.role is None else "published"
        self.split_name = options.split or own
        self.split = splits.make_split(self.log, self.split_name)
        self.texts = texts_of(prepared)
        is_official = OfficialTables.lie_in(options.encoder)
        if is_official:
            self.encoder = OfficialTables.read(options.encoder, self.log.n_items)
        else:
            self.encoder = open_encoder(options.encoder, self.log.n_items, options.chunk)
        self.profiles = self._profiles_file(is_official)
        self.inputs = {
            "log": self.log.fingerprint(),
            "texts": items.fingerprint(self.texts),
            "encoder": self.encoder.identity,
            "global_width": options.global_width,
            "local_width": options.local_width,
            "split": self.split_name,
            "profiles": self._profiles_identity(),
        }

    def tables(self) -> Tables:
        """Encode, reduce, make the profiles."""
        metadata = {"name": self.log.name, "log": self.log.fingerprint(), "inputs": self.inputs}
        metadata["n_items_without_text"] = sum(text is None for text in self.texts)
        if isinstance(self.encoder, OfficialTables):
            encoder = self.encoder
            parts = (encoder.global_table, encoder.local_a, encoder.local_b)
            vectors, explained = encoder.global_table, None
        else:
            vectors = self.encoder.vectors(self.texts, self.options.cache, self.say)
            parts, explained = self._reduce(vectors)
        users, n_history = self._users(vectors)
        metadata |= {
            "encoder": self.encoder.identity,
            "encoder_width": vectors.shape[1],
            "widths": {"global": parts[0].shape[1], "local": parts[1].shape[1]},
            "user_width": users.shape[1],
            "explained_variance": explained,
        }
        return Tables(*parts, users, n_history, metadata)

    def _reduce(self, vectors):
        """PCA of A, of B and of both together -> (tables, explained shares of the variance)."""
        n_a = self.log.n_items[0]
        domains = {"A": vectors[:n_a], "B": vectors[n_a:]}
        most = min(map(reduction.widest, domains.values()))
        shape = f"{n_a} and {len(vectors) - n_a} vectors of {vectors.shape[1]} columns"
        options, say = self.options, self.say
        local = reduction.capped("local_width", options.local_width, most, shape, say)
        most = reduction.widest(vectors)
        wide = reduction.capped("global_width", options.global_width, most, shape, say)
        reduced = {"global": reduction.pca(vectors, wide)}
        reduced |= {name: reduction.pca(rows, local) for name, rows in domains.items()}
        explained = {name: round(part.explained, 6) for name, part in reduced.items()}
        return tuple(part.rows for part in reduced.values()), explained

    def _users(self, vectors):
        if self.profiles is not None:
            unknown = np.full(self.log.n_users, -1, np.int32)
            return read_profiles(self.profiles, self.prepared.raw_users), unknown
        n_history = history_of(self.split, self.options.sees_validation)
        has_text = np.array([text is not None for text in self.texts])
        if self.encoder.identity["kind"] in ("files", "official tables"):
            has_text = vectors.any(1)  # a zero row is how such files say "no text"
        return profiles.mean_profiles(self.log, n_history, vectors, has_text), n_history

    def _profiles_file(self, is_official):
        if self.options.profiles:
            return pathlib.Path(self.options.profiles).expanduser()
        return self.encoder.profiles if is_official and self.encoder.profiles.exists() else None

    def _profiles_identity(self):
        if self.profiles is None:
            return "mean of the history" + ", Q12" * self.options.sees_validation
        rows = read_profiles(self.profiles, self.prepared.raw_users)
        return f"imported {hashlib.sha256(rows.tobytes()).hexdigest()[:16]}"


def texts_of(prepared: Prepared) -> list[str | None]:
    """The text of every item, A before B; None where the source says nothing of an item."""
    domains = prepared.metadata["domains"]
    if tuple(domains) == items.DOUBAN:
        return [items.tags_text(row) for row in prepared.items]
    kinds = [items.kind_of(name) for name in domains]
    return [
        items.item_text(kinds["AB".index(row["domain"])], {k: row.get(k) for k in ATTRIBUTES})
        for row in prepared.items
    ]


def _difference(there, inputs):
    old = there.get("inputs") or {}
    field = next(name for name in {**inputs, **old} if old.get(name) != inputs.get(name))
    return f"{field}: there {old.get(field)}, asked for {inputs.get(field)}"
