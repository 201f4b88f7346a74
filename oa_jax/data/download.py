"""Declared files fetched on request: one attempt each, hashes checked where they are known."""

from __future__ import annotations

import hashlib
import http.client
import os
import pathlib
import urllib.error
import urllib.request

from oa_jax.data import catalogue, store
from oa_jax.data.texts import Reading
from oa_jax.errors import UserError

TIMEOUT_S = 20
BLOCK_BYTES = 1 << 20


def complete(data_set: catalogue.DataSet, raw_dir: str | os.PathLike, reading: Reading) -> None:
    """Fetch the files of the first source that can be had whole into `<raw_dir>/<name>`.

    Nothing is done if the files of a source are there. Files of an earlier attempt are kept.
    Raises UserError if no source has URLs for all of its files, or a download fails.
    """
    if any(catalogue.find(source, raw_dir) for source in data_set.sources):
        return
    for source in data_set.sources:
        if all(file.url for file in source.files):
            folder = store.place(raw_dir) / data_set.name
            folder.mkdir(parents=True, exist_ok=True)
            for file in source.files:
                name = file.name + (".gz" if file.url.endswith(".gz") else "")
                if not (folder / name).exists():
                    fetch(file, folder / name, reading)
            return
    pages = sorted({file.page for source in data_set.sources for file in source.files})
    raise UserError(f"{data_set.name}: not every file has a URL of its own: see {', '.join(pages)}")


def fetch(file: catalogue.File, path: pathlib.Path, reading: Reading) -> None:
    """One file, under a temporary name until it is whole and has the known hash."""
    part, digest, n_bytes = path.with_name(f".{path.name}.part"), hashlib.sha256(), 0
    try:
        with urllib.request.urlopen(file.url, timeout=TIMEOUT_S) as answer, open(part, "wb") as out:
            expected = answer.length
            while block := answer.read(BLOCK_BYTES):
                digest.update(block)
                out.write(block)
                n_bytes += len(block)
                reading.on_bytes(part, n_bytes)
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as e:
        part.unlink(missing_ok=True)
        reason = getattr(e, "reason", None) or e
        raise UserError(
            f"{file.name}: cannot download {file.url}: {reason}; see {file.page}"
        ) from None
    whole = expected is None or n_bytes == expected
    if not whole or (file.sha256 and digest.hexdigest() != file.sha256):
        part.unlink()
        found = f"{n_bytes} bytes, sha256 {digest.hexdigest()}"
        raise UserError(
            f"{file.name}: {file.url} gave {found}: expected "
            f"{f'sha256 {file.sha256}' if whole else f'{expected} bytes'}; see {file.page}"
        )
    os.replace(part, path)
