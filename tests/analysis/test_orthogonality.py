import dataclasses
import json
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest
import toy

import oa_jax as oa
from analysis import orthogonality, restore
from analysis.runs import read_run
from oa_jax.errors import UserError
from oa_jax.nn.angles import null_abs_cos
from oa_jax.nn.fusion import Probe
from tests.analysis import _made_runs as made

NEW = made.STEPS[-1]


@pytest.fixture(scope="module")
def frame(finished):
    return orthogonality.measure(read_run(finished), say=made.Said())


def values(frame, **where):
    """{(place, domain, statistic): value}, of rows where the columns have these values."""
    for name, value in where.items():
        frame = frame.filter(pl.col(name) == value)
    return {(r["place"], r["domain"], r["statistic"]): r["value"] for r in frame.to_dicts()}


def test_tidy_table_of_all_seeds_places_and_domains(frame):
    assert dict(frame.schema) == orthogonality.SCHEMA
    keys = ["seed", "parameters", "step", "place", "domain", "statistic"]
    assert not frame.select(keys).is_duplicated().any()
    assert set(frame["run"]) == {"stack"} and set(frame["split"]) == {"test"}
    steps = frame.select("seed", "parameters", "step").unique().sort("parameters", "seed").rows()
    assert steps == [(s, "best", NEW - 1 - s) for s in range(3)] + [
        (s, "init", 0) for s in range(3)
    ]
    per_module = frame.group_by("seed", "parameters", "place", "domain").len()
    assert len(per_module) == 3 * 2 * 2 * 2 and per_module["len"].n_unique() == 1
    assert frame["value"].is_finite().all()


def test_same_values_as_in_the_summary_of_the_run(frame, finished):
    """Training's own path: other programs, another order of users."""
    summary = json.loads((finished / "summary.json").read_text())
    n_compared = 0
    for entry in summary["per_seed"]:
        for kind in ("best", "init"):
            found = values(frame, seed=entry["seed"], parameters=kind)
            for (place, domain, statistic), value in found.items():
                there = entry.get(f"{kind}/gca/{place}/{domain}/{statistic}")
                if there is not None:
                    n_compared += 1
                    # A spread of 1e-4 about 0.5 is at the last digits of float32 sums of squares.
                    close = 1e-3 if statistic == "gate_std" else 1e-5
                    assert value == pytest.approx(there, rel=1e-3, abs=close), statistic
    assert n_compared >= 3 * 2 * 4 * 17  # seeds, kinds, modules, statistics
    best, init = (values(frame, seed=0, parameters=kind) for kind in ("best", "init"))
    assert sum(abs(best[k] - init[k]) > 1e-3 for k in best) > len(best) / 10


@pytest.mark.slow
def test_streams_that_evaluation_packs_are_measured_on_their_grids(tmp_path):
    fields = {"model.length": 50, "model.d_embed": 8, "train.max_epochs": 1, "seeds": 1}
    fields |= {"evaluate.n_negatives": 15, "evaluate.block_users": 16, "train.probe_users": 20}
    world = oa.World(n_users=60, n_items=(340, 350))
    run = oa.train(oa.config("sasrec", gca="early", runlocal=True, **fields), world, tmp_path, None)
    assert run.experiment.evaluation.packed
    (entry,) = run.summary["per_seed"]
    for (place, domain, statistic), value in values(
        orthogonality.measure(read_run(tmp_path), say=made.Said()), parameters="best"
    ).items():
        there = entry.get(f"best/gca/{place}/{domain}/{statistic}")
        if there is not None and statistic != "gate_std":
            assert value == pytest.approx(there, rel=1e-3, abs=1e-5), statistic


def test_null_controls_stand_in_the_table(frame):
    nulls = frame.filter(pl.col("statistic") == "abs_cos_null")["value"]
    assert len(nulls) == 24 and set(nulls) == {null_abs_cos(8)}
    names = set(frame["statistic"])
    for name in ("abs_cos", "subspace_cos", "subspace_cos2", "cos_q05", "cos_q95"):
        assert {name, f"{name}_null"} <= names


def totals(experiment, params, block_users):
    parts = orthogonality.parts_of_users(experiment, "test")
    found = orthogonality.stream(experiment.engine.settings.backbone, params, parts, block_users)
    return {module: orthogonality.statistics(total) for module, total in found.items()}


