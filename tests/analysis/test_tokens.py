"""Angles by popularity and position, and where tokens look, against loops over tokens."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest
import toy

from analysis import orthogonality, restore, tokens
from analysis.runs import read_run
from oa_jax.errors import UserError
from oa_jax.nn.fusion import Probe
from tests.analysis import _made_runs as made

NEW = made.STEPS[-1]
ANGLES = ("cos", "abs_cos", "gated_cos", "gated_abs_cos")


def cosine(x, y):
    norms = np.linalg.norm(x) * np.linalg.norm(y)
    return float(x @ y / norms) if norms else 0.0


def range_of(n):
    """The name of the bin of a number: 1, 2-3, 4-7, …"""
    first = 1
    while 2 * first <= n:
        first *= 2
    return str(first) if first == 1 else f"{first}-{2 * first - 1}"


def by_loops(probe, rows, domain, newest=1):
    """{statistic: value}, token by token and key by key. newest: the number of its position."""
    token, key = rows[f"token_{domain}"], rows[f"key_{domain}"]
    n_rows, length, _ = token.shape
    x, update, gate, weights, allowed, used = (
        np.asarray(getattr(probe, name))
        for name in ("x", "update", "gate", "weights_PxS", "allowed_PxS", "has_key_P")
    )
    cells, attention, n = {}, {}, 0

    def add(name, kind, mass):
        attention[name] = attention.get(name, np.zeros(2)) + mass * np.eye(2)[kind]

    for r in range(n_rows):
        for t in range(length):
            p = r * length + t
            if not used[p]:
                continue
            n += 1
            raw, gated = cosine(x[p], update[p]), cosine(x[p], gate[p] * update[p])
            bins = [f"position/{range_of(length - 1 - t + newest)}"]
            if token[r, t, 0] >= 0:
                bins.append(f"popularity/{token[r, t, 0] + 1}")
            for name in bins:
                cells.setdefault(name, []).append((raw, abs(raw), gated, abs(gated)))
            mine = [s for s in range(key.shape[1]) if allowed[p, s]]
            last = max(key[r, s, 1] for s in mine)
            for kind, mass in enumerate((weights[p], np.full(key.shape[1], 1 / len(mine)))):
                add("items", kind, math.exp(-sum(mass[s] * math.log(mass[s]) for s in mine)))
                for s in mine:
                    level, column, of = key[r, s]
                    if of >= 0:
                        add("same" if of == "AB".index(domain) else "other", kind, mass[s])
                    if column >= 0:
                        add(f"age/{range_of(last - column + 1)}", kind, mass[s])
                    if column >= 0 and column == token[r, t, 1]:
                        add("itself", kind, mass[s])
                    if level >= 0:
                        add(f"popularity/{level + 1}", kind, mass[s])
    out = {}
    for name, values in cells.items():
        out[f"{name}/tokens"] = len(values)
        means = np.mean(values, 0)
        out |= {f"{name}/{a}": value for a, value in zip(ANGLES, means, strict=True)}
    for name, (mass, null) in attention.items():
        out |= {f"attention/{name}": mass / n, f"attention/{name}_null": null / n}
    return out


def same(found, expected):
    """Whether all that is expected is found, and nothing else that is not 0 or nan."""
    rest = [v for name, v in found.items() if name not in expected and name.startswith(KINDS)]
    return not np.nan_to_num(rest).any() and all(
        found[name] == pytest.approx(value, rel=1e-4, abs=1e-5) for name, value in expected.items()
    )


KINDS = ("popularity/", "position/", "attention/")


def drawn(n_rows=6, length=11, n_keys=13, width=5):
    """A probe and described rows with gaps of every kind, of domain B."""
    rng = np.random.default_rng(0)
    n = n_rows * length
    x, update = rng.normal(size=(2, n, width))
    gate, real = rng.uniform(-1, 1, (n, width)), np.ones(n, bool)
    allowed = rng.random((n, n_keys)) < 0.5
    allowed[rng.random(n) < 0.2] = False
    weights = rng.gamma(0.5, size=allowed.shape) * allowed + 1e-9 * allowed
    weights /= np.maximum(weights.sum(1, keepdims=True), 1e-9)
    has = allowed.any(1)
    probe = Probe(x, update, x, x, gate, real, has, has, weights, allowed_PxS=allowed)
    column = np.sort(rng.choice(40, (n_rows, n_keys), replace=True), 1) - 3
    level = rng.integers(-1, tokens.LEVELS, (n_rows, n_keys))
    key = np.stack([level, np.maximum(column, -1), rng.integers(-1, 2, column.shape)], -1)
    token = np.stack([level[:, :length], key[:, :length, 1]], -1)
    return jax.tree.map(jnp.asarray, probe), {"token_B": token, "key_B": key}


def of_program(probe, rows):
    total = jax.device_get(tokens.sums(probe, jax.tree.map(jnp.asarray, rows), "B"))
    return tokens.statistics(total | {"sums/tokens": probe.has_key_P.sum()})


def test_every_statistic_is_that_of_loops_over_tokens_and_keys():
    probe, rows = drawn()
    found, expected = of_program(probe, rows), by_loops(probe, rows, "B")
    assert same(found, expected) and len(expected) > 50
    assert {"position/1/gated_cos", "position/8-15/tokens", "popularity/5/abs_cos"} <= {*expected}
    assert not same(found, by_loops(probe, rows, "B", newest=2))  # one off in the position
    assert not same(found, by_loops(probe, {"token_B": rows["token_B"], "key_B": older(rows)}, "B"))


def older(rows):
    """All keys but the first of a row one event older."""
    key = rows["key_B"].copy()
    key[:, :-1, 1] -= key[:, :-1, 1] > 0
    return key


def test_equal_weights_are_the_null():
    probe, rows = drawn()
    equal = probe.allowed_PxS / jnp.maximum(probe.allowed_PxS.sum(1, keepdims=True), 1)
    found = of_program(probe.replace(weights_PxS=equal), rows)
    names = [name for name in found if f"{name}_null" in found]
    assert len(names) > 10
    for name in names:
        assert found[name] == pytest.approx(found[f"{name}_null"], rel=1e-5, abs=1e-7), name
    count = np.asarray(probe.allowed_PxS.sum(1))
    assert found["attention/items"] == pytest.approx(count[count > 0].mean(), rel=1e-5)


def test_a_trained_model_by_loops_over_its_tokens(stack):
    params = jax.tree.map(lambda a: a[0], made.drawn(stack, NEW).best_params)
    rows, backbone = stack.evaluation.rows["test"], stack.engine.settings.backbone
    told = tokens.described(stack, rows)
    probes = backbone.probe(params, {k: v for k, v in rows.items() if k != "seen"})
    parts = orthogonality.parts_of_users(stack, "test")
    totals = orthogonality.stream(backbone, params, parts, 16)
    for module in ("0/A", "1/B"):
        expected = by_loops(probes[module], told, module[-1])
        assert same(orthogonality.statistics(totals[module]), expected), module
        assert expected["attention/same"] + expected["attention/other"] == pytest.approx(1)


def test_popularity_has_fifths_of_the_events():
    level = tokens.levels(np.array([0, 1, 1, 2, 2, 2, 4, 8, 0]))
    #  events below and half of its own, of 20:    0, 1, 5, 10, 16
    np.testing.assert_array_equal(level, [0, 0, 0, 1, 1, 1, 2, 4, 0])
    assert not tokens.levels(np.zeros(3, int)).any()


CASES = (
    ("abxi", "seq_a", {}),
    ("sasrec", "seq_A", {"gca__source": "other"}),
    ("cdsrnp", "seq_A", {"gca__source": "self"}),
    ("llm4cdsr", "seq_A", {}),
    ("sasrec", "seq_A", {"gca__source": "shuffled"}),
)


@pytest.mark.parametrize(("backbone", "own", "fields"), CASES)
def test_tokens_are_those_of_the_models_streams(backbone, own, fields):
    experiment = toy.small_experiment(backbone, "pair=synthetic,gca=0", **fields)
    log, rows = experiment.data.log, experiment.evaluation.rows["test"]
    told, n_a = tokens.described(experiment, rows), log.n_items[0]
    source = fields.get("gca__source", "merged")
    merged = rows["seq_x" if backbone == "abxi" else "seq"]
    count = np.zeros(1 + sum(log.n_items), int)
    for user, item, place in zip(log.user, log.item, log.position, strict=True):
        count[item] += place < experiment.data.split.n_train[user]
    level = np.concatenate([[-1], *map(tokens.levels, np.split(count[1:], [n_a]))])
    stream, older = rows[own], 0
    for r in range(len(stream)):
        in_a = [c for c in range(merged.shape[1]) if 0 < merged[r, c] <= n_a]
        for t in range(1, stream.shape[1] + 1):
            at, item = told["token_A"][r, -t], stream[r, -t]
            assert at[0] == level[item]
            if source != "shuffled" and item:
                older += at[1] < 0
                assert at[1] < 0 or merged[r, at[1]] == item
                if backbone != "llm4cdsr":  # whose streams lack the last item of the other domain
                    assert at[1] == (in_a[-t] if t <= len(in_a) else -1)
        keys = {"merged": merged, "shuffled": rows.get("donor")}.get(source)
        if keys is not None:
            of = [-1 if item == 0 else int(item > n_a) for item in keys[r]]
            assert told["key_A"][r, :, 2].tolist() == of
            assert told["key_A"][r, :, 0].tolist() == level[keys[r]].tolist()
    if source in ("other", "self"):  # keys that the merged sequence lacks have an item all the same
        real = rows["seq_B" if source == "other" else "seq_A"] > 0
        assert older > 0 and ((told["key_A"][..., 2] >= 0) == real).all()
        assert ((told["key_A"][..., 0] >= 0) == real).all()
    parts = orthogonality.parts_of_users(experiment, "test")
    assert ("donor" in parts["fit"]) == (source == "shuffled")  # the users that evaluation takes
    if source == "shuffled":  # no key of another user is the token itself
        assert (told["token_A"][..., 1] == -1).all()
    domains = {"other": {-1, 1}, "self": {-1, 0}}.get(source, {-1, 0, 1})
    assert set(told["key_A"][..., 2].ravel()) <= domains


def test_a_fusion_that_does_not_attend_is_said(finished, monkeypatch):
    experiment = made.make_experiment(gca__fusion="film")
    told = tokens.described(experiment, experiment.evaluation.rows["test"])
    assert set(told) == {"token_A", "token_B"}

    def nothing(*_):
        raise UserError("read no further")

    monkeypatch.setattr(restore, "experiment_of", lambda *_: experiment)
    monkeypatch.setattr(restore, "parameters", nothing)
    said = made.Said()
    with pytest.raises(UserError, match="no further"):
        orthogonality.measure(read_run(finished), say=said)
    assert said.lines == [
        "stack: fusion film has no attention weights: nothing of where tokens look"
    ]


def test_tables_have_means_and_intervals_over_seeds():
    values = {"position/2-3/tokens": (40, 40), "position/2-3/gated_cos": (0.2, 0.4)}
    values |= {"attention/same": (0.5, 0.7), "attention/same_null": (0.3, 0.3)}
    lead = {"run": "r", "place": 0, "domain": "A", "parameters": "best"}
    frame = pl.DataFrame(
        [
            lead | {"statistic": name, "seed": seed, "value": float(value)}
            for name, of_seeds in values.items()
            for seed, value in enumerate(of_seeds)
        ]
    )
    angles, looks = tokens.sheets(frame)
    gated = "0.300 [−0.971, 1.571]"
    # ± 12.706 (Student's t, 1 degree of freedom) × 0.1
    assert angles.rows == [["r", "0", "A", "position", "2-3", "40", "–", gated, "–", "–"]]
    assert looks.rows == [["r", "0", "A", "same", "0.600 [−0.671, 1.871]", "0.300", "2.00"]]
    single = tokens.sheets(frame.filter(seed=0))[1].rows[0]
    assert single[4:] == ["0.500", "0.300", "1.67"]
    assert tokens.sheets(frame.with_columns(parameters=pl.lit("init"))) == []
