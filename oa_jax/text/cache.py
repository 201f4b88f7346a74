"""Encoding in chunks that are stored as they come: a kill loses the chunk under way, no more."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib

import numpy as np
from rich.progress import track

from oa_jax.commands import cli
from oa_jax.errors import UserError
from oa_jax.text import items
from oa_jax.text.tables import replacing


def default_directory() -> pathlib.Path:
    """`oa-jax/text` in the user's cache."""
    root = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(root) / "oa-jax" / "text"


def encode_in_chunks(encode, texts, identity: dict, directory, size: int, say) -> np.ndarray:
    """Vectors of all texts, (N, W) float32; only the chunks that are not stored are encoded.

    encode: list of texts -> (n, W). A chunk lies under the digest of its texts and of `identity`,
    so sets that share items in the same places share the work, and another model none of it.
    """
    if not texts:
        raise UserError("item texts: no item has a text: expected some to encode")
    name = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    folder = pathlib.Path(directory) / name
    folder.mkdir(parents=True, exist_ok=True)
    chunks = [texts[i : i + size] for i in range(0, len(texts), size)]
    files = [folder / f"{items.fingerprint(chunk)}.npy" for chunk in chunks]
    stored = [_stored(file, len(chunk)) for file, chunk in zip(files, chunks, strict=True)]
    missing = [i for i, rows in enumerate(stored) if rows is None]
    if len(missing) < len(chunks):
        say(f"{len(chunks) - len(missing)} of {len(chunks)} chunks of texts are encoded: {folder}")
    for i in track(missing, "encoding", console=cli.console, disable=not cli.console.is_terminal):
        rows = np.asarray(encode(chunks[i]), np.float32)
        if rows.ndim != 2 or len(rows) != len(chunks[i]) or not np.isfinite(rows).all():
            raise UserError(
                f"encoder {identity.get('name', name)}: found {rows.shape} for {len(chunks[i])} "
                "texts: expected one vector of finite numbers for each"
            )
        with replacing(files[i]) as out:
            np.save(out, rows, allow_pickle=False)
        stored[i] = rows
    return np.concatenate(stored)


def _stored(file, n_rows):
    """A chunk's vectors, None where there are none, or none that can be read."""
    try:
        rows = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return rows if rows.ndim == 2 and len(rows) == n_rows else None
