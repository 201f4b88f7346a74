"""One gated cross-attention module on its own: against loops, masks, variants, probe."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from oa_jax.nn import angles
from oa_jax.nn.fusion import PARTS
from oa_jax.nn.gca import GATE_ACTIVATIONS, INNER_ACTIVATIONS, GatedCrossAttention
from oa_jax.nn.known import GCAConfig
from oa_jax.nn.layers import Packing, Stream, parallel_part
from oa_jax.nn.losses import mean_cos2

B, T, S, D, HEADS = 3, 5, 6, 8, 2
PART_OF = ("update", "gated")
RNG = np.random.default_rng(0)
# Packed queries, as in training: two slots unused, one real place left out of the packing.
AT = jnp.array([0, 1, 3, 4, 5, 7, 8, 11, 13, 14, B * T, B * T])
QUERY_REAL = jnp.array([True] * 10 + [False] * 2)
SOURCE_REAL = RNG.random((B, S)) < 0.7
SOURCE_REAL[1, 0], SOURCE_REAL[2] = False, False  # row 2 has no key at all
Q_TIME = jnp.asarray(np.sort(RNG.integers(0, S, (B, T)), 1).astype(np.int32)).at[0, 0].set(-1)
Q_TIME = Q_TIME.at[0, 1].set(2)
# Another row with keys, which tokens of the first must not see.
SOURCE_REAL[1, 1:3], Q_TIME = True, Q_TIME.at[1, 2:].max(3)
S_TIME = jnp.broadcast_to(jnp.arange(S), (B, S))


def streams(seed=0, garbage=0.0):
    """Query and source; `garbage` stands where the source has no token."""
    rng = np.random.default_rng(seed)
    query_h = rng.normal(size=(len(AT), D)) * np.asarray(QUERY_REAL)[:, None]
    source_h = rng.normal(size=(B * S, D))
    source_h[~SOURCE_REAL.ravel()] = garbage
    query = Stream(jnp.asarray(query_h, jnp.float32), QUERY_REAL, Packing(AT, (B, T)))
    real = jnp.asarray(SOURCE_REAL.ravel())
    return query, Stream(jnp.asarray(source_h, jnp.float32), real, Packing(None, (B, S)))


def module_and_params(**fields):
    module = GatedCrossAttention(**{"heads": HEADS} | fields)
    shapes = jax.eval_shape(module.init, jax.random.key(0), *streams(), Q_TIME, S_TIME)["params"]
    rng = np.random.default_rng(3)
    draw = lambda leaf: jnp.asarray(rng.normal(0, 0.4, leaf.shape), leaf.dtype)  # noqa: E731
    return module, jax.tree.map(draw, shapes)


def run(module, params, query=None, source=None, times=(Q_TIME, S_TIME)):
    default_query, default_source = streams()
    return module.apply(
        {"params": params}, query or default_query, source or default_source, *times
    )


def allowed_keys(slot, causal=True, key_mask=True):
    row, t = divmod(int(AT[slot]), T)
    keys = np.ones(S, bool)
    if causal:
        keys &= np.asarray(S_TIME[row]) <= int(Q_TIME[row, t])
    return keys & SOURCE_REAL[row] if key_mask else keys


def naive_update(params, x, y_SxD, keys):
    """X' of one token, head by head."""
    if not keys.any():
        return np.zeros(D)
    attention = params["attention"]
    parts = zip(np.split(attention["w_in"], 3, 1), np.split(attention["b_in"], 3), strict=True)
    q, k, v = (h @ w + b for h, (w, b) in zip((x, y_SxD[keys], y_SxD[keys]), parts, strict=True))
    mixed = []
    for e in np.split(np.arange(D), HEADS):
        weight = np.exp(k[:, e] @ q[e] / np.sqrt(D / HEADS))
        mixed.append(weight / weight.sum() @ v[:, e])
    return np.concatenate(mixed) @ attention["out"]["kernel"] + attention["out"]["bias"]


GATES = {"sigmoid": lambda h: 1 / (1 + np.exp(-h)), "tanh": np.tanh}
INNER = {
    "relu": lambda h: np.maximum(h, 0),
    "linear": lambda h: h,
    "gelu": lambda h: 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3))),
}


