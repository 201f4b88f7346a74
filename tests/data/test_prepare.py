"""Prepared sets: what is written and read back, kills, two at once, and training's way to them."""

import concurrent.futures
import fcntl
import gzip
import json
import os
import pathlib
import queue
import shutil
import signal
import subprocess
import sys
import tempfile

import numpy as np
import pytest

from oa_jax.data import sources, store
from oa_jax.data.prepare import prepare
from oa_jax.data.texts import Reading
from oa_jax.errors import UserError
from oa_jax.events.split import make_split

ROOT = pathlib.Path(__file__).resolve().parents[2]
NAME = "beauty_elec"
PARTS = {"train_A": [[0, 1]], "train_B": [[2], [3, 4]], "train_overlap": [[1, 4]]}
PARTS |= {"valid": [[0, 3, 1]], "test": [[4, 0], [2]]}


def make(name, raw, data, said=None):
    return prepare(name, raw, data, Reading(), [].append if said is None else said.append)


@pytest.fixture(scope="module")
def done(small_pair, tmp_path_factory):
    """A data directory with the small pair."""
    data = tmp_path_factory.mktemp("data")
    assert make(NAME, small_pair, data)
    return data


def listing(folder):
    return {str(p.relative_to(folder)): p.is_file() and p.read_bytes() for p in folder.rglob("*")}


def test_columns_items_and_metadata_come_back(done, built_from, small_pair):
    built, _ = built_from(NAME, small_pair)
    data = store.load(done, NAME)
    for column in ("user", "item", "time"):
        np.testing.assert_array_equal(getattr(data.log, column), getattr(built, column))
    np.testing.assert_array_equal(data.role, built.role)
    assert data.log.role is None  # they are those of leave-one-out
    assert data.items == built.items and data.raw_users == built.raw_users
    facts = data.metadata
    assert facts["fingerprint"] == data.log.fingerprint() and facts["split"] == "leave_one_out"
    assert facts["n_users"] == 30 and facts["n_items"] == [16, 16] and facts["n_events"] == 720
    assert facts["events_by_role"] == {"context": 0, "training": 660, "validation": 30, "test": 30}
    assert facts["source"] == "ratings of 2014" and facts["times"] == "unix seconds"
    assert [f["published"] for f in facts["files"]] == [None, None] and not facts["malformed"]
    assert store.read_items(data.directory)[1] == facts["items_digest"]
    assert store.names(done) == [NAME]


def test_record_k_is_user_k(done):
    import tensorflow_datasets as tfds

    assert "tensorflow" not in sys.modules
    data = store.load(done, NAME)
    records = tfds.builder_from_directory(data.directory).as_data_source("train")
    assert len(records) == 30
    for user in (0, 7, 29):
        rows = slice(*data.log.offsets[user : user + 2])
        record = records[user]
        assert record["user"] == user and record["raw_user"] == data.raw_users[user].encode()
        for name in ("item", "domain", "time"):
            np.testing.assert_array_equal(record[name], getattr(data.log, name)[rows])
        np.testing.assert_array_equal(record["role"], data.role[rows])
    dtypes = {name: records[0][name].dtype for name in ("item", "domain", "time", "role")}
    assert dtypes == {"item": "int32", "domain": "int8", "time": "int64", "role": "int8"}


def test_the_builder_alone(small_pair, tmp_path, done):
    import tensorflow_datasets as tfds

    from oa_jax.data.prepare import OaPairs

    builder = OaPairs(config=NAME, data_dir=str(tmp_path))
    manual = tfds.download.DownloadConfig(manual_dir=str(small_pair))
    builder.download_and_prepare(download_config=manual)
    records, theirs = (
        tfds.builder_from_directory(folder).as_data_source("train")
        for folder in (builder.data_dir, store.folder(done, NAME))
    )
    assert all(np.array_equal(a["item"], b["item"]) for a, b in zip(records, theirs, strict=True))


def test_again_changes_nothing(done, small_pair):
    before = listing(done)
    assert not make(NAME, small_pair, done)
    assert not make(NAME, done / "nowhere", done)  # the raw files are not needed any more
    assert listing(done) == before


def test_the_same_files_give_the_same_bytes_and_nothing_is_left(
    done, small_pair, tmp_path, monkeypatch
):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    make(NAME, small_pair, tmp_path)
    assert not list(temporary.iterdir())  # TFDS has one when a builder is made
    same = store.folder(done, NAME), store.folder(tmp_path, NAME)
    for name in (store.ITEMS, store.METADATA):
        assert (same[0] / name).read_bytes() == (same[1] / name).read_bytes()


