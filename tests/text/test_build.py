"""From a prepared set to a folder of tables, by the function and by the command."""

import dataclasses
import json
import pathlib
import pickle
import signal
import types

import numpy as np
import pytest
import served

from oa_jax.errors import UserError
from oa_jax.events import split as splits
from oa_jax.events.log import make_log
from oa_jax.text import build
from oa_jax.text.tables import METADATA, load_tables

HERE = pathlib.Path(__file__).parent


@pytest.fixture(scope="module")
def prepared(tiny_prepared):
    return tiny_prepared()


@pytest.fixture(scope="module")
def vectors(prepared, tmp_path_factory):
    """--encoder of two files, and what stands in them; item 2 has no vector."""
    rng = np.random.default_rng(5)
    parts = [rng.normal(size=(n, 9)).astype(np.float32) for n in prepared.log.n_items]
    parts[0][1] = 0
    paths = [tmp_path_factory.mktemp("vectors") / f"{name}.npy" for name in "ab"]
    for path, part in zip(paths, parts, strict=True):
        np.save(path, part)
    return ",".join(map(str, paths)), np.concatenate(parts)


@pytest.fixture
def options(vectors, tmp_path):
    return build.Options(vectors[0], tmp_path / "cache", global_width=6, local_width=4)


def refusal(*args):
    with pytest.raises(UserError) as error:
        build.write(*args, print)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_tables_fit_the_log_and_say_where_they_come_from(prepared, options, vectors, tmp_path):
    found = build.write(prepared, options, tmp_path / "out", print)
    assert found.global_table.shape == (45, 6) and found.local_a.shape == (20, 4)
    assert found.local_b.shape == (25, 4) and found.users.shape == (30, 9)
    log, split = prepared.log, splits.published(prepared.log)
    np.testing.assert_array_equal(found.n_history, split.val)
    assert split.val[0] == 0 and not found.users[0].any()  # a target first: nothing is left
    items = [i for i in log.item[log.offsets[4] :][: split.val[4]] if i != 2]
    np.testing.assert_allclose(found.users[4], vectors[1][np.array(items) - 1].mean(0), rtol=1e-5)
    of = found.metadata
    assert of["log"] == log.fingerprint() and of["inputs"]["split"] == "published"
    assert of["encoder"]["kind"] == "files" and of["n_items_without_text"] == 1
    assert set(of["explained_variance"]) == {"global", "A", "B"}
    assert of["widths"] == {"global": 6, "local": 4}


def test_tables_of_other_texts_are_refused(prepared, options, tmp_path):
    """The same events with other titles; vectors from files know of no texts."""
    other = dataclasses.replace(prepared, metadata=prepared.metadata | {"items_digest": "1" * 16})
    logs = [dataclasses.replace(one.log, origin=one) for one in (prepared, other)]
    build.write(prepared, options, tmp_path / "files", print)
    hashing = dataclasses.replace(options, encoder="hashing")
    build.write(prepared, hashing, tmp_path / "texts", print)
    load_tables(tmp_path / "files", logs[1])
    load_tables(tmp_path / "texts", logs[0])
    said = "metadata.json: made from the texts of items 0{16}: expected 1{16}, those of tiny"
    with pytest.raises(UserError, match=said):
        load_tables(tmp_path / "texts", logs[1])


def test_without_roles_the_split_is_leave_one_out(tiny_prepared, options, tmp_path):
    prepared = tiny_prepared(with_roles=False)
    found = build.write(prepared, options, tmp_path / "out", print)
    split = splits.leave_one_out(prepared.log)
    assert found.metadata["inputs"]["split"] == "leave_one_out"
    np.testing.assert_array_equal(found.n_history, split.n_train)
    load_tables(tmp_path / "out", prepared.log, split)
    early = dataclasses.replace(split, val=split.val - 1)
    with pytest.raises(UserError, match="before its first target"):  # twin: a stricter split
        load_tables(tmp_path / "out", prepared.log, early)


def test_a_split_by_time_needs_times(prepared, options, tmp_path):
    log = dataclasses.replace(prepared.log, origin=types.SimpleNamespace(times="order"))
    without, by_time = dataclasses.replace(prepared, log=log), {"split": "global_time"}
    said = refusal(without, dataclasses.replace(options, **by_time), tmp_path / "out")
    assert said == "--split=global_time: tiny has no times: expected another split"


