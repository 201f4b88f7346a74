"""LLM4CDSR: sizes, invariants of scores, losses, switches. Parity with the official code's values
is test_parity.py."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from oa_jax.backbones.llm4cdsr.fields import Model
from oa_jax.backbones.llm4cdsr.model import Backbone, Tables
from oa_jax.nn import losses
from oa_jax.nn.known import GCAConfig
from oa_jax.ranking.metrics import rank_metrics
from oa_jax.ranking.ranks import among_candidates
from tests.backbones.llm4cdsr._batches import (
    CORRECTED,
    HPARAMS,
    LENGTH,
    OFFICIAL,
    PATTERNS,
    backbone,
    evaluation_batch,
    forward,
    histories,
    random_params,
    training_batch,
)

pytestmark = pytest.mark.slow

ITEMS, N_ITEMS = histories(PATTERNS)
BATCH = training_batch(ITEMS, N_ITEMS)
ROWS = evaluation_batch(ITEMS, N_ITEMS)
EARLY = {"positions": (0,)}


@pytest.mark.parametrize(("user_width", "expected"), [(1536, 2_544_768), (2048, 3_495_296)])
def test_official_sizes(user_width, expected):
    shapes = {"items": (11, 1024), "local_A": (5, 128), "local_B": (7, 128)}
    shapes["users"] = (3, user_width)
    tables = Tables(**{k: np.zeros(shape, np.float32) for k, shape in shapes.items()})
    model = Backbone((4, 6), Model(), tables)

    def count(model):
        return sum(a.size for a in jax.tree.leaves(jax.eval_shape(model.init, jax.random.key(0))))

    assert count(model) == expected
    stack = dataclasses.replace(model, gca=GCAConfig(positions=(0, 2)))
    assert count(stack) == expected + 2 * 527_104  # a pair of modules at d = 128


@pytest.fixture(scope="module")
def scores():
    """Function (quirks, rows) -> scores of all items for every row."""
    model = backbone(N_ITEMS, EARLY)
    params = random_params(model)
    every = jnp.arange(1, sum(N_ITEMS) + 1)
    programs = {}

    def of(quirks, rows, tables=model.tables):
        run = dataclasses.replace(model, quirks=quirks)
        if quirks not in programs:
            programs[quirks] = jax.jit(
                lambda p, t, r: run.on(t).score(run.on(t).index(p), run.on(t).encode(p, r), every)
            )
        return np.asarray(programs[quirks](params, tables, rows))

    return of


def test_relabelling_items_permutes_the_scores(scores):
    """New names within each domain: the rows of the tables move along."""
    rng, n_a = np.random.default_rng(2), N_ITEMS[0]
    new = np.concatenate([[0], 1 + rng.permutation(n_a), n_a + 1 + rng.permutation(N_ITEMS[1])])
    tables = backbone(N_ITEMS).tables

    def moved(table, names):
        out = np.empty_like(table)
        out[names] = table
        return out

    new_b = np.concatenate([[0], new[n_a + 1 :] - n_a])
    renamed = tables.replace(
        items=moved(tables.items, new),
        local_A=moved(tables.local_A, new[: n_a + 1]),
        local_B=moved(tables.local_B, new_b),
    )
    rows = ROWS | {"seq": new[ROWS["seq"]], "seq_A": new[ROWS["seq_A"]]}
    rows |= {"seq_B": new_b[ROWS["seq_B"]]}
    expected = scores(CORRECTED, ROWS)
    found = scores(CORRECTED, rows, renamed)[:, new[1:] - 1]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(scores(CORRECTED, rows)[:, new[1:] - 1] - expected).max() > 1e-2


@pytest.mark.parametrize("gca", [{}, {"positions": (0, 1, 2)}], ids=["baseline", "gca"])
def test_left_padding_adds_nothing_unless_it_is_attended_to(gca):
    """Q4: the official features depend on how wide the rows are."""
    short, long = LENGTH, LENGTH + 3
    items, n_items = histories([p[:6] for p in PATTERNS])
    batches = {n: evaluation_batch(items, n_items, n) for n in (short, long)}
    params = random_params(backbone(n_items, gca, length=long))
    cut = {k: v[: short + 1] if k.startswith("positions") else v for k, v in params["net"].items()}

    def difference(quirks):
        wide = backbone(n_items, gca, quirks, long).encode(params, batches[long])
        narrow = backbone(n_items, gca, quirks, short).encode({"net": cut}, batches[short])
        return np.abs(np.asarray(wide) - np.asarray(narrow)).max()

    assert difference(CORRECTED) < 1e-5
    assert difference(OFFICIAL) > 1e-3


def test_the_packed_pass_is_the_whole_grid():
    """Loss from lists of slots, and from every position of every stream."""
    model = backbone(N_ITEMS, {"positions": (1,)}, OFFICIAL)
    params = random_params(model)
    total, _ = jax.jit(model.loss)(params, BATCH, None, HPARAMS)
    rows, size = len(ITEMS), BATCH["seq"].size
    every = jnp.arange(size)
    grid = dict(BATCH) | {f"at_{s}": every for s in ("x", "A", "B")}
    for d in "AB":
        at = np.asarray(BATCH[f"at_{d}"])
        for name in (f"neg_{d}", f"neg_x_{d}"):
            spread = np.ones(size, np.int32)
            spread[at[at < size]] = np.asarray(BATCH[name])[at < size]
            grid[name] = jnp.asarray(spread)
    again, _ = jax.jit(model.loss)(params, grid, None, HPARAMS)
    assert rows == 4 and float(again) == pytest.approx(float(total), rel=1e-5)
    moved = dict(BATCH) | {"pair_A": jnp.maximum(BATCH["pair_A"] - 1, 0)}
    assert abs(float(jax.jit(model.loss)(params, moved, None, HPARAMS)[0]) - float(total)) > 1e-3


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def contrastive_by_loops(x, y, t):
    z, n = x @ y.T / t, len(x)
    target = softmax(t * (x @ x.T + y @ y.T) / 2)
    total = 0.0
    for i in range(n):
        row, column = np.log(softmax(z)[i]), np.log(softmax(z.T)[i])
        total -= sum(target[i, j] * row[j] + target[j, i] * column[j] for j in range(n)) / 2
    return total / n


def test_contrastive_against_loops():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 6, 4))
    chosen = np.array([True, False, True, True, False, True])
    found = losses.contrastive(x, y, 0.7, jnp.asarray(chosen), False)
    assert found == pytest.approx(contrastive_by_loops(x[chosen], y[chosen], 0.7), rel=1e-5)
    assert found != pytest.approx(contrastive_by_loops(x, y, 0.7), rel=1e-3)
    alone = losses.contrastive(x, y, 0.7, jnp.arange(6) == 2, True)
    assert alone == pytest.approx(0, abs=1e-6)  # Q9
    nothing = jnp.zeros(6, bool)
    assert losses.contrastive(x, y, 0.7, nothing, False) == 0
    assert np.isnan(losses.contrastive(x, y, 0.7, nothing, True))


@pytest.fixture(scope="module")
def gradient():
    """Function (quirks, batch) -> (loss, aux, gradients)."""
    programs = {}

    def of(quirks, batch):
        model = backbone(N_ITEMS, quirks=quirks)
        if quirks not in programs:
            programs[quirks] = jax.jit(jax.value_and_grad(model.loss, has_aux=True))
        (total, aux), grads = programs[quirks](random_params(model), batch, None, HPARAMS)
        return float(total), {k: float(v) for k, v in aux.items()}, jax.tree.leaves(grads)

    return of


def without_pairs(batch):
    """No user has both domains, and nothing of B is there to learn."""
    zero = jnp.zeros_like(batch["reg_A"])
    empty = {k: jnp.zeros_like(batch[k]) for k in ("seq_B", "pos_B")}
    unused = jnp.full_like(batch["at_B"], batch["seq"].size)
    return batch | {"reg_A": zero, "reg_B": zero, "at_B": unused} | empty


def test_empty_means(gradient):
    """Q8: the official mean of nothing is not a number, which ends a seed's training."""
    total, aux, grads = gradient(CORRECTED, without_pairs(BATCH))
    assert np.isfinite(total) and aux["loss_reg"] == aux["loss_B"] == 0 and aux["loss_A"] > 0
    assert all(np.isfinite(g).all() for g in grads)
    total, aux, _ = gradient(OFFICIAL, without_pairs(BATCH))
    assert np.isnan(total) and np.isnan(aux["loss_reg"]) and np.isnan(aux["loss_B"])
    assert np.isfinite(gradient(OFFICIAL, BATCH)[0])