def test_text_and_raw_files_give_one_fingerprint(raw_files, done, tmp_path):
    """ABXI's text of the small pair, written from its raw form."""
    data = store.load(done, NAME)
    users = np.split(np.stack([data.log.item, data.log.time], 1), data.log.offsets[1:-1])
    lines = [" ".join([str(u), *(f"{i}|{t}" for i, t in own)]) for u, own in enumerate(users)]
    raw_files.write(tmp_path / "abe" / "abe_50_preprocessed.txt.gz", lines)
    items = {item["raw"]: [item["id"], "AB".index(item["domain"])] for item in data.items}
    raw_files.write(tmp_path / "abe" / "map_item_50.txt", [json.dumps(items)])
    names = {name: user for user, name in enumerate(data.raw_users)}
    raw_files.write(tmp_path / "abe" / "map_user_50.txt", [json.dumps(names)])
    before, said = sources.load(NAME, tmp_path), []
    assert make(NAME, tmp_path, tmp_path, said)
    start = "abe_50_preprocessed.txt.gz is not the published file: found sha256 "
    assert said[0].startswith(start) and "; see http" in said[0]
    text = store.load(tmp_path, NAME)
    assert (
        text.metadata["source"] == "ABXI's text" and text.metadata["files"][0]["published"] is False
    )
    assert {text.log.fingerprint(), before.fingerprint()} == {data.log.fingerprint()}
    assert text.items == data.items and text.raw_users == data.raw_users


# --- kills and rivals ---------------------------------------------------------------------------

KILLS = ("among the records", "at the items", "before the rename", "after the rename")


def test_killed_at_any_moment(run, small_pair, done, tmp_path):
    """What is left is nothing or the whole set; the next one cleans up and gives the same."""
    for where in KILLS:
        killed = run(NAME, small_pair, tmp_path / where, where, module="killed_prepare")
        assert killed.returncode == -signal.SIGKILL, where
        root = tmp_path / where / "oa_pairs"
        whole = where == "after the rename"
        assert store.is_prepared(tmp_path / where, NAME) is whole
        assert (root / NAME / store.VERSION).exists() is whole
        assert len(list(root.glob(".*.tmp-*"))) == 1
        said = []
        assert make(NAME, small_pair, tmp_path / where, said) is not whole
        assert said == [f"{NAME}: removed what an interrupted run had left"]
        assert not list(root.glob(".*.tmp-*"))
        again, first = store.load(tmp_path / where, NAME), store.load(done, NAME)
        assert again.log.fingerprint() == first.log.fingerprint() and again.items == first.items


def test_two_at_once(small_pair, tmp_path):
    """Both find the lock taken and wait; then one makes the set, the other finds it."""
    root, said = tmp_path / "oa_pairs", queue.Queue()
    root.mkdir()
    argv = (NAME, small_pair, tmp_path, Reading(), said.put)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        with open(root / f".{NAME}.lock", "w") as lock:  # flock knows open files, not threads
            fcntl.flock(lock, fcntl.LOCK_EX)
            both = [pool.submit(prepare, *argv) for _ in range(2)]
            waiting = f"{NAME}: another process is preparing it: waiting"
            assert [said.get(timeout=60) for _ in both] == [waiting] * 2
            assert not store.is_prepared(tmp_path, NAME)
        assert sorted(made.result() for made in both) == [False, True] and said.empty()
    assert len(store.load(tmp_path, NAME).log.user) == 720


def test_a_failed_one_leaves_nothing(raw_files, tmp_path):
    raw_files.ratings_2014(tmp_path / "raw", "Beauty", [("u", "i", 5, 1)])
    with pytest.raises(UserError, match=r"found no ratings_Electronics.csv \(7,824,482 ratings"):
        make(NAME, tmp_path / "raw", tmp_path / "data")
    raw_files.write(tmp_path / "raw" / "ratings_Electronics.csv", ["<html>"])
    with pytest.raises(UserError, match="ratings_Electronics.csv: line 1: '<html>': expected user"):
        make(NAME, tmp_path / "raw", tmp_path / "data")
    assert [p.name for p in (tmp_path / "data" / "oa_pairs").iterdir()] == [f".{NAME}.lock"]


def test_something_else_in_its_place_is_left_alone(small_pair, tmp_path):
    place = store.folder(tmp_path, NAME)
    place.mkdir(parents=True)
    (place / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="1.0.0: holds something else"):
        make(NAME, small_pair, tmp_path)
    assert (place / "thesis.tex").read_text() == "mine"


def test_an_unknown_name(tmp_path):
    with pytest.raises(UserError, match="books: no such data set: expected one of beauty_elec, "):
        make("books", tmp_path, tmp_path)


# --- reading ------------------------------------------------------------------------------------


def damage(folder, kind):
    log, facts = folder / store.LOG, folder / store.METADATA
    if kind == "log changed":
        columns = dict(np.load(log))
        columns["item"][3] += 1
        np.savez(log, **columns)
    elif kind == "log cut":
        log.write_bytes(log.read_bytes()[:900])
    elif kind == "log missing":
        log.unlink()
    elif kind == "metadata cut":
        facts.write_text(facts.read_text()[:50])
    elif kind == "metadata empty":
        facts.write_text("{}")
    elif kind == "metadata a list":
        facts.write_text("[]")
    elif kind in RAW_USERS:
        columns = dict(np.load(log)) | {"raw_users": np.frombuffer(RAW_USERS[kind], np.uint8)}
        np.savez(log, **columns)
    elif kind == "log of another method":  # of compression, than there is
        content = bytearray(log.read_bytes())
        at = content.rindex(b"PK\x01\x02")
        content[at + 10] = 99
        log.write_bytes(content)
    elif kind in WRONG_FIELDS:
        field, value = WRONG_FIELDS[kind]
        facts.write_text(json.dumps(json.loads(facts.read_text()) | {field: value}))