def test_streaming_equals_one_shot(stack):
    params = jax.tree.map(lambda a: a[1], made.drawn(stack, NEW).best_params)
    whole, blocks = totals(stack, params, 1024), totals(stack, params, 16)
    assert list(whole) == ["0/A", "0/B", "1/A", "1/B"]
    for module, found in whole.items():
        for name, value in found.items():  # whose X' another user's is follows from the block
            assert "shuffled" in name or blocks[module][name] == pytest.approx(
                value, rel=2e-3, abs=1e-4
            ), name
    other = jax.tree.map(lambda a: a[2], made.drawn(stack, NEW).best_params)
    assert abs(totals(stack, other, 1024)["0/A"]["cos"] - whole["0/A"]["cos"]) > 1e-3


def test_angles_are_measured_in_the_precision_of_the_configuration(monkeypatch):
    seen = []

    def stream(*_):
        seen.append(jax.config.jax_default_matmul_precision)
        return {}

    monkeypatch.setattr(orthogonality, "stream", stream)
    experiment = toy.toy_experiment(train__matmul_precision="highest")
    restored = types.SimpleNamespace(of_seed=lambda slot: None, epoch_S=[1], kind="best")
    run = types.SimpleNamespace(name="a")
    orthogonality._measured(run, experiment, restored, [True], {}, "test", lambda line: None)
    assert seen == ["highest"]


def test_every_user_once_and_padding_not_at_all(stack):
    rows, parts = stack.data.task.eval_arrays("test"), orthogonality.parts_of_users(stack, "test")
    users = [part["user"][part["real"]] for part in parts.values()]
    np.testing.assert_array_equal(np.sort(np.concatenate(users)), rows["user"])
    assert any(not part["real"].all() for part in parts.values())
    assert all(len(part["real"]) % 16 == 0 for part in parts.values())
    sizes = [len(u) for u in users]
    assert sizes[0] - sizes[1] in (0, 1) and abs(sizes[2] - sizes[0] - sizes[1]) <= 2
    params = jax.tree.map(lambda a: a[0], made.drawn(stack, NEW).best_params)
    probe = stack.engine.settings.backbone.probe(params, rows)["0/A"]
    assert totals(stack, params, 16)["0/A"]["tokens"] == probe.has_key_P.sum()


def test_distribution_against_all_the_cosines(stack):
    params = jax.tree.map(lambda a: a[0], made.drawn(stack, NEW).best_params)
    probe = stack.engine.settings.backbone.probe(params, stack.data.task.eval_arrays("test"))["1/B"]
    x, update = (
        np.asarray(a, np.float64)[np.asarray(probe.has_key_P)] for a in (probe.x, probe.update)
    )
    cos = (x * update).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(update, axis=1)
    found = totals(stack, params, 16)["1/B"]
    for q in orthogonality.QUANTILES:
        below = np.quantile(cos, [max(q - 0.01, 0), min(q + 0.01, 1)])
        value = found[f"cos_q{round(100 * q):02d}"]
        assert below[0] - 0.001 <= value <= below[1] + 0.001
    shares = np.histogram(cos, 40, (-1, 1))[0] / len(cos)
    ours = [value for name, value in found.items() if name.startswith("cos_hist/")]
    np.testing.assert_allclose(ours, shares, atol=2 / len(cos))
    assert found["cos"] == pytest.approx(cos.mean(), abs=1e-5) and shares.max() < 0.5


@pytest.mark.parametrize("width", [2, 8, 256])
def test_null_distribution_of_the_cosine(width):
    null = orthogonality.null_cos(width)
    mean_abs = null.expect(abs) if width > 2 else 2 / math.pi
    assert mean_abs == pytest.approx(null_abs_cos(width), rel=1e-4)
    x, y = np.random.default_rng(width).normal(size=(2, 20_000, width))
    cos = (x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)
    for q in (0.05, 0.75):
        assert abs((cos <= null.ppf(q)).mean() - q) < 4 * math.sqrt(q * (1 - q) / len(cos))


# ---- a backbone whose X' is known


@dataclasses.dataclass(frozen=True)
class Known:
    """X is given; X' is X times a matrix, the same for all tokens; Y is something else."""

    def probe(self, params, rows):
        x = rows["x"]
        has_key = rows["real"] & rows["has_key"]
        update = x @ params["matrix"]
        gate = jnp.full_like(x, 0.5)
        probe = Probe(x, update, rows["y"], rows["y"], gate, rows["real"], has_key, has_key & False)
        return {"3/B": probe}


