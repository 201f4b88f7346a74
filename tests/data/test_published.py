import dataclasses
import gzip
import json

import numpy as np
import pytest

from oa_jax.data import published, sources, texts
from oa_jax.data.catalogue import plain_or_packed
from oa_jax.errors import UserError
from oa_jax.events.world import World

MAP = {"a1": [1, 0], "a2": [2, 0], "b1": [3, 1], "b2": [4, 1], "b3": [5, 1]}
LINES = ["0 1|10 3|10 2|11", "1 5|7", "2 4|1 4|2 1|3 2|3"]
SEQUENCES, ITEMS = "toy_50_preprocessed.txt", "map_item_50.txt"


def write(directory, lines=LINES, mapping=MAP, end="\n", gz=False, mark=b""):
    """Files of a toy source; `lines` and `mapping` may also be bytes, written as they are."""
    text = lines if isinstance(lines, bytes) else (end.join(lines) + end).encode()
    names = mapping if isinstance(mapping, bytes) else json.dumps(mapping).encode()
    for name, data in ((SEQUENCES, text), (ITEMS, names)):
        path = directory / (f"{name}.gz" if gz else name)
        path.write_bytes(gzip.compress(mark + data) if gz else mark + data)
    return directory


def read(directory):
    return published.read_abxi([plain_or_packed(directory / f) for f in (SEQUENCES, ITEMS)], "toy")


def error_of(directory):
    with pytest.raises(UserError) as caught:
        read(directory)
    message = str(caught.value)
    assert "\n" not in message and "\r" not in message and len(message) < 400 + len(str(directory))
    return message


def test_reads_the_columns(tmp_path):
    log = read(write(tmp_path))
    np.testing.assert_array_equal(log.user, [0, 0, 0, 1, 2, 2, 2, 2])
    np.testing.assert_array_equal(log.item, [1, 3, 2, 5, 4, 4, 1, 2])
    np.testing.assert_array_equal(log.time, [10, 10, 11, 7, 1, 2, 3, 3])
    assert (log.n_items, log.name) == ((2, 3), "toy")


@pytest.mark.parametrize(
    "variant",
    [
        {"lines": LINES[::-1]},
        {"gz": True},
        {"end": "\r\n"},
        {"end": " \n"},
        {"mark": b"\xef\xbb\xbf"},
        {"mapping": dict(reversed(MAP.items()))},
    ],
    ids=str,
)
def test_same_log_from_other_forms(tmp_path, variant):
    (tmp_path / "plain").mkdir(), (tmp_path / "other").mkdir()
    plain = read(write(tmp_path / "plain"))
    assert read(write(tmp_path / "other", **variant)).fingerprint() == plain.fingerprint()


def test_last_50_tokens_are_kept(tmp_path):
    long = [f"{1 + k % 5}|{k}" for k in range(53)]
    log = read(write(tmp_path, [f"1 {' '.join(long)}", f"0 {' '.join(long[:50])}"]))
    np.testing.assert_array_equal(np.diff(log.offsets), [50, 50])
    np.testing.assert_array_equal(log.time[:50], np.arange(50))
    np.testing.assert_array_equal(log.time[50:], np.arange(3, 53))
    np.testing.assert_array_equal(log.item[50:], 1 + np.arange(3, 53) % 5)


def edited(line, text):
    return [text if number == line else old for number, old in enumerate(LINES, 1)]


