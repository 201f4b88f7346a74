"""Pickles that others published, read without letting them run code."""

import codecs
import collections
import gzip
import importlib
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


# What a pickle may name: arrays, dtypes, numpy's scalars, plain containers. Nothing else exists.
_ADMITTED = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _encode,
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("collections", "defaultdict"): collections.defaultdict,
}
_PLAIN = (bool, bytearray, bytes, complex, dict, float, frozenset, int, list, set)
for _module in ("builtins", "__builtin__"):  # of Python 3 and 2
    _ADMITTED |= {(_module, kind.__name__): kind for kind in _PLAIN}
for _name in ("multiarray._reconstruct", "multiarray.scalar", "numeric._frombuffer"):
    _module, _name = _name.split(".")
    _function = getattr(importlib.import_module(f"numpy._core.{_module}"), _name)
    for _core in ("numpy.core", "numpy._core"):  # before and since numpy 2
        _ADMITTED[f"{_core}.{_module}", _name] = _function


class _Unpickler(pickle.Unpickler):
    def find_class(self, module, name):
        try:
            return _ADMITTED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"{module}.{name}") from None

    def persistent_load(self, pid):
        raise pickle.UnpicklingError(f"persistent id {pid!r}")


def load(path: str | pathlib.Path) -> Any:
    """Value of a pickle file, gzipped if its name ends in .gz.

    Admitted are numbers, text, bytes, None, list, tuple, dict, set, OrderedDict, defaultdict, numpy
    arrays, dtypes and scalars. Raises UserError, of one line, for a missing or damaged file and
    for a pickle that names anything else, before that thing is imported.
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