def known(matrix, n=240, width=6):
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(2, n, width)).astype(np.float32)
    rows = {"x": x, "y": y, "real": np.ones(n, bool), "has_key": np.arange(n) % 7 > 0}
    parts = {
        name: {k: v[i::3] for k, v in rows.items()}
        for i, name in enumerate(orthogonality.USER_PARTS)
    }
    params = {"matrix": np.asarray(matrix, np.float32)}
    found = orthogonality.stream(Known(), params, parts, 16)
    return orthogonality.statistics(found["3/B"])


def test_parallel_updates_are_the_same_space_and_the_same_information():
    found = known(-2 * np.eye(6))
    for name in ("abs_cos", "parallel_share", "cka_x_update", "r2_x", "subspace_cos"):
        assert found[name] == pytest.approx(1, abs=1e-3), name
    assert found["cos"] == pytest.approx(-1, abs=1e-5) and found["cos_q95"] < -0.998
    assert found["cos_hist/-0.975"] == 1 and found["cos_hist/+0.975"] == 0
    assert abs(found["cka_x_y"]) < 0.05 and found["tokens"] == 205
    assert math.isnan(found["cka_x_y_aligned"])  # no token has a Y at its own time


def test_an_orthogonal_rotation_of_x_is_orthogonal_and_no_new_information():
    """The case that |cos| alone cannot tell: X' ⊥ X at every token, and X' follows from X."""
    quarter = np.kron(np.eye(3), [[0, 1], [-1, 0]])
    found = known(quarter)
    assert found["abs_cos"] == pytest.approx(0, abs=1e-5) and found["parallel_share"] < 1e-5
    for name in ("cka_x_update", "r2_x", "subspace_cos"):
        assert found[name] == pytest.approx(1, abs=1e-3), name
    assert found["cos_q05"] == pytest.approx(0, abs=1e-3) == found["cos_q95"]


def test_no_update_at_all_is_undefined_not_0():
    found = known(np.zeros((6, 6)))
    for name in ("parallel_share", "cka_x_update", "r2_x", "participation_update", "subspace_cos"):
        assert math.isnan(found[name]), name
    assert not math.isnan(found["participation_x"])


# ---- what the gate lets through, and the nulls that matter


@dataclasses.dataclass(frozen=True)
class Gated:
    """X, X' and the gate are given, tokens of 12 users in their order."""

    def probe(self, params, rows):
        every = rows["real"]
        y = rows["x"][:, ::-1]
        return {"0/A": Probe(rows["x"], rows["u"], y, y, rows["gate"], every, every, every)}


def gated(x, update, gate):
    rows = {"x": x, "u": update, "gate": gate}
    rows = {k: np.asarray(v, np.float32) for k, v in rows.items()} | {"real": np.ones(len(x), bool)}
    parts = {
        n: {k: v[i::3] for k, v in rows.items()} for i, n in enumerate(orthogonality.USER_PARTS)
    }
    found = orthogonality.stream(Gated(), {}, parts, len(x))["0/A"]
    return orthogonality.statistics(found)


