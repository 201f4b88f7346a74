"""The files of LLMCDSR's Food-Kitchen: reading, roles, embeddings, one-line errors."""

import gzip

import numpy as np
import pytest

from oa_jax.data import llmcdsr, sources
from oa_jax.errors import UserError

FILES = {
    "train_overlap.txt": "1\t0,3,1\n2\t4,2,3,0\n",
    "train_A.txt": "1\t2,0,1\n",
    "train_B.txt": "1\t3,4,3\n",
    "valid.txt": "1\t0,4,3,1\n",
    "test.txt": "1\t1,3,0\n",
    "items_A.jsonl": '{"id": 0}\n{"id": 1}\n{"id": 2}\n',
    "items_B.jsonl": '{"id": 0}\n{"id": 1}\n',
}


@pytest.fixture
def folder(tmp_path):
    """Function (**contents) -> a folder with the files, some changed."""

    def write(changed=()):
        for name, text in (FILES | dict(changed)).items():
            (tmp_path / name).write_text(text)
        for domain, n in (("A", 3), ("B", 2)):
            rows = np.arange(n * 4, dtype=np.float16).reshape(n, 4)
            np.save(tmp_path / f"item_title_minilm_{domain}.npy", rows)
        return tmp_path

    return write


def test_users_and_their_roles(folder):
    log, split = llmcdsr.read(folder())
    assert (log.n_items, log.n_users) == ((3, 2), 6)
    assert log.item[log.user == 1].tolist() == [5, 3, 4, 1]
    assert split.n_train.tolist() == [3, 4, 3, 3, 0, 0]
    assert split.val.tolist() == [-1, -1, -1, -1, 3, -1]
    assert split.test.tolist() == [-1, -1, -1, -1, -1, 2]


def test_users_of_both_domains_only(folder):
    log, split = llmcdsr.read(folder(), "overlap")
    assert log.n_users == 4 and split.n_train.tolist() == [3, 4, 0, 0]
    assert log.item[log.user == 2].tolist() == [1, 5, 4, 2]


def test_gzipped_files_are_the_same(folder):
    plain = llmcdsr.read(folder())[0].fingerprint()
    path = folder() / "valid.txt"
    with gzip.open(f"{path}.gz", "wt") as file:
        file.write(path.read_text())
    path.unlink()
    assert llmcdsr.read(path.parent)[0].fingerprint() == plain


def test_embeddings_follow_the_ids(folder):
    table = llmcdsr.title_embeddings(folder(), (3, 2))
    assert table.dtype == np.float32 and table[:, 0].tolist() == [0, 4, 8, 0, 4]


MISTAKES = {
    "train_A.txt": [
        ("1 2,0\n", "line 1: found '1 2,0', expected a user, a tab, item ids"),
        ("1\t2,0\n2\t0,x\n", "line 2"),
        ("1\t2,5\n", "found item 5, expected an id in 0..4"),
        ("1\t-1,2\n", "found item -1"),
        ("", "expected text, found an empty file"),
    ]
}
CASES = [(name, text, words) for name, cases in MISTAKES.items() for text, words in cases]


@pytest.mark.parametrize(("name", "text", "words"), CASES)
def test_mistakes_are_one_line(folder, name, text, words):
    with pytest.raises(UserError) as caught:
        llmcdsr.read(folder({name: text}))
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_missing_files(folder, tmp_path, monkeypatch):
    path = folder()
    (path / "test.txt").unlink()
    with pytest.raises(UserError, match=r"expected file test.txt or test.txt.gz"):
        llmcdsr.read(path)
    (path / "item_title_minilm_B.npy").unlink()
    with pytest.raises(UserError, match=r"item_title_minilm_B.npy: no such file"):
        llmcdsr.title_embeddings(path, (3, 2))
    with pytest.raises(UserError, match="expected 9 rows"):
        llmcdsr.title_embeddings(path, (9, 2))
    monkeypatch.delenv(sources.DIRECTORY_VARIABLE, raising=False)
    with pytest.raises(UserError, match="looked in: nowhere"):
        sources.load_published_split()
    assert sources.llmcdsr_directory(path) == path


def test_the_published_files(shared_file):
    log, split = llmcdsr.read(shared_file("data", "llmcdsr_food_kitchen"))
    assert (log.n_items, log.n_users, len(log.user)) == ((8661, 27637), 53061, 436127)
    assert ((split.n_train > 0).sum(), (split.val >= 0).sum(), (split.test >= 0).sum()) == (
        51164, 960, 937,
    )  # fmt: skip
