"""Reads pickles that others published, without letting them run code."""

import codecs
import collections
import gzip
import math
import pathlib
import pickle
from typing import Any

import numpy as np

from oa_jax.errors import UserError


def _encode(text, encoding="utf-8"):
    """`codecs.encode` as pickles of bytes use it; other codecs could unpack a bomb."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"codec {encoding!r}")
    return codecs.encode(text, encoding)


# NumPy's own functions would take bytes for pointers: arrays are made here, of checked parts.
_NDARRAY = object()  # the class, which may be named, and not called


class _Dtype:
    """A dtype of numbers, text or objects; no fields, no flags of a pickle's own."""

    def __init__(self, name, align=False, copy=True):
        self.dtype = np.dtype(name) if isinstance(name, str) else None
        if self.dtype is None or self.dtype.kind not in "biufcSUO":
            raise pickle.UnpicklingError(f"dtype {name!r}")

    def __setstate__(self, state):
        order, *of_fields = state[1:5]
        if any(part is not None for part in of_fields) or order not in ("<", ">", "|", "="):
            raise pickle.UnpicklingError(f"dtype with {state!r}")
        self.dtype = self.dtype if order == "|" else self.dtype.newbyteorder(order)

    def array(self, raw, shape, order):
        """(shape) array of exactly these bytes, or of this list of objects."""
        whole = isinstance(shape, tuple) and all(type(n) is int and n >= 0 for n in shape)
        is_list = self.dtype.kind == "O"
        size = math.prod(shape) * (1 if is_list else self.dtype.itemsize) if whole else -1
        kind = list if is_list else (bytes, bytearray)
        if not isinstance(raw, kind) or len(raw) != size:
            raise pickle.UnpicklingError(f"array of {shape!r} from {type(raw).__name__}")
        if is_list or not size:
            flat = np.empty(math.prod(shape), self.dtype)
            flat[:] = raw if is_list else 0
        else:
            flat = np.frombuffer(raw, self.dtype).copy()
        return flat.reshape(shape, order="F" if order in (True, 1, "F") else "C")


class _Array(np.ndarray):
    def __setstate__(self, state):
        _, shape, dtype, is_fortran, raw = state
        array = dtype.array(raw, shape, is_fortran)
        items = array.ravel().tolist() if array.dtype == object else array.tobytes()
        super().__setstate__((1, shape, array.dtype, False, items))


def _reconstruct(kind, shape, code):
    if kind is not _NDARRAY:
        raise pickle.UnpicklingError(f"array of {kind!r}")
    return np.ndarray.__new__(_Array, (0,), "b")


def _scalar(dtype, raw=b""):
    return dtype.array(raw, (), "C")[()]


def _frombuffer(raw, dtype, shape, order):
    return dtype.array(raw, shape, order)


# What a pickle may name: arrays, dtypes, numpy's scalars, plain containers. Nothing else exists.
_ADMITTED = {
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("collections", "defaultdict"): collections.defaultdict,
}
_PLAIN = (bool, bytearray, bytes, complex, dict, float, frozenset, int, list, set)
for _module in ("builtins", "__builtin__"):  # of Python 3 and 2
    _ADMITTED |= {(_module, kind.__name__): kind for kind in _PLAIN}
for _core in ("numpy.core", "numpy._core"):  # before and since numpy 2
    _ADMITTED[f"{_core}.multiarray", "_reconstruct"] = _reconstruct
    _ADMITTED[f"{_core}.multiarray", "scalar"] = _scalar
    _ADMITTED[f"{_core}.numeric", "_frombuffer"] = _frombuffer


class _Unpickler(pickle.Unpickler):
    def find_class(self, module, name):
        try:
            return _ADMITTED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"{module}.{name}") from None

    def persistent_load(self, pid):
        raise pickle.UnpicklingError(f"persistent id {pid!r}")


def load(path: str | pathlib.Path) -> Any:
    """The value of a pickle file, which is gzipped if its name ends in .gz.

    It may hold numbers, text, bytes, None, list, tuple, dict, set, OrderedDict, defaultdict, and
    numpy arrays and scalars of numbers, text or objects. Raises UserError for a missing or damaged
    file, and for a pickle that names anything else, before that is imported.
    """
    path = pathlib.Path(path)
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            return _Unpickler(file).load()
    except FileNotFoundError:
        reason = "no such file"
    except pickle.UnpicklingError as error:
        reason = f"refused: {' '.join(str(error).split())[:200]}"
    except Exception as error:  # a damaged pickle can raise anything
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    raise UserError(f"{path}: {reason}: expected a pickle of numpy arrays and plain containers")