BAD_LINES = {
    "line without items": (
        edited(2, "1"),
        "line 2: found '1', expected a user and item|",
    ),
    "blank line": (edited(2, ""), "line 2, user: found ''"),
    "user not a number": (edited(2, "one 5|7"), "line 2, user: found 'one'"),
    "user negative": (edited(2, "-1 5|7"), "line 2, user: found '-1'"),
    "user a fraction": (edited(2, "1.0 5|7"), "line 2, user: found '1.0'"),
    "a mark within": (edited(2, "\ufeff1 5|7"), "line 2, user: found '\\ufeff1'"),
    "user twice": (edited(3, "1 4|1"), "line 3, user: found 1, expected a user of its own"),
    "user missing": (edited(2, "7 5|7"), "line 2, user: found 7, expected ids 0..2"),
    "item not a number": (edited(2, "1 5|7 x|8"), "line 2, token 2: found 'x|8'"),
    "item missing": (edited(2, "1 |7"), "line 2, token 1: found '|7'"),
    "item negative": (edited(2, "1 -5|7"), "line 2, token 1: found '-5|7'"),
    "item 0": (edited(3, "2 4|1 0|2"), "line 3, token 2, item: found 0, expected an id in 1..5"),
    "item above the map": (edited(3, "2 4|1 6|2"), "line 3, token 2, item: found 6"),
    "item of 30 digits": (edited(2, f"1 {'9' * 30}|7"), "line 2, token 1: found '999"),
    "item in other digits": (edited(2, "1 \u0665|7"), "line 2, token 1: found '\u0665|7'"),
    "time not a number": (edited(2, "1 5|now"), "line 2, token 1: found '5|now'"),
    "time a fraction": (edited(2, "1 5|7.5"), "line 2, token 1: found '5|7.5'"),
    "time negative": (edited(2, "1 5|-7"), "line 2, token 1: found '5|-7'"),
    "time missing": (edited(2, "1 5|"), "line 2, token 1: found '5|'"),
    "time backwards": (
        edited(1, "0 1|10 3|9"),
        "line 1, token 2, time: found 9, expected a time",
    ),
    "token without bar": (edited(2, "1 5|7 5"), "line 2, token 2: found '5', expected item|time"),
    "token with two bars": (edited(2, "1 5|7|9"), "line 2, token 1: found '5|7|9'"),
    "other blank": (
        edited(2, "1\u00a05|7"),
        "line 2, user: found '1\\xa05|7', expected",
    ),
    "empty file": (b"", "line 1: expected text, found an empty file"),
    "only line ends": (b"\n\n\n", "line 1: expected text, found an empty file"),
    "not UTF-8": (b"0 1|10\n1 5|\xff7\n", "line 2: expected UTF-8 text, found byte 0xff"),
    "a gzip file named .txt": (gzip.compress(b"0 1|10\n"), "line 1: expected UTF-8 text"),
}


@pytest.mark.parametrize(("lines", "expected"), BAD_LINES.values(), ids=BAD_LINES)
def test_bad_sequences_are_refused(tmp_path, lines, expected):
    message = error_of(write(tmp_path, lines))
    assert f"{SEQUENCES}: {expected}" in message


def mapped(**entries):
    return {**MAP, **entries}


BAD_MAPS = {
    "broken JSON": (b'{"a1": [1, 0],\n "a2": 2x}', "line 2, column 9: expected JSON"),
    "not JSON at all": (b"a1,1,0\n", "line 1, column 1: expected JSON"),
    "a list": ([[1, 0]], "line 1: found [[1, 0]], expected an object"),
    "no entries": ({}, "line 1: found {}"),
    "empty file": (b"", "line 1: expected text, found an empty file"),
    "entry a number": (mapped(b1=3), "item 'b1': found 3, expected [id, domain]"),
    "entry too long": (mapped(b1=[3, 1, 1]), "item 'b1': found [3, 1, 1]"),
    "entry too short": (mapped(b1=[3]), "item 'b1'"),
    "id as text": (mapped(b1=["3", 1]), "item 'b1'"),
    "id a fraction": (mapped(b1=[3.0, 1]), "item 'b1'"),
    "id true": (mapped(a1=[True, 0]), "item 'a1'"),
    "domain 2": (mapped(b1=[3, 2]), "item 'b1': found [3, 2], expected domain 0 or 1"),
    "id 0": (
        mapped(a1=[0, 0]),
        "item 'a1': found [0, 0], expected domain 0",
    ),
    "id above": (mapped(b3=[6, 1]), "item 'b3': found [6, 1]"),
    "id twice": (
        mapped(b2=[3, 1]),
        "item 'b2': found [3, 1], expected ",
    ),
    "name twice": (b'{"a1": [1, 0], "a1": [2, 1]}', "item 'a1': the name twice"),
    "B before A": (
        mapped(a2=[3, 0], b1=[2, 1]),
        "domains: found '2 items",
    ),
    "no B": ({"a1": [1, 0]}, "domains: found '1 items of A, 0 of B'"),
    "no A": ({"b1": [1, 1]}, "domains: found '0 items of A, 1 of B'"),
    "number of 5000 digits": (b'{"a1": [' + b"1" * 5000 + b", 0]}", "expected JSON"),
    "nested too deep": (b"[" * 100_000, "expected JSON"),
    "line break in a name": (mapped(**{"b\n1": [3]}), "item 'b\\n1'"),
}


