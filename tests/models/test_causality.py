"""No look into the future (specs gca §3), and training and evaluation agree on the past."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from oa_jax.data.log import make_log
from oa_jax.data.splits import Split
from oa_jax.models.abxi import ABXIQuirks
from oa_jax.tasks.abxi_arrays import evaluation_arrays
from tests.models._abxi_batches import (
    CORRECTED,
    HISTORIES,
    LENGTH,
    N_ITEMS,
    OFFICIAL,
    SHORT,
    SUBSETS,
    backbone,
    evaluation_batch,
    forward,
    on_grid,
    random_params,
    training_batch,
)

ROWS_AND_STEPS = [(row, p) for row, items in enumerate(HISTORIES) for p in range(len(items) - 1)]
CONFIGS = [{}] + [{"positions": s, "kv": kv} for s in SUBSETS[1:] for kv in ("merged", "other")]


def column(row, p):
    """Column of the p-th input (from 0) of a row of HISTORIES."""
    return LENGTH - (len(HISTORIES[row]) - 1) + p


def item_gradients(model, params, batch):
    """(slot, item): largest gradient of a random projection of the hidden state at each of
    ROWS_AND_STEPS with respect to the item's embedding."""
    rows, columns = np.array([(row, column(row, p)) for row, p in ROWS_AND_STEPS]).T

    def hidden(items):
        grid = on_grid(forward(model, params | {"items": items}, batch)[0], batch)
        return grid[rows, columns]

    h_SxD, back = jax.vjp(hidden, params["items"])
    direction_SxD = np.random.default_rng(1).normal(size=h_SxD.shape)
    seeds_SxSxD = jnp.eye(len(rows))[:, :, None] * jnp.asarray(direction_SxD, jnp.float32)
    (gradient_SxIxD,) = jax.vmap(back)(seeds_SxSxD)
    return np.abs(gradient_SxIxD).max(-1)


def past_and_rest():
    """(slot, item) masks: the inputs up to the slot's own, and everything else: later inputs, the
    last target, other users' items, the padding row."""
    past = np.zeros((len(ROWS_AND_STEPS), sum(N_ITEMS) + 1), bool)
    for slot, (row, p) in enumerate(ROWS_AND_STEPS):
        past[slot, HISTORIES[row][: p + 1]] = True
    return past, ~past


@pytest.mark.parametrize("gca", CONFIGS, ids=str)
def test_no_gradient_from_later_inputs(gca):
    model = backbone(gca)
    gradients = item_gradients(model, random_params(model), training_batch())
    past, rest = past_and_rest()
    np.testing.assert_array_equal(gradients[rest], 0)
    # The merged stream sees every earlier input, so none of these is 0.
    assert gradients[past].min() > 1e-6


def test_official_quirks_do_not_look_ahead_either():
    model = backbone({"positions": (0, 1, 2)}, OFFICIAL)
    gradients = item_gradients(model, random_params(model), training_batch())
    np.testing.assert_array_equal(gradients[past_and_rest()[1]], 0)


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("kv", ["merged", "other"])
def test_without_the_causal_mask_later_inputs_count(place, kv):
    model = backbone({"positions": (place,), "kv": kv, "causal": False})
    gradients = item_gradients(model, random_params(model), training_batch())
    leaks = np.zeros(len(HISTORIES), bool)
    for slot, (row, p) in enumerate(ROWS_AND_STEPS):
        later = HISTORIES[row][p + 1 : -1]
        leaks[row] |= (gradients[slot, later] > 1e-6).any()
    # Row 0 has later keys in both modes; of the users not even a full look around crosses rows.
    assert leaks[0]
    for slot, (row, _) in enumerate(ROWS_AND_STEPS):
        others = np.setdiff1d(np.arange(sum(N_ITEMS) + 1), HISTORIES[row])
        np.testing.assert_array_equal(gradients[slot, others], 0)


def cut_rows():
    """Evaluation rows of every (row, step): the history cut after that step, made by the task."""
    user, item, place = [], [], []
    for number, (row, p) in enumerate(ROWS_AND_STEPS):
        user += [number] * (p + 2)
        item += HISTORIES[row][: p + 2]
        place.append(p + 1)
    log = make_log(user, item, np.zeros(len(user), int), N_ITEMS, "cut")
    place = np.array(place, np.int32)
    rows = evaluation_arrays(log, Split(place, place, np.full_like(place, -1)), "val", LENGTH)
    return {name: jnp.asarray(value) for name, value in rows.items()}


def training_and_cut(model, rows):
    """Hidden states of every (row, step): from one training pass, and from the cut histories."""
    params, batch = random_params(model), training_batch()
    grid = on_grid(forward(model, params, batch)[0], batch)
    trained = jnp.stack([grid[row, column(row, p)] for row, p in ROWS_AND_STEPS])
    return np.asarray(trained), np.asarray(model.encode(params, rows))