def test_users_too_short_to_be_split_have_a_profile_of_nothing(tiny_prepared, options, tmp_path):
    whole = tiny_prepared(with_roles=False)
    log, kept = whole.log, np.arange(len(whole.log.user)) >= whole.log.offsets[1] - 2
    short = make_log(log.user[kept], log.item[kept], log.time[kept], log.n_items, "short")
    prepared = dataclasses.replace(whole, log=short)
    prepared.__dict__["items"] = whole.items
    found = build.write(prepared, options, tmp_path / "out", print)
    assert found.n_history[0] == 0 and not found.users[0].any() and found.users[1:].any(1).all()


def test_the_same_inputs_do_nothing_and_others_are_refused(prepared, options, tmp_path, capsys):
    build.write(prepared, options, tmp_path / "out", print)
    times = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out").iterdir()}
    build.write(prepared, options, tmp_path / "out", print)
    assert "nothing to do" in capsys.readouterr().out
    other = dataclasses.replace(options, local_width=3)
    assert "local_width: there 4, asked for 3" in refusal(prepared, other, tmp_path / "out")
    assert times == {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out").iterdir()}
    (tmp_path / "out" / METADATA).unlink()  # as a kill would leave it
    build.write(prepared, options, tmp_path / "out", print)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    assert "holds thesis.tex" in refusal(prepared, options, tmp_path / "mine")
    assert "a file" in refusal(prepared, options, tmp_path / "mine" / "thesis.tex")


def test_items_without_text_are_those_with_a_row_of_zeros(prepared, options, tmp_path):
    parts = [np.ones((n, 9), np.float32) for n in prepared.log.n_items]
    parts[0][2:5] = 0
    for name, part in zip("ab", parts, strict=True):
        np.save(tmp_path / f"{name}.npy", part)
    named = dataclasses.replace(options, encoder=f"{tmp_path}/a.npy,{tmp_path}/b.npy")
    found = build.write(prepared, named, tmp_path / "out", print)
    assert found.metadata["n_items_without_text"] == 3


def test_titles_that_are_too_long_are_counted(tiny_prepared, options, tmp_path, capsys):
    prepared = tiny_prepared()
    prepared.items[3]["title"] = prepared.items[7]["title"] = "word " * 30
    hashed = dataclasses.replace(options, encoder="hashing")
    build.write(prepared, hashed, tmp_path / "out", print)
    assert '2 titles of over 100 characters become "unknown"' in capsys.readouterr().out


def test_widths_are_cut_to_what_the_data_allow(prepared, options, tmp_path, capsys):
    wide = dataclasses.replace(options, global_width=1024, local_width=128)
    found = build.write(prepared, wide, tmp_path / "out", print)
    assert found.global_table.shape[1] == found.local_a.shape[1] == 9
    assert "--global_width=1024: cut to 9" in capsys.readouterr().out
    assert found.metadata["explained_variance"] == {"global": 1, "A": 1, "B": 1}


def test_imported_profiles_take_the_place_of_the_mean(prepared, options, tmp_path):
    rows = np.random.default_rng(0).normal(size=(30, 7)).astype(np.float32)
    np.save(tmp_path / "p.npy", rows)
    imported = dataclasses.replace(options, profiles=str(tmp_path / "p.npy"))
    found = build.write(prepared, imported, tmp_path / "out", print)
    np.testing.assert_array_equal(found.users, rows)
    assert (found.n_history == -1).all()
    assert found.metadata["inputs"]["profiles"].startswith("imported ")
    np.save(tmp_path / "p.npy", rows + 1)
    assert "profiles: there imported" in refusal(prepared, imported, tmp_path / "out")


@pytest.fixture
def official(tmp_path):
    """A folder as the official code leaves it, with its names, in float64."""
    rng, folder = np.random.default_rng(2), tmp_path / "handled"
    folder.mkdir()
    shapes = {"x_A_pca128": (20, 4), "x_B_pca128": (25, 4), "x_all": (45, 8)}
    arrays = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    arrays["usr_profile_emb"] = rng.normal(size=(30, 5))
    for name, array in arrays.items():
        (folder / f"{name}.pkl").write_bytes(pickle.dumps(array))
    return folder, {name: array.astype(np.float32) for name, array in arrays.items()}


def test_official_tables_are_taken_as_they_are(prepared, options, official, tmp_path):
    folder, arrays = official
    by_official = dataclasses.replace(options, encoder=str(folder))
    found = build.write(prepared, by_official, tmp_path / "out", print)
    for table, name in (("global_table", "x_all"), ("local_b", "x_B_pca128")):
        np.testing.assert_array_equal(getattr(found, table), arrays[name])
    np.testing.assert_array_equal(found.users, arrays["usr_profile_emb"])
    assert found.metadata["encoder"]["kind"] == "official tables"
    (folder / "usr_profile_emb.pkl").unlink()
    found = build.write(prepared, by_official, tmp_path / "mean", print)
    assert found.users.shape == (30, 8) and (found.n_history >= 0).all()
    (folder / "x_A_pca128.pkl").unlink()
    assert "0 files *_A_pca128.pkl" in refusal(prepared, by_official, tmp_path / "third")


@pytest.fixture(scope="module")
def run_command(tmp_path_factory):
    """Function (*argv, **environment) -> Result, as of `python -m oa_jax.data.text *argv`."""
    with served.commands("oa_jax.data.text", tmp_path_factory.mktemp("streams"), path=HERE) as run:
        yield run


def test_a_killed_command_goes_on_with_the_chunks_that_it_stored(run_command, stored, tmp_path):
    """kill -9 within the third chunk of 16 texts; the first two are not encoded again."""
    data_dir, name = stored
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "seed").write_text("1")
    argv = [f"--data_dir={data_dir}", f"--name={name}", f"--encoder={tmp_path / 'model'}"]
    argv += [f"--cache_dir={tmp_path / 'cache'}", "--local_width=4", "--chunk=16"]
    variables = {"ENCODED": tmp_path / "encoded"}
    killed = run_command(*argv, f"--out={tmp_path / 'out'}", **variables, DIE_AFTER=40)
    assert killed.returncode == -signal.SIGKILL
    assert (tmp_path / "encoded").read_text().split() == ["16", "16"]
    assert not (tmp_path / "out" / METADATA).exists()
    done = run_command(*argv, f"--out={tmp_path / 'out'}", **variables)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "encoded").read_text().split() == ["16", "16", "12"]  # 44 texts in all
    assert "2 of 3 chunks of texts are encoded" in done.stdout
    assert "tiny by model: global 45x12, A 20x4, B 25x4, users 30x12 (1 without" in done.stdout
    metadata = json.loads((tmp_path / "out" / METADATA).read_text())
    assert metadata["encoder"]["kind"] == "sentence-transformers"


