"""CDSRNP: sets, divergences, scoring, users of one domain, and no look into the future."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.backbones.cdsrnp._batches import (
    HPARAMS,
    LENGTH,
    MERGED,
    backbone,
    batch_of,
    evaluation_rows,
    random_params,
    support_of,
)
from tests.backbones.llm4cdsr._batches import histories

pytestmark = pytest.mark.slow

PATTERNS = ("ABBAABABA", "BBABAB", "AABBA", "BAAB", "AAAA", "BBBBB")
ITEMS, N_ITEMS = histories(PATTERNS)
QUERY = np.array([True, True, True, False, True, True])
EVERY_PLACE = {"positions": (0, 1, 2)}


MODELS = {}


def model_and_params(gca=None, **config):
    """One for each configuration, as its programs are compiled for it."""
    key = str((gca, config))
    if key not in MODELS:
        model = backbone(N_ITEMS, gca, support_of(ITEMS, N_ITEMS), **config)
        MODELS[key] = model, random_params(model)
    return MODELS[key]


@functools.cache
def programs(model):
    """A model's functions, compiled once for each shape."""
    score = lambda p, rows, ids: model.score(model.index(p), model.encode(p, rows), ids)  # noqa: E731
    return jax.jit(model.loss), jax.jit(score)


def loss_of(model, params, batch, key=None, **hparams):
    return programs(model)[0](params, batch, key, HPARAMS | hparams)


def test_divergence_is_zero_without_queries_and_when_the_sets_are_equal():
    model, params = model_and_params()
    support = np.zeros(len(ITEMS), bool)
    _, aux = loss_of(model, params, batch_of(ITEMS, N_ITEMS, support))
    assert aux["kl_A"] == 0 and aux["kl_B"] == 0
    # Every support user again as a query user: the mean of the union is that of the support.
    twice = ITEMS + ITEMS
    batch = batch_of(twice, N_ITEMS, np.repeat([False, True], len(ITEMS)))
    half = len(ITEMS)
    negative = batch["negative"].at[half:].set(batch["negative"][:half])
    _, aux = loss_of(model, params, batch | {"negative": negative})
    np.testing.assert_allclose([aux["kl_A"], aux["kl_B"]], 0, atol=1e-6)
    # The twin: other queries.
    _, aux = loss_of(model, params, batch_of(ITEMS, N_ITEMS, QUERY))
    assert min(aux["kl_A"], aux["kl_B"]) > 1e-4


def test_loss_adds_the_weighted_divergences_with_warm_up():
    model, params = model_and_params()
    batch = batch_of(ITEMS, N_ITEMS, QUERY)
    total, aux = loss_of(model, params, batch)
    np.testing.assert_allclose(
        total, aux["loss_rec"] + 0.5 * (aux["kl_A"] + aux["kl_B"]), rtol=1e-6
    )
    # Of ten epochs of warm-up, two and a half.
    early, again = loss_of(model, params, batch | {"epoch": jnp.asarray(2.5)})
    expected = again["loss_rec"] + 0.125 * (again["kl_A"] + again["kl_B"])
    np.testing.assert_allclose(early, expected, rtol=1e-6)
    at_once, _ = loss_of(
        backbone(N_ITEMS, kl_warmup=0), params, batch | {"epoch": jnp.asarray(0.0)}
    )
    np.testing.assert_allclose(at_once, total, rtol=1e-6)


def test_only_real_queries_have_a_loss():
    model, params = model_and_params(neural_process=False)
    batch = batch_of(ITEMS, N_ITEMS, QUERY)
    loss, _ = loss_of(model, params, batch)
    single = []
    for n in np.flatnonzero(QUERY):
        only = batch | {"query": jnp.arange(len(ITEMS)) == n}
        single.append(loss_of(model, params, only)[0])
    np.testing.assert_allclose(loss, np.mean(single), rtol=1e-5)


def test_draws_follow_the_key():
    model, params = model_and_params()
    batch = batch_of(ITEMS, N_ITEMS, QUERY)
    one, again, other = (loss_of(model, params, batch, jax.random.key(k))[0] for k in (0, 0, 1))
    assert one == again and one != other


