"""SASRec: what its streams see, what its losses are, whom it is asked about."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from oa_jax.backbones import known
from oa_jax.backbones.sasrec.fields import Model
from oa_jax.backbones.sasrec.model import Backbone
from oa_jax.errors import UserError
from oa_jax.nn.known import GCAConfig
from oa_jax.nn.task import FILLS

pytestmark = pytest.mark.slow
LENGTH, N_ITEMS = 6, (5, 7)
HPARAMS = {"dropout": 0.0, "ortho_weight": 0.0}
STREAMS = ("merged", "apart", "A", "B")


def backbone(gca=(), **config):
    sizes = {"d_embed": 8, "heads": 2, "length": LENGTH}
    return Backbone(N_ITEMS, Model(**sizes | config), GCAConfig(positions=gca))


def random_params(model, seed=0):
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: jnp.asarray(rng.normal(0, 0.4, a.shape), a.dtype), shapes)


@functools.cache
def experiment(stream="merged", **changes):
    return toy.small_experiment("sasrec", f"pair=synthetic,stream={stream}", **changes)


@functools.cache
def batch_of(stream, loss="bce", n_negatives=1):
    """(task, its first batch on the host) of the small world."""
    task = experiment(stream, model__loss=loss, train__n_negatives=n_negatives).data.task
    arrays = jax.tree.map(jnp.asarray, task.train_arrays())
    capacity = task.capacity(task.slot_counts.sum(1))
    batch = jax.jit(task.batch, static_argnums=4)(arrays, jnp.arange(16), 0, 0, capacity)
    return task, jax.device_get(batch)


def states(model, params, row):
    """(L, D): the state of every column of a history of all events."""
    rows = model.rows(jnp.asarray([row], jnp.int32), jnp.zeros(1, jnp.int32))
    return next(iter(model.net.apply({"params": params}, rows)[0].values()))


def test_a_state_knows_its_own_event_and_the_earlier_ones():
    model = backbone()
    params, row = random_params(model), [1, 8, 3, 9, 2, 11]
    h_LxD = states(model, params, row)
    for at in range(LENGTH):
        other = states(model, params, row[:at] + [4] + row[at + 1 :])
        moved = np.abs(other - h_LxD).max(-1) > 1e-6
        assert not moved[:at].any() and moved[at:].all()
    padded = states(model, params, [0, 0, *row[2:]])
    assert (padded[:2] == 0).all() and np.abs(padded[2:] - h_LxD[2:]).max() > 1e-3


def test_a_stream_of_one_domain_does_not_know_the_other():
    model = backbone(stream="A")
    params = random_params(model)
    one, same, other = (
        states(model, params, row)[-2:]
        for row in ([1, 8, 2, 9], [12, 1, 2, 7], [3, 8, 2, 9])  # items above 5 are of B
    )
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).max() > 1e-3
    assert not any("_B" in name or "_x" in name for name in params)


@pytest.mark.parametrize("window", ["own", "now"])
def test_no_token_sees_its_target_through_a_fusion(window):
    """In training: an event of the merged stream becomes another of its domain."""
    whole = toy.small_experiment("sasrec", "pair=synthetic,gca=0-1-2", gca__window=window)
    model, task = whole.engine.settings.backbone, whole.data.task
    params, (n_a, n_b) = random_params(model), task.log.n_items
    run = jax.jit(lambda rows: model.net.apply({"params": params}, rows)[0])
    rows = {name: task.train_arrays()[name][:16] for name in FILLS}
    before, column = run(rows), 6
    old = rows["seq"][:, column, None]
    new = np.where(old > n_a, (old - n_a) % n_b + n_a + 1, old % n_a + 1)
    changed = {"seq": np.where(np.arange(task.length) == column, new, rows["seq"])}
    for d in "AB":
        changed[f"seq_{d}"] = np.where(rows[f"time_{d}"] == column, new, rows[f"seq_{d}"])
    assert (old > 0).all()
    after = run(rows | changed)
    for d in "AB":
        time, h = rows[f"time_{d}"], np.asarray(after[d] - before[d]).reshape(16, task.length, -1)
        target, moved = np.roll(time, -1, 1), np.abs(h).max(-1) > 1e-6
        target[:, -1] = task.length
        assert not moved[(time >= 0) & (target <= column)].any()
        between = (time >= 0) & (time < column) & (target > column)
        assert between.any() and moved[between].any() == (window == "now")
        assert moved[time == column].all()


@pytest.mark.parametrize("stream", STREAMS)
def test_targets_are_the_next_events_of_a_stream(stream):
    """Against loops over the users' training parts."""
    task, batch = batch_of(stream)
    log, n_a = task.log, task.log.n_items[0]
    for name in task.scored:
        seq, pos = batch["seq" if name == "x" else f"seq_{name}"], batch[f"pos_{name}"]
        for row in range(16):
            user = task.row_users[row]
            begin = log.offsets[user]
            items = log.item[begin : begin + task.split.n_train[user]].tolist()
            kept = [i for i in items if name == "x" or (i > n_a) == (name == "B")]
            pairs = list(zip(kept[:-1], kept[1:], strict=True))
            found = [(i, t) for i, t in zip(seq[row], pos[row], strict=True) if t]
            lost = len(pairs) - len(found)
            assert found == pairs[lost:]
            assert lost == 0 or len(kept) > task.length  # the oldest are cut off
    assert task.scored == {"merged": ("x",), "apart": ("A", "B")}.get(stream, (stream,))


