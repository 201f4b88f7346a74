import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from oa_jax.nn.angles import flatten, null_abs_cos, statistics, sums
from oa_jax.nn.fusion import Probe

N, D = 60, 12
VECTORS = ("x", "update", "y_pooled", "y_aligned")
# The gate acts on coordinates, so what it lets through has no meaning that survives a rotation.
NOT_ROTATION_INVARIANT = {"norm_gated", "gated_cos", "gated_abs_cos"}


def make_probe(seed=0, n=N):
    """Correlated vectors with every kind of mask: padding, no key, no aligned token."""
    rng = np.random.default_rng(seed)
    h = {name: rng.normal(size=(n, D)) for name in VECTORS}
    h["update"] += 0.7 * h["x"] + 0.5
    real, key, aligned = rng.random((3, n)) < [[0.8], [0.8], [0.6]]
    h["x"] *= real[:, None]
    h["update"] *= (real & key)[:, None]
    gate = rng.random((n, D))
    masks = (real, real & key, real & aligned)
    arrays = [jnp.asarray(a, jnp.float32) for a in (*h.values(), gate)]
    return Probe(*arrays, *map(jnp.asarray, masks))


def of(probe):
    return statistics(sums(probe))


def naive(probe):
    """Every statistic, token by token in float64."""
    p = {
        name: np.asarray(value, np.float64) for name, value in vars(probe).items() if name != "more"
    }
    tokens = np.flatnonzero(p["has_key_P"])
    both = [t for t in tokens if p["has_aligned_P"][t]]

    def cos(name, chosen):
        pairs = [(p["x"][t], p[name][t]) for t in chosen]
        return np.array([x @ y / np.sqrt(x @ x * (y @ y)) for x, y in pairs])

    out = {"cos2": np.mean(cos("update", tokens) ** 2), "tokens": len(tokens)}
    p["gated"] = p["gate"] * p["update"]
    values = cos("gated", tokens)
    out |= {"gated_cos": values.mean(), "gated_abs_cos": np.abs(values).mean()}
    pairs = (
        ("", "update", tokens),
        ("xy_", "y_pooled", tokens),
        ("xy_aligned_", "y_aligned", both),
    )
    for prefix, name, chosen in pairs:
        values = cos(name, chosen)
        out |= {f"{prefix}cos": values.mean(), f"{prefix}abs_cos": np.abs(values).mean()}
        out[f"{prefix}cos_abs"] = abs(values.mean())
    gate, update, x = p["gate"][tokens], p["update"][tokens], p["x"][tokens]
    norm = np.linalg.norm(update, axis=1)
    along = (update * x).sum(1) / np.linalg.norm(x, axis=1)
    out["parallel_share"] = np.sqrt((along**2).sum() / (norm**2).sum())
    out |= {"norm_x": np.linalg.norm(x, axis=1).mean(), "norm_update": norm.mean()}
    out["norm_gated"] = np.linalg.norm(gate * update, axis=1).mean()
    return out | {"gate_mean": gate.mean(), "gate_std": gate.std()}


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_against_brute_force(seed):
    got, expected = of(make_probe(seed)), naive(make_probe(seed))
    assert set(got) == set(expected)
    for name, value in expected.items():
        assert got[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
    # Numbers that tell the statistics apart.
    assert len({round(value, 4) for value in expected.values()}) >= len(expected) - 3


def test_tokens_without_a_key_and_padding_do_not_count():
    probe = make_probe()
    out = ~np.asarray(probe.has_key_P)
    assert out.any() and (np.asarray(probe.real_P) & out).any()
    garbage = {name: jnp.where(out[:, None], 9.0, getattr(probe, name)) for name in VECTORS}
    assert of(probe.replace(**garbage)) == of(probe)
    counted = probe.replace(**garbage, has_key_P=probe.real_P)
    assert abs(of(counted)["cos"] - of(probe)["cos"]) > 1e-2


def test_zero_vectors_are_no_nan():
    probe = make_probe()
    zero = probe.replace(x=probe.x * 0, update=probe.update * 0, y_pooled=probe.y_pooled * 0)
    found = of(zero)
    assert found["cos"] == found["abs_cos"] == found["xy_cos"] == found["norm_x"] == 0
    assert math.isnan(found["parallel_share"])  # 0 / 0: there is no update to share
    assert not math.isnan(of(probe)["parallel_share"])


def test_without_tokens_everything_is_nan():
    probe = make_probe()
    found = of(probe.replace(has_key_P=probe.has_key_P & False))
    assert found.pop("tokens") == 0
    assert all(math.isnan(value) for value in found.values())
    only_unaligned = of(probe.replace(has_aligned_P=probe.has_aligned_P & False))
    nan = {name for name, value in only_unaligned.items() if math.isnan(value)}
    assert nan == {"xy_aligned_cos", "xy_aligned_abs_cos", "xy_aligned_cos_abs"}


def rotated(probe, names, seed=4):
    rotation, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(D, D)))
    turn = {name: jnp.asarray(np.asarray(getattr(probe, name)) @ rotation) for name in names}
    return probe.replace(**turn)


