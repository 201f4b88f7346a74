"""Files of a run: claimed folders, whole files, rows, JSON."""

import concurrent.futures
import errno
import json
import os
import shutil
import subprocess

import numpy as np
import pytest

from oa_jax import files
from oa_jax.backbones import known
from oa_jax.errors import UserError
from oa_jax.runs import run as run_lib
from oa_jax.runs.run import check_config, stored_config
from oa_jax.runs.workdir import Workdir

CONFIG = known.resolve({"backbone": "abxi", "seeds": 3, "train": {"learning_rate": 0.1}})


@pytest.fixture
def workdir(tmp_path):
    with Workdir(tmp_path / "run") as opened:
        yield opened


def names(workdir):
    return sorted(p.name for p in workdir.path.iterdir())


def save(workdir):
    """What a first checkpoint leaves."""
    (workdir.checkpoints / "5").mkdir(parents=True)


def claim(workdir, config=CONFIG, extend=False):
    """What a run does before it begins."""
    grown = check_config(workdir, config, extend)
    workdir.claim(config.to_dict(), reopen=bool(grown))
    return grown


def test_an_empty_folder_is_claimed_and_claimed_again(workdir):
    assert claim(workdir) == ""
    save(workdir)
    before = (workdir.path / "config.json").read_bytes()
    assert claim(workdir) == ""
    assert stored_config(workdir) == CONFIG
    assert (workdir.path / "config.json").read_bytes() == before


def test_a_claim_without_a_checkpoint_is_replaced(workdir):
    claim(workdir)
    (workdir.checkpoints / "1.orbax-checkpoint-tmp").mkdir(parents=True)
    other = CONFIG.replace(train={"learning_rate": 0.2})
    check_config(workdir, other)
    assert stored_config(workdir) == CONFIG  # a check changes nothing
    claim(workdir, other)
    assert stored_config(workdir) == other and not workdir.is_begun()


def test_another_configuration_is_refused(workdir):
    claim(workdir)
    save(workdir)
    assert workdir.is_begun()
    for extend in (False, True):
        with pytest.raises(UserError, match="train.learning_rate: there 0.1, asked for 0.2"):
            check_config(workdir, CONFIG.replace(train={"learning_rate": 0.2}), extend)
    check_config(workdir, CONFIG.replace(data={"dir": "elsewhere"}))


def test_more_seeds_are_an_extension_that_reopens_the_run(workdir):
    claim(workdir)
    workdir.write_json("summary.json", {})
    more = CONFIG.replace(seeds=5)
    with pytest.raises(UserError, match="seeds: there 3, asked for 5: --extend goes on to more"):
        claim(workdir, more)
    with pytest.raises(UserError, match="--extend: no whole checkpoint was kept"):
        claim(workdir, more, extend=True)
    assert workdir.is_finished
    save(workdir)
    assert claim(workdir, more, extend=True) == "seeds from 3 to 5"
    assert not workdir.is_finished and stored_config(workdir) == more


def test_a_foreign_folder_is_refused_and_left_alone(workdir):
    (workdir.path / ".DS_Store").write_text("of the file manager")
    workdir.check()
    (workdir.path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="holds thesis.txt but no config.json"):
        claim(workdir)
    assert names(workdir) == [".DS_Store", "thesis.txt"]


def test_a_claim_that_was_killed_midway_is_claimed(workdir):
    (workdir.path / "config.json.0a.tmp").write_text('{"seeds"')
    claim(workdir)
    assert names(workdir) == [".lock", "config.json", "config.json.0a.tmp"]


def test_two_who_write_one_file_do_not_meet(tmp_path):
    """Every read finds what one of them wrote, whole."""
    path, texts = tmp_path / "lists.json", ["a" * 20_000, "b" * 30_000]
    files.write(path, texts[0])
    with concurrent.futures.ThreadPoolExecutor() as threads:
        writing = [
            threads.submit(lambda text: [files.write(path, text) for _ in range(40)], text)
            for text in texts
        ]
        while not all(one.done() for one in writing):
            assert path.read_text() in texts
        for one in writing:
            one.result()
    assert [p.name for p in tmp_path.iterdir()] == ["lists.json"]