def test_users_without_input(gradient):
    """Q17: they take part in L_user, or they do not."""
    last = BATCH["seq"].at[0].set(0)
    batch = BATCH | {"seq": last}
    there = {q: gradient(q, batch)[1]["loss_user"] for q in (OFFICIAL, CORRECTED)}
    unreal = batch | {"real": batch["real"].at[0].set(False)}
    gone = {q: gradient(q, unreal)[1]["loss_user"] for q in (OFFICIAL, CORRECTED)}
    assert there[CORRECTED] == pytest.approx(gone[CORRECTED], rel=1e-6)
    assert abs(there[OFFICIAL] - gone[OFFICIAL]) > 1e-3


def test_the_second_pass_has_dropout_of_its_own():
    """Q16. Without dropout it changes nothing (and is not made)."""
    params = random_params(backbone(N_ITEMS))
    loss = {}
    for second in (True, False):
        quirks = dataclasses.replace(CORRECTED, q16_second_pass=second)
        run = jax.jit(backbone(N_ITEMS, quirks=quirks).loss)
        for rate in (0.5, 0.0):
            _, aux = run(params, BATCH, jax.random.key(3), HPARAMS | {"dropout": rate})
            loss[second, rate] = {k: float(v) for k, v in aux.items()}
    assert loss[True, 0.5]["loss_A"] == pytest.approx(loss[False, 0.5]["loss_A"], rel=1e-5)
    assert abs(loss[True, 0.5]["loss_user"] - loss[False, 0.5]["loss_user"]) > 1e-3
    same = loss[False, 0.0]["loss_user"]
    assert loss[True, 0.0]["loss_user"] == pytest.approx(same, rel=1e-5)


