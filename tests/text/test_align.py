"""Item vectors that are turned, shifted or trained before tables are made of them."""

import dataclasses

import jax
import numpy as np
import pytest

from oa_jax.backbones.llm4cdsr.parts import synthetic_tables
from oa_jax.errors import UserError
from oa_jax.events import split as splits
from oa_jax.events.views import embeddings
from oa_jax.events.world import World, generate, latents
from oa_jax.text import align, build
from oa_jax.text.align import Alignment, bought_together, contrastive, world_vectors
from oa_jax.text.tables import FILES, history_of, load_tables

WORLD = World(n_users=200, topics=4, n_items=(160, 160))


@pytest.fixture(scope="module")
def log():
    return generate(WORLD)


@pytest.fixture(scope="module")
def n_history(log):
    return history_of(splits.leave_one_out(log))


def across(rows, log):
    """Mean cosine of an item of A and one of B, of the same topic less that of others."""
    unit, n_a = rows / np.linalg.norm(rows, axis=1, keepdims=True), log.n_items[0]
    topic, alike = latents(WORLD).item_topic, unit[:n_a] @ unit[n_a:].T
    same = topic[:n_a, None] == topic[n_a:]
    return alike[same].mean() - alike[~same].mean()


def test_pairs_are_of_one_user_and_of_its_history_alone(log, n_history):
    known = np.arange(sum(log.n_items)) % 10 != 3
    rng = np.random.default_rng(0)
    pairs = bought_together(log, n_history, known, (40, 64), rng)
    assert pairs.shape == (40, 64, 2) and known[pairs].all()
    assert (pairs[..., 0] < log.n_items[0]).all() and (pairs[..., 1] >= log.n_items[0]).all()
    may = log.position < n_history[log.user]
    taken = [set(log.item[may & (log.user == user)] - 1) for user in range(log.n_users)]
    assert all(any({a, b} <= one for one in taken) for a, b in pairs.reshape(-1, 2).tolist())
    seen = set(pairs.ravel().tolist())
    held_out = set(range(sum(log.n_items))) - set.union(*taken)
    assert len(seen) > 200 and not seen & held_out
    short = np.minimum(n_history, 1)
    with pytest.raises(UserError, match="no user took items of both domains"):
        bought_together(log, short, known, (2, 2), rng)


def test_training_aligns_what_a_rotation_took_apart_and_is_deterministic(log, n_history):
    plain = embeddings(WORLD)
    torn = Alignment("rotated").apply(plain, log, n_history)
    trained, again, other = (
        Alignment("aligned", steps=300, seed=seed).apply(torn, log, n_history) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(trained, again)
    assert (trained != other).any()
    assert across(plain, log) > 0.25 > 0.1 > abs(across(torn, log))
    assert across(trained, log) > across(torn, log) + 0.2
    lengths = [np.linalg.norm(rows, axis=1) for rows in (plain, torn, trained)]
    for found in lengths[1:]:
        np.testing.assert_allclose(found, lengths[0], atol=1e-5)


def test_views_are_aligned_by_pairs_of_the_same_item(log, n_history):
    apart = world_vectors(dataclasses.replace(WORLD, views=2), log, n_history)
    trained = world_vectors(dataclasses.replace(WORLD, views=2, aligned=True), log, n_history)
    assert abs(across(apart, log)) < 0.1 and across(trained, log) > 0.25
    turned = dataclasses.replace(WORLD, views=2, aligned=True, rotation=1.0)
    assert abs(across(world_vectors(turned, log, n_history), log)) < 0.1
    np.testing.assert_array_equal(world_vectors(WORLD, log, n_history), embeddings(WORLD))


def test_no_device_rounds_the_products(monkeypatch):
    """The fingerprint of the data is that of every device."""
    seen, train = [], align._train

    def recorded(*args):
        seen.append(jax.config.jax_default_matmul_precision)
        return train(*args)

    monkeypatch.setattr(align, "_train", recorded)
    views = np.random.default_rng(0).normal(size=(2, 6, 4))
    contrastive(views, np.zeros((1, 2, 2), int))
    assert seen == ["highest"]


def test_a_row_of_zeros_stays_one_and_does_not_spoil_the_others():
    rows = np.random.default_rng(0).standard_normal((12, 5))
    rows[3] = 0
    pairs = np.array([[[0, 7], [1, 8], [1, 9], [2, 10]]] * 3)  # item 1 twice: no negative of itself
    found = contrastive(np.stack([rows, rows]), pairs)
    assert np.isfinite(found).all() and not found[:, 3].any() and (found[0, 0] != rows[0]).any()


def test_tables_of_a_world_say_how_their_vectors_lie(log):
    split = splits.leave_one_out(log)
    plain = synthetic_tables(WORLD, log, split, False)
    assert plain.metadata == {"encoder": "synthetic", "log": log.fingerprint()}
    turned = synthetic_tables(dataclasses.replace(WORLD, rotation=0.5), log, split, False)
    assert turned.metadata == plain.metadata | {"rotation": 0.5}
    assert np.abs(turned.global_table - plain.global_table).max() > 0.1


@pytest.fixture(scope="module")
def made(tiny_prepared, tmp_path_factory):
    """Function (kind) -> tables of the tiny set with vectors so changed."""
    prepared, folder = tiny_prepared(), tmp_path_factory.mktemp("aligned")
    rng = np.random.default_rng(5)
    for name, n in zip("ab", prepared.log.n_items, strict=True):
        np.save(folder / f"{name}.npy", rng.normal(size=(n, 8)).astype(np.float32))
    encoder = f"{folder / 'a.npy'},{folder / 'b.npy'}"
    common = {"global_width": 8, "local_width": 4}

    def make(kind):
        options = build.Options(encoder, None, alignment=Alignment(kind, steps=5), **common)
        out = folder / kind
        build.write(prepared, options, out, print)
        return load_tables(out, prepared.log), out

    return make


def test_folders_of_tables_say_what_was_done(made, tiny_prepared):
    log = tiny_prepared().log
    plain, out = made("as_is")
    assert "alignment" not in plain.metadata["inputs"]
    for kind in ("rotated", "shifted", "aligned"):
        found, _ = made(kind)
        said = dict(found.metadata["inputs"])
        assert said.pop("alignment")["kind"] == kind and said == plain.metadata["inputs"]
        changed = {field: (getattr(found, field) != getattr(plain, field)).any() for field in FILES}
        assert changed["global_table"] and changed["users"] and not changed["n_history"]
        assert found.metadata["log"] == log.fingerprint()
    # A rotation is invisible to a domain alone: its principal components are what they were.
    rotated, _ = made("rotated")
    np.testing.assert_allclose(np.abs(rotated.local_b), np.abs(plain.local_b), atol=1e-4)
    with pytest.raises(UserError, match="alignment: there None, asked for"):
        other = build.Options(
            ",".join(str(out.parent / f"{name}.npy") for name in "ab"),
            None, global_width=8, local_width=4, alignment=Alignment("rotated"),
        )  # fmt: skip
        build.write(tiny_prepared(), other, out, print)


def test_an_amount_is_checked():
    for kind, amount in (("rotated", 1.5), ("shifted", -1)):
        with pytest.raises(UserError, match=f"--amount={amount}: expected a number from 0"):
            Alignment(kind, amount)
