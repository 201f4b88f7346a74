"""Writers of raw files in their real formats, and a data set of each protocol made of them."""

import gzip
import json
import pathlib
import pickle
import types

import numpy as np
import pytest


def write(path, lines):
    """Lines of text or bytes, gzipped if the name says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = b"".join((line.encode() if isinstance(line, str) else line) + b"\n" for line in lines)
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def ratings_2014(folder, category, rows, packed=False, extra=()):
    """rows of (user, item, rating, time); `extra` lines stand at the end."""
    lines = [f"{u},{i},{float(r)},{t}" for u, i, r, t in rows]
    return write(folder / f"ratings_{category}.csv{'.gz' * packed}", [*lines, *extra])


def reviews_2018(folder, category, rows, extra=()):
    """Reviews with more fields than are read, in any order of keys."""
    lines = []
    for user, item, rating, time in rows:
        text = {"overall": float(rating), "verified": True, "reviewerID": user, "asin": item}
        text |= {"style": {"Color:": " red"}, "reviewText": 'fine, "é"', "unixReviewTime": time}
        lines.append(json.dumps(text))
    return write(folder / f"{category}.json.gz", [*lines, *extra])


def metadata_2018(folder, category, items, extra=()):
    lines = [json.dumps(item) for item in items]
    return write(folder / f"meta_{category}.json.gz", [*lines, *extra])


def douban(folder, book=(), movie=(), music=(), extra=()):
    """rows of (user, item, label, date) of the three kinds; `extra` lines end the movies."""
    places = {
        "book": lambda u, i, lab, t: [u, i, '"5"', f'"{lab}"', '"text"', f'"{t}"', "1"],
        "movie": lambda u, i, lab, t: [u, i, '"5"', '"a b"', f'"{t}"', f'"{lab}"', "0", "0", "1"],
        "music": lambda u, i, lab, t: [u, i, '"5"', f'"{lab}"', '"text"', "x", f'"{t}"', "1"],
    }
    for kind, rows in (("book", book), ("movie", movie), ("music", music)):
        lines = ["\t".join(map(str, places[kind](*row))) for row in rows]
        more = extra if kind == "movie" else ()
        write(folder / f"{kind}reviews_cleaned.txt", ["header\tof\tthe\tfile", *lines, *more])
    return folder


def amid(folder, train, test, pair="phone_elec", share=25):
    """rows of (user, items 1, items 2, domain)."""

    def text(items):
        return f'"{items}"' if len(items) > 1 else str(items)

    for stem, rows in ((f"{pair}_train{share}", train), (f"{pair}_test", test)):
        lines = [f"{u},{text(a)},{text(b)},{d}" for u, a, b, d in rows]
        write(folder / f"{stem}.csv", ["user_id,seq_d1,seq_d2,domain_id", *lines])
    return folder


def llmcdsr(folder, n_items, pickled=False, **parts):
    """parts: train_A=[[ids], ...] and so on; ids from 0, B after A."""
    for stem in ("train_A", "train_B", "train_overlap", "valid", "test"):
        lines = [f"{k}\t{','.join(map(str, ids))}" for k, ids in enumerate(parts[stem], 1)]
        write(folder / f"{stem}.txt", lines)
    for letter, n in zip("AB", n_items, strict=True):
        names = {f"{letter}{k}": k for k in range(n)}
        if pickled:
            (folder / f"item_set_{letter}.pkl").write_bytes(pickle.dumps(names))
            titles = {name: f"title of {name}" for name in names}
            (folder / f"text_{letter}.pkl").write_bytes(pickle.dumps(titles))
            continue
        rows = [{"id": k, "asin": n, "title": f"title of {n}"} for n, k in names.items()]
        write(folder / f"items_{letter}.jsonl.gz", [json.dumps(row) for row in rows])
    return folder


def bundle(folder, sequences, n_items, name="elec_phone", labels=None):
    """LLM4CDSR's pickle and id map. sequences: by user, lists of (local id, domain)."""
    folder.mkdir(parents=True, exist_ok=True)
    pairs = enumerate(sequences, 1)
    both = {u: np.array(s, np.int64).reshape(-1, 2) for u, s in pairs}
    value = tuple({u: a[:, column] for u, a in both.items()} for column in (0, 1))
    (folder / f"{name}.pkl").write_bytes(pickle.dumps(value))
    items = {
        str(d): {"id2str": {k + 1: f"i{d}{k}" for k in range(n)}} for d, n in enumerate(n_items)
    }
    if labels:
        items["0"]["id2label"] = labels
    items["item_count"] = {str(d): n for d, n in enumerate(n_items)}
    users = {"id2str": {u: f"name{u}" for u in both}}
    (folder / "id_map.json").write_text(json.dumps({"user_dict": users, "item_dict": items}))
    return folder


@pytest.fixture(scope="session")
def raw_files():
    """The writers above."""
    writers = (ratings_2014, reviews_2018, metadata_2018, douban, amid, llmcdsr, bundle, write)
    return types.SimpleNamespace(**{w.__name__: w for w in writers})


@pytest.fixture(scope="session")
def small_pair(raw_files, tmp_path_factory):
    """Folder of two ratings files of 2014 that ABXI's filters leave 30 users of."""
    folder = tmp_path_factory.mktemp("raw")
    rng = np.random.default_rng(5)
    for category, letter in (("Beauty", "a"), ("Electronics", "b")):
        rows = [
            (f"u{user:02d}", f"{letter}{item:02d}", rng.integers(1, 6), 1_300_000_000 + int(time))
            for user in range(30)
            for item, time in zip(rng.permutation(16)[:12], rng.integers(0, 9, 12), strict=True)
        ]
        raw_files.ratings_2014(folder, category, rows)
    return folder


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """Function (*argv, OA_DATA_DIR) -> Result, as of `python -m oa_jax.data *argv`; `module` names
    another one, also of this folder."""
    import served

    here, streams = pathlib.Path(__file__).parent, tmp_path_factory.mktemp("streams")
    preloaded = ("tensorflow_datasets", "matplotlib.figure")
    with served.commands("oa_jax.data", streams, *preloaded, path=here) as run:
        yield run


@pytest.fixture(scope="session")
def built_from():
    """Function (name, folder) -> (Built, Reading): what a data set is made into."""
    from oa_jax.data.prepare import build
    from oa_jax.data.texts import Reading

    def make(name, folder):
        reading = Reading()
        return build(name, folder, reading)[0], reading

    return make