def naive_module(params, config):
    """(X'', X', α) of every real slot, by the formulas of the paper."""
    params = jax.tree.map(lambda p: np.asarray(p, np.float64), params)
    query, source = (np.asarray(s.h_PxD, np.float64) for s in streams())
    for slot in np.flatnonzero(QUERY_REAL):
        x, row, t = query[slot], int(AT[slot]) // T, int(AT[slot]) % T
        y = source.reshape(B, S, D)[row]
        update = naive_update(params, x, y, allowed_keys(slot, config.causal, config.key_mask))
        time = int(Q_TIME[row, t])
        aligned = y[time] if time >= 0 and SOURCE_REAL[row, time] else np.zeros(D)
        other = update if config.gate_input == "update" else aligned
        gate_in, gate_out = params["gate_in"], params["gate_out"]
        hidden = np.concatenate([x, other]) @ gate_in["kernel"] + gate_in["bias"]
        hidden = INNER[config.gate_inner](hidden) @ gate_out["kernel"] + gate_out["bias"]
        gate = GATES[config.gate_act](hidden)
        out = x + gate * update
        if config.layer_norm:
            norm = params["norm"]["norm"]
            out = (out - out.mean()) / np.sqrt(out.var() + 1e-5) * norm["scale"] + norm["bias"]
        yield slot, out, update, gate


VARIANTS = (
    {},
    {"gate_act": "tanh", "layer_norm": False},
    {"gate_input": "source", "gate_inner": "linear"},
    {"gate_inner": "gelu", "gate_hidden": 2},
    {"causal": False},
    {"key_mask": False},
    {"causal": False, "key_mask": False},
)


@pytest.mark.parametrize("fields", VARIANTS, ids=str)
def test_against_loops(fields):
    module, params = module_and_params(**fields)
    out, probe = run(module, params)
    for slot, expected, update, gate in naive_module(params, module):
        np.testing.assert_allclose(out.h_PxD[slot], expected, atol=1e-5)
        np.testing.assert_allclose(probe.update[slot], update, atol=1e-5)
        np.testing.assert_allclose(probe.gate[slot], gate, atol=1e-5)


@pytest.mark.parametrize("fields", VARIANTS[1:], ids=str)
def test_every_variant_is_another_function(fields):
    module, params = module_and_params(**fields)
    changed = {name for name in ("causal", "key_mask") if name in fields}
    wrong = GatedCrossAttention(
        gate_act="sigmoid" if fields.get("gate_act") else "tanh",
        gate_input=fields.get("gate_input", "update"),
        gate_inner=fields.get("gate_inner", "relu"),
        layer_norm=fields.get("layer_norm", True),
        causal="causal" not in changed,
        key_mask="key_mask" not in changed,
    )
    out, _ = run(module, params)
    distance = [np.abs(out.h_PxD[s] - h).max() for s, h, *_ in naive_module(params, wrong)]
    assert max(distance) > 1e-3


def without_key():
    return np.array([not allowed_keys(slot).any() for slot in range(10)] + [True] * 2)


def test_no_allowed_key_gives_exactly_0():
    module, params = module_and_params()
    out, probe = run(module, params)
    none = without_key()
    assert none[:10].sum() >= 3 and not none.all()
    np.testing.assert_array_equal(probe.update[none], 0)
    np.testing.assert_array_equal(probe.has_key_P, ~none)
    assert np.abs(probe.update[~none]).max(-1).min() > 0.01
    # Unmasked, the same tokens get an update: the zero above is not an accident of the numbers.
    module, _ = module_and_params(causal=False, key_mask=False)
    _, probe = run(module, params)
    assert np.abs(probe.update[none & np.asarray(QUERY_REAL)]).max(-1).min() > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("part_of", PART_OF)
@pytest.mark.parametrize("part", PARTS)
def test_no_nan_without_any_key_or_query(part, part_of):
    module, params = module_and_params(part=part, part_of=part_of)
    query, source = streams()
    no_source = source.replace(h_PxD=source.h_PxD * 0, real_P=source.real_P & False)
    no_query = query.replace(h_PxD=query.h_PxD * 0, real_P=query.real_P & False)

    def total(params, query_h, source_h, query, source):
        query, source = query.replace(h_PxD=query_h), source.replace(h_PxD=source_h)
        out, probe = run(module, params, query, source)
        return jnp.sum(out.h_PxD**2) + jnp.sum(probe.update), out

    for q, s in ((query, no_source), (no_query, source), (no_query, no_source)):
        gradients, out = jax.grad(total, (0, 1, 2), has_aux=True)(params, q.h_PxD, s.h_PxD, q, s)
        for leaf in jax.tree.leaves((gradients, out.h_PxD)):
            assert np.isfinite(leaf).all()


def test_padded_queries_stay_0():
    module, params = module_and_params()
    assert np.abs(params["norm"]["norm"]["bias"]).min() > 0  # the norm alone would not give 0
    out, probe = run(module, params)
    np.testing.assert_array_equal(out.h_PxD[~QUERY_REAL], 0)
    np.testing.assert_array_equal(probe.update[~QUERY_REAL], 0)
    assert np.abs(out.h_PxD[QUERY_REAL]).max(-1).min() > 0.1


