"""No look into the future, and training and evaluation agree on the past.

Every row of the batch is looked at one step of its own and has items of its own, so one backward
pass shows what all steps depend on.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from oa_jax.backbones.abxi.arrays import evaluation_arrays
from oa_jax.events.log import make_log
from oa_jax.events.split import Split
from tests.backbones.abxi._batches import (
    CORRECTED,
    HISTORIES,
    LENGTH,
    N_ITEMS,
    OFFICIAL,
    STEP,
    backbone,
    forward,
    on_grid,
    random_params,
    training_batch,
)

pytestmark = pytest.mark.slow

ROWS = np.arange(len(HISTORIES))
COLUMN = LENGTH - np.array([len(items) - 1 for items in HISTORIES]) + STEP
LAST_STEP = np.array([len(items) - 2 for items in HISTORIES]) == STEP
BATCH = training_batch()
OTHER = {"positions": (0, 1, 2), "source": "other"}


def make(gca=None, quirks=CORRECTED):
    model = backbone(gca, quirks)
    return model, random_params(model)


def at_steps(model, params):
    """Hidden state of every row's step, (rows, D), from one training pass."""
    return on_grid(forward(model, params, BATCH)[0], BATCH)[ROWS, COLUMN]


def item_gradients(model, params):
    """(item,): largest gradient of a random projection of the rows' steps."""

    def hidden(items):
        return at_steps(model, params | {"items": items})

    h_BxD, back = jax.vjp(hidden, params["items"])
    direction = np.random.default_rng(1).normal(size=h_BxD.shape)
    (gradient_IxD,) = back(jnp.asarray(direction, jnp.float32))
    return np.abs(gradient_IxD).max(-1)


def past_items():
    """(item,): whether it is an input of its row up to the row's step. The others are later
    inputs, targets that are never an input, and the padding row."""
    past = np.zeros(sum(N_ITEMS) + 1, bool)
    for items, step in zip(HISTORIES, STEP, strict=True):
        past[items[: step + 1]] = True
    return past


def test_no_gradient_from_later_inputs_with_the_other_domain_as_keys():
    """With the merged stream as keys: tests/backbones/test_contract.py."""
    gradients = item_gradients(*make(OTHER))
    np.testing.assert_array_equal(gradients[~past_items()], 0)
    # The merged stream sees every earlier input, so none of these is 0.
    assert gradients[past_items()].min() > 1e-6


def test_official_quirks_do_not_look_ahead_either():
    gradients = item_gradients(*make({"positions": (0, 1, 2)}, OFFICIAL))
    np.testing.assert_array_equal(gradients[~past_items()], 0)


def test_without_the_causal_mask_later_inputs_count():
    gradients = item_gradients(*make(OTHER | {"causal": False}))
    assert (gradients[~past_items()] > 1e-6).sum() > 4


def cut_rows():
    """Evaluation rows of the histories cut after their steps, made by the task."""
    cut = [items[: step + 2] for items, step in zip(HISTORIES, STEP, strict=True)]
    user = np.repeat(ROWS, [len(items) for items in cut])
    log = make_log(user, np.concatenate(cut), np.zeros(len(user), int), N_ITEMS, "cut")
    place = (STEP + 1).astype(np.int32)
    rows = evaluation_arrays(log, Split(place, place, np.full_like(place, -1)), "val", LENGTH)
    rows.pop("seen")
    return {name: jnp.asarray(value) for name, value in rows.items()}


def training_and_cut(gca, quirks, rows):
    """Hidden states of every row's step: from the training pass, and from the cut histories."""
    model, params = make(gca, quirks)
    hidden = forward(model, params, rows)[0]
    a, b = (np.asarray(hidden[d]).reshape(len(ROWS), LENGTH, -1)[:, -1] for d in "AB")
    evaluated = np.where(np.asarray(rows["domain"])[:, None] == 0, a, b)
    return np.asarray(at_steps(model, params)), evaluated


