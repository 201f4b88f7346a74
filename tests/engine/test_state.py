"""The schedule against the rule written down plainly."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy

from oa_jax.engine import state as state_lib
from oa_jax.engine.compilation import QUICK_OPTIONS
from oa_jax.engine.state import Schedule
from oa_jax.ranking.ranks import mrr_sum

RATE = 0.5


@dataclasses.dataclass(frozen=True)
class Rule:
    """A schedule and the values of it that are a seed's own; defaults of official ABXI."""

    max_epochs: int
    warmup_epochs: int = 10
    plateau_patience: int = 30
    plateau_factor: float = 0.3162
    stop_patience: int = 61
    strict: bool = False

    @property
    def schedule(self):
        return Schedule(self.warmup_epochs, strict=self.strict)

    @property
    def hparams(self):
        own = ("max_epochs", "plateau_patience", "plateau_factor", "stop_patience")
        values = {"learning_rate": RATE} | {name: getattr(self, name) for name in own}
        return {name: jnp.float32(value) for name, value in values.items()}


def fresh(rule):
    """A state whose one parameter will say at which epoch it was taken."""
    hparams = rule.hparams
    return state_lib.create(3, hparams, lambda key: {"w": jnp.zeros(())}, optax.scale_by_adam())


@functools.cache
def compiled(rule):
    schedule = rule.schedule

    def epoch(state, score):
        rate = schedule.learning_rate(state)
        state = state.replace(epoch=state.epoch + 1, params={"w": state.params["w"] + 1})
        state = schedule.after_validation(state, score)
        seen = {"rate": rate, "done": state.done, "best_epoch": state.best_epoch}
        return state, seen | {"best": state.best_score, "taken": state.best_params["w"]}

    return jax.jit(lambda scores_E: jax.lax.scan(epoch, fresh(rule), scores_E)[1])


def simulate(schedule, scores_E):
    """What holds after each epoch, as numpy arrays (E,), and the rate that it trained with."""
    seen = compiled(schedule)(jnp.asarray(scores_E, jnp.float32))
    return {name: np.asarray(values) for name, values in seen.items()}


def plain(schedule, scores_E):
    """The rule word by word: rates of the epochs that run, (best epoch, best score), last epoch."""
    n_w, scale, best, best_epoch, bad, plateau, rates = (
        schedule.warmup_epochs,
        1.0,
        0.0,
        0,
        0,
        0,
        [],
    )
    for e, v in enumerate(scores_E, start=1):
        warm = 1e-5 + (1 - 1e-5) * (e - 1) / n_w if e <= n_w else 1.0
        rates.append(RATE * scale * warm)
        if e > n_w:
            if v >= best:
                best, best_epoch, bad, plateau = v, e, 0, 0
            else:
                bad += 1
                if bad > schedule.stop_patience:
                    break
                plateau += 1
                if plateau > schedule.plateau_patience:
                    scale, plateau = scale * schedule.plateau_factor, 0
        if e >= schedule.max_epochs:
            break
    return rates, (best_epoch, best), e


def check(schedule, scores_E):
    found, (rates, best, last) = simulate(schedule, scores_E), plain(schedule, scores_E)
    np.testing.assert_allclose(found["rate"][:last], rates, rtol=1e-5)
    assert (found["best_epoch"][last - 1], found["best"][last - 1]) == best
    assert found["taken"][last - 1] == best[0]  # the parameters of that very epoch
    over = last == schedule.max_epochs or last < len(scores_E)
    assert not found["done"][: last - 1].any() and found["done"][last - 1] == over
    return rates, last


SCHEDULES = [Rule(200, 3, 2, 0.5, 7), Rule(200, 0, 0, 0.9, 3), Rule(25, 5, 4, 0.3, 60)]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_equal_to_the_plain_rule(schedule):
    rng = np.random.default_rng(0)
    cuts, lasts = set(), set()
    for _ in range(25):
        # Quarters tie often; -1 is what a non-finite score counts as.
        scores = rng.choice(
            [-1.0, 0.0, 0.25, 0.5, 0.75, 1.0], 60, p=[0.1, 0.2, 0.3, 0.2, 0.15, 0.05]
        )
        rates, last = check(schedule, scores)
        cuts.add(round(min(rates[schedule.warmup_epochs :]) / RATE, 6))
        lasts.add(last)
    assert len(cuts) > 1  # the sequences do reach cuts
    assert len(lasts) > 1 or schedule.max_epochs == 25


