"""What each source is made into: ids, order, roles, item texts."""

import json
import pickle

import numpy as np
import polars as pl
import pytest

from oa_jax.data.raw import numbered
from oa_jax.data.roles import from_end, leave_one_out_roles, tenths, user_disjoint_roles
from oa_jax.errors import UserError
from oa_jax.events.log import CONTEXT, TEST, TRAINING, VALIDATION


def sequences(built):
    """Per user the raw ids of its items, with the domain."""
    names = [(item["domain"], item["raw"]) for item in built.items]
    ends = np.searchsorted(built.user, np.arange(len(built.raw_users) + 1))
    return {
        (k, raw): [names[i - 1] for i in built.item[ends[k] : ends[k + 1]]]
        for k, raw in enumerate(built.raw_users)
    }


def test_roles_by_hand():
    user = np.array([0, 0, 0, 0, 1, 2, 2, 3, 3, 3])
    assert from_end(user).tolist() == [3, 2, 1, 0, 0, 1, 0, 2, 1, 0]
    expected = [0, 0, 1, 2, CONTEXT, CONTEXT, CONTEXT, 0, 1, 2]
    assert leave_one_out_roles(user).tolist() == expected
    part = np.array([TRAINING, VALIDATION, TEST, TRAINING])
    assert user_disjoint_roles(user, part).tolist() == [0, 0, 0, 0, 1, -1, 2, 0, 0, 0]


def test_tenths_keep_a_person_together():
    names = [f"u{k // 2}" for k in range(400)]
    part = tenths(names, "split")
    assert np.bincount(part).tolist() == [320, 40, 40]
    assert (part[::2] == part[1::2]).all()
    assert np.bincount(tenths(names, "split", test=False)).tolist() == [360, 40]
    assert (tenths(names, "other") != part).any()
    np.testing.assert_array_equal(tenths(names[::-1], "split"), part[::-1])


def test_abxi_and_its_small_pair(small_pair, built_from):
    built, reading = built_from("beauty_elec", small_pair)
    assert built.raw_users == sorted(built.raw_users) and len(built.raw_users) == 30
    names = [(item["domain"], item["raw"]) for item in built.items]
    assert names == sorted(names) and [item["id"] for item in built.items] == [*range(1, 33)]
    assert reading.lines == {"ratings_Beauty.csv": 360, "ratings_Electronics.csv": 360}
    assert (np.bincount(built.role) == [30 * 22, 30, 30]).all()
    # At equal times A stands before B.
    same = (np.diff(built.user) == 0) & (np.diff(built.time) == 0)
    domain = built.item > built.n_items[0]
    assert same.any() and not (same & domain[:-1] & ~domain[1:]).any()


def test_llm4cdsr_from_reviews(raw_files, built_from, tmp_path):
    """Window, over-pruned core, ids by first appearance, texts of the domain's own file."""
    a = [(f"u{u}", f"x{i}", 5, 1_550_000_000 - u) for i in (3, 1, 2) for u in (2, 1, 0, 4)]
    b = [(f"u{u}", f"y{i}", 4, 1_550_000_000) for i in (9, 8, 7) for u in (2, 1, 0, 4)]
    a += [("u2", "x3", 5, 1_500_000_000), ("u2", "x3", 5, 1_600_000_000)]  # both ends are outside
    b += [("stray", "y9", 3, 1_550_000_000)]
    for category, rows in (("Electronics", a), ("Cell_Phones_and_Accessories", b)):
        raw_files.reviews_2018(tmp_path, category, rows)
        texts = [{"asin": "x1", "title": category}, {"asin": "y9", "title": category}]
        raw_files.metadata_2018(tmp_path, category, texts)
    built, _ = built_from("elec_phone", tmp_path)
    assert built.raw_users == ["u2", "u1", "u0", "u4"]
    assert [item["raw"] for item in built.items] == ["x3", "x1", "x2", "y9", "y8", "y7"]
    assert built.items[1] == {
        "id": 2,
        "domain": "A",
        "raw": "x1",
        "title": "Electronics",
    }
    assert built.items[3]["title"] == "Cell_Phones_and_Accessories" and len(built.items[0]) == 3
    assert built.item.reshape(4, 6).tolist() == [[1, 2, 3, 4, 5, 6]] * 4
    assert built.role.reshape(4, 6).tolist() == [[0, 0, 0, 0, 1, 2]] * 4


