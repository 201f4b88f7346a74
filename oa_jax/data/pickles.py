"""Pickles that others published, read without letting them run code."""

from __future__ import annotations

import builtins
import codecs
import collections
import gzip
import importlib
import pathlib
import pickle

import numpy as np

from oa_jax.errors import UserError


def _encode(text, encoding="utf-8"):
    """`codecs.encode` as pickles of bytes use it; other codecs could unpack a small file to a
    huge one."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"codec {encoding!r}")
    return codecs.encode(text, encoding)


def _numpy_function(module, name):
    return getattr(importlib.import_module(f"numpy._core.{module}"), name)


# What a pickle may name: arrays, dtypes, numpy's scalars, plain containers. Nothing else exists.
_ADMITTED = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _encode,
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("collections", "defaultdict"): collections.defaultdict,
}
for _name in (
    "bool",
    "bytearray",
    "bytes",
    "complex",
    "dict",
    "float",
    "frozenset",
    "int",
    "list",
    "set",
):
    _ADMITTED["builtins", _name] = getattr(builtins, _name)
    _ADMITTED["__builtin__", _name] = getattr(builtins, _name)
for _core in ("numpy.core", "numpy._core"):  # before and since numpy 2
    for _module, _name in (
        ("multiarray", "_reconstruct"),
        ("multiarray", "scalar"),
        ("numeric", "_frombuffer"),
    ):
        _ADMITTED[f"{_core}.{_module}", _name] = _numpy_function(_module, _name)


class _Unpickler(pickle.Unpickler):
    def find_class(self, module, name):
        try:
            return _ADMITTED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"{module}.{name}") from None

    def persistent_load(self, pid):
        raise pickle.UnpicklingError(f"persistent id {pid!r}")


def load(path):
    """Value of a pickle file, gzipped if its name ends in .gz.

    Admitted are numbers, text, bytes, None, list, tuple, dict, set, OrderedDict, defaultdict, numpy
    arrays, dtypes and scalars. Raises UserError, of one line, for a missing or damaged file and
    for a pickle that names anything else, before that thing is imported.
    """
    path = pathlib.Path(path)
    expected = "expected a pickle of numpy arrays and plain containers"
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            return _Unpickler(file).load()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file: {expected}") from None
    except pickle.UnpicklingError as error:
        raise UserError(f"{path}: refused: {_line(error)}: {expected}") from None
    except Exception as error:  # a damaged pickle can raise anything
        raise UserError(f"{path}: {type(error).__name__}: {_line(error)}: {expected}") from None


def _line(error):
    return " ".join(str(error).split())[:200]
