"""Control arms of GCA in every backbone: whose Y a token uses, up to where, with itself or not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from oa_jax.backbones.abxi.model import own_columns
from oa_jax.nn import angles
from oa_jax.ranking.candidates import donors
from tests.backbones.abxi import _batches as abxi
from tests.backbones.cdsrnp import _batches as cdsrnp
from tests.nn.test_fusion import BACKBONES, ITEMS, N_ITEMS

pytestmark = pytest.mark.slow
SOURCES = ("merged", "other", "self", "shuffled")


def merged_of(name):
    return "seq_x" if name == "abxi" else "seq"


def stream_of(name, domain):
    return f"seq_{domain.lower() if name == 'abxi' else domain}"


class Case:
    """A backbone with one fusion at the first place, and what it adds to tokens of A."""

    def __init__(self, name, **gca):
        self.model, rows = BACKBONES[name](gca | {"positions": (0,)})
        self.rows = {k: np.asarray(v) for k, v in rows.items() if k != "seen"}
        shapes, rng = jax.eval_shape(self.model.init, jax.random.key(0)), np.random.default_rng(0)
        draw = lambda leaf: jnp.asarray(rng.normal(0, 0.4, leaf.shape), leaf.dtype)  # noqa: E731
        self.params = jax.tree.map(draw, shapes)
        self.run = jax.jit(lambda params, rows: self.model.probe(params, rows)["0/A"])

    def probe(self, **rows):
        """Of A, its arrays in the shape of the rows, (R, L, …)."""
        found = self.run(self.params, self.rows | rows)
        n_rows = len(next(iter((self.rows | rows).values())))
        return {k: np.asarray(v).reshape(n_rows, -1, *v.shape[1:]) for k, v in vars(found).items()
                if k != "more"}  # fmt: skip


def with_other_ids(ids_RxL):
    """The same tokens with other items: those of a row in reverse order."""
    out = ids_RxL.copy()
    for row in out:
        row[row > 0] = row[row > 0][::-1]
    return out


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("name", BACKBONES)
def test_whose_y_a_token_uses(name, source):
    case, merged = Case(name, source=source), merged_of(name)
    donor = np.roll(case.rows[merged], 1, 0)
    more = {"donor": donor} if source == "shuffled" else {}
    update = case.probe(**more)["update"]
    assert np.isfinite(update).all() and np.abs(update).max() > 0.01
    streams = {"merged": merged, "other": stream_of(name, "B"), "shuffled": "donor"}
    for of, stream in streams.items():
        if stream in case.rows | more:
            ids = with_other_ids((case.rows | more)[stream])
            moved = np.abs(case.probe(**more | {stream: ids})["update"] - update).max()
            assert (moved > 1e-3) == (of == source), of
    if source == "self":  # a token may use its own stream, up to itself
        x = case.probe()["x"]
        assert np.abs(x).max() > 0.01
    if source == "shuffled":
        # The same in another block of users; without a donor, the next row that has a token.
        half = {k: v[: len(v) // 2] for k, v in (case.rows | more).items()}
        first = Case(name, source=source)
        first.rows = half
        np.testing.assert_allclose(first.probe()["update"], update[: len(half[merged])], atol=1e-5)
        following = case.probe(donor=np.roll(case.rows[merged], -1, 0))["update"]
        np.testing.assert_allclose(case.probe()["update"], following, atol=1e-5)
        alone = Case(name, source=source)
        alone.rows = {k: v[:1] for k, v in case.rows.items()}
        assert not alone.probe()["has_key_P"].any() and not alone.probe()["update"].any()


@pytest.mark.parametrize("name", BACKBONES)
def test_a_hidden_token_does_not_see_itself(name):
    """The newest token of A: its own item in the merged stream becomes another."""
    for own_item in ("visible", "hidden"):
        case, merged = Case(name, own_item=own_item), merged_of(name)
        own, ids = case.rows[stream_of(name, "A")][:, -1:], case.rows[merged]
        with_a = own[:, 0] > 0
        before, after = case.probe(), case.probe(**{merged: np.where(ids == own, 1, ids)})
        moved = np.abs(after["update"] - before["update"])[with_a, -1].max(-1)
        assert with_a.sum() > 2 and ((ids == own) & (own > 1)).any()
        assert (moved.max() > 1e-3) == (own_item == "visible")
        # Who begins a history has nothing to see but itself.
        lonely = before["real_P"] & ~before["has_key_P"]
        assert lonely.any() or own_item == "visible"
        assert not before["update"][lonely].any()


@pytest.mark.parametrize("name", BACKBONES)
def test_a_hidden_token_of_its_own_stream_does_not_see_itself(name):
    """So that the first one of a stream, and it alone, has nothing to see."""
    probe = Case(name, source="self", own_item="hidden").probe()
    first = probe["real_P"] & (np.cumsum(probe["real_P"], 1) == 1)
    assert first.any()
    np.testing.assert_array_equal(probe["real_P"] & ~probe["has_key_P"], first)


@pytest.mark.parametrize("window", ["own", "now"])
def test_cdsrnp_scores_with_all_that_came_before_the_target(window):
    """Of LLM4CDSR, in training too: llm4cdsr/test_causality.py. ABXI has no other window."""
    gca = {"positions": (0, 1, 2), "window": window}
    model = cdsrnp.backbone(N_ITEMS, gca, neural_process=False)
    params, rows = cdsrnp.random_params(model), cdsrnp.evaluation_rows(ITEMS, N_ITEMS)

    def own(items):
        return model.encode({"net": params["net"] | {"items": items}}, rows).own

    def total(items):
        states = own(items)
        return jnp.sum(states * jax.random.normal(jax.random.key(1), states.shape))

    seen = np.abs(jax.jit(jax.grad(total))(params["net"]["items"])).max(-1)
    newest = []
    for items in ITEMS:
        past, target = items[:-1], items[-1]
        of_domain = [(i > N_ITEMS[0]) == (target > N_ITEMS[0]) for i in past]
        last = max((i for i, mine in enumerate(of_domain) if mine), default=len(past))
        newest += past[last + 1 :]
        assert seen[target] == 0
    assert len(newest) > 1 and (seen[newest] > 1e-6).all() == (window == "now")
    assert window == "now" or not seen[newest].any()


def test_an_epoch_with_arms():
    """All at once; the learnt scales are statistics, and λ may be negative."""
    changes = {"source": "shuffled", "part": "split", "gate": "head", "ortho_weight": -0.05}
    changes |= {"window": "now", "own_item": "hidden", "residual": False}
    found = toy.small_experiment(
        "llm4cdsr", "pair=synthetic,gca=early", **{f"gca.{k}": v for k, v in changes.items()}
    )
    rows = found.evaluation.rows["val"]
    order = donors(found.data.log.fingerprint(), "val", len(rows["seq"]))
    np.testing.assert_array_equal(rows["donor"], rows["seq"][order])
    assert found.label.startswith("llm4cdsr + GCA[0] source=shuffled window=now gate=head")
    engine, seeds = found.engine, found.seeds
    states = engine.create(seeds, found.hparams())
    states, report = engine.epoch(states, found.train_arrays(), engine.capacity(seeds, 0))
    assert np.isfinite(report["train"]["loss"]).all()
    for seed in range(len(seeds)):
        flat = angles.flatten(jax.tree.map(lambda a, seed=seed: a[seed], report["gca"]))
        scales = [flat[f"gca/0/{d}/scale_{p}"] for d in "AB" for p in ("parallel", "orthogonal")]
        assert all(0.5 < scale < 1.5 and scale != 1 for scale in scales)


@pytest.mark.parametrize("batch", [abxi.training_batch(), abxi.evaluation_batch()], ids=len)
def test_abxi_knows_where_the_own_item_stands(batch):
    columns = own_columns(batch, abxi.N_ITEMS[0])
    for domain, letter in (("A", "a"), ("B", "b")):
        own, column = np.asarray(batch[f"seq_{letter}"]), np.asarray(columns[domain])
        found = np.take_along_axis(np.asarray(batch["seq_x"]), np.maximum(column, 0), 1)
        there = (own > 0) & (column >= 0)
        np.testing.assert_array_equal(found[there], own[there])
        assert there.sum() > 0.9 * (own > 0).sum() > 10