def test_align_makes_tables_of_changed_vectors_beside_the_others(run_command, stored):
    data_dir, name = stored
    argv = [f"--data_dir={data_dir}", f"--name={name}", "--encoder=hashing", "--local_width=4"]
    done = run_command("align", *argv, "--how=rotated", "--amount=0.5", "--seed=3")
    assert done.returncode == 0, done.stderr
    assert "hashed words + truncated SVD, no language model, rotated: global" in done.stdout
    folder = pathlib.Path(data_dir) / "oa_tables"
    assert [path.name for path in folder.iterdir()] == [f"{name}-rotated"]
    inputs = json.loads((folder / f"{name}-rotated" / METADATA).read_text())["inputs"]
    assert inputs["alignment"] == {"kind": "rotated", "amount": 0.5, "seed": 3}


def test_a_mistake_of_the_command_is_one_line(run_command, tmp_path):
    flags = ("--name=x", "--encoder=hashing", f"--out={tmp_path / 'out'}")
    for argv, expected in (
        (flags[1:], "--name: missing"),
        ((*flags, f"--data_dir={tmp_path}"), "not prepared"),
        (("turn", *flags), "argument 'turn': expected align, or nothing"),
        (("align", *flags, f"--data_dir={tmp_path}", "--amount=-1"), "--amount=-1.0: expected a"),
        ((*flags, "--how=rotated"), "--how: without align: expected python -m oa_jax text align"),
    ):
        found = run_command(*argv)
        assert found.returncode == 2 and expected in found.stderr
        assert len(found.stderr.splitlines()) == 1 and found.stderr.startswith("error: ")
    assert not (tmp_path / "out").exists()