def tokens(seed=0, n=360, width=6):
    """X and X' share a mean direction, and X' copies some of X, token by token."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, width)) + np.arange(width) / 2
    update = 0.5 * x + rng.normal(size=(n, width))
    gate = rng.uniform(0.2, 0.9, (n, width))
    return x, update, gate


def test_turned_signs_of_units_and_gates_move_the_raw_angle_alone():
    """The same function (α ⊙ X' is bit for bit the same), and another angle of X with X'."""
    x, update, gate = tokens()
    sign = np.array([1, -1, -1, 1, -1, 1])
    plain, turned = gated(x, update, gate), gated(x, update * sign, gate * sign)
    for form in ("gated_", "fixed_"):
        for name in ("cos", "abs_cos", "cos_abs", "shuffled_abs_cos", "centred_cos", "mean_cos"):
            assert turned[form + name] == pytest.approx(plain[form + name], abs=1e-6), name
    assert plain["fixed_cos"] == pytest.approx(plain["cos"], abs=1e-6)
    for name in ("cos", "abs_cos", "centred_abs_cos", "mean_cos"):
        assert abs(turned[name] - plain[name]) > 0.1, name


def test_centred_shuffled_and_shares_by_hand():
    x, update, gate = tokens()

    def cos(a, b):
        return (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)

    found = gated(x, update, gate)
    for form, u in (("", update), ("gated_", gate * update)):
        centred = cos(x - x.mean(0), u - u.mean(0))
        assert found[f"{form}centred_cos"] == pytest.approx(centred.mean(), abs=1e-5)
        assert found[f"{form}centred_abs_cos"] == pytest.approx(np.abs(centred).mean(), abs=1e-5)
        assert found[f"{form}cos_abs"] == pytest.approx(abs(cos(x, u).mean()), abs=1e-5)
        # Parts take every third token; in each, the other is half of the part further on.
        others = [np.roll(u[i::3], -60, 0) for i in range(3)]
        other = np.concatenate([cos(x[i::3], o) for i, o in enumerate(others)])
        assert found[f"{form}shuffled_abs_cos"] == pytest.approx(np.abs(other).mean(), abs=1e-5)
        share = (u.mean(0) ** 2).sum() / (u**2).sum(1).mean()
        assert found[f"{form}mean_share"] == pytest.approx(share, abs=1e-5)
        assert found[f"{form}mean_cos"] == pytest.approx(cos(x.mean(0), u.mean(0)), abs=1e-5)
    # A shared mean direction lifts the null: isotropic < another's < its own.
    assert found["abs_cos_null"] < found["shuffled_abs_cos"] < found["abs_cos"]


# ---- runs that are not whole


def test_a_diverged_seed_is_left_out_also_of_the_null(stack, tmp_path):
    path = made.make_workdir(tmp_path / "run", stack, made.diverged(1, False), finished=False)
    said = made.Said()
    frame = orthogonality.measure(read_run(path), say=said)
    assert set(frame["seed"]) == {0, 2} and "seed 1 left out" in said
    assert set(frame["parameters"]) == {"best", "init"} and frame["value"].is_finite().all()


def test_every_kept_step(copied):
    frame = orthogonality.measure(read_run(copied), "all", "val", made.Said())
    kept = frame.filter(pl.col("parameters") == "kept")
    assert set(kept["step"]) == set(made.STEPS) and set(frame["split"]) == {"val"}
    a, b = (values(kept, seed=0, step=step)[0, "A", "abs_cos"] for step in made.STEPS)
    assert abs(a - b) > 1e-4


@pytest.fixture
def call(monkeypatch, tmp_path):
    """Function (runs) -> (status, folder, what was said) of the command."""

    def run(runs, **given):
        values = {"which": "best", "split": "test", "data_dir": None} | given
        flags = types.SimpleNamespace(FLAGS=types.SimpleNamespace(**values))
        monkeypatch.setattr(restore, "flags", flags)
        said = made.Said()
        return orthogonality.command(runs, tmp_path / "out", said), tmp_path / "out", said

    return run


def test_command_writes_what_can_be_measured_and_says_the_rest(call, finished, tmp_path):
    good = read_run(finished)
    baseline = dataclasses.replace(
        good, name="baseline", config=good.config | {"gca": good.config["gca"] | {"positions": []}}
    )
    lost = dataclasses.replace(good, name="lost", path=tmp_path / "nowhere")
    status, out, said = call([baseline, good, lost])
    assert status == 1
    assert "baseline: no GCA" in said and "lost: left out" in said
    frame = pl.read_parquet(out / "orthogonality.parquet")
    assert set(frame["run"]) == {"stack"}
    best = frame.filter(parameters="best", place=1, statistic="gated_abs_cos")
    of = [f"{domain} {best.filter(domain=domain)['value'].mean():.3f}" for domain in "AB"]
    assert f"stack, place 1: mean |cos(X, α ⊙ X′)| {', '.join(of)}" in said
    csv = pl.read_csv(
        out / "orthogonality.csv", schema=orthogonality.SCHEMA | {"digest": pl.String}
    )
    assert csv.equals(frame) or np.allclose(csv["value"], frame["value"], equal_nan=True)
    names = ["orthogonality.csv", "orthogonality.parquet", "tokens.md"]
    assert sorted(p.name for p in out.iterdir()) == names
    assert "| stack | 0 | A | position | 2-3 |" in (out / "tokens.md").read_text()
    with pytest.raises(UserError, match="nowhere"):
        call([lost])
    assert call([baseline])[0] == 0