FROM_START = dataclasses.replace(CORRECTED, q6_positions_from_end=False)
MERGED = [{}, {"positions": (1,)}, {"positions": (0, 1, 2), "gate_input": "source"}]


@pytest.mark.parametrize("gca", MERGED, ids=str)
def test_training_at_a_step_is_evaluation_of_the_history_up_to_it(gca):
    """With masked keys the gaps of training streams vanish, and an entry stands at the last
    position before the domain's next item, which is its horizon in evaluation. With positions
    counted from the start both passes then compute the same numbers.

    Not for rows longer than L: their evaluation streams reach further back (quirk Q18).
    """
    trained, evaluated = training_and_cut(gca, FROM_START, cut_rows())
    np.testing.assert_allclose(trained, evaluated, atol=1e-5)


def test_a_wrong_horizon_is_noticed():
    rows = cut_rows()
    for letter in "ab":
        until = rows[f"until_{letter}"]
        late = rows | {f"until_{letter}": jnp.where(until >= 0, LENGTH - 1, until)}
        trained, evaluated = training_and_cut({"positions": (0, 1)}, FROM_START, late)
        assert np.abs(trained - evaluated).max() > 1e-3


def test_positions_from_the_end_agree_at_the_last_step_only():
    trained, evaluated = training_and_cut({"positions": (0, 1, 2)}, CORRECTED, cut_rows())
    distance = np.abs(trained - evaluated).max(-1)
    assert distance[LAST_STEP].max() < 1e-5
    assert distance[~LAST_STEP].min() > 0.01


def test_unmasked_padding_makes_them_differ():
    quirks = dataclasses.replace(FROM_START, q3_attend_to_padding=True)
    trained, evaluated = training_and_cut({"positions": (0,)}, quirks, cut_rows())
    assert np.abs(trained - evaluated).max() > 0.01


@pytest.mark.parametrize("positions", [(2,), (0, 1, 2)])
def test_with_the_other_domain_as_keys_evaluation_sees_one_more_item(positions):
    """Task-guided alignment puts the other domain's newest item where that
    domain is next asked for, after the step in question: training does not see it, evaluation
    does. Hidden from evaluation, the two agree."""
    gca, rows = {"positions": positions, "source": "other"}, cut_rows()
    trained, evaluated = training_and_cut(gca, FROM_START, rows)
    assert np.abs(trained - evaluated).max() > 0.01
    newest = jnp.arange(LENGTH) == LENGTH - 1
    for domain, other in ((0, "until_b"), (1, "until_a")):
        hide = (rows["domain"] == domain)[:, None] & newest
        rows = rows | {other: jnp.where(hide, LENGTH, rows[other])}
    trained, evaluated = training_and_cut(gca, FROM_START, rows)
    np.testing.assert_allclose(trained, evaluated, atol=1e-5)


@pytest.mark.parametrize("kind", ["merged", "other"])
def test_aligned_source_token_stands_at_the_tokens_own_time(kind):
    """In evaluation the domain streams have no gaps: their columns are not times."""
    rows = {name: np.asarray(value) for name, value in cut_rows().items()}
    probes = forward(*make({"positions": (0,), "source": kind}), rows)[1]
    axis = np.broadcast_to(np.arange(LENGTH), rows["seq_x"].shape)
    for domain, mine, other in (("A", "a", "b"), ("B", "b", "a")):
        source = (rows["seq_x"], axis)
        if kind == "other":
            source = rows[f"seq_{other}"], rows[f"until_{other}"]
        same = rows[f"until_{mine}"][:, :, None] == source[1][:, None, :]
        same &= (rows[f"seq_{mine}"] > 0)[:, :, None] & (source[0] > 0)[:, None, :]
        found = np.asarray(probes[f"0/{domain}"].has_aligned_P)
        np.testing.assert_array_equal(found, same.any(-1).ravel())
        assert found.any()
