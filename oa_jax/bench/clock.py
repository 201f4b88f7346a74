"""Repeated measurements, interleaved: what disturbs one case at a time disturbs all of them."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable

import jax


@dataclasses.dataclass(frozen=True)
class Spread:
    """Seconds of the repeated measurements of one case, in the order of the rounds."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def over(self, other: Spread) -> Ratio:
        """This case over another, round by round."""
        pairs = zip(self.seconds, other.seconds, strict=True)
        return Ratio(tuple(mine / theirs for mine, theirs in pairs))


@dataclasses.dataclass(frozen=True)
class Ratio:
    """Ratios of two cases within each round: median, smallest and largest."""

    rounds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)

    @property
    def spread(self) -> tuple[float, float]:
        return min(self.rounds), max(self.rounds)


def seconds_of(fn: Callable, *args) -> float:
    """Wall seconds until the result of `fn` is there."""
    begin = time.perf_counter()
    jax.block_until_ready(fn(*args))
    return time.perf_counter() - begin


def interleaved(cases: dict[str, Callable[[], float]], rounds: int) -> dict[str, Spread]:
    """Measure every case once a round. A case returns its own seconds, so that what it must
    prepare is not counted."""
    seconds = {name: [] for name in cases}
    for _ in range(rounds):
        for name, case in cases.items():
            seconds[name].append(case())
    return {name: Spread(tuple(values)) for name, values in seconds.items()}
