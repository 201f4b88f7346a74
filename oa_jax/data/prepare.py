"""Prepares a data set: builds its events and writes them as TFDS records and as columns.

    builder = OaPairs(config="beauty_elec", data_dir=DIR)
    builder.download_and_prepare(download_config=DownloadConfig(manual_dir=RAW))
    builder.as_data_source("train")[7]       # user 7, without TensorFlow

A set is made in a hidden folder beside its final place, and then renamed. A kill at any moment
leaves the old state and a hidden folder, which the next call removes. A second process waits for
the first.
"""

import contextlib
import dataclasses
import gzip
import hashlib
import importlib
import io
import os
import pathlib
import re
import shutil
from collections.abc import Sequence

import numpy as np
import tensorflow_datasets as tfds

from oa_jax import files
from oa_jax.data import catalogue, own, store, texts
from oa_jax.data.sources import check_own_name
from oa_jax.data.store import Built, Place
from oa_jax.data.texts import Reading, Say
from oa_jax.errors import UserError
from oa_jax.events.log import CONTEXT, TEST, TRAINING, VALIDATION, domain_of

EVENTS = {"item": np.int32, "domain": np.int8, "time": np.int64, "role": np.int8}  # of a record
ROLES = {"context": CONTEXT, "training": TRAINING, "validation": VALIDATION, "test": TEST}


def prepare(
    name: str, raw_dir: Place, data_dir: Place, reading: Reading, say: Say, duplicates: str = "keep"
) -> bool:
    """Prepare `name` below data_dir from the files below raw_dir. False if it was there already.

    say: called with one line for each message, such as a wait for another process.
    duplicates: how to treat exact copies of an event, see `filters.without_copies`.
    Raises UserError for an unknown name, missing or broken files, and a place that is taken.
    """
    if name not in catalogue.SETS:
        raise UserError(f"{name}: no such data set: expected one of {', '.join(catalogue.SETS)}")

    def make():
        built, source, paths = build(name, raw_dir, reading, duplicates)
        data_set = catalogue.SETS[name]
        facts = {f: getattr(data_set, f) for f in ("name", "protocol", "domains", "quirks")}
        pairs = [pair for pair in zip(paths, source.files, strict=True) if pair[0]]
        file_facts = [_file_facts(*pair) for pair in pairs]
        for (_, file), found in zip(pairs, file_facts, strict=True):
            if found["published"] is False:
                what = f"sha256 {found['sha256']}, expected {file.sha256}"
                say(f"{found['name']} is not the published file: found {what}; see {file.page}")
        return built, facts | {"source": source.kind, "files": file_facts, "duplicates": duplicates}

    def check(facts):
        if (there := facts.get("duplicates", "keep")) != duplicates:
            where = store.folder(data_dir, name)
            expected = "expected the same, or another --data_dir"
            raise UserError(f"--duplicates={duplicates}: {where} has {there}: {expected}")

    return _install(name, data_dir, reading, say, make, check)


def prepare_own(
    name: str,
    given: Sequence[own.Given],
    options: own.Options,
    data_dir: Place,
    reading: Reading,
    say: Say,
) -> bool:
    """Prepare a set of your own files below data_dir. False if it was there already.

    given, options: see `own.read`. Raises UserError as `own.read` does, for a name that is taken or
    not allowed, and if the set exists with other options or files.
    """
    check_own_name(name, "--name")
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,99}", name):
        raise UserError(f"--name={name}: expected letters of a to z, digits, _ and -")
    sources = own.sources_of(given, options)
    asked = files.plain(dataclasses.asdict(options))
    file_facts = [_own_facts(source.table) | {"domain": source.domain} for source in sources]

    def make():
        built, left_out = own.read(given, options, reading, say)
        facts = {"name": name, "protocol": "own", "domains": built.domains, "quirks": {}}
        facts |= {"source": "own files", "files": file_facts, "options": asked}
        return built, facts | {"left_out": left_out}

    def check(facts):
        pairs = {"options": (facts.get("options"), asked)}
        for what, key in (("files", "sha256"), ("domains", "domain")):
            if all(key in file for file in facts["files"]):  # older sets lack a domain
                pairs[what] = [[file[key] for file in of] for of in (facts["files"], file_facts)]
        for what, (there, now) in pairs.items():
            if there != now:
                where = store.folder(data_dir, name)
                if what == "options" and there:
                    # A set of an older version may lack an option.
                    differ = [o for o in now if o not in there or there[o] != now[o]]
                    for option in differ[:1]:
                        what += f" ({option}: {there.get(option)!r}, not {now[option]!r})"
                expected = f"expected the same, another name, or no {where.parent}"
                raise UserError(f"--name={name}: {where} is of other {what}: {expected}")

    return _install(name, data_dir, reading, say, make, check)


def _install(name, data_dir, reading, say, make, check) -> bool:
    """Put what `make` builds in its place. -> False if the set is there and `check` has nothing
    against its metadata. make: () -> (Built, metadata)."""
    target = store.folder(data_dir, name)
    root = target.parents[1]
    root.mkdir(parents=True, exist_ok=True)
    lock = files.lock(root / f".{name}.lock")
    if lock is None:
        say(f"{name}: another process is preparing it: waiting")
        lock = files.lock(root / f".{name}.lock", wait=True)
    with lock:
        for leftover in root.glob(f".{name}.tmp-*"):
            shutil.rmtree(leftover)
            say(f"{name}: removed what an interrupted run had left")
        if target.exists():
            if not (target / store.METADATA).is_file():
                expected = "expected no such folder, or a set"
                raise UserError(f"{target}: holds something else: {expected}")
            check(store.read_metadata(target))
            return False
        staging = root / f".{name}.tmp-{os.getpid()}"
        try:
            ready = _write(name, *make(), staging, reading)
            target.parent.mkdir(exist_ok=True)
            os.replace(ready, target)
            _sync(target.parent)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return True


