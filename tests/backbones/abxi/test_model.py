"""ABXI with GCA: sizes, symmetries and what padding may not do. Corrected quirks throughout."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from oa_jax.backbones.abxi.fields import Model
from oa_jax.backbones.abxi.model import Backbone
from oa_jax.nn.known import GCAConfig
from tests.backbones.abxi._batches import (
    CORRECTED,
    HISTORIES,
    HPARAMS,
    LENGTH,
    N_ITEMS,
    OFFICIAL,
    SHORT,
    backbone,
    evaluation_batch,
    forward,
    on_grid,
    random_params,
    training_batch,
    with_negatives,
)

pytestmark = pytest.mark.slow

ALL = {"positions": (0, 1, 2)}
AFK, ABE = (11837, 16258), (10379, 14188)
N_A, N_B = N_ITEMS


def size(n_items, d_embed, rank_domain, gca=None):
    config = Model(d_embed=d_embed, rank_domain=rank_domain)
    model = Backbone(n_items, config, GCAConfig(**gca or {}))
    return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(model.init, jax.random.key(0))))


# A pair of modules at d = 256: 2 (4 (d² + d) + (2d 4d + 4d) + (4d d + d) + 2d).
PAIR = 2_102_784


@pytest.mark.parametrize("positions", [(), (1,), (0, 2), (0, 1, 2)])
def test_size_with_gca(positions):
    expected = 8_821_760 + len(positions) * PAIR
    assert size(ABE, 256, 64, {"positions": positions}) == expected


def test_size_with_every_option():
    official = size(AFK, 256, 16, {"positions": (0, 1)})
    assert official == 9_651_200 + 2 * PAIR
    free = {"source": "other", "heads": 8, "gate_input": "source", "part": "parallel"}
    assert size(AFK, 256, 16, {"positions": (0, 1)} | free) == official
    # What must cost something: the norm's 2d and each multiple of the gate's hidden layer.
    without_norm = size(AFK, 256, 16, {"positions": (0, 1), "layer_norm": False})
    assert without_norm == official - 2 * 2 * 2 * 256
    narrow = size(AFK, 256, 16, {"positions": (0, 1), "gate_hidden": 3})
    assert narrow == official - 2 * 2 * (2 * 256 * 256 + 256 + 256 * 256)


@pytest.mark.parametrize(
    "n_items, rank, d_embed, expected",
    [
        (AFK, 16, 256, 9_651_200),
        (AFK, 16, 310, 11_753_960),
        (AFK, 16, 364, 13_880_048),
        (AFK, 16, 416, 15_949_440),
        (AFK, 16, 468, 18_040_464),
        (ABE, 64, 310, 10_749_560),
        (ABE, 64, 364, 12_700_688),
        (ABE, 64, 430, 15_117_080),
    ],
)
def test_size_of_widened_baselines(n_items, rank, d_embed, expected):
    assert size(n_items, d_embed, rank) == expected


def training_hidden(model, params, batch):
    return on_grid(forward(model, params, batch)[0], batch)


def without_gca(params):
    return {name: value for name, value in params.items() if not name.startswith("gca")}


def closed(params, gate_act):
    """Parameters whose gates are exactly 0."""
    params = jax.tree.map(jnp.copy, params)
    for name in params:
        if name.startswith("gca"):
            out = params[name]["gate_out"]
            out["kernel"] = out["kernel"] * 0
            out["bias"] = out["bias"] * 0 - (1e4 if gate_act == "sigmoid" else 0)
    return params


@pytest.mark.parametrize("gate_act", ["sigmoid", "tanh"])
def test_closed_gates_without_norm_are_the_baseline(gate_act):
    gca = ALL | {"gate_act": gate_act, "layer_norm": False}
    model, batch, rows = backbone(gca), training_batch(), evaluation_batch()
    params = random_params(model)
    plain, plain_params = backbone(), without_gca(params)
    shut = closed(params, gate_act)
    expected = training_hidden(plain, plain_params, batch)
    np.testing.assert_array_equal(training_hidden(model, shut, batch), expected)
    evaluated = forward(model, shut, rows)[0], forward(plain, plain_params, rows)[0]
    for domain in "AB":
        np.testing.assert_array_equal(*(hidden[domain] for hidden in evaluated))
    # Open gates, or a norm, make a difference.
    assert np.abs(training_hidden(model, params, batch) - expected).max() > 0.1
    with_norm = backbone(gca | {"layer_norm": True})
    shut = closed(random_params(with_norm), gate_act)
    assert np.abs(training_hidden(with_norm, shut, batch) - expected).max() > 0.1


@pytest.mark.parametrize(
    "gca",
    [
        {},
        {"positions": (0,)},
        {"positions": (1,)},
        {"positions": (0, 2)},
        {"positions": (0, 1, 2), "source": "other"},
        {"positions": (2,), "source": "self", "own_item": "hidden"},
        {"positions": (1,), "source": "shuffled"},
        {"positions": (2,), "fusion": "co_attention"},
    ],
    ids=str,
)
def test_encode_is_the_last_position_of_the_whole_pass(gca):
    model, rows = backbone(gca), evaluation_batch()
    params = random_params(model)
    hidden, _ = forward(model, params, rows)
    a, b = (np.asarray(hidden[d]).reshape(len(SHORT), LENGTH, -1) for d in "AB")
    whole = np.where((np.asarray(rows["domain"]) == 0)[:, None, None], a, b)
    encoded = model.encode(params, rows)
    np.testing.assert_allclose(encoded, whole[:, -1], atol=1e-5)
    assert np.abs(encoded - whole[:, -2]).max() > 0.1


def loss(model, params, batch, hparams=HPARAMS):
    return model.loss(params, batch, None, hparams)[0]


def test_relabelled_items_get_their_old_scores():
    model, rng = backbone(ALL), np.random.default_rng(8)
    params, rows, batch = random_params(model), evaluation_batch(), training_batch()
    batch = with_negatives(batch)
    new = np.r_[0, 1 + rng.permutation(N_A), 1 + N_A + rng.permutation(N_B)]  # old id -> new id
    table = params["items"].at[new].set(params["items"])
    relabelled = params | {"items": table}

    def rename(arrays):
        ids = ("seq_x", "seq_a", "seq_b", "gt", "shared_negatives")
        return {k: jnp.asarray(new)[v] if k in ids else v for k, v in arrays.items()}

    items = np.arange(1, 1 + N_A + N_B)
    scores = model.score(model.index(params), model.encode(params, rows), items)
    encoded = model.encode(relabelled, rename(rows))
    np.testing.assert_allclose(
        model.score(model.index(relabelled), encoded, new[items]), scores, atol=1e-5
    )
    assert np.abs(model.score(model.index(relabelled), encoded, items) - scores).max() > 0.1
    assert np.isclose(loss(model, relabelled, rename(batch)), loss(model, params, batch), rtol=1e-5)
    assert not np.isclose(loss(model, params, rename(batch)), loss(model, params, batch), rtol=1e-3)


def swap_domains(params, batch):
    """The same data and model with the names of the two domains exchanged."""
    new = np.r_[0, N_B + 1 + np.arange(N_A), 1 + np.arange(N_B)]
    letters = {"a": "b", "b": "a", "A": "B", "B": "A"}

    def name(old):
        return old[:-1] + letters[old[-1]] if old[-2:-1] == "_" and old[-1] in letters else old

    renamed = {name(k): v for k, v in batch.items()}
    for ids in set(renamed) & {"seq_x", "seq_a", "seq_b", "gt"}:
        renamed[ids] = jnp.asarray(new)[renamed[ids]]
    swapped = {name(k): v for k, v in params.items()}
    return swapped | {"items": params["items"].at[new].set(params["items"])}, renamed


@pytest.mark.parametrize("source", ["merged", "other"])
def test_swapped_domains_swap_the_outputs(source):
    model = backbone(ALL | {"source": source})
    swapped_model = backbone(ALL | {"source": source}, n_items=N_ITEMS[::-1])
    params, batch, rows = random_params(model), training_batch(), evaluation_batch()
    expected = training_hidden(model, params, batch)
    swapped = swap_domains(params, batch)
    np.testing.assert_allclose(training_hidden(swapped_model, *swapped), expected, atol=1e-5)
    # With the parameters of the domains left in place, it is another model.
    mixed_up = params | {"items": swapped[0]["items"]}
    assert np.abs(training_hidden(swapped_model, mixed_up, swapped[1]) - expected).max() > 0.1
    swapped_params, swapped_rows = swap_domains(params, rows)
    of_b = swapped_rows | {"domain": 1 - rows["domain"]}
    expected = model.encode(params, rows)
    np.testing.assert_allclose(swapped_model.encode(swapped_params, of_b), expected, atol=1e-5)
    wrong = swapped_model.encode(mixed_up, of_b)
    assert np.abs(wrong - expected).max() > 0.1


def padded_and_not(model, params):
    """Training and evaluation results with rows of L and of L + 3 columns."""
    results = []
    for length in (LENGTH, LENGTH + 3):
        batch, rows = training_batch(length=length), evaluation_batch(length=length)
        hidden = forward(model, params, batch)[0]
        results.append(np.concatenate([hidden["A"], hidden["B"], model.encode(params, rows)]))
    return results


def test_left_padding_adds_nothing():
    model = backbone(ALL | {"source": "other", "gate_input": "source"}, length=LENGTH + 3)
    short, long = padded_and_not(model, random_params(model))
    np.testing.assert_allclose(short, long, atol=1e-5)


@pytest.mark.parametrize("broken", ["quirk", "key_mask"])
def test_left_padding_that_is_attended_to_changes_hidden_states(broken):
    quirks = OFFICIAL if broken == "quirk" else CORRECTED
    gca = ALL if broken == "quirk" else ALL | {"key_mask": False}
    model = backbone(gca, quirks, length=LENGTH + 3)
    short, long = padded_and_not(model, random_params(model))
    assert np.abs(short - long).max() > 0.01


CASES = (
    ALL,
    ALL
    | {"source": "other", "gate_input": "source", "gate_act": "tanh", "gate_inner": "gelu"}
    | {"part": "parallel"},
    {"positions": (1,), "part": "orthogonal", "gate_inner": "linear", "layer_norm": False},
)


@pytest.mark.parametrize("gca", CASES, ids=str)
def test_values_and_gradients_are_finite_with_an_empty_stream(gca):
    batch, rows = with_negatives(training_batch()), evaluation_batch()
    assert not np.any(batch["seq_a"], 1).all() and not np.any(rows["seq_a"], 1).all()
    model = backbone(gca)
    params = random_params(model)
    hparams = HPARAMS | {"ortho_weight": 0.5}
    value_and_grad = jax.value_and_grad(model.loss, has_aux=True)
    (value, aux), grads = value_and_grad(params, batch, None, hparams)
    assert np.isfinite(value) and np.isfinite(aux["cos2"])
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        assert np.isfinite(leaf).all(), path
        if "b_in" not in str(path):  # the key bias has none (Q8)
            assert np.abs(leaf).max() > 0, path
    for hidden in forward(model, params, rows)[0].values():
        assert np.isfinite(hidden).all()


@pytest.mark.parametrize("part_of", ["update", "gated"])
def test_orthogonality_weight_adds_mean_cos2_and_its_gradient(part_of):
    model = backbone({"positions": (0,), "part_of": part_of})
    batch = with_negatives(training_batch())
    params = random_params(model)

    def cos2(params):
        """By hand from the probes: mean over tokens with a key, then over the two modules."""
        means = []
        for probe in model.probe(params, batch).values():
            at = np.flatnonzero(probe.has_key_P)
            x, update = probe.x[at], probe.update[at]
            update = update * probe.gate[at] if part_of == "gated" else update
            unit = [h / jnp.sqrt((h**2).sum(-1, keepdims=True)) for h in (x, update)]
            means.append(((unit[0] * unit[1]).sum(-1) ** 2).mean())
        return sum(means) / 2

    def at(weight):
        return jax.value_and_grad(loss, 1)(model, params, batch, HPARAMS | {"ortho_weight": weight})

    (plain, plain_grad), (total, total_grad) = at(0.0), at(0.7)
    value, grad = jax.value_and_grad(cos2)(params)
    assert value > 0.01
    np.testing.assert_allclose(total - plain, 0.7 * value, rtol=1e-4)
    _, aux = model.loss(params, batch, None, HPARAMS)
    np.testing.assert_allclose(aux["cos2"], value, rtol=1e-5)
    for all_, some, own in zip(*map(jax.tree.leaves, (total_grad, plain_grad, grad)), strict=True):
        np.testing.assert_allclose(all_ - some, 0.7 * own, atol=2e-6 + 1e-5 * np.abs(all_).max())
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(grad)) > 0.01


def test_loss_weights_by_hand():
    """Users without a target in the domain count in the mean with quirk Q19, not without."""
    batch = with_negatives(training_batch())
    official = backbone(quirks=dataclasses.replace(CORRECTED, q19_mean_over_all_users=True))
    params = random_params(official)
    _, with_q19 = official.loss(params, batch, None, HPARAMS)
    _, without = backbone().loss(params, batch, None, HPARAMS)
    hidden = {d: np.asarray(h) for d, h in forward(official, params, batch)[0].items()}
    table, gt = np.asarray(params["items"]), np.asarray(batch["gt"]).ravel()
    for d in "AB":
        places, per_user = np.asarray(batch[f"at_{d}"]), []
        for row, negatives in enumerate(np.asarray(batch["shared_negatives"])):
            nll = []
            for slot in np.flatnonzero(places // LENGTH == row):
                scores = table[np.r_[gt[places[slot]], negatives]] @ hidden[d][slot] / 0.75
                nll.append(np.log(np.exp(scores).sum()) - scores[0])
            per_user += [np.mean(nll)] if nll else []
        assert len(per_user) < len(HISTORIES)
        name = f"loss_{d.lower()}"
        np.testing.assert_allclose(with_q19[name], np.sum(per_user) / len(HISTORIES), rtol=1e-5)
        np.testing.assert_allclose(without[name], np.mean(per_user), rtol=1e-5)


def test_shared_negatives_are_per_position_negatives_repeated():
    batch, model = with_negatives(training_batch()), backbone()
    params = random_params(model)
    shared = batch["shared_negatives"]
    at_P = np.r_[batch["at_A"], batch["at_B"]]
    repeated = shared[np.minimum(at_P // LENGTH, len(shared) - 1)]
    own = {k: v for k, v in batch.items() if k != "shared_negatives"} | {"negatives": repeated}
    value_and_grad = jax.value_and_grad(loss, 1)
    one, other = (value_and_grad(model, params, b) for b in (batch, own))
    np.testing.assert_allclose(one[0], other[0], rtol=1e-5)
    for a, b in zip(*map(jax.tree.leaves, (one[1], other[1])), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6 + 1e-5 * np.abs(b).max())
    moved = loss(model, params, batch | {"shared_negatives": shared[::-1]})
    assert not np.isclose(moved, one[0], rtol=1e-3)


def test_three_ways_to_score():
    model = backbone()
    params, rng = random_params(model), np.random.default_rng(4)
    encoded = jnp.asarray(rng.normal(size=(4, 8)), jnp.float32)
    table = np.asarray(params["items"])
    few = rng.integers(1, len(table), (4, 2))  # gathered: 2 * 8 is less than the table's rows
    many = rng.integers(1, len(table), (4, 20))  # picked out of the scores of all items
    assert few.shape[1] * 8 < len(table) < many.shape[1] * 8
    for ids in (few, many):
        expected = np.einsum("bd,bkd->bk", encoded, table[ids])
        np.testing.assert_allclose(
            model.score(model.index(params), encoded, ids), expected, atol=1e-5
        )
        assert np.abs(model.score(model.index(params), encoded[::-1], ids) - expected).max() > 0.1
    items = np.array([3, len(table) - 1, 7])
    np.testing.assert_allclose(
        model.score(model.index(params), encoded, items), encoded @ table[items].T, atol=1e-5
    )


def test_dropout_acts_only_with_a_key():
    model, batch = backbone(ALL), with_negatives(training_batch())
    params, hparams = random_params(model), HPARAMS | {"dropout": jnp.float32(0.5)}

    def at(key):
        return float(model.loss(params, batch, key, hparams)[0])

    still = at(None)
    assert still == float(loss(model, params, batch))
    one, other = at(jax.random.key(1)), at(jax.random.key(2))
    assert one == at(jax.random.key(1)) and len({still, one, other}) == 3


def test_untied_items_score_from_a_table_of_their_own():
    tied = backbone()
    untied = dataclasses.replace(tied, config=dataclasses.replace(tied.config, tied=False))
    params, batch = random_params(tied), with_negatives(training_batch())
    same = params | {"items_out": params["items"]}
    assert jax.tree.map(jnp.shape, same) == jax.tree.map(jnp.shape, random_params(untied))
    assert loss(untied, same, batch) == loss(tied, params, batch)
    # Tied, the table gets the sum of what both get.
    of_tied, of_both = (
        jax.grad(loss, 1)(model, p, batch) for model, p in ((tied, params), (untied, same))
    )
    both = of_both["items"] + of_both["items_out"]
    np.testing.assert_allclose(both, of_tied["items"], atol=1e-6)
    assert all(np.abs(of_both[name]).max() > 0.01 for name in ("items", "items_out"))
    other, rows = same | {"items_out": 2 * params["items"]}, evaluation_batch()
    encoded = untied.encode(same, rows)
    np.testing.assert_array_equal(untied.encode(other, rows), encoded)
    scores = [untied.score(untied.index(p), encoded, jnp.arange(1, 9)) for p in (same, other)]
    np.testing.assert_allclose(2 * scores[0], scores[1], rtol=1e-6)
