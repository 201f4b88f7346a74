import pytest

from oa_jax.bench.clock import Spread, interleaved


def test_every_round_measures_each_case_once():
    order = []
    cases = {name: lambda name=name: order.append(name) or float(len(order)) for name in "ab"}
    measured = interleaved(cases, 3)
    assert order == list("ababab")
    assert measured["a"].seconds == (1, 3, 5) and measured["b"].seconds == (2, 4, 6)
    assert measured["a"].median == 3


def test_ratios_are_taken_within_rounds():
    """A machine that gets slower by the round does not show in them; medians over all would."""
    one, other = Spread((1.0, 2.0, 40.0)), Spread((3.0, 6.0, 120.0))
    assert other.over(one).rounds == (3, 3, 3)
    assert Spread((120.0, 3.0, 6.0)).over(one).median != 3  # other rounds
    assert other.over(Spread((1.0, 2.0, 20.0))).spread == (3, 6)
    with pytest.raises(ValueError):
        one.over(Spread((1.0,)))