def test_the_corrected_core_needs_raw_files(raw_files, built_from, tmp_path):
    raw_files.bundle(tmp_path, [[(1, 0), (1, 1), (2, 0)]], (2, 1))
    assert len(built_from("elec_phone", tmp_path)[0].user) == 3
    with pytest.raises(UserError, match="elec_phone_corrected: found no Electronics.json"):
        built_from("elec_phone_corrected", tmp_path)


def test_llm4cdsr_from_the_bundle(raw_files, built_from, tmp_path):
    users = [[(2, 0), (1, 1), (1, 0)], [], [(3, 1)], [(1, 1), (2, 1), (3, 1), (2, 0)]]
    labels = {"1": ["novel", "love"]}
    raw_files.bundle(tmp_path / "handled", users, (2, 3), labels=labels)
    built, _ = built_from("elec_phone", tmp_path)
    assert built.raw_users == ["name1", "name3", "name4"]  # a user without events is left out
    assert built.notes == {"users_without_events": 1} and built.times == "order"
    assert built.item.tolist() == [2, 3, 1, 5, 3, 4, 5, 2]
    assert built.time.tolist() == [0, 1, 2, 0, 0, 1, 2, 3]
    assert built.role.tolist() == [0, 1, 2, CONTEXT, 0, 0, 1, 2]
    assert built.items[0] == {
        "id": 1,
        "domain": "A",
        "raw": "i00",
        "category": ["novel", "love"],
    }


BAD_BUNDLES = {
    "an id too large": ([[(3, 0), (1, 1), (1, 0)]], "user 1: expected equally many item ids 1..2"),
    "id 0": ([[(0, 0), (1, 1), (1, 0)]], "user 1: expected equally many"),
    "a third domain": ([[(1, 0)], [(1, 2)]], "user 2: expected equally many"),
}


@pytest.mark.parametrize("case", BAD_BUNDLES)
def test_mistakes_in_a_bundle(raw_files, built_from, tmp_path, case):
    users, expected = BAD_BUNDLES[case]
    raw_files.bundle(tmp_path, users, (2, 3))
    with pytest.raises(UserError, match=f"elec_phone.pkl: {expected}"):
        built_from("elec_phone", tmp_path)
    (tmp_path / "elec_phone.pkl").write_bytes(pickle.dumps(({1: None}, {1: None})))
    with pytest.raises(UserError, match="elec_phone.pkl: user 1: expected equally many"):
        built_from("elec_phone", tmp_path)
    (tmp_path / "id_map.json").write_text('{"item_dict": {}}')
    with pytest.raises(UserError, match="id_map.json: KeyError: 'item_count': expected item_dict"):
        built_from("elec_phone", tmp_path)


@pytest.mark.parametrize(
    ("old", "new"),
    [('"1": "i00"', '"1": null'), ('"1": "i00"', '"1": "i00", "1": "z"')]
    + [('"item_count": {"0": 2', '"item_count": {"0": 2.9')],
)
def test_an_id_map_that_says_two_things(raw_files, built_from, tmp_path, old, new):
    raw_files.bundle(tmp_path, [[(2, 0), (1, 1), (1, 0)]], (2, 3))
    path = tmp_path / "id_map.json"
    text = json.dumps(json.loads(path.read_text()))
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(UserError, match="id_map.json: "):
        built_from("elec_phone", tmp_path)


def test_douban(raw_files, built_from, tmp_path):
    """Music counts in the filter, then leaves; its number 1 is also a book's."""
    day = "2016-03-0{}".format
    book = [(5, 1, "novel", day(3)), (5, 2, "essay", day(1)), (6, 1, "love", day(2))]
    movie = [(6, 2, "war", day(2)), (7, 2, "war", day(4)), (5, 9, "rare", day(4))]
    music = [(8, 1, "jazz", day(1)), (8, 1, "jazz", day(2))]
    raw_files.douban(tmp_path, book, movie, music)
    built, _ = built_from("book_movie", tmp_path)
    assert sequences(built) == {
        (0, "5"): [("A", "2"), ("A", "1")],
        (1, "6"): [("A", "1"), ("B", "2")],  # book before movie on the same day
    }
    assert [item.get("category") for item in built.items] == [["novel", "love"], ["essay"], ["war"]]
    assert built.notes == {"users_without_events": 1} and built.times == "yyyymmdd"
    assert built.time.tolist() == [20160301, 20160303, 20160302, 20160302]
    assert set(built.role) == {CONTEXT}  # fewer than three events each