@pytest.mark.parametrize("key_mask", [True, False])
def test_masked_keys_are_invisible(key_mask):
    module, params = module_and_params(key_mask=key_mask)
    clean, _ = run(module, params)
    dirty, _ = run(module, params, source=streams(garbage=5.0)[1])
    if key_mask:
        np.testing.assert_array_equal(clean.h_PxD, dirty.h_PxD)
    else:
        assert np.abs(clean.h_PxD - dirty.h_PxD).max() > 0.1


def opened(params):
    """Gates exactly 1."""
    out = params["gate_out"]
    return params | {"gate_out": {"kernel": out["kernel"] * 0, "bias": out["bias"] * 0 + 1e4}}


def test_the_words_of_a_configuration_are_those_of_the_module():
    tables = {"gate_act": GATE_ACTIVATIONS, "gate_inner": INNER_ACTIVATIONS, "part": PARTS}
    fields = {one.name: one.metadata["expected"] for one in dataclasses.fields(GCAConfig)}
    for name, words in (tables | {"part_of": PART_OF}).items():
        assert fields[name] == "one of " + ", ".join(words)


def test_parallel_and_orthogonal_updates():
    results = {}
    for update in ("full", "parallel", "orthogonal"):
        module, params = module_and_params(part=update, layer_norm=False)
        out, probe = run(module, opened(params))
        results[update] = np.asarray(out.h_PxD - probe.x, np.float64)
        # The probe shows X' before the projection.
        np.testing.assert_allclose(probe.update, run(*module_and_params())[1].update, atol=1e-6)
    some = ~without_key()
    x = np.asarray(streams()[0].h_PxD, np.float64)

    def cos(update):
        norms = np.linalg.norm(update[some], axis=-1) * np.linalg.norm(x[some], axis=-1)
        return (update * x)[some].sum(-1) / norms

    np.testing.assert_allclose(np.abs(cos(results["parallel"])), 1, atol=1e-4)
    np.testing.assert_allclose(cos(results["orthogonal"]), 0, atol=1e-4)
    assert 0.01 < np.abs(cos(results["full"])).max() < 0.99  # neither one nor the other
    both = results["parallel"] + results["orthogonal"]
    np.testing.assert_allclose(both, results["full"], atol=1e-5)


def test_a_part_of_the_gated_update():
    """The gate sees the whole X'; what is added lies across X, which it does not without."""
    some, x = ~without_key(), np.asarray(streams()[0].h_PxD, np.float64)
    added = {}
    for part_of in PART_OF:
        module, params = module_and_params(part="orthogonal", part_of=part_of, layer_norm=False)
        out, probe = run(module, params)
        added[part_of] = (np.asarray(out.h_PxD) - x)[some]
        whole = run(module_and_params(layer_norm=False)[0], params)[1].gate
        assert (np.abs(probe.gate - whole).max() < 1e-6) == (part_of == "gated")
    dot = {name: np.abs((value * x[some]).sum(-1)).max() for name, value in added.items()}
    assert dot["gated"] < 1e-4 < 0.05 < dot["update"]


def test_a_function_may_stand_for_the_part():
    """What interventions hand in: of X', which the gate then sees too, or of α ⊙ X'."""
    seen = {}

    def twice(value, query, name):
        seen[name] = value
        return 2 * value

    plain, params = module_and_params(layer_norm=False)
    h, probe = run(plain, params)
    for part_of in PART_OF:
        out, _ = run(plain.clone(part=twice, part_of=part_of, name=part_of), params)
        expected = probe.update if part_of == "update" else probe.gate * probe.update
        np.testing.assert_array_equal(seen[part_of], expected)
        doubled = probe.x + 2 * (h.h_PxD - probe.x)
        assert (np.abs(out.h_PxD - doubled).max() < 1e-5) == (part_of == "gated")


def flipped(params, k):
    """Unit k of X' and of the gate with the other sign: the same function under tanh."""
    out, first, last = params["attention"]["out"], params["gate_in"], params["gate_out"]
    out = {name: leaf.at[..., k].multiply(-1) for name, leaf in out.items()}
    last = {name: leaf.at[..., k].multiply(-1) for name, leaf in last.items()}
    first = first | {"kernel": first["kernel"].at[D + k].multiply(-1)}
    attention = params["attention"] | {"out": out}
    return params | {"attention": attention, "gate_in": first, "gate_out": last}


