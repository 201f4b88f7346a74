"""Encoding in chunks that are stored as they come: a kill loses the chunk under way, no more."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterable

import numpy as np

from oa_jax.errors import UserError
from oa_jax.text import items
from oa_jax.text.tables import read_array, write_array


def default_directory() -> pathlib.Path | None:
    """`oa-jax/text` in the user's cache; None for a user without a home folder."""
    try:
        root = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    except RuntimeError:
        return None
    return pathlib.Path(root) / "oa-jax" / "text"


def encode_in_chunks(
    encode: Callable[[list[str]], np.ndarray],
    texts: list[str],
    identity: dict,
    directory: pathlib.Path | None,
    size: int,
    say: Callable[[str], None],
    track: Callable[[list], Iterable] = iter,
) -> np.ndarray:
    """Vectors of all texts, (N, W) float32; only the chunks that are not stored are encoded.

    encode: list of texts -> (n, W). A chunk lies under the digest of its texts and of `identity`,
    so sets that share items in the same places share the work, and another model none of it.
    directory: None stores nothing. track: shows how far the numbers of the chunks were taken.
    """
    if not texts:
        raise UserError("item texts: no item has a text: expected some to encode")
    name = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    if directory is None:
        say("no home folder: encoded texts are not stored: --cache_dir=DIR stores them")
    chunks = [texts[i : i + size] for i in range(0, len(texts), size)]
    folder = pathlib.Path(directory or "") / name
    files = [folder / f"{items.fingerprint(chunk)}.npy" for chunk in chunks]
    rows = [_stored(f, len(c)) if directory else None for f, c in zip(files, chunks, strict=True)]
    missing = [i for i, found in enumerate(rows) if found is None]
    if len(missing) < len(chunks):
        say(f"{len(chunks) - len(missing)} of {len(chunks)} chunks of texts are encoded: {folder}")
    for i in track(missing):
        found = rows[i] = np.asarray(encode(chunks[i]), np.float32)
        if found.ndim != 2 or len(found) != len(chunks[i]) or not np.isfinite(found).all():
            raise UserError(
                f"encoder {identity.get('name', name)}: found {found.shape} for {len(chunks[i])} "
                "texts: expected one vector of finite numbers for each"
            )
        if directory:
            write_array(files[i], found)
    return np.concatenate(rows)


def _stored(file, n_rows):
    """A chunk's vectors, None where there are none, or none that can be read."""
    try:
        rows = read_array(file)
    except UserError:
        return None
    return rows if rows.ndim == 2 and len(rows) == n_rows else None