def test_douban_with_music(raw_files, built_from, tmp_path):
    """The filter is that of all three kinds; which two are kept is the set's."""
    day = "2016-03-0{}".format
    book = [(5, 1, "novel", day(3)), (5, 1, "novel", day(4)), (6, 3, "love", day(2))]
    movie = [(6, 2, "war", day(k)) for k in (1, 2, 3)]
    music = [(5, 1, "jazz", day(1)), (8, 2, "folk", day(2)), (8, 2, "folk", day(5))]
    raw_files.douban(tmp_path, book, movie, music)
    built, _ = built_from("book_music", tmp_path)
    assert sequences(built) == {
        (0, "5"): [("B", "1"), ("A", "1"), ("A", "1")],
        (1, "8"): [("B", "2"), ("B", "2")],
    }
    built, _ = built_from("movie_music", tmp_path)
    assert {name for _, name in sequences(built)} == {"5", "6", "8"}
    assert [item["domain"] for item in built.items] == ["A", "B", "B"]


FILMS = {
    "1": ("Toy (1995)", "Comedy"),
    "2": ("Café (1990)", "Action|War"),
    "3": ("?", "Action|Drama"),
}


@pytest.mark.parametrize("size", ["1M", "100K"])
def test_movielens(raw_files, built_from, tmp_path, size):
    """Films of one group of genres alone; cores of five; users of both domains."""
    rows = [
        (u, i, 1 + u % 5, 978300000 + 10 * k - u) for u in range(6) for k in range(5) for i in "123"
    ]
    rows += [(7, "2", 5, 978300000 + k) for k in range(5)]  # one domain alone
    columns = [f"{u}::{i}::{r}::{t}".encode() for u, i, r, t in rows]
    films = [f"{i}::{title}::{own}" for i, (title, own) in FILMS.items()]
    if size == "1M":
        raw_files.write(tmp_path / "ratings.dat", columns)
        raw_files.write(tmp_path / "movies.dat", [film.encode("latin-1") for film in films])
    else:
        genres = ["Action", "Comedy", "Drama", "War"]
        raw_files.write(tmp_path / "u.data", [row.replace(b"::", b"\t") for row in columns])
        raw_files.write(tmp_path / "u.genre", [f"{g}|{k}" for k, g in enumerate(genres)])
        lines = [
            "|".join([i, title, "", "", "", *(str(int(g in own.split("|"))) for g in genres)])
            for i, (title, own) in FILMS.items()
        ]
        raw_files.write(tmp_path / "u.item", [one.encode("latin-1") for one in lines])
    built, _ = built_from("movielens_genres", tmp_path)
    assert built.raw_users == list("012345") and built.n_items == (1, 1)
    assert [item["title"] for item in built.items] == ["Café (1990)", "Toy (1995)"]
    assert built.items[0]["category"] == ["Action", "War"]
    assert built.notes["films_of_no_domain"] == 1 and built.times == "unix seconds"
    assert len(built.user) == 60 and built.time[:2].tolist() == [978300000, 978300000]
    wrong = tmp_path / ("movies.dat" if size == "1M" else "u.item")
    raw_files.write(wrong, ["one field"])
    with pytest.raises(UserError, match=f"{wrong.name}: line 1: found 'one field', expected "):
        built_from("movielens_genres", tmp_path)


def test_amid(raw_files, built_from, tmp_path):
    train = [(k, [10, 60 + k], [20, 40], k % 2) for k in range(20)]
    train += [(50, [], [20, 41, 10], 1)]
    test = [(3, [10, 63], [20, 40], 0), (60, [10, 99], [], 0), (60, [10, 99], [20], 1)]
    raw_files.amid(tmp_path, train, test)
    built, _ = built_from("elec_phone_amid", tmp_path)
    found = sequences(built)
    assert built.raw_users[-3:] == ["3", "60", "60"] and len(found) == 24
    # The other domain's items first, then those of the target's; id 10 is an item of each domain.
    assert found[21, "3"] == [("B", "20"), ("B", "40"), ("A", "10"), ("A", "63")]
    assert found[20, "50"] == [("B", "20"), ("B", "41"), ("B", "10")]
    assert found[23, "60"] == [("A", "10"), ("A", "99"), ("B", "20")]
    assert built.notes["shared_items"] == 1
    assert built.notes["rows"] == {"phone_elec_train25.csv": 21, "phone_elec_test.csv": 3}
    last = from_end(built.user) == 0
    assert (built.role[last] == TEST).sum() == 3 and (built.role[last] == VALIDATION).sum() == 3
    assert (built.role[~last] <= TRAINING).all()