def test_a_second_holder_is_refused_and_the_next_is_not(tmp_path):
    refused = pytest.raises(UserError, match="in use by another process")
    with Workdir(tmp_path), refused, Workdir(tmp_path):
        pass
    with Workdir(tmp_path):
        pass


def test_a_path_that_is_a_file_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match="cannot write there"), Workdir(path):
            pass


def test_a_failed_write_leaves_the_old_file_whole(workdir, monkeypatch):
    workdir.write_json("summary.json", {"a": 1})

    def full(_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="summary.json: cannot write: no space left"):
        workdir.write_json("summary.json", {"a": 2})
    assert workdir.read_json("summary.json") == {"a": 1}
    with pytest.raises(UserError, match="ranks.npz: cannot write: no space left"):
        workdir.write_npz("ranks.npz", {"rank": np.arange(3)})
    assert not (workdir.path / "ranks.npz").exists()
    monkeypatch.undo()
    workdir.write_json("summary.json", {"a": 2})
    assert workdir.read_json("summary.json") == {"a": 2}
    assert "summary.json.tmp" not in names(workdir)


def test_arrays_come_back(workdir):
    arrays = {"test/full/rank": np.arange(6).reshape(2, 3), "seed": np.int32([1, 2])}
    workdir.write_npz("ranks.npz", arrays)
    with np.load(workdir.path / "ranks.npz") as found:
        assert set(found) == set(arrays)
        for name, array in arrays.items():
            np.testing.assert_array_equal(found[name], array)
            assert found[name].dtype == array.dtype


def test_what_is_not_finite_becomes_null(workdir):
    value = {"a": np.float32("nan"), "b": [np.inf, 1.5, None], "c": np.array([1.0, -np.inf])}
    workdir.write_json("x.json", value | {"d": np.int64(3), "e": np.bool_(True), 4: (1, 2)})
    text = (workdir.path / "x.json").read_text()
    assert "NaN" not in text and "Infinity" not in text
    found = json.loads(text)
    expected = {"a": None, "b": [None, 1.5, None], "c": [1.0, None], "d": 3, "e": True, "4": [1, 2]}
    assert found == expected
    workdir.append_rows([{"epoch": 0, "v": float("nan")}])
    assert (workdir.path / "metrics.jsonl").read_text() == '{"epoch": 0, "v": null}\n'


def test_unreadable_json_names_its_file(workdir):
    with pytest.raises(UserError, match="config.json: No such file"):
        workdir.read_json("config.json")
    (workdir.path / "config.json").write_text('{"a": ')
    with pytest.raises(UserError, match="config.json: not valid JSON"):
        workdir.read_json("config.json")


def test_what_was_made_of_a_run_goes_when_it_goes_on(workdir):
    made = {"lists.json", "ranks.npz", "init_from.json"}
    for name in made | {"summary.json"}:
        (workdir.path / name).write_text("{}")
    (workdir.checkpoints / "3").mkdir(parents=True)
    workdir.claim({"a": 1})
    assert made & set(names(workdir)) == {"init_from.json"} and workdir.is_finished
    (workdir.checkpoints / "3").rmdir()
    workdir.claim({"a": 1}, reopen=True)
    assert not made & set(names(workdir)) and not workdir.is_finished


