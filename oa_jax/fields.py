"""Kinds of fields of a configuration: a default with its check and its meaning, in one line.

batch_size: int = whole(256, "users in a batch")
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from oa_jax.errors import UserError


def field(default: Any, holds: Callable[[Any], bool], expected: str, meaning: str, free=False):
    """A field of a group: `holds` says whether a value will do, `expected` the same in words.

    free: the value changes no result beyond rounding, so a run may go on with another one.
    """
    metadata = {"holds": holds, "expected": expected, "meaning": meaning, "free": free}
    return dataclasses.field(default=default, metadata=metadata)


def plain(value: Any) -> Any:
    """Python's numbers and tuples out of NumPy's numbers and arrays, and lists."""
    value = value.tolist() if isinstance(value, np.generic | np.ndarray) else value
    return tuple(map(plain, value)) if isinstance(value, list | tuple) else value


def checked(name: str, value: Any, one: dataclasses.Field) -> Any:
    """`plain(value)`, if it will do for a field such as `whole(1, "")`.

    Raises UserError with `name`, what was found and what was expected.
    """
    value = found = plain(value)
    try:
        holds = one.metadata["holds"](value)
    except TypeError:  # of a value inside it that has no hash or order
        holds = False
    if not holds:
        if isinstance(value, str) and not isinstance(one.default, str):
            found = repr(value)  # '5' is not 5
        found = list(found) if isinstance(found, tuple) else found
        raise UserError(f"{name}={found}: expected {one.metadata['expected']}")
    return value


LARGEST = 2**31 - 1  # of the numbers that programs count with
# Of those that they multiply by; beyond, they would have an infinity or 0.
SMALLEST_REAL, LARGEST_REAL = (float(getattr(np.finfo(np.float32), of)) for of in ("tiny", "max"))


def whole(default: int, meaning: str, least: int = 1, most: int = LARGEST, free=False):
    """A whole number from `least` to `most`."""
    expected = f"a whole number of at least {least} and below 2**31"
    if most < LARGEST:
        expected = f"a whole number from {least} to {most}"
    return field(default, lambda v: is_int(v) and least <= v <= most, expected, meaning, free)


def real(default: float, meaning: str, low: float = 0, high: float = math.inf, above=False):
    """A number from `low` to `high`; above: `low` itself is none."""
    expected = f"a number {'above' if above else 'from'} {low}"
    expected += f" to {high}" if high < math.inf else ", in float32" if above else " up, in float32"
    if low == -math.inf:
        expected = "a number in float32"

    def holds(value):
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            return False
        size = abs(value)
        as_is = size == 0 or SMALLEST_REAL <= size <= LARGEST_REAL
        return as_is and low <= value <= high and not (above and value == low)

    return field(default, holds, expected, meaning)


def two(first: dataclasses.Field, second: Any):
    """Two values of the kind of a field, with its meaning: `two(whole(400, "…"), 500)`."""
    of = first.metadata

    def holds(value):
        return isinstance(value, tuple) and len(value) == 2 and all(map(of["holds"], value))

    return field((first.default, second), holds, f"two, each {of['expected']}", of["meaning"])


def one_of(default: Any, meaning: str, *choices: Any, free=False):
    """One of `choices`."""

    def holds(value):
        return any(value == one and type(value) is type(one) for one in choices)

    return field(default, holds, "one of " + ", ".join(map(str, choices)), meaning, free)


def flag(default: bool, meaning: str, free=False):
    """True or False."""
    return field(default, lambda v: isinstance(v, bool), "True or False", meaning, free)


def text(default: str | None, meaning: str, free=False):
    """Text; None too where that is the default."""

    def holds(value):
        return isinstance(value, str) or (value is default is None)

    expected = "text" if default is not None else "text or None"
    return field(default, holds, expected, meaning, free)


def quirk(meaning: str, corrected: bool = False):
    """A quirk of an official code that changes numbers: on under `protocol=official`."""
    made = field(None, lambda v: v is None or isinstance(v, bool), "True, False or None", meaning)
    made.metadata = made.metadata | {"presets": (True, corrected)}
    return made


def is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
