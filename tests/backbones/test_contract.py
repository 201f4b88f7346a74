"""Every known backbone keeps the contract, and one that breaks a rule of it is found out.

Elsewhere, for all backbones: resuming (tests/runs), divided tables (tests/engine/test_tables.py),
rows from files (tests/engine/test_streaming.py).
"""

import copy
import dataclasses
import functools

import contract
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from oa_jax.backbones import known
from oa_jax.nn import angles
from oa_jax.nn.known import FUSIONS
from oa_jax.nn.layers import Packing
from oa_jax.nn.streams import packed


@functools.cache
def case(backbone):
    """The smallest model with a fusion at every place, quirks that break the rules off."""
    model = dataclasses.replace(known.fields(backbone)().model, blocks=1)
    argument = f"pair=synthetic,gca={'-'.join(map(str, model.places))}"
    changes = {"protocol": "corrected", "seeds": 2, "model.dropout": 0.0}
    if backbone == "cdsrnp":  # with fewer units most rows reach none of the last layer
        changes["model.decoder_widths"] = (32, 32)
    return contract.Case(toy.small_experiment(backbone, argument, **changes), with_one_fusion)


def with_one_fusion(backbone):
    """The same, of the same parameters: a loss compiles faster with one fusion than with six."""
    return dataclasses.replace(backbone, gca=dataclasses.replace(backbone.gca, positions=(0,)))


@functools.cache
def toy_case():
    return contract.Case(toy.toy_experiment(seeds=2, protocol="corrected"))


@pytest.mark.parametrize("check", contract.CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("backbone", known.NAMES)
@pytest.mark.slow
def test_the_contract(backbone, check):
    check(case(backbone))


@pytest.mark.parametrize(
    ("backbone", "quirks"),
    [
        ("llm4cdsr", {}),
        ("llm4cdsr", {"q16_second_pass": True}),
        ("llm4cdsr", {"q1_no_causal_mask": True, "q4_attend_to_padding": True}),
        ("cdsrnp", {}),
        ("sasrec", {}),
        ("abxi", {}),
        ("abxi", {"q3_attend_to_padding": True}),
    ],
)
@pytest.mark.slow
def test_attention_in_chunks_changes_no_loss(backbone, quirks):
    """Nor its gradients, without dropout. Q16 asks a training batch for its last places, too."""
    whole = case(backbone)
    rows = whole.task.rows_of_batch(jnp.arange(whole.task.batch_size), 0, 0)
    batch = whole.batch(whole.arrays, rows, 0, 0, whole.capacity)
    hparams = whole.hparams | {"dropout": 0.0}

    def found(attention):
        changes = {"config": dataclasses.replace(whole.learner.config, attention=attention)}
        key = jax.random.key(0) if quirks else None
        if quirks:
            changes["quirks"] = dataclasses.replace(whole.learner.quirks, **quirks)
        learner = dataclasses.replace(whole.learner, **changes)
        loss = jax.value_and_grad(lambda p: learner.loss(p, batch, key, hparams)[0])
        traced = jax.jit(loss).trace(whole.params)
        return traced.lower().compile(), str(traced.jaxpr)

    (by_rows, text), (by_chunks, other) = found("rows"), found("chunks")
    assert text != other
    both = [jax.tree.leaves(of(whole.params)) for of in (by_rows, by_chunks)]
    largest = max(np.abs(one).max() for one in both[0])
    for one, other in zip(*both, strict=True):
        np.testing.assert_allclose(other, one, atol=1e-4 * np.abs(one).max() + 1e-6 * largest)


@pytest.mark.parametrize(
    ("backbone", "quirks"),
    [
        ("llm4cdsr", {"q1_no_causal_mask": True, "q4_attend_to_padding": True}),
        ("cdsrnp", {}),
        ("sasrec", {}),
    ],
)
@pytest.mark.slow
def test_tokens_alone_are_encoded_as_the_grids_of_evaluation_rows(backbone, quirks):
    """Of two blocks of users, the second with empty rows; fusions see and do the same, too."""
    whole = case(backbone)
    changes = {"config": dataclasses.replace(whole.backbone.config, attention="chunks")}
    if quirks:
        changes["quirks"] = dataclasses.replace(whole.backbone.quirks, **quirks)
    model = dataclasses.replace(whole.backbone, **changes)
    size = len(whole.rows["target"]) // 2 + 1

    def block(rows):
        sums = {name: angles.sums(one) for name, one in model.probe(whole.params, rows).items()}
        return model.encode(whole.params, rows), sums

    def found(places):
        """(real rows, what they are and what fusions do, the program; how an intervention finds
        the tokens)."""
        evaluation = whole.experiment.evaluation
        evaluation = dataclasses.replace(evaluation, packed=places, block_users=size)
        rows = evaluation.padded(evaluation.rows["test"])
        assert places.keys() <= rows.keys()
        rows = jax.tree.map(lambda a: a.reshape(2, -1, *a.shape[1:]), rows)
        traced = jax.jit(lambda rows: jax.lax.map(block, rows)).trace(rows)
        packings = []

        def part(update, query, name):
            packings.append(query.packing)
            return update

        changed = dataclasses.replace(model, gca=dataclasses.replace(model.gca, part=part))
        jax.eval_shape(changed.encode, whole.params, jax.tree.map(lambda a: a[0], rows))
        return rows["real"], traced.lower().compile()(rows), str(traced.jaxpr), packings

    real, (encoded, sums), text, _ = found({})
    _, (same, same_sums), other, packings = found(packed(model.config, 1, model.gca))
    assert text != other
    assert {type(one) for one in packings} == {Packing} and packings[0].at_P is not None
    for one, tokens in zip(*map(jax.tree.leaves, (encoded, same)), strict=True):
        np.testing.assert_allclose(tokens[real], one[real], atol=3e-4 * np.abs(one).max())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3), sums, same_sums)