@pytest.mark.parametrize("stream", ["merged", "apart"])
def test_negatives_are_new_items_of_the_targets_domain(stream):
    task, batch = batch_of(stream, n_negatives=3)
    log, n_a = task.log, task.log.n_items[0]
    for name in task.scored:
        at, negatives = batch[f"at_{name}"], batch[f"neg_{name}"]
        used = at < 16 * task.length
        target = batch[f"pos_{name}"].ravel()[at[used]]
        has_target = target > 0
        target, drawn = target[has_target], negatives[used][has_target]
        assert ((drawn > n_a) == (target > n_a)[:, None]).all() and (
            np.diff(np.sort(drawn)) > 0
        ).all()
        for place, items in zip(at[used][has_target] // task.length, drawn, strict=True):
            begin = log.offsets[task.row_users[place]]
            taken = log.item[begin : begin + task.split.n_train[task.row_users[place]]]
            assert not set(items) & set(taken.tolist())


def one_token(loss, negatives, **config):
    """(loss, score of each item) of one token with target 2, of domain A."""
    model = backbone(loss=loss, **config)
    params = random_params(model)
    batch = {
        "seq": jnp.asarray([[0, 0, 0, 0, 9, 1]]),
        "at_x": jnp.asarray([4, 5]),
        "pos_x": jnp.asarray([[0, 0, 0, 0, 0, 2]]),  # the token before has no target
        "neg_x": jnp.asarray([[6] * len(negatives), negatives]),
    }
    h_D = states(model, params, [9, 1])[-1]
    return model.loss(params, batch, None, HPARAMS)[0], np.asarray(model.index(params) @ h_D)


@pytest.mark.parametrize("tied", [True, False])
def test_binary_cross_entropy_by_hand(tied):
    found, score = one_token("bce", [4, 5], tied=tied)
    sigmoid = 1 / (1 + np.exp(-score))
    by_hand = -np.log(sigmoid[2]) - np.log(1 - sigmoid[4]) - np.log(1 - sigmoid[5])
    assert found == pytest.approx(by_hand, rel=1e-5)
    assert found != pytest.approx(by_hand + np.log(1 - sigmoid[5]), rel=1e-3)


def test_the_full_softmax_is_the_sampled_one_with_all_items_of_the_domain():
    full, score = one_token("full", [1])
    sampled, _ = one_token("sampled", [1, 3, 4, 5])
    by_hand = np.log(np.exp(score[1:6]).sum()) - score[2]
    assert full == pytest.approx(by_hand, rel=1e-5) and sampled == pytest.approx(by_hand, rel=1e-5)
    fewer, _ = one_token("sampled", [1, 3, 4])
    assert fewer < full - 1e-3


def test_gradients_of_the_full_softmax_are_those_of_the_sampled_one():
    model, every = backbone(loss="full"), backbone(loss="sampled")
    params, rng = random_params(model), np.random.default_rng(1)
    # Targets are all of B, as tokens have as many negatives each.
    seq, pos = rng.integers(1, 13, (3, LENGTH)), rng.integers(6, 13, (3, LENGTH))
    rivals = np.array([[i for i in range(6, 13) if i != t] for t in pos.ravel()])
    batch = {"seq": seq, "at_x": np.arange(18), "pos_x": pos, "neg_x": rivals}
    batch = jax.tree.map(jnp.asarray, batch)
    one, two = (
        jax.jit(jax.value_and_grad(lambda p, m=m: m.loss(p, batch, None, HPARAMS)[0]))(params)
        for m in (model, every)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-6), one, two)


@pytest.mark.parametrize("stream", ["A", "B"])
def test_a_model_of_one_domain_is_asked_about_it_alone(stream):
    rows = experiment(stream).evaluation.rows
    for split in ("val", "test"):
        both = experiment("apart").evaluation.rows[split]
        own = both["domain"] == "AB".index(stream)
        assert (rows[split]["domain"] == "AB".index(stream)).all()
        np.testing.assert_array_equal(rows[split]["user"], both["user"][own])
        # The same candidates as every other model's of that domain.
        np.testing.assert_array_equal(rows[split]["candidates"], both["candidates"][own])


def test_sizes_and_names():
    def size(stream="merged", gca=(), **config):
        model = Backbone(N_ITEMS, Model(stream=stream, **config), GCAConfig(positions=gca))
        shapes = jax.eval_shape(model.init, jax.random.key(0))
        return sum(leaf.size for leaf in jax.tree.leaves(shapes)) - 50 * (sum(N_ITEMS) + 1)

    # Of a stream: positions 51·50, two blocks of attention 4·50² + 4·50, two dense layers
    # 2·50² + 2·50 and two norms 4·50, a last norm 2·50.
    stream = 51 * 50 + 2 * (6 * 50**2 + 10 * 50) + 2 * 50
    assert [size(s) for s in STREAMS] == [stream, 2 * stream, stream, stream]
    # Attention, gate 2D -> 4D -> D, norm, twice; stream x has no last norm, as it scores nothing.
    place = 2 * (4 * 50**2 + 4 * 50 + 12 * 50**2 + 5 * 50 + 2 * 50)
    assert size(gca=(0,)) == 3 * stream - 100 + place
    assert size(gca=(0, 2)) == 3 * stream - 100 + 2 * place
    assert size(tied=False) == stream + 50 * 13
    assert experiment("A").label == "sasrec A" and experiment().label == "sasrec"


def test_a_fusion_needs_the_merged_stream():
    for stream in STREAMS[1:]:
        with pytest.raises(UserError, match="positions=.0.: expected .., as model.stream has no"):
            known.resolve(toy.small_config("sasrec", f"stream={stream},gca=early"))