def _write(name, built, facts, staging, reading) -> pathlib.Path:
    """All files of the set below `staging`; returns the folder of the version."""
    log, role = store.with_roles(vars(built), built.n_items, name)
    with contextlib.redirect_stdout(io.StringIO()):  # its notes name the temporary folder
        tfds.disable_progress_bar()
        config = name if name in catalogue.SETS else _config(facts)
        OaPairs(built=built, config=config, data_dir=str(staging)).download_and_prepare()
    folder = store.folder(staging, name)
    store.write_columns(folder, log, role, built.raw_users)
    facts = facts | {f: getattr(built, f) for f in ("n_items", "times", "split", "notes")}
    facts |= {
        "n_users": log.n_users,
        "n_events": len(log.user),
        "events_by_role": {word: np.sum(role == value) for word, value in ROLES.items()},
        "lines": reading.lines,
        "malformed": reading.malformed,
        "fingerprint": log.fingerprint(),
        "items_digest": store.write_items(folder, built.items),
    }
    files.write_json(folder / store.METADATA, facts)
    for path in (*folder.iterdir(), folder):
        _sync(path)
    return folder


def _file_facts(path, file) -> dict:
    """Name, hash of the content, and whether that is the published one (None: not known)."""
    with texts.errors(path), (gzip.open if path.suffix == ".gz" else open)(path, "rb") as content:
        sha256 = hashlib.file_digest(content, "sha256").hexdigest()
    same = None if file is None or file.sha256 is None else sha256 == file.sha256
    page = {"page": file.page} if file else {}
    return {"name": path.name, "sha256": sha256, "published": same} | page


def _own_facts(table):
    if table.frame is None:
        return _file_facts(table.path, None)
    rows = table.frame.write_ndjson().encode()
    return {"name": table.path.name, "sha256": hashlib.sha256(rows).hexdigest(), "published": None}


def _config(facts):
    words = f"{facts['protocol']}: {' + '.join(facts['domains'])}"
    return tfds.core.BuilderConfig(name=facts["name"], description=words)


def _sync(path):
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def build(
    name: str, raw_dir: Place, reading: Reading, duplicates: str = "keep"
) -> tuple[Built, catalogue.Source, list]:
    """Events of a data set, from the first of its sources whose files are below raw_dir.

    Returns what was built, its source and the paths of its files. Raises UserError naming the
    missing file and its page, or the mistake in a file.
    """
    found = ((s, catalogue.find(s, raw_dir)) for s in catalogue.SETS[name].sources)
    source, paths = next((pair for pair in found if pair[1]), (None, None))
    if source is None:
        raise UserError(f"{name}: {catalogue.what_is_missing(catalogue.SETS[name], raw_dir)}")
    module, function = source.build.split(".")
    options = {"duplicates": duplicates} if module == "raw" else {}
    if not options and duplicates != "keep":
        # Copies would have to go before the filters, which the authors have applied.
        found = f"--duplicates={duplicates}: {source.kind} is filtered already"
        raise UserError(f"{found}: expected keep, or raw files alone")
    function = getattr(importlib.import_module(f"oa_jax.data.{module}"), function)
    return function(paths, reading, name, **source.options, **options), source, paths


class _Info(tfds.core.DatasetInfo):
    """That of a set which no bucket knows."""

    def initialize_from_bucket(self):
        """Does nothing: TFDS would leave an empty temporary folder behind."""


class OaPairs(tfds.core.GeneratorBasedBuilder):
    """Two-domain interaction sequences. manual_dir of the download configuration is the folder of
    raw files. `built`: events, if they were built already."""

    name = store.BUILDER
    VERSION = tfds.core.Version(store.VERSION)
    MANUAL_DOWNLOAD_INSTRUCTIONS = "python -m oa_jax data list says which files, and where from."
    BUILDER_CONFIGS = [_config(dataclasses.asdict(s)) for s in catalogue.SETS.values()]

    def __init__(self, *, built: Built | None = None, **options):
        self._built = built
        super().__init__(file_format="array_record", **options)

    def _info(self):
        features = {k: tfds.features.Tensor(shape=(None,), dtype=v) for k, v in EVENTS.items()}
        features |= {"user": np.int32, "raw_user": tfds.features.Text()}
        return _Info(
            builder=self,
            description="Sequences of users in two domains.",
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,  # record k is user k
        )

    def _split_generators(self, dl_manager):
        built = self._built
        if built is None:  # the manager refuses to name a manual_dir that is empty
            built, _, _ = build(self.builder_config.name, dl_manager.manual_dir, Reading())
        return {"train": self._generate_examples(built)}

    def _generate_examples(self, built):
        ends = np.searchsorted(built.user, np.arange(len(built.raw_users) + 1))
        columns = {name: getattr(built, name) for name in ("item", "time", "role")}
        columns["domain"] = domain_of(built.item, built.n_items)
        columns = {name: column.astype(EVENTS[name]) for name, column in columns.items()}
        for user, raw_user in enumerate(built.raw_users):
            rows = slice(ends[user], ends[user + 1])
            example = {name: column[rows] for name, column in columns.items()}
            yield user, {"user": user, "raw_user": raw_user} | example