@pytest.mark.parametrize("pickled", [True, False])
def test_llmcdsr(raw_files, built_from, tmp_path, pickled):
    parts = {"train_A": [[0, 1]], "train_B": [[2], [3, 4]], "train_overlap": [[1, 4]]}
    parts |= {"valid": [[0, 3, 1]], "test": [[4, 0], [2]]}
    raw_files.llmcdsr(tmp_path, (2, 3), pickled, **parts)
    built, _ = built_from("llmcdsr_food_kitchen", tmp_path)
    assert built.item.tolist() == [1, 2, 3, 4, 5, 2, 5, 1, 4, 2, 5, 1, 3]
    assert built.role.tolist() == [0, 0, 0, 0, 0, 0, 0, -1, -1, 1, -1, 2, 2]
    assert built.raw_users[:2] == ["train_A:1", "train_B:1"] and built.raw_users[-1] == "test:2"
    assert built.items[2] == {
        "id": 3,
        "domain": "B",
        "raw": "B0",
        "title": "title of B0",
    }


NOTHING = {"None": None, "NaN": float("nan"), "true": True, "blank": "  ", "a list": ["x"]}


@pytest.mark.parametrize("case", NOTHING)
def test_a_title_that_is_no_text_is_missing(raw_files, built_from, tmp_path, case):
    parts = dict.fromkeys(("train_A", "train_B", "train_overlap", "valid", "test"), [[0, 1]])
    raw_files.llmcdsr(tmp_path, (1, 1), **parts)
    row = {"id": 0, "asin": "A0", "title": NOTHING[case]}
    raw_files.write(tmp_path / "items_A.jsonl.gz", [json.dumps(row)])
    raw_files.write(tmp_path / "items_B.jsonl.gz", ['{"id": 0, "asin": "B0", "title": 12}'])
    built, _ = built_from("llmcdsr_food_kitchen", tmp_path)
    assert built.items[0] == {"id": 1, "domain": "A", "raw": "A0"}
    assert built.items[1]["title"] == "12"  # twin: a finite number is a title


def test_cdsrnp(raw_files, built_from, tmp_path):
    """Ratings from 3 on, cores within the domains, users of the three parts disjoint."""
    rng = np.random.default_rng(0)
    for category, users in (("Cell_Phones_and_Accessories", 60), ("Electronics", 40)):
        rows = [
            (f"u{u:03d}", f"i{i}", 3 + (u + i) % 3, int(rng.integers(10**6)))
            for u in range(users)
            for i in rng.permutation(8)[:6]
        ]
        rows += [(f"u{u:03d}", "i7", 2, 5) for u in range(users)]
        raw_files.ratings_2014(tmp_path, category, rows)
    built, _ = built_from("elec_phone_cdsrnp25", tmp_path)
    assert len(built.raw_users) == 40 + 5  # all with both domains, a quarter of the other 20
    last = from_end(built.user) == 0
    assert np.bincount(built.role[last]).tolist() == [36, 5, 4]
    assert (
        built.times == "unix seconds" and (np.diff(built.time)[np.diff(built.user) == 0] >= 0).all()
    )
    assert built.n_items == (8, 8)  # an id of both files is an item of each


BROKEN_LINES = {
    "amid header": ("phone_elec_test.csv", "user,seq\n", "line 1: found 'user,seq'"),
    "amid row": (
        "phone_elec_test.csv",
        "user_id,seq_d1,seq_d2,domain_id\n1,[1],[2],0\n2,[1, x],[2],0\n",
        "line 3: found '2",
    ),
    "amid header alone": (
        "phone_elec_test.csv",
        "user_id,seq_d1,seq_d2,domain_id\n",
        "line 2: found a header alone, expected rows",
    ),
    "amid without a target": (
        "phone_elec_test.csv",
        "user_id,seq_d1,seq_d2,domain_id\n1,[],[2],0\n",
        "line 2: found '1,",
    ),
    "llmcdsr row": ("test.txt", "1\t0,1\n2 0,1\n", "line 2: found '2 0,1', expected user"),
    "llmcdsr id": ("test.txt", "1\t0,5\n", "line 1: found 5, expected ids 0..4"),
}


@pytest.mark.parametrize("case", BROKEN_LINES)
def test_a_mistake_in_a_published_file(raw_files, built_from, tmp_path, case):
    file, text, expected = BROKEN_LINES[case]
    name = "elec_phone_amid" if case.startswith("amid") else "llmcdsr_food_kitchen"
    raw_files.amid(tmp_path, [(1, [1], [2], 0)], [(2, [1], [2], 0)])
    kinds = ("train_A", "train_B", "train_overlap", "valid", "test")
    raw_files.llmcdsr(tmp_path, (2, 3), **{kind: [[0, 4]] for kind in kinds})
    built_from(name, tmp_path)
    (tmp_path / file).write_text(text)
    with pytest.raises(UserError, match=f"{file}: {expected}") as caught:
        built_from(name, tmp_path)
    assert "\n" not in str(caught.value)