def test_the_latent_of_a_test_is_drawn_by_the_programs_own_generator():
    """JAX_DEFAULT_PRNG_IMPL chooses another for the process."""
    model, params = model_and_params(eval_latent="draw")
    z = model.prior(params).z
    with jax.default_prng_impl("unsafe_rbg"):
        np.testing.assert_array_equal(model.prior(params).z, z)


def scores_of(model, params, rows, candidates):
    return programs(model)[1](params, rows, candidates)


@pytest.mark.parametrize(
    "config",
    [
        {"neural_process": False},
        {"interest": "attention", "latents": "shared", "np_state": "last", "d_latent": 3},
        {"interest": "none", "score_state": "mean", "eval_latent": "draw"}
        | {"pair_negative": False, "film_from_one": False, "decoder_widths": (32, 32)},
    ],
    ids=str,
)
def test_scores_of_candidates_are_those_of_all_items(config):
    model, params = model_and_params({"positions": (1,)}, **config)
    rows = evaluation_rows(ITEMS, N_ITEMS)
    every = jnp.arange(1, sum(N_ITEMS) + 1)
    full = scores_of(model, params, rows, every)
    again = scores_of(model, params, rows, every)
    np.testing.assert_array_equal(full, again)  # nothing is drawn at test
    own = jnp.asarray(np.random.default_rng(0).integers(1, len(every) + 1, (len(ITEMS), 7)))
    picked = jnp.take_along_axis(full, own - 1, 1)
    np.testing.assert_allclose(scores_of(model, params, rows, own), picked, atol=2e-5)
    assert np.isfinite(full).all() and full.std() > 1e-3
    loss = loss_of(model, params, batch_of(ITEMS, N_ITEMS, QUERY), jax.random.key(0))[0]
    assert np.isfinite(loss)


def test_a_shared_latent_is_one_and_its_divergence_counts_once():
    model, params = model_and_params(latents="shared")
    own, _ = model_and_params(latents="per_direction")
    batch = batch_of(ITEMS, N_ITEMS, QUERY)
    batch |= {"domain": batch["domain"] * 0}  # so that the direction to A has all rows
    streams, _ = model.apply(params, batch)
    pair, found = jnp.zeros((len(batch["domain"]), 2, model.config.d_embed)), {}
    for of in (model, own):
        latent, found[of] = of._posterior(params, batch, streams, pair, jax.random.key(0))
        assert (latent.z[0] == latent.z[1]).all() == (of is model)
    total = found[model]["kl_A"] + found[model]["kl_B"]
    np.testing.assert_allclose(total, found[own]["kl_A"], rtol=1e-5)
    assert total > 0


def test_prior_at_test_does_not_depend_on_the_order_of_the_support():
    model, params = model_and_params()
    order = np.random.default_rng(0).permutation(len(ITEMS))
    moved = model.on({k: v[order] for k, v in model.tables.items()})
    doubled = model.on({k: jnp.concatenate([v, v]) for k, v in model.tables.items()})
    for other in (moved, doubled):
        for a, b in zip(
            *map(jax.tree.leaves, (model.prior(params), other.prior(params))), strict=True
        ):
            np.testing.assert_allclose(a, b, atol=1e-5)
    fewer = model.on({k: v[:3] for k, v in model.tables.items()})
    assert np.abs(fewer.prior(params).z - model.prior(params).z).max() > 1e-3


