"""No look into the future in `corrected`; the official streams do look (Q1).

Every row of the batch is looked at one step of its own and has items of its own, so one backward
pass shows what all steps depend on.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.backbones.llm4cdsr._batches import (
    CORRECTED,
    LENGTH,
    OFFICIAL,
    PATTERNS,
    all_train,
    backbone,
    evaluation_batch,
    forward,
    grid_of,
    histories,
    log_of,
    random_params,
    training_batch,
)

pytestmark = pytest.mark.slow

# Every pattern once for each token of its domain streams that has a target.
CASES = [
    (pattern, domain, step)
    for pattern in PATTERNS
    for domain in "AB"
    for step in range(pattern.count(domain) - 1)
]
ITEMS, N_ITEMS = histories([pattern for pattern, *_ in CASES])
BATCH = grid_of(training_batch(ITEMS, N_ITEMS))
ROWS = np.arange(len(CASES))


def at_steps():
    """For every case the column of its domain stream and that of stream x; which inputs are past:
    (item,) for the domain's stream, the token itself included, and for stream x up to the pair."""
    own, x = np.zeros((2, len(CASES)), int)
    past_own, past_x = np.zeros((2, sum(N_ITEMS) + 1), bool)
    for row, ((pattern, domain, step), items) in enumerate(zip(CASES, ITEMS, strict=True)):
        places = [i for i, d in enumerate(pattern) if d == domain]
        own[row] = LENGTH - (len(places) - 1) + step
        pair = places[step + 1] - 1
        x[row] = LENGTH - (len(pattern) - 1) + pair
        past_own[items[: places[step] + 1]] = True
        past_x[items[: pair + 1]] = True
    return own, x, past_own, past_x


OWN, X, PAST_OWN, PAST_X = at_steps()
OF_A = np.array([domain == "A" for _, domain, _ in CASES])


def input_gradients(gca, quirks):
    """(item,): largest gradient of the hidden states that score each case's target, by the item's
    vectors: of the domain's stream, and of stream x."""
    model = backbone(N_ITEMS, gca, quirks)
    params, n_a = random_params(model), N_ITEMS[0]

    def hidden(tables):
        out = forward(model.on(tables), params, BATCH)
        grid = {s: h.reshape(len(CASES), LENGTH, -1) for s, h in out.items()}
        own = jnp.where(OF_A[:, None], grid["A"][ROWS, OWN], grid["B"][ROWS, OWN])
        return own, grid["x"][ROWS, X]

    states, back = jax.vjp(hidden, jax.tree.map(jnp.asarray, model.tables))
    rng, found = np.random.default_rng(1), []
    for which in (0, 1):
        direction = [jnp.zeros_like(h) for h in states]
        direction[which] = jnp.asarray(rng.normal(size=states[which].shape), jnp.float32)
        (gradient,) = back(tuple(direction))
        largest = np.abs(gradient.items).max(-1)
        largest[1 : n_a + 1] += np.abs(gradient.local_A[1:]).max(-1)
        largest[n_a + 1 :] += np.abs(gradient.local_B[1:]).max(-1)
        found.append(largest)
    return found


def test_no_gradient_from_later_inputs_with_the_other_domain_as_keys():
    """With the merged stream as keys: tests/backbones/test_contract.py."""
    own, x = input_gradients({"positions": (0, 1, 2), "source": "other"}, CORRECTED)
    np.testing.assert_array_equal(own[~PAST_OWN], 0)
    np.testing.assert_array_equal(x[~PAST_X], 0)
    assert x[PAST_X].min() > 1e-6


@pytest.mark.parametrize("source", ["merged", "other"])
def test_with_window_now_all_before_the_target_counts_and_nothing_later(source):
    gca = {"positions": (0, 1, 2), "source": source}
    newest = PAST_X & ~PAST_OWN  # after the token, before its target
    now, x = input_gradients(gca | {"window": "now"}, CORRECTED)
    np.testing.assert_array_equal(now[~PAST_X], 0)
    np.testing.assert_array_equal(x[~PAST_X], 0)
    # Of the other domain's own stream, which ends before its last item, not all are there.
    least = newest.sum() if source == "merged" else 5
    assert (now[newest] > 1e-6).sum() >= least > 4
    np.testing.assert_array_equal(input_gradients(gca, CORRECTED)[0][newest], 0)


def test_the_official_streams_see_what_they_must_predict():
    """The twin. GCA's own masks stay on: it is the backbone that looks ahead."""
    own, x = input_gradients({"positions": (0, 1, 2)}, OFFICIAL)
    assert (x[~PAST_X] > 1e-6).sum() > 10 and (own[~PAST_OWN] > 1e-6).sum() > 10


def test_without_the_causal_mask_of_gca_later_inputs_count():
    own, _ = input_gradients({"positions": (1,), "causal": False}, CORRECTED)
    assert (own[~PAST_OWN] > 1e-6).sum() > 10


@pytest.mark.parametrize("window", ["own", "now"])
def test_training_at_a_step_is_evaluation_of_the_history_up_to_it(window):
    """Whole rows, their last token: what is trained there is what is scored in evaluation."""
    model = backbone(N_ITEMS, {"positions": (0, 2), "window": window}, CORRECTED)
    params = random_params(model)
    rows = evaluation_batch(ITEMS, N_ITEMS)
    evaluated = forward(model, params, rows)
    trained = forward(model, params, BATCH)
    last = [h.reshape(len(CASES), LENGTH, -1)[:, -1] for h in (trained["x"], evaluated["x"])]
    np.testing.assert_allclose(*last, atol=1e-5)
    # The target's domain: its stream ends with the same token in both.
    domain = np.asarray(rows["domain"])
    for d, name in enumerate("AB"):
        pair = [h.reshape(len(CASES), LENGTH, -1)[domain == d, -1] for h in (trained[name], evaluated[name])]  # noqa: E501  # fmt: skip
        np.testing.assert_allclose(*pair, atol=1e-5)
    assert all_train(log_of(ITEMS, N_ITEMS)).n_train.tolist() == list(map(len, ITEMS))
