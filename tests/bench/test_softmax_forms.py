import jax
import numpy as np
import pytest

from oa_jax.bench import softmax
from oa_jax.bench.softmax import ALL, BATCH, FORMS, GATHERED, POSITION, ROW, Inputs, Sizes

SIZES = Sizes(n_positions=12, length=6, n_negatives=5, width=4, block=5, block_items=8)
N_ITEMS = 30


def test_forms_per_position_are_one_loss():
    inputs = Inputs.draw(SIZES, N_ITEMS, jax.random.key(1))
    values = {form: float(softmax.loss(form, SIZES, inputs)) for form in FORMS}
    np.testing.assert_allclose(values[POSITION], values[GATHERED], rtol=1e-6)
    assert len({round(value, 5) for value in values.values()}) == 4  # the others have other rivals
    assert values[ALL] > max(values[form] for form in (POSITION, ROW, BATCH))  # and more of them


def test_half_of_a_row_is_real():
    packing = Inputs.draw(SIZES, N_ITEMS, jax.random.key(1)).packing
    assert packing.shape == (4, 6) and np.asarray(packing.at_P).max() < 24
    assert np.unique(np.asarray(packing.at_P) // 6, return_counts=True)[1].tolist() == [3] * 4


def test_comparison_measures_each_form():
    found = softmax.compare(SIZES, N_ITEMS, rounds=2)
    assert tuple(found) == FORMS
    for value in found.values():
        assert len(value["seconds"]) == 2 and value["temp_bytes"] > 0


def test_the_blocked_form_holds_less_than_the_gathered_one():
    sizes = Sizes(256, 8, 32, 16, block=8, block_items=16)
    inputs = Inputs.draw(sizes, N_ITEMS, jax.random.key(0))
    held = {
        form: softmax._compiled(form, sizes, inputs).memory_analysis().temp_size_in_bytes
        for form in (POSITION, GATHERED)
    }
    assert held[GATHERED] > 256 * 33 * 16 * 4 > 3 * held[POSITION]


def test_a_form_that_does_not_fit_says_so(monkeypatch):
    def refuse(form, sizes, inputs):
        if form == GATHERED:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
        return compile_it(form, sizes, inputs)

    compile_it = softmax._compiled
    monkeypatch.setattr(softmax, "_compiled", refuse)
    found = softmax.compare(SIZES, N_ITEMS, rounds=1)
    assert found[GATHERED] == {"error": "out of memory"} and "seconds" in found[POSITION]
    monkeypatch.setattr(softmax, "_compiled", lambda *_: (_ for _ in ()).throw(
        jax.errors.JaxRuntimeError("INTERNAL: another fault")))  # fmt: skip
    with pytest.raises(jax.errors.JaxRuntimeError):
        softmax.compare(SIZES, N_ITEMS, rounds=1)