@pytest.mark.parametrize(("mapping", "expected"), BAD_MAPS.values(), ids=BAD_MAPS)
def test_bad_item_maps_are_refused(tmp_path, mapping, expected):
    message = error_of(write(tmp_path, mapping=mapping))
    assert f"{ITEMS}: {expected}" in message


DAMAGE = {
    "truncated": lambda data: data[:-9],
    "damaged": lambda data: data[:12] + bytes([data[12] ^ 0xFF]) + data[13:],
    # The first byte after the header then announces a block type that does not exist.
    "no block type": lambda data: data[:10] + b"\x07" + data[11:],
    "not gzip": lambda data: b"0 1|10\n",
    "trailing bytes": lambda data: data + b"more",
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
@pytest.mark.parametrize("name", [SEQUENCES, ITEMS])
def test_damaged_gzip_is_refused(tmp_path, name, damage):
    path = write(tmp_path, gz=True) / f"{name}.gz"
    path.write_bytes(damage(path.read_bytes()))
    assert f"{name}.gz: expected a whole gzip file, found: " in error_of(tmp_path)


def test_folder_in_place_of_a_file(tmp_path):
    (tmp_path / SEQUENCES).mkdir()
    assert plain_or_packed(tmp_path / SEQUENCES) is None
    with pytest.raises(UserError, match=f"{SEQUENCES}: expected a readable file, found: Is a dir"):
        texts.text(tmp_path / SEQUENCES)


@pytest.mark.parametrize("below", ["abxi/abe", "abe", "."])
@pytest.mark.parametrize("by_variable", [False, True])
def test_load_looks_in_three_places(tmp_path, monkeypatch, below, by_variable):
    place = tmp_path / below
    place.mkdir(parents=True, exist_ok=True)
    (write(place) / SEQUENCES).rename(place / "abe_50_preprocessed.txt")
    monkeypatch.delenv(sources.DIRECTORY_VARIABLE, raising=False)
    if by_variable:
        monkeypatch.setenv(sources.DIRECTORY_VARIABLE, str(tmp_path))
    log = sources.load("beauty_elec", None if by_variable else str(tmp_path))
    # The name by which a configuration takes it, and not that of its files: no part of the events.
    assert (log.n_users, log.name) == (3, "beauty_elec")
    assert log.fingerprint() == dataclasses.replace(log, name="abe").fingerprint()


def test_load_says_what_is_missing_and_how_to_give_it(tmp_path, monkeypatch):
    monkeypatch.delenv(sources.DIRECTORY_VARIABLE, raising=False)
    for directory, looked in ((tmp_path, str(tmp_path)), (None, "no directory was given")):
        with pytest.raises(UserError) as caught:
            sources.load("food_kitchen", directory)
        message = str(caught.value)
        for part in ("afk_50_preprocessed.txt", looked, "--config.data.dir=", "DiMarzioBian/ABXI"):
            assert part in message
        assert sources.DIRECTORY_VARIABLE in message and "\n" not in message


def test_load_says_that_a_set_is_not_prepared(small_pair):
    with pytest.raises(UserError) as caught:
        sources.load("beauty_elec", small_pair)
    message = str(caught.value)
    assert f"not prepared: found the files of ratings of 2014 below {small_pair}; make" in message
    assert "python -m oa_jax data prepare beauty_elec" in message and "\n" not in message


def test_load_refuses_unknown_names():
    with pytest.raises(UserError, match="'abe'.*beauty_elec, food_kitchen, .*, synthetic"):
        sources.load("abe")


def test_load_passes_the_world_on(monkeypatch):
    monkeypatch.setattr(sources, "generate", lambda world: ("log", world))
    assert sources.load("synthetic") == ("log", World())
    assert sources.load("synthetic", world=World(seed=7)) == ("log", World(seed=7))
    with pytest.raises(UserError, match="^world: found dict, expected a World$"):
        sources.load("synthetic", world={"seed": 7})