@pytest.mark.parametrize("gate_act", ["tanh", "sigmoid"])
def test_signs_of_a_tanh_gated_update_are_arbitrary(gate_act):
    """Only the angle of X and α ⊙ X' says something of the function."""
    module, params = module_and_params(gate_act=gate_act)
    (out, probe), other = run(module, params), params
    for k in np.flatnonzero(np.random.default_rng(8).random(D) < 0.5):
        other = flipped(other, k)
    again, turned = run(module, other)
    if gate_act == "sigmoid":
        assert np.abs(out.h_PxD - again.h_PxD).max() > 0.1
        return
    np.testing.assert_allclose(out.h_PxD, again.h_PxD, atol=1e-5)
    before, after = (angles.statistics(angles.sums(one)) for one in (probe, turned))
    for name in ("gated_cos", "gated_abs_cos", "norm_gated", "norm_update"):
        assert before[name] == pytest.approx(after[name], abs=1e-6)
    assert abs(before["abs_cos"] - after["abs_cos"]) > 0.02
    of_gated, of_update = (
        [float(mean_cos2({"0/A": one}, of)) for one in (probe, turned)]
        for of in ("gated", "update")
    )
    assert of_gated[0] == pytest.approx(of_gated[1], rel=1e-5)
    assert abs(of_update[0] - of_update[1]) > 0.005


def test_parallel_part_is_a_projection():
    rng = np.random.default_rng(6)
    update, x = rng.normal(size=(2, 4, D)).astype(np.float32)
    x[0] = 0
    part = parallel_part(update, x)
    np.testing.assert_array_equal(part[0], 0)
    np.testing.assert_allclose(parallel_part(part, x), part, atol=1e-6)
    np.testing.assert_allclose(parallel_part(update, 7 * x), part, atol=1e-6)
    assert np.abs(part - update).max() > 0.1


def test_heads_cost_nothing_but_change_the_function():
    sizes, outputs = set(), []
    for heads in (1, 2, 4, 8):
        module, params = module_and_params(heads=heads)
        sizes.add(sum(leaf.size for leaf in jax.tree.leaves(params)))
        outputs.append(run(module, params)[0].h_PxD)
    assert sizes == {4 * (D * D + D) + (2 * D * 4 * D + 4 * D) + (4 * D * D + D) + 2 * D}
    for one, other in zip(outputs, outputs[1:], strict=False):
        assert np.abs(one - other).max() > 1e-3


def test_probe_holds_what_the_module_saw():
    module, params = module_and_params()
    query, source = streams()
    _, probe = run(module, params)
    for name in ("x", "update", "y_pooled", "y_aligned", "gate"):
        assert getattr(probe, name).shape == (len(AT), D)
    for name in ("real_P", "has_key_P", "has_aligned_P"):
        assert getattr(probe, name).shape == (len(AT),)
    np.testing.assert_array_equal(probe.x, query.h_PxD)
    np.testing.assert_array_equal(probe.real_P, QUERY_REAL)
    y = np.asarray(source.h_PxD).reshape(B, S, D)
    for slot in range(10):
        row, t = divmod(int(AT[slot]), T)
        keys, time = allowed_keys(slot), int(Q_TIME[row, t])
        pooled = y[row][keys].mean(0) if keys.any() else np.zeros(D)
        np.testing.assert_allclose(probe.y_pooled[slot], pooled, atol=1e-6)
        there = time >= 0 and SOURCE_REAL[row, time]
        assert probe.has_aligned_P[slot] == there
        np.testing.assert_array_equal(probe.y_aligned[slot], y[row, time] if there else 0)
    aligned = np.asarray(probe.has_aligned_P)
    assert aligned[:10].any() and not aligned[:10].all() and not aligned[10:].any()


def test_a_late_time_shows_later_keys():
    """The mask compares times, not columns."""
    module, params = module_and_params()
    early, _ = run(module, params)
    late, _ = run(module, params, times=(Q_TIME, S_TIME - 1))
    same, _ = run(module, params, times=(Q_TIME + 7, S_TIME + 7))
    assert np.abs(early.h_PxD - late.h_PxD).max() > 0.01
    np.testing.assert_array_equal(early.h_PxD, same.h_PxD)


def test_a_query_from_before_the_window_meets_no_key_from_before_it():
    """Both have the time -1, which is none."""
    module, params = module_and_params()
    assert Q_TIME[0, 0] == -1 and AT[0] == 0 and SOURCE_REAL[0, 0]
    _, probe = run(module, params, times=(Q_TIME, S_TIME.at[:, 0].set(-1)))
    assert not probe.has_key_P[0] and not probe.has_aligned_P[0] and not probe.update[0].any()
    _, probe = run(module, params, times=(Q_TIME.at[0, 0].set(0), S_TIME.at[:, 0].set(-1)))
    assert probe.has_key_P[0]  # twin