def test_numbers_by_name_are_in_the_order_of_the_names():
    """Of a type whose own order is another one, as that of categories in earlier polars."""
    names = pl.Enum(["y", "x", "v", "u"])
    columns = {"user": ["v", "u", "v", "u"], "item": ["y", "y", "x", "x"], "time": [1, 2, 3, 4]}
    events = pl.DataFrame(columns).with_columns(pl.col("user", "item").cast(names))
    events = events.with_columns(domain=pl.Series([0, 1, 1, 0], dtype=pl.Int8))
    built = numbered(events, "made", by_name=True, times="order")
    assert built.raw_users == ["u", "v"] and built.user.tolist() == [0, 0, 1, 1]
    assert [(item["domain"], item["raw"]) for item in built.items] == [
        *(("A", "x"), ("A", "y"), ("B", "x"), ("B", "y"))
    ]


@pytest.mark.parametrize("name", ["beauty_elec", "elec_phone_cdsrnp25"])
def test_swapped_columns_are_named(raw_files, built_from, tmp_path, name):
    """The order of 2018; the cores of CDSRNP would make a set of it without a word."""
    for letter, category in (
        ("x", "Beauty"),
        ("x", "Cell_Phones_and_Accessories"),
        ("y", "Electronics"),
    ):
        rows = [(f"{letter}{i}", f"u{u:02d}", 5, u * i) for u in range(12) for i in range(12)]
        raw_files.ratings_2014(tmp_path, category, rows)
    expected = f"{name}: no user occurs in both files, but the id 'u00' of the second column does: "
    with pytest.raises(
        UserError, match=f"{expected}this looks like item,user,rating,time"
    ) as caught:
        built_from(name, tmp_path)
    assert str(caught.value).endswith(
        "the first users are 'x0' and 'y0': expected user,item,rating,time"
    )


def copied(raw_files, folder):
    """Reviews of four users, the last of each in B there three times, and once more later."""
    items = {"Electronics": "x", "Cell_Phones_and_Accessories": "y"}
    for category, letter in items.items():
        rows = [(f"u{u}", f"{letter}{i}", 5, 1_550_000_000 + i) for u in range(4) for i in range(3)]
        if letter == "y":
            rows += [(f"u{u}", "y2", 5, 1_550_000_002) for u in range(4) for _ in range(2)]
        raw_files.reviews_2018(folder, category, rows)
        raw_files.metadata_2018(folder, category, [{"asin": "x1"}])


@pytest.mark.parametrize(("duplicates", "n_events"), [("keep", 32), ("first", 24), ("last", 24)])
def test_exact_copies_stay_or_go(raw_files, tmp_path, duplicates, n_events):
    from oa_jax.data import check, prepare, store
    from oa_jax.data.texts import Reading

    copied(raw_files, tmp_path)
    target = (tmp_path, tmp_path / "data", Reading(), print)
    assert prepare.prepare("elec_phone", *target, duplicates)
    data = store.load(tmp_path / "data", "elec_phone")
    assert len(data.log.user) == n_events and data.metadata["duplicates"] == duplicates
    found = [line for _, line in check.check(tmp_path / "data", "elec_phone")]
    line = "copies: 100.0% of 4 test targets are items of their own history (100.0% copies of the"
    assert any(text.startswith(line) for text in found) is (duplicates == "keep")
    other = "first" if duplicates == "last" else "last"
    with pytest.raises(UserError, match=f"--duplicates={other}: .* has {duplicates}: expected the"):
        prepare.prepare("elec_phone", *target, other)


def test_files_that_are_filtered_already_keep_their_copies(raw_files, tmp_path):
    from oa_jax.data import prepare
    from oa_jax.data.texts import Reading

    raw_files.amid(tmp_path, [(1, [1], [2], 0)], [(2, [1], [2], 0)])
    with pytest.raises(UserError, match="--duplicates=first: AMID's csv is filtered already"):
        prepare.build("elec_phone_amid", tmp_path, Reading(), "first")


def test_filters_that_leave_nothing(raw_files, built_from, tmp_path):
    for category in ("Beauty", "Electronics"):
        raw_files.ratings_2014(tmp_path, category, [("u", f"{category[0]}1", 5, 1)])
    with pytest.raises(UserError, match="beauty_elec: no events of domain A are left"):
        built_from("beauty_elec", tmp_path)
