"""Preparing a data set: built in a folder beside its place, then renamed into it.

Whoever is killed at any moment leaves the old state and a hidden folder, which the next one
removes; a second process waits for the first.
"""

from __future__ import annotations

import contextlib
import functools
import gzip
import hashlib
import io
import json
import os
import pathlib
import shutil
from collections.abc import Callable

import numpy as np
import tensorflow_datasets as tfds

from oa_jax import files
from oa_jax.data import catalogue, prepared
from oa_jax.data.builder import OaPairs, build
from oa_jax.data.raw import Reading
from oa_jax.errors import UserError


def prepare(name: str, raw_dir, data_dir, reading: Reading, say: Callable[[str], None]) -> bool:
    """Prepare `name` below data_dir from the files below raw_dir. -> False if it was there already.

    say: called with one line when there is something to wait for or to name.
    Raises UserError for an unknown name, missing or broken files, and a place that is taken.
    """
    if name not in catalogue.SETS:
        raise UserError(f"{name}: no such data set: expected one of {', '.join(catalogue.SETS)}")
    target = prepared.folder(data_dir, name)
    root = target.parents[1]
    root.mkdir(parents=True, exist_ok=True)
    with _lock(root / f".{name}.lock", name, say):
        for leftover in root.glob(f".{name}.tmp-*"):
            shutil.rmtree(leftover)
            say(f"{name}: removed what an interrupted run had left")
        if prepared.is_prepared(data_dir, name):
            return False
        if target.exists():
            raise UserError(f"{target}: holds something else: expected no such folder, or a set")
        staging = root / f".{name}.tmp-{os.getpid()}"
        try:
            ready = _write(name, raw_dir, staging, reading)
            target.parent.mkdir(exist_ok=True)
            os.replace(ready, target)
            _sync(target.parent)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return True


@contextlib.contextmanager
def _lock(path, name, say):
    file = files.lock(path)
    if file is None:
        say(f"{name}: another process is preparing it: waiting")
        file = files.lock(path, wait=True)
    with file:
        yield


def _write(name, raw_dir, staging, reading) -> pathlib.Path:
    """All files of the set below `staging`; returns the folder of the version."""
    built, source, paths = build(name, raw_dir, reading)
    columns = (built.user, built.item, built.time, built.role)
    log, role = prepared.with_roles(*columns, built.n_items, name)
    with contextlib.redirect_stdout(io.StringIO()):  # its notes name the temporary folder
        tfds.disable_progress_bar()
        OaPairs(built=built, config=name, data_dir=str(staging)).download_and_prepare()
    folder = prepared.folder(staging, name)
    prepared.write_columns(folder, log, role, built.raw_users)
    data_set = catalogue.SETS[name]
    metadata = {
        "name": name,
        "protocol": data_set.protocol,
        "domains": list(data_set.domains),
        "source": source.kind,
        "files": [_file_facts(*pair) for pair in zip(paths, source.files, strict=True) if pair[0]],
        "n_users": log.n_users,
        "n_items": list(built.n_items),
        "n_events": len(log.user),
        "events_by_role": _counts(role),
        "times": built.times,
        "split": built.split,
        "quirks": data_set.quirks,
        "notes": built.notes,
        "lines": reading.lines,
        "malformed": reading.malformed,
        "fingerprint": log.fingerprint(),
        "items_digest": prepared.write_items(folder, built.items),
    }
    text = json.dumps(metadata, indent=1, ensure_ascii=False) + "\n"
    (folder / prepared.METADATA).write_text(text, "utf-8")
    for path in (*folder.iterdir(), folder):
        _sync(path)
    return folder


def _counts(role):
    names = {-1: "context", 0: "training", 1: "validation", 2: "test"}
    return {name: int(np.sum(role == value)) for value, name in names.items()}


def _file_facts(path, file: catalogue.File) -> dict:
    """Name, content hash, and whether that is the published one (None: not known)."""
    digest = hashlib.sha256()
    with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as content:
        for block in iter(functools.partial(content.read, 1 << 22), b""):
            digest.update(block)
    same = None if file.sha256 is None else digest.hexdigest() == file.sha256
    return {"name": path.name, "sha256": digest.hexdigest(), "published": same, "page": file.page}


def _sync(path):
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