def test_a_hidden_key_is_not_used_and_nothing_is_left_to_use():
    """The newest key of each token, as in a merged stream its own item is; in row 0 every key."""
    module, params = module_and_params(gate_input="source")
    allowed = np.zeros((B, T, S), bool)
    for slot in range(10):
        allowed[divmod(int(AT[slot]), T)] = allowed_keys(slot)
    newest = allowed & (np.cumsum(allowed[..., ::-1], -1)[..., ::-1] == 1)
    hidden = newest.copy()
    hidden[0] = True
    only = (allowed.any(-1) & hidden.all(-1)).ravel()[AT[:10]]
    assert only.any() and not only.all()
    query, source = streams()

    def run_hidden(params, source_h):
        args = query, source.replace(h_PxD=source_h), Q_TIME, S_TIME, jnp.asarray(hidden)
        return module.apply({"params": params}, *args)

    out, probe = run_hidden(params, source.h_PxD)
    y = np.asarray(source.h_PxD, np.float64).reshape(B, S, D)
    numbers = jax.tree.map(lambda p: np.asarray(p, np.float64), params)
    for slot in range(10):
        row, t = divmod(int(AT[slot]), T)
        keys = (allowed & ~hidden)[row, t]
        expected = naive_update(numbers, np.asarray(probe.x[slot], np.float64), y[row], keys)
        np.testing.assert_allclose(probe.update[slot], expected, atol=1e-5)
    np.testing.assert_array_equal(probe.update[:10][only], 0)
    assert not np.asarray(probe.has_key_P[:10])[only].any()
    seen, plain = (np.asarray(p.has_aligned_P[:10]) for p in (probe, run(module, params)[1]))
    assert plain.any() and not seen[newest.any(-1).ravel()[AT[:10]]].any()
    gradients = jax.grad(lambda *args: jnp.sum(run_hidden(*args)[0].h_PxD ** 2), (0, 1))
    for leaf in jax.tree.leaves((out.h_PxD, gradients(params, source.h_PxD))):
        assert np.isfinite(leaf).all()


NUMBERS = {"none": 0, "scalar": 1, "head": HEADS, "vector": D}


@pytest.mark.parametrize("gate", NUMBERS)
def test_a_gate_has_as_many_numbers_as_it_says(gate):
    module, params = module_and_params(gate=gate, layer_norm=False)
    out, probe = run(module, params)
    real = np.asarray(QUERY_REAL)
    groups = np.asarray(probe.gate)[real].reshape(real.sum(), max(NUMBERS[gate], 1), -1)
    assert (np.ptp(groups, -1) == 0).all()
    if gate == "none":
        assert set(params) == {"attention"} and (groups == 1).all()
    else:
        assert params["gate_out"]["bias"].shape == (NUMBERS[gate],)
        assert len(np.unique(groups[0, :, 0])) == NUMBERS[gate]
    np.testing.assert_allclose(out.h_PxD, probe.x + probe.gate * probe.update, atol=1e-5)


def test_without_the_residual_the_update_stands_alone():
    module, params = module_and_params(residual=False, layer_norm=False)
    out, probe = run(module, params)
    np.testing.assert_allclose(out.h_PxD, probe.gate * probe.update, atol=1e-6)
    assert np.abs(probe.x[QUERY_REAL]).max() > 0.1


@pytest.mark.parametrize("part_of", PART_OF)
def test_two_learnt_scales_for_the_two_parts(part_of):
    fields = {"part_of": part_of, "layer_norm": False}
    module, params = module_and_params(part="split", **fields)
    first = module.init(jax.random.key(0), *streams(), Q_TIME, S_TIME)["params"]
    scales = ("scale_parallel", "scale_orthogonal")
    assert [float(first[name]) for name in scales] == [1, 1]
    for values, part in {(1, 1): "full", (1, 0): "parallel", (0, 1): "orthogonal"}.items():
        given = params | dict(zip(scales, map(jnp.float32, values), strict=True))
        out, probe = run(module, given)
        plain = {name: leaf for name, leaf in params.items() if name not in scales}
        expected, _ = run(module_and_params(part=part, **fields)[0], plain)
        np.testing.assert_allclose(out.h_PxD, expected.h_PxD, atol=1e-5)
        found = angles.statistics(angles.sums(probe))
        assert [found[name] for name in scales] == pytest.approx(values)
