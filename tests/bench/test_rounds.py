from statistics import median

import pytest

from oa_jax.bench.rounds import interleaved, ratios


def test_every_round_measures_each_case_once():
    order = []
    cases = {name: lambda name=name: order.append(name) or float(len(order)) for name in "ab"}
    measured = interleaved(cases, 3)
    assert order == list("ababab")
    assert measured == {"a": [1, 3, 5], "b": [2, 4, 6]}


def test_ratios_are_taken_within_rounds():
    """A machine that gets slower by the round does not show in them; medians over all would."""
    one, other = [1.0, 2.0, 40.0], [3.0, 6.0, 120.0]
    assert ratios(other, one) == [3, 3, 3]
    assert median(ratios([120.0, 3.0, 6.0], one)) != 3  # other rounds
    assert ratios(other, [1.0, 2.0, 20.0]) == [3, 3, 6]
    with pytest.raises(ValueError):
        ratios(one, [1.0])