@pytest.mark.parametrize("blocks", [1, 3])
def test_depth(blocks):
    """Places follow from the number of blocks, and scoring reads the last position of them all."""
    model = backbone(N_ITEMS, {"positions": (0, blocks)}, blocks=blocks)
    params = random_params(model)
    assert {name for name in params["net"] if "_x_" in name} == {
        f"block_x_{i}" for i in range(blocks)
    }
    for gca in (model.gca, GCAConfig()):  # with and without a fusion behind the last block
        run = dataclasses.replace(model, gca=gca)
        hidden = forward(run, params, ROWS)
        last = {s: h.reshape(len(ITEMS), LENGTH, -1)[:, -1] for s, h in hidden.items()}
        own = jnp.where((ROWS["domain"] == 0)[:, None], last["A"], last["B"])
        found = run.encode(params, ROWS)
        np.testing.assert_allclose(found, jnp.concatenate([last["x"], own], -1), atol=1e-5)
    assert set(jax.eval_shape(model.probe, params, ROWS)) == {
        f"{place}/{d}" for place in (0, blocks) for d in "AB"
    }


def shapes_of(**config):
    model = backbone(N_ITEMS, **config)
    return model, jax.eval_shape(model.init, jax.random.key(0))


def test_frozen_tables_are_no_parameters():
    model, shapes = shapes_of()
    assert set(shapes) == {"net"}
    held = {a.shape for a in jax.tree.leaves(shapes)}
    assert not held & {a.shape for a in jax.tree.leaves(model.tables)}


def test_trained_tables_begin_as_they_are():
    model = backbone(N_ITEMS, freeze=False)
    params = model.init(jax.random.key(0))
    assert set(params) == {"net", "items", "local_A", "local_B"}
    np.testing.assert_array_equal(params["local_B"], model.tables.local_B)
    grads = jax.grad(lambda p: model.loss(p, BATCH, None, HPARAMS)[0])(params)
    assert np.abs(grads["items"][1:]).max() > 0 and np.abs(grads["local_A"][1:]).max() > 0
    for name in ("items", "local_A", "local_B"):  # the row of padding stays 0
        np.testing.assert_array_equal(grads[name][0], 0)