def test_support_in_blocks_is_the_support_as_a_whole(monkeypatch):
    model, params = model_and_params()
    whole = model.prior(params)
    monkeypatch.setattr("oa_jax.backbones.cdsrnp.model.SUPPORT_BLOCK", 4)
    for a, b in zip(*map(jax.tree.leaves, (whole, model.prior(params))), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("gca", [{}, {"positions": (1,)}], ids=str)
def test_a_single_domain_user_is_scored_whatever_room_the_other_domain_has(gca):
    """Rows with and without users of both domains, so with other widths and other neighbours."""
    model, params = model_and_params(gca)
    rows = evaluation_rows(ITEMS, N_ITEMS)
    every = jnp.arange(1, sum(N_ITEMS) + 1)
    expected = scores_of(model, params, rows, every)[4:]
    alone = {k: v[4:] for k, v in rows.items()}
    np.testing.assert_allclose(scores_of(model, params, alone, every), expected, atol=1e-5)
    # What stands in the places of padding (columns of other tokens) does not matter.
    other = {"A": 1, "B": 0}
    for d, row in other.items():
        assert not alone[f"seq_{d}"][row].any()
        touched = alone | {f"time_{d}": alone[f"time_{d}"].at[row].set(MERGED - 1)}
        np.testing.assert_allclose(scores_of(model, params, touched, every), expected, atol=1e-5)


def test_users_of_one_domain_have_updates_from_the_merged_stream():
    model, params = model_and_params(EVERY_PLACE)
    rows = evaluation_rows(ITEMS, N_ITEMS)
    probes = model.probe(params, rows)
    assert set(probes) == {f"{place}/{d}" for place in (0, 1, 2) for d in "AB"}
    for name, probe in probes.items():
        length = LENGTH
        real = np.asarray(probe.real_P).reshape(-1, length)
        update = np.asarray(probe.update).reshape(*real.shape, -1)
        assert np.isfinite(update).all() and not update[~real].any()
        lonely = 4 if name.endswith("A") else 5  # AAAA and BBBBB
        assert real[lonely].any() and np.abs(update[lonely][real[lonely]]).min(-1).max() > 0
        assert not real[9 - lonely].any()


def test_a_row_without_history_has_a_finite_score():
    model, params = model_and_params(EVERY_PLACE)
    rows = {k: jnp.zeros_like(v) for k, v in evaluation_rows(ITEMS, N_ITEMS).items()}
    rows |= {f"time_{d}": rows[f"time_{d}"] - 1 for d in "AB"}
    scores = scores_of(model, params, rows, jnp.arange(1, 5))
    assert np.isfinite(scores).all()


def test_an_empty_target_stream_reads_the_merged_one():
    """BBBB then a target of A: the history counts, through stream x."""
    items, n_items = histories(("BBBBA", "BBBBA", "AB"))
    model = backbone(n_items, tables=support_of(items, n_items))
    params = random_params(model)
    rows = evaluation_rows(items, n_items)
    assert not rows["seq_A"][0].any()
    scores = scores_of(model, params, rows, jnp.arange(1, n_items[0] + 1))
    assert np.abs(scores[0] - scores[1]).max() > 1e-4


def test_number_of_parameters():
    """d = 8, two blocks a stream: 3·2·(4(d²+d) + 2(d²+d) + 4d) + 3·2d in the encoder."""
    d, v = 8, sum(N_ITEMS) + 1
    encoder = 6 * (6 * (d * d + d) + 4 * d) + 3 * 2 * d
    tables = v * d + (MERGED + 2 * LENGTH) * d
    plain, z = 4 * d * 8 + 8 + d * d + 8 * 4 + 4 + 4 + 1, d // 2
    process = (5 * d - d + 2) * d + d + 2 * (d * d + d)  # pair encoder: 3d streams, d item, 2 flags
    process += d * d + d + 2 * (d * z + z)  # latent head
    process += z * 8 + 2 * (z * d + d) + 2 * (d * 8 + 8) + 2 * (d * 4 + 4)  # z, gamma, beta, FiLM

    def count(**config):
        sizes = {"blocks": 2} | config
        shapes = jax.eval_shape(backbone(N_ITEMS, **sizes).init, jax.random.key(0))
        return sum(a.size for a in jax.tree.leaves(shapes))

    assert count(neural_process=False) == encoder + tables + plain
    assert count() == encoder + tables + plain + process
    one_block = 3 * (6 * (d * d + d) + 4 * d)
    assert count(blocks=3) - count() == count() - count(blocks=1) == one_block