FROM_START = dataclasses.replace(CORRECTED, q6_positions_from_end=False)
LAST_STEP = np.array([p == len(HISTORIES[row]) - 2 for row, p in ROWS_AND_STEPS])
MERGED = [{"positions": s} for s in SUBSETS] + [{"positions": (0, 1, 2), "gate_input": "source"}]


@pytest.mark.parametrize("gca", MERGED, ids=str)
def test_training_at_a_step_is_evaluation_of_the_history_up_to_it(gca):
    """With masked keys the gaps of training streams vanish, and an entry stands at the last
    position before the domain's next item, which is its horizon in evaluation. With positions
    counted from the start both passes then compute the same numbers.

    Not for rows longer than L: their evaluation streams reach further back (quirk Q18).
    """
    trained, evaluated = training_and_cut(backbone(gca, FROM_START), cut_rows())
    np.testing.assert_allclose(trained, evaluated, atol=1e-5)


def test_a_wrong_horizon_is_noticed():
    rows = cut_rows()
    for letter in "ab":
        until = rows[f"until_{letter}"]
        late = rows | {f"until_{letter}": jnp.where(until >= 0, LENGTH - 1, until)}
        trained, evaluated = training_and_cut(backbone({"positions": (0, 1)}, FROM_START), late)
        assert np.abs(trained - evaluated).max() > 0.01


def test_positions_from_the_end_agree_at_the_last_step_only():
    model = backbone({"positions": (0, 1, 2)}, CORRECTED)
    trained, evaluated = training_and_cut(model, cut_rows())
    distance = np.abs(trained - evaluated).max(-1)
    assert distance[LAST_STEP].max() < 1e-5
    assert distance[~LAST_STEP].min() > 0.01


def test_unmasked_padding_makes_them_differ():
    quirks = ABXIQuirks(q3_attend_to_padding=True, q6_positions_from_end=False)
    trained, evaluated = training_and_cut(backbone({"positions": (0,)}, quirks), cut_rows())
    assert np.abs(trained - evaluated).max() > 0.01


@pytest.mark.parametrize("positions", [(0,), (2,), (0, 1, 2)])
def test_with_the_other_domain_as_keys_evaluation_sees_one_more_item(positions):
    """Task-guided alignment (specs abxi §2.1) puts the other domain's newest item where that
    domain is next asked for, after the step in question: training does not see it, evaluation
    does. Hidden from evaluation, the two agree."""
    model, rows = backbone({"positions": positions, "kv": "other"}, FROM_START), cut_rows()
    trained, evaluated = training_and_cut(model, rows)
    assert np.abs(trained - evaluated).max() > 0.01
    newest = jnp.arange(LENGTH) == LENGTH - 1
    for domain, other in ((0, "until_b"), (1, "until_a")):
        hide = (rows["domain"] == domain)[:, None] & newest
        rows = rows | {other: jnp.where(hide, LENGTH, rows[other])}
    trained, evaluated = training_and_cut(model, rows)
    np.testing.assert_allclose(trained, evaluated, atol=1e-5)


@pytest.mark.parametrize("kv", ["merged", "other"])
def test_aligned_source_token_stands_at_the_tokens_own_time(kv):
    """In evaluation the domain streams have no gaps: a column is not a time."""
    rows = evaluation_batch(SHORT)
    model = backbone({"positions": (0,), "kv": kv})
    _, probes = forward(model, random_params(model), rows)
    axis = jnp.broadcast_to(jnp.arange(LENGTH), rows["seq_x"].shape)
    x_of = {d: probes[f"0/{d}"].x.reshape(*rows["seq_x"].shape, -1) for d in "AB"}
    for domain, other in ("AB", "BA"):
        probe = probes[f"0/{domain}"]
        time = np.asarray(rows[f"until_{domain.lower()}"])
        ids, s_time = rows["seq_x"], np.asarray(axis)
        if kv == "other":
            ids, s_time = rows[f"seq_{other.lower()}"], np.asarray(rows[f"until_{other.lower()}"])
        same = (time[:, :, None] == s_time[:, None, :]) & np.asarray(ids > 0)[:, None, :]
        same &= np.asarray(rows[f"seq_{domain.lower()}"] > 0)[:, :, None]
        np.testing.assert_array_equal(probe.has_aligned_P, same.any(-1).ravel())
        if kv == "other":
            expected = np.einsum("bts,bsd->btd", same, x_of[other])
            np.testing.assert_allclose(probe.y_aligned, expected.reshape(-1, 8), atol=1e-6)
