"""GCA on plain arrays: the module's function, masks, times, Linen and NNX, mistakes."""

import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from oa_jax.errors import UserError
from oa_jax.nn import layer
from oa_jax.nn.layer import GatedCrossAttentionLayer
from tests.nn.test_gca import (
    HEADS,
    Q_TIME,
    QUERY_REAL,
    S_TIME,
    SOURCE_REAL,
    B,
    D,
    T,
    module_and_params,
    run,
    streams,
)

QUERY, SOURCE = (s.packing.unpack(s.h_PxD) for s in streams())
MASK = streams()[0].packing.unpack(QUERY_REAL)
REAL = jnp.asarray(SOURCE_REAL)
PARAMS = {"params": module_and_params()[1]}


def apply(*args, params=PARAMS, **fields):
    return GatedCrossAttentionLayer(**{"heads": HEADS} | fields).apply(params, *args)


@pytest.mark.parametrize(
    "fields", [{}, {"gate_act": "tanh", "gate_input": "source"}, {"part": "split"}], ids=str
)
def test_the_layer_is_the_module(fields):
    module, params = module_and_params(**fields)
    out, probe = run(module, params)
    y, seen = apply(QUERY, SOURCE, MASK, REAL, Q_TIME, S_TIME, params={"params": params}, **fields)
    np.testing.assert_allclose(y, out.packing.unpack(out.h_PxD), atol=1e-6)
    for found, value in zip(*map(jax.tree.leaves, (seen, probe)), strict=True):
        np.testing.assert_allclose(found[MASK], out.packing.unpack(value)[MASK], atol=1e-6)
    assert y.shape == seen.gate.shape == (B, T, D) and seen.real_P.shape == (B, T)


def test_times_are_a_causal_rule_unless_it_is_turned_off():
    timed, _ = apply(QUERY, SOURCE, MASK, REAL, Q_TIME, S_TIME)
    free, _ = apply(QUERY, SOURCE, MASK, REAL)
    off, _ = apply(QUERY, SOURCE, MASK, REAL, Q_TIME, S_TIME, causal=False)
    np.testing.assert_allclose(off, free, atol=1e-6)
    assert np.abs(timed - free).max() > 0.01


def test_without_times_the_columns_are_the_times():
    source = SOURCE[:, :T]
    moved = source.at[:, -1].add(1.0)
    before, after = (apply(QUERY, s, causal=True)[0] for s in (source, moved))
    np.testing.assert_array_equal(before[:, :-1], after[:, :-1])
    assert np.abs(before[:, -1] - after[:, -1]).max() > 1e-3
    assert np.abs(apply(QUERY, source)[0] - apply(QUERY, moved)[0])[:, 0].max() > 1e-3
    np.testing.assert_array_equal(apply(QUERY, source)[1].y_aligned, source)


def test_padding_may_hold_anything():
    y, probe = apply(QUERY, SOURCE, MASK, REAL)
    nan = jnp.nan
    dirty, _ = apply(
        jnp.where(MASK[..., None], QUERY, nan), jnp.where(REAL[..., None], SOURCE, nan), MASK, REAL
    )
    np.testing.assert_array_equal(y, dirty)
    assert not np.asarray(y)[~MASK].any() and not np.asarray(probe.update)[2].any()  # no key
    assert np.isnan(apply(jnp.where(MASK[..., None], QUERY, nan), SOURCE)[0]).any()


WRONG = {
    "query": ((QUERY[0], SOURCE), {}, r"query: found shape \(5, 8\), expected \(B, T, D\)"),
    "source": ((QUERY, SOURCE[:2]), {}, r"source: found shape \(2, 6, 8\), expected \(3, S, 8\)"),
    "added mask": (
        (QUERY, SOURCE, None, np.zeros(SOURCE.shape[:2])),
        {},
        "source_mask: found float.*, expected True for tokens, False for padding",
    ),
    "rounded times": (
        (QUERY, SOURCE, None, None, np.zeros((3, 5), np.float32), np.zeros((3, 6), np.int32)),
        {},
        "query_time: found float32, expected whole numbers",
    ),
    "ids": (
        (np.ones(QUERY.shape, np.int32), SOURCE),
        {},
        "query: found int32, expected a type of floats",
    ),
    "mask": ((QUERY, SOURCE, REAL), {}, r"query_mask: found shape \(3, 6\), expected \(3, 5\)"),
    "times that wrap": (
        (QUERY, SOURCE, None, None, np.full(Q_TIME.shape, 2**31), S_TIME),
        {},
        "query_time: found 2147483648, expected numbers below 2",
    ),
    "times": ((QUERY, SOURCE, None, None, Q_TIME), {}, "source_time: missing: expected it with"),
    "no columns": ((QUERY, SOURCE[:, :0]), {}, r"found shape \(3, 0, 8\), expected a column"),
    "heads": ((QUERY, SOURCE), {"heads": 3}, "heads=3: expected a divisor of the width 8"),
    "no heads": ((QUERY, SOURCE), {"heads": 0}, "heads=0: expected a whole number of at least 1"),
    "gate": ((QUERY, SOURCE), {"gate_act": "foo"}, "gate_act=foo: expected one of sigmoid, tanh"),
    "part": ((QUERY, SOURCE), {"part_of": "foo"}, "part_of=foo: expected one of update, gated"),
    "maybe": ((QUERY, SOURCE), {"causal": 1}, "causal=1: expected one of None, True, False"),
    "causal": ((QUERY, SOURCE), {"causal": True}, "causal=True: needs query_time and"),
    "aligned": ((QUERY, SOURCE), {"gate_input": "source"}, "gate_input=source: needs query_time"),
}


@pytest.mark.parametrize("case", WRONG)
def test_mistakes_are_one_line(case):
    args, fields, expected = WRONG[case]
    with pytest.raises(UserError, match=expected) as raised:
        apply(*args, **fields)
    assert "\n" not in str(raised.value)


def test_examples_of_the_docstring():
    """Linen, and NNX through its bridge."""
    found = doctest.testmod(layer, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert found.attempted >= 8 and found.failed == 0