def test_rows_up_to_an_epoch_are_kept_byte_for_byte(workdir):
    rows = [{"epoch": e, "seed": s, "v": e / 3} for e in range(4) for s in range(2)]
    workdir.append_rows(rows)
    path = workdir.path / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    for last in (3, 2, 0):
        assert workdir.keep_rows({0: last, 1: last}) == 0
        assert path.read_text() == "".join(lines[: 2 * last + 2])
    workdir.keep_rows({1: 0})  # seed 0 is no seed of the run
    assert path.read_text() == lines[1]
    workdir.keep_rows({})
    assert path.read_text() == ""
    assert names(workdir) == [".lock", "metrics.jsonl"]


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_line_cut_off_is_dropped(workdir, cut):
    workdir.append_rows([{"epoch": e, "seed": 7, "loss": 0.123} for e in range(3)])
    path = workdir.path / "metrics.jsonl"
    text = path.read_text()
    path.write_text(text[:-cut])
    assert workdir.keep_rows({7: 5}) == (3 if cut == 1 else 4)
    # Only the newline was cut at 1: then the row is whole.
    assert path.read_text() == (text if cut == 1 else "".join(text.splitlines(True)[:2]))


@pytest.mark.parametrize(
    "line", [b"7", b"{}", b'{"epoch": 1}', b'{"epoch": "one", "seed": 0}', b"\xff\xfe", b'{"epoch"']
)
def test_a_line_that_is_no_row_is_named(workdir, line):
    path, good = workdir.path / "metrics.jsonl", b'{"epoch": 0, "seed": 0}\n'
    path.write_bytes(good + line + b"\n" + good)
    with pytest.raises(UserError, match="metrics.jsonl: line 2: found .*: expected a row of an"):
        workdir.keep_rows({0: 5})
    path.write_bytes(good + line)  # the last line: cut off by a kill
    workdir.keep_rows({0: 5})
    assert path.read_bytes() == good


def test_a_full_disk_names_the_file(workdir):
    (workdir.path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(UserError, match="metrics.jsonl: cannot write: No space left on device"):
        workdir.append_rows([{"epoch": 0}])


@pytest.mark.parametrize("path", ["gs://bucket/run", "s3:/bucket/run", "hdfs://host/run"])
def test_a_url_is_no_folder(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"--workdir={path}: a URL: expected a path in a file"):
        Workdir(path)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK])
def test_a_file_system_without_locks_is_named_and_used_on_request(tmp_path, monkeypatch, number):
    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", flock)
    words = f"this file system has no locks .{os.strerror(number)}.: expected .* OA_NO_LOCK=1"
    with pytest.raises(UserError, match=words), Workdir(tmp_path):
        pass
    monkeypatch.setenv("OA_NO_LOCK", "1")
    with Workdir(tmp_path) as workdir:
        claim(workdir)


def test_a_home_that_nobody_has_is_one_line(monkeypatch):
    def home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr("pathlib.Path.expanduser", lambda _: home())
    with pytest.raises(UserError, match="--workdir=~/run: there is no home folder"):
        Workdir("~/run")


def test_keep_rows_makes_the_file(workdir):
    workdir.keep_rows({})
    assert (workdir.path / "metrics.jsonl").read_bytes() == b""


def test_finished_is_having_a_summary(workdir):
    assert not workdir.is_finished
    workdir.write_json("summary.json", {})
    assert workdir.is_finished


def test_a_run_of_a_version_with_fewer_fields_goes_on(workdir):
    """What is missing counts as its default, and only as that."""
    older = CONFIG.to_dict()
    del older["mesh"], older["train"]["compute_dtype"], older["evaluate"]["users_per_kind"]
    workdir.write_json("config.json", older)
    save(workdir)
    check_config(workdir, CONFIG)
    with pytest.raises(UserError, match="evaluate.users_per_kind: there 0, asked for 5"):
        check_config(workdir, CONFIG.replace(evaluate={"users_per_kind": 5}))
    assert stored_config(workdir) == CONFIG


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_commit_is_that_of_the_checkout_and_of_no_project_above_it(tmp_path, monkeypatch):
    git = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x@x"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "x"], check=True)
    found = {}
    for root in (tmp_path, tmp_path / "lib" / "site-packages"):
        root.mkdir(parents=True, exist_ok=True)
        monkeypatch.setattr("oa_jax.__file__", str(root / "oa_jax" / "__init__.py"))
        found[root.name] = run_lib._commit()
    assert len(found.pop(tmp_path.name)) == 12 and found == {"site-packages": None}