@pytest.mark.parametrize("field", ["warmup_epochs", "plateau_patience", "stop_patience"])
def test_the_comparison_notices_a_schedule_off_by_one(field):
    """Twin: every patience counts exactly."""
    schedule = SCHEDULES[0]
    off = dataclasses.replace(schedule, **{field: getattr(schedule, field) + 1})
    scores = [0.5] * 5 + [0.25] * 30
    rates, (best_epoch, _), last = plain(schedule, scores)
    found = simulate(off, scores)
    done = int(np.argmax(found["done"])) + 1
    same = np.allclose(found["rate"][:last], rates, rtol=1e-5) and done == last
    assert not (same and found["best_epoch"][last - 1] == best_epoch)


def test_the_verified_example():
    """n_w = 10, best at epoch 11: the cut is effective from epoch 43, the run stops at 73."""
    found = simulate(Rule(500), [0.9] * 10 + [0.5] + [0.4] * 100)
    rate = found["rate"] / RATE
    assert np.allclose(rate[10:42], 1) and np.allclose(rate[42:73], 0.3162)
    assert int(np.argmax(found["done"])) + 1 == 73
    assert found["best_epoch"][72] == 11 and found["taken"][72] == 11


def test_warm_up_rates():
    rate = simulate(Rule(500, warmup_epochs=10), [0.5] * 12)["rate"] / RATE
    assert rate[0] == pytest.approx(1e-5, rel=1e-4)
    assert rate[1] == pytest.approx(0.1, rel=1e-3)
    assert rate[9] == pytest.approx(0.9, rel=1e-3)
    assert rate[10] == rate[11] == 1


def test_nothing_is_selected_in_the_warm_up():
    found = simulate(Rule(500, warmup_epochs=4, stop_patience=0), [0.9] * 4 + [0.1])
    assert found["best_epoch"].tolist() == [0, 0, 0, 0, 5]
    assert not found["done"].any()  # nor does the warm-up count as bad


def test_the_later_epoch_wins_a_tie():
    found = simulate(Rule(500, warmup_epochs=0), [0.5, 0.75, 0.75, 0.5, 0.75])
    assert found["best_epoch"].tolist() == [1, 2, 3, 3, 5]


def test_a_first_score_of_zero_is_a_best_and_a_negative_one_is_not():
    found = simulate(Rule(500, warmup_epochs=0), [-1.0, 0.0, -1.0])
    assert found["best_epoch"].tolist() == [0, 2, 2]


def test_a_nan_score_is_never_a_best():
    found = simulate(Rule(500, warmup_epochs=0), [0.5, np.nan, 0.25])
    assert found["best_epoch"].tolist() == [1, 1, 1]


def test_max_epochs_ends_a_run_that_still_improves():
    found = simulate(Rule(5, warmup_epochs=1), np.linspace(0.1, 0.9, 8))
    assert found["done"].tolist() == [False] * 4 + [True] * 4


def test_divergence_ends_a_run():
    rule = Rule(500, warmup_epochs=0)
    schedule = rule.schedule
    state = fresh(rule).replace(epoch=jnp.int32(1))
    assert not schedule.after_validation(state, 0.5).done
    assert schedule.after_validation(state.replace(diverged_step=jnp.int32(8)), 0.5).done


@pytest.mark.parametrize("strict", [True, False])
def test_one_comparison_decides_all_counters_where_scores_tie(strict):
    """With quick_compile XLA computes a score anew for each counter, an ulp off: without care every
    seventh of these seeds never stops, or counts bad epochs although each became the best."""
    n_seeds, n_users, n_epochs = 200, 128, 8
    rule = Rule(n_epochs, 0, 50, stop_patience=2, strict=strict)
    schedule = rule.schedule
    rng = np.random.default_rng(0)
    rank_SxU = jnp.asarray(rng.integers(1, 101, (n_seeds, n_users)))
    domain_U, real_U = jnp.asarray(rng.integers(0, 2, n_users)), jnp.ones(n_users, bool)

    def epoch(state, rank_U):
        score = mrr_sum(rank_U, real_U, domain_U)
        after = schedule.after_validation(state.replace(epoch=state.epoch + 1), score)
        return jax.tree.map(lambda old, new: jnp.where(state.done, old, new), state, after)

    states = jax.vmap(lambda _: fresh(rule))(jnp.arange(n_seeds))
    options = toy.AS_USERS | QUICK_OPTIONS
    program = jax.jit(jax.vmap(epoch), compiler_options=options)
    for _ in range(n_epochs):
        states = program(states, rank_SxU)
    expected = (4, 1, 3) if strict else (8, 8, 0)
    found = np.stack([states.epoch, states.best_epoch, states.bad_epochs], 1)
    np.testing.assert_array_equal(found, np.broadcast_to(expected, found.shape))