DAMAGES = {
    "log changed": "log.npz: fingerprint .*, expected .* of metadata.json: the files were changed",
    "log cut": "log.npz: ",
    "log missing": "log.npz: ",
    "metadata cut": "metadata.json: ",
    "metadata empty": "metadata.json: no field 'name'",
    "metadata a list": "metadata.json: holds a list",
    "field as text": "metadata.json: n_items is 'many': expected one such as",
    "field short": r"metadata.json: n_items is \[3\]: expected one such as",
    "field true": "metadata.json: n_users is True: expected one such as",
    "users": "metadata.json: n_users is 29, not 30: remove the folder",
    "events": "metadata.json: n_events is 719, not 720: remove the folder",
    "raw users fewer": "log.npz: ValueError: raw_users: expected 30 texts",
    "raw users numbers": "log.npz: ValueError: raw_users: expected 30 texts",
    "raw users nested": "log.npz: RecursionError: ",
    "log of another method": "log.npz: damaged: ",
}
RAW_USERS = {
    "raw users fewer": b'["a"]',
    "raw users numbers": json.dumps([*range(30)]).encode(),
    "raw users nested": b"[" * 200_000,
}
WRONG_FIELDS = {
    "field as text": ("n_items", "many"),
    "field short": ("n_items", [3]),
    "field true": ("n_users", True),
    "users": ("n_users", 29),
    "events": ("n_events", 719),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_damaged_sets_are_one_line(done, tmp_path, kind):
    folder = store.folder(tmp_path, NAME)
    folder.mkdir(parents=True)
    for path in store.folder(done, NAME).iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    store.load(tmp_path, NAME)
    damage(folder, kind)
    with pytest.raises(UserError, match=DAMAGES[kind]) as caught:
        store.load(tmp_path, NAME)
    assert "\n" not in str(caught.value)


def test_a_damaged_item_table(done, tmp_path):
    text = gzip.decompress((store.folder(done, NAME) / store.ITEMS).read_bytes())
    lines = text.split(b"\n")
    lines[4] = b"{"
    (tmp_path / store.ITEMS).write_bytes(gzip.compress(b"\n".join(lines)))
    with pytest.raises(UserError, match="items.jsonl.gz: line 5: "):
        store.read_items(tmp_path)


def test_an_item_table_of_other_items(done, tmp_path):
    """Raw ids that have changed places would be taken for those of other items."""
    folder = store.folder(tmp_path, NAME)
    shutil.copytree(store.folder(done, NAME), folder)
    items, _ = store.read_items(folder)
    items[0]["raw"], items[1]["raw"] = items[1]["raw"], items[0]["raw"]
    store.write_items(folder, items)
    with pytest.raises(UserError, match="items.jsonl.gz: digest .*: the file was changed"):
        store.load(tmp_path, NAME).items  # noqa: B018


def test_training_takes_prepared_names(done, raw_files, tmp_path, monkeypatch):
    monkeypatch.delenv(sources.DIRECTORY_VARIABLE, raising=False)
    assert sources.load(NAME, done).fingerprint() == store.load(done, NAME).log.fingerprint()
    name = "llmcdsr_food_kitchen"
    expected = f"{name}: no directory was given: found no .*, or give its folder by"
    with pytest.raises(UserError, match=expected):
        sources.load(name)
    expected = f"not prepared: below {done} is {NAME}; python -m oa_jax data prepare {name} "
    with pytest.raises(UserError, match=expected):
        sources.load(name, done)
    with pytest.raises(UserError, match=f"found 'books'; prepared below {done}: {NAME}; expected"):
        sources.load("books", done)
    raw_files.llmcdsr(tmp_path, (2, 3), **PARTS)
    make(name, tmp_path, tmp_path)
    monkeypatch.setenv(sources.DIRECTORY_VARIABLE, str(tmp_path))
    log = sources.load(name)
    split = make_split(log, "published")
    assert split.n_train.tolist() == [2, 1, 2, 2, 0, 0, 0]
    assert split.val.tolist() == [-1] * 4 + [2, -1, -1]
    assert split.test.tolist() == [-1] * 5 + [1, 0]


def test_resident_reading_needs_numpy_alone(done):
    """No reader of records, no polars: what `train` imports to read a prepared set."""
    code = (
        "import sys; from oa_jax.data import sources; sources.load(*sys.argv[1:]);"
        "print([m for m in ('tensorflow_datasets', 'array_record', 'polars') if m in sys.modules])"
    )
    argv = [sys.executable, "-c", code, NAME, str(done)]
    done_process = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, env=os.environ)
    assert done_process.stdout == "[]\n", done_process.stderr
