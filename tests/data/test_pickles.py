import collections
import gzip
import os
import pickle

import numpy as np
import pytest
from numpy._core.multiarray import _reconstruct, scalar
from numpy._core.numeric import _frombuffer

from oa_jax.data import pickles
from oa_jax.errors import UserError

VALUE = {
    "arrays": {1: np.arange(3), 2: np.zeros((0, 2)), 3: np.array([1.5], np.float32)},
    "objects": np.array(["a", None, 3], object),
    "plain": (1, 2.5, "text", b"bytes \xff", None, True, {1, 2}, frozenset([3]), [bytearray(b"x")]),
    "named": [collections.OrderedDict(a=1), collections.defaultdict(list, {"k": [1]})],
    "orders": [np.asfortranarray(np.arange(6.0).reshape(2, 3)), np.arange(4, dtype=">i4")[::2]],
    "large": np.arange(2000, dtype=np.uint8).reshape(2, -1),
    "texts": np.array([["a", "bc"], ["", "d\xff"]]),
    "scalars": [np.float64(0.5), np.int64(7), np.str_("x"), np.bool_(True)],
}


def same(a, b):
    if isinstance(a, np.ndarray):
        native = [x.dtype.newbyteorder("=") for x in (a, b)]
        return native[0] == native[1] and a.shape == b.shape and a.tolist() == b.tolist()
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_and_containers_come_back(tmp_path, protocol):
    data = pickle.dumps(VALUE, protocol)
    (tmp_path / "v.pkl").write_bytes(data)
    (tmp_path / "v.pkl.gz").write_bytes(gzip.compress(data))
    for name in ("v.pkl", "v.pkl.gz"):
        assert same(pickles.load(tmp_path / name), VALUE)


def test_names_of_numpy_1_are_known(tmp_path):
    new = pickle.dumps(np.arange(4), 2)
    (tmp_path / "old.pkl").write_bytes(new.replace(b"numpy._core", b"numpy.core"))
    assert pickles.load(tmp_path / "old.pkl").tolist() == [0, 1, 2, 3]


class Runs:
    """Unpickled by `pickle`, this would make a folder."""

    def __init__(self, function, *arguments, state=None):
        self.call = (function, arguments, state)[: 3 if state else 2]

    def __reduce__(self):
        return self.call


def test_what_could_run_code_is_refused_and_does_not_run(tmp_path):
    place = tmp_path / "made"
    calls = [Runs(os.mkdir, str(place)), Runs(eval, f"__import__('os').mkdir({str(place)!r})")]
    calls += [Runs(np.load, str(place)), Runs(getattr, {}, "pop"), [{"deep": Runs(os.getcwd)}]]
    for number, value in enumerate(calls):
        path = tmp_path / f"{number}.pkl"
        path.write_bytes(pickle.dumps(value))
        with pytest.raises(UserError, match="refused: .*: expected a pickle of numpy") as caught:
            pickles.load(path)
        assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)
        assert not place.exists()
    pickle.loads((tmp_path / "0.pkl").read_bytes())  # twin: it would have run
    assert place.exists()


POINTERS = {
    "called": Runs(np.ndarray, (1,), "O", bytearray(8)),
    "of another class": Runs(_reconstruct, list, (0,), b"b"),
    "a buffer": Runs(_frombuffer, b"A" * 8, np.dtype("O"), (1,), "C"),
    "a buffer too short": Runs(_frombuffer, b"A" * 8, np.dtype("f8"), (2,), "C"),
    "a scalar": Runs(scalar, np.dtype("O"), b"A" * 8),
    "a scalar too short": Runs(scalar, np.dtype("f8"), b"A"),
    "a state": Runs(
        _reconstruct, np.ndarray, (0,), b"b", state=(1, (1,), np.dtype("O"), False, b"A" * 8)
    ),
    "too few": Runs(
        _reconstruct, np.ndarray, (0,), b"b", state=(1, (9,), np.dtype("O"), False, [1])
    ),
    "negative": Runs(
        _reconstruct, np.ndarray, (0,), b"b", state=(1, (-1,), np.dtype("i1"), False, b"")
    ),
    "flags": Runs(
        _frombuffer,
        b"A" * 8,
        Runs(np.dtype, "O", False, True, state=(3, "|", None, None, None, 8, 1, 0)),
        (1,),
        "C",
    ),
    "fields": np.zeros(1, [("a", "O")]),
    "time": np.zeros(1, "M8[s]"),
}


@pytest.mark.parametrize("protocol", [2, 5])
@pytest.mark.parametrize("case", POINTERS)
def test_bytes_do_not_become_pointers(tmp_path, case, protocol):
    (tmp_path / "v.pkl").write_bytes(pickle.dumps(POINTERS[case], protocol))
    with pytest.raises(UserError, match="v.pkl: .*: expected a pickle of numpy"):
        pickles.load(tmp_path / "v.pkl")


def test_the_class_of_arrays_is_not_made(tmp_path):
    called = b"\x80\x02cnumpy\nndarray\nK\x01\x85X\x01\x00\x00\x00O\x86"
    for how in (b"\x81.", b"R."):  # by its __new__, and called
        (tmp_path / "v.pkl").write_bytes(called + how)
        with pytest.raises(UserError, match="expected a pickle of numpy"):
            pickles.load(tmp_path / "v.pkl")


def test_a_codec_that_unpacks_is_refused(tmp_path):
    """`_codecs.encode` is admitted for bytes of old protocols only."""
    text = b"c_codecs\nencode\n(Vabc\nVbz2_codec\ntR."
    (tmp_path / "v.pkl").write_bytes(text)
    with pytest.raises(UserError, match="refused: codec 'bz2_codec'"):
        pickles.load(tmp_path / "v.pkl")


@pytest.mark.parametrize("cut", [0, 1, 10, -1])
def test_damaged_files_are_one_line(tmp_path, cut):
    path = tmp_path / "v.pkl"
    path.write_bytes(pickle.dumps(VALUE)[: cut or None][: None if cut else 0])
    with pytest.raises(UserError, match="expected a pickle of numpy arrays") as caught:
        pickles.load(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file(tmp_path):
    with pytest.raises(UserError, match="none.pkl: no such file"):
        pickles.load(tmp_path / "none.pkl")