def test_a_common_rotation_changes_nothing():
    probe = make_probe()
    before, after = of(probe), of(rotated(probe, VECTORS))
    for name in set(before) - NOT_ROTATION_INVARIANT:
        assert after[name] == pytest.approx(before[name], rel=1e-4, abs=1e-6), name
    apart = of(rotated(probe, ["x"]))
    for name in ("cos", "abs_cos", "cos2", "xy_cos", "xy_aligned_cos", "parallel_share"):
        assert abs(apart[name] - before[name]) > 1e-3, name
    assert apart["norm_x"] == pytest.approx(before["norm_x"], rel=1e-5)


def test_positive_scale_changes_norms_only():
    probe = make_probe()
    before, after = of(probe), of(probe.replace(x=3 * probe.x, update=0.2 * probe.update))
    scale = {"norm_x": 3, "norm_update": 0.2, "norm_gated": 0.2}
    for name, value in before.items():
        assert after[name] == pytest.approx(scale.get(name, 1) * value, rel=1e-4, abs=1e-6), name
    turned = of(probe.replace(x=-3 * probe.x))  # a negative scale turns signed angles round
    assert turned["cos"] == pytest.approx(-before["cos"], rel=1e-4)
    assert turned["abs_cos"] == pytest.approx(before["abs_cos"], rel=1e-4)
    assert before["cos"] > 0.1


def test_sums_add_up_over_blocks():
    whole = make_probe()
    parts = [jax.tree.map(lambda a, i=i: a[i], whole) for i in np.split(np.arange(N), [7, 30])]
    blocks = [sums(part) for part in parts]
    total = {name: sum(block[name] for block in blocks) for name in blocks[0]}
    for name, value in of(whole).items():
        assert statistics(total)[name] == pytest.approx(value, rel=1e-4), name
    # Means of blocks of different size do not.
    means = np.mean([statistics(block)["cos"] for block in blocks])
    assert abs(means - of(whole)["cos"]) > 1e-3


def test_special_directions():
    probe = make_probe()
    same, opposite = of(probe.replace(update=2 * probe.x)), of(probe.replace(update=-probe.x))
    assert same["cos"] == pytest.approx(1, abs=1e-5) == same["parallel_share"]
    assert opposite["cos"] == pytest.approx(-1, abs=1e-5)
    assert opposite["abs_cos"] == pytest.approx(1, abs=1e-5)


# Asymptotically 0.0705 and 0.0499.
@pytest.mark.parametrize("width, printed", [(128, 0.0707), (256, 0.0499)])
def test_null_against_the_specs_the_asymptote_and_draws(width, printed):
    null = null_abs_cos(width)
    assert round(null, 4) == printed
    assert null == pytest.approx(math.sqrt(2 / (math.pi * width)), rel=0.005)
    assert null != pytest.approx(math.sqrt(1 / width), rel=0.1)  # the root mean square is another
    x, y = np.random.default_rng(width).normal(size=(2, 20_000, width))
    cos = (x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)
    error = np.abs(cos).std() / np.sqrt(len(cos))
    assert abs(np.abs(cos).mean() - null) < 4 * error
    assert abs(np.abs(cos).mean() - null_abs_cos(width + 32)) > 4 * error


def test_null_in_the_plane_by_hand():
    assert null_abs_cos(2) == pytest.approx(2 / math.pi, rel=1e-12)  # mean |cos| over a circle
    assert null_abs_cos(1) == pytest.approx(1, rel=1e-12)


def test_flat_names():
    probe = make_probe()
    flat = flatten({"0/A": sums(probe), "1/B": sums(probe)})
    assert len(flat) == 2 * len(of(probe))
    assert flat["gca/1/B/abs_cos"] == of(probe)["abs_cos"]