def test_ablation_switches():
    """Without local_llm the local tables are random and trained; without global_llm stream x has a
    random table of width D, frozen where `freeze` is on."""
    model, shapes = shapes_of(local_llm=False)
    assert set(shapes) == {"net", "local_A", "local_B"}
    assert shapes["local_A"].shape == (N_ITEMS[0] + 1, 8)
    for freeze in (True, False):
        model, shapes = shapes_of(global_llm=False, freeze=freeze)
        assert "adapter" not in shapes["net"] and "items" not in shapes
        params = random_params(model)
        grads = jax.grad(lambda p, m=model: m.loss(p, BATCH, None, HPARAMS)[0])(params)
        assert (np.abs(grads["net"]["items"]).max() == 0) == freeze
    _, shapes = shapes_of(alpha=0.0, beta=0.0)
    assert "user_adapter" not in shapes["net"]


def test_scores_of_candidates_of_items_and_of_pairs():
    model = backbone(N_ITEMS)
    params = random_params(model)
    index, encoded = model.index(params), model.encode(params, ROWS)
    every = model.score(index, encoded, jnp.arange(sum(N_ITEMS) + 1))
    ids = jnp.asarray(np.random.default_rng(0).integers(1, sum(N_ITEMS), (4, 5)))
    some = model.score(index, encoded, ids)
    np.testing.assert_allclose(some, jnp.take_along_axis(every, ids, 1), atol=1e-5)
    same = model.score(index, encoded, jnp.stack([ids, ids], 1))
    np.testing.assert_allclose(same, some, atol=1e-5)
    other = model.score(index, encoded, jnp.stack([ids, ids[:, ::-1]], 1))
    np.testing.assert_allclose(other[:, 2], some[:, 2], atol=1e-5)
    assert np.abs(other - some).max() > 1e-2


def test_two_items_scored_as_one_rank_too_well():
    """Q2 on a toy: correlation 0.6, the target better by one deviation of the sum."""
    rng, n_users, n_negatives = np.random.default_rng(0), 4000, 100
    n_items = 20_000
    common = rng.normal(size=n_items + 1)
    own = rng.normal(size=(2, n_items + 1))
    parts = np.sqrt(0.6) * common + np.sqrt(0.4) * own  # each N(0, 1), correlation 0.6
    index = jnp.asarray(parts.T, jnp.float32)
    model = backbone((n_items // 2, n_items // 2), d_embed=1, heads=1)
    shift = np.zeros((n_users, n_negatives + 1), np.float32)
    shift[:, 0] = 1.0  # what a trained model has learned about the target
    encoded = jnp.ones((n_users, 2))
    target = rng.integers(1, n_items, (n_users, 1))
    joint, local = rng.integers(1, n_items, (2, n_users, n_negatives))
    ndcg = {}
    for name, second in (("proper", joint), ("official", local)):
        ids = np.stack([np.c_[target, joint], np.c_[target, second]], 1)
        scores = model.score(index, encoded, jnp.asarray(ids)) + shift
        ranks = among_candidates(scores)
        args = (ranks.rank, ranks.ties, ranks.n_candidates, 0.5)
        ndcg[name] = rank_metrics(*map(np.asarray, args[:3]), 0.5)["ndcg@10"]
    assert ndcg["official"] > 1.2 * ndcg["proper"]
    same = model.score(index, encoded, jnp.asarray(np.stack([joint, joint], 1)))
    mixed = model.score(index, encoded, jnp.asarray(np.stack([joint, local], 1)))
    assert np.var(same) == pytest.approx(3.2, rel=0.05)  # 1 + 1 + 2 * 0.6
    assert np.var(mixed) == pytest.approx(2.0, rel=0.05)


def test_hidden_states_of_an_empty_row_are_the_shift():
    model = backbone(N_ITEMS, quirks=OFFICIAL)
    params = random_params(model)
    rows = {k: jnp.zeros_like(v) for k, v in ROWS.items()}
    encoded = model.encode(params, rows)
    shift = np.concatenate([params["net"][f"norm_{s}"]["norm"]["bias"] for s in "xA"])
    np.testing.assert_allclose(encoded[0], shift, atol=1e-6)
    assert set(forward(model, params, rows)) == {"x", "A", "B"}