class Broken:
    """A backbone with one function in another form."""

    def __init__(self, backbone, **functions):
        self.backbone, self.functions = backbone, functions

    def __getattr__(self, name):
        if name in self.functions:
            return functools.partial(self.functions[name], self.backbone)
        return getattr(self.backbone, name)


def broken(whole, backbone):
    """A case with another backbone; it has the same parameters."""
    other = copy.copy(whole)
    other.replace_backbone(backbone)
    return other


def mixes_rows(backbone, params, rows):
    return backbone.encode(params, {k: jnp.roll(v, 1, 0) for k, v in rows.items() if k != "seen"})


def shifts_blocks(backbone, index, encoded, candidates):
    scores = backbone.score(index, encoded, candidates)
    return scores + jnp.arange(scores.shape[1]) if candidates.ndim == 1 else scores


def counts_slots(backbone, params, batch, key, hparams):
    loss, aux = backbone.loss(params, batch, key, hparams)
    return loss * len(batch["at_A"]), aux


def loses_empty_rows(backbone, params, batch, key, hparams):
    loss, aux = backbone.loss(params, batch, key, hparams)
    return loss / (batch["n_users"] == len(batch["gt"])), aux


@jax.custom_batching.custom_vmap
def of_other_seed(loss):
    return loss


@of_other_seed.def_vmap
def _(_size, _batched, loss):
    return loss[::-1], True


def mixes_seeds(backbone, params, batch, key, hparams):
    loss, aux = backbone.loss(params, batch, key, hparams)
    still = jax.lax.stop_gradient(loss)
    return loss + of_other_seed(still) - still, aux


def forgets_the_latest(backbone, history, domain):
    return backbone.rows(jnp.pad(history, [(0, 0), (1, 0)])[:, :-1], domain)


BROKEN = {
    "seeds_are_alone": {"loss": mixes_seeds},
    "rows_do_not_know_each_other": {"encode": mixes_rows},
    "candidates_are_scored_as_in_full_ranking": {"score": shifts_blocks},
    "room_for_tokens_changes_no_loss": {"loss": counts_slots},
    "an_epochs_last_batch_may_have_empty_rows": {"loss": loses_empty_rows},
}


@pytest.mark.parametrize("rule", BROKEN)
def test_a_broken_backbone_is_found_out(rule):
    with pytest.raises(AssertionError):
        getattr(contract, rule)(broken(toy_case(), Broken(toy_case().backbone, **BROKEN[rule])))


@pytest.mark.parametrize("rule", BROKEN)
def test_and_the_whole_one_is_not(rule):
    getattr(contract, rule)(toy_case())


@pytest.mark.slow
def test_a_backbone_that_forgets_events_is_found_out():
    """Of ABXI, as the toy makes no rows."""
    forgetful = Broken(case("abxi").backbone, rows=forgets_the_latest)
    with pytest.raises(AssertionError):
        contract.rows_of_histories_are_the_tasks(broken(case("abxi"), forgetful))


@pytest.mark.slow
def test_a_fusion_that_looks_ahead_is_found_out():
    whole = case("abxi")
    gca = dataclasses.replace(whole.backbone.gca, causal=False)
    ahead = broken(whole, dataclasses.replace(whole.backbone, gca=gca))
    with pytest.raises(AssertionError, match="update"):
        contract.no_token_sees_a_later_event(ahead)


@pytest.mark.parametrize("backbone", known.NAMES)
def test_no_fusion_looks_ahead(backbone):
    """All of them in one, as experts; with the window that goes up to the target."""
    whole, other = case(backbone), copy.copy(case(backbone))
    experts = tuple(name for name in FUSIONS if name != "experts")
    fields = {"fusion": "experts", "experts": experts, "positions": (1,), "window": "now"}
    model = dataclasses.replace(
        whole.backbone, gca=dataclasses.replace(whole.backbone.gca, **fields)
    )
    other.replace_backbone(model)
    shapes, rng = jax.eval_shape(model.init, jax.random.key(0)), np.random.default_rng(0)
    draw = lambda leaf: jnp.asarray(rng.normal(0, 0.3, leaf.shape), leaf.dtype)  # noqa: E731
    other.params = jax.tree.map(draw, shapes)
    contract.no_token_sees_a_later_event(other)


def test_a_missing_function_is_named():
    nothing = copy.copy(case("abxi"))
    nothing.backbone = object()
    with pytest.raises(AssertionError, match="object has no .*'encode'"):
        contract.has_the_functions_of_the_contract(nothing)
