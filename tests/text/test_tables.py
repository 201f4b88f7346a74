"""Tables come back as they were written, and only for the log that they belong to."""

import dataclasses
import json

import numpy as np
import pytest

from oa_jax.errors import UserError
from oa_jax.events import split as splits
from oa_jax.text import tables as tables_lib
from oa_jax.text.tables import FILES, METADATA, Tables, load_tables, save_tables


@pytest.fixture(scope="module")
def log(random_log):
    return random_log(0)


@pytest.fixture
def tables(log):
    rng = np.random.default_rng(0)
    n_a, n_b = log.n_items
    shapes = ((n_a + n_b, 6), (n_a, 4), (n_b, 4), (log.n_users, 6))
    parts = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
    n_history = splits.leave_one_out(log).n_train
    return Tables(*parts, n_history, {"log": log.fingerprint(), "encoder": {"kind": "files"}})


@pytest.fixture
def folder(tables, tmp_path):
    save_tables(tmp_path / "tables", tables)
    return tmp_path / "tables"


def refusal(folder, log, split=None):
    with pytest.raises(UserError) as error:
        load_tables(folder, log, split)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_written_and_read_back(folder, tables, log):
    found = load_tables(folder, log, splits.leave_one_out(log))
    for field in FILES:
        np.testing.assert_array_equal(getattr(found, field), getattr(tables, field))
    assert found.metadata.items() >= tables.metadata.items()
    assert sorted(p.name for p in folder.iterdir()) == sorted([*FILES.values(), METADATA])


def test_another_log_is_refused(folder, log, random_log):
    other = random_log(1)
    text = refusal(folder, other)
    assert log.fingerprint() in text and other.fingerprint() in text


def test_a_profile_from_a_held_out_event_is_refused(folder, tables, log):
    split = splits.leave_one_out(log)
    n_history = tables.n_history.copy()
    n_history[5] += 1
    save_tables(folder, dataclasses.replace(tables, n_history=n_history))
    assert "user 5: profile of" in refusal(folder, log, split)
    load_tables(folder, log)  # without a split there is nothing to compare with
    n_history[:] = -1  # imported: unknown
    save_tables(folder, dataclasses.replace(tables, n_history=n_history))
    load_tables(folder, log, split)


WRONG = {
    "global_table": lambda a: a[:-1],
    "local_a": lambda a: a.astype(np.float64),
    "local_b": lambda a: a[:, :-1],
    "users": lambda a: np.where(np.arange(len(a))[:, None] == 3, np.nan, a).astype(np.float32),
    "n_history": lambda a: a[:, None],
}


@pytest.mark.parametrize("field", WRONG)
def test_a_table_that_does_not_fit_is_refused(folder, tables, log, field):
    np.save(folder / FILES[field], WRONG[field](getattr(tables, field)))
    text = refusal(folder, log)
    assert (FILES[field] in text or "widths 4 and 3" in text) and "expected" in text
    if field == "users":
        assert "row 3: not finite" in text


@pytest.mark.parametrize("file", [*FILES.values(), METADATA])
@pytest.mark.parametrize("content", [None, b"", b"{}", b"\x93NUMPY\x01\x00"])
def test_missing_and_damaged_files_are_one_line(folder, log, file, content):
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_bytes(content)
    assert file in refusal(folder, log)


def test_tables_that_were_changed_are_refused(folder, log):
    rows = np.load(folder / FILES["global_table"])
    np.save(folder / FILES["global_table"], rows[::-1].copy())
    said = refusal(folder, log)
    assert "digest of the arrays" in said and "make the tables again" in said


def test_history_ends_before_the_first_target():
    """A training user, one with a test target alone, one with an input after its first target,
    one without a target."""
    columns = ([5, 0, 3, 4], [5, -1, 3, -1], [6, 7, 6, -1])
    split = splits.Split(*(np.array(column, np.int32) for column in columns))
    assert tables_lib.history_of(split).tolist() == [5, 7, 3, 4]
    assert tables_lib.history_of(split, sees_validation=True).tolist() == [6, 7, 6, 4]


def test_profiles_with_the_validation_target_are_for_who_asks(folder, tables, log):
    """Quirk Q12 is either in the file and asked for, or neither."""
    split = splits.leave_one_out(log)
    with pytest.raises(UserError, match=r"expected exactly the \d+ before its test target"):
        load_tables(folder, log, split, sees_validation=True)
    official = tables_lib.history_of(split, sees_validation=True)
    save_tables(folder, dataclasses.replace(tables, n_history=official))
    load_tables(folder, log, split, sees_validation=True)
    assert "expected at most" in refusal(folder, log, split)


def test_a_kill_while_writing_leaves_what_is_refused(folder, tables, log, monkeypatch):
    def killed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(tables_lib.np, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        save_tables(folder, tables)
    assert METADATA in refusal(folder, log)
    assert not list(folder.glob("*.tmp"))
    json.dumps(tables.metadata)
