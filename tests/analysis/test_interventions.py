"""What stands in place of X': each replacement on its own, against loops."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from analysis import interventions as lib
from analysis.interventions import REPLACEMENTS, Intervention
from oa_jax.errors import UserError
from oa_jax.nn.angles import null_abs_cos
from oa_jax.nn.gca import GatedCrossAttention
from oa_jax.nn.layers import LAYER_NORM_EPSILON, LayerNorm, Packing, Stream, parallel_part
from tests.analysis import _made_runs as made

B, L, D = 5, 7, 32
KEY = jax.random.key(3)
COUNTS = np.array([4, 0, 7, 1, 2])  # tokens of each user; one has none
REAL = np.arange(L) >= L - COUNTS[:, None]  # left-padded
USERS = jnp.array([10, 11, 12, 13, 14])
PROGRAM = jax.jit(lib.replaced)  # one program for all parts


def stream(real=REAL, seed=0):
    h = np.random.default_rng(seed).normal(size=(real.size, D)) * real.reshape(-1, 1)
    return Stream(jnp.asarray(h, jnp.float32), jnp.asarray(real.ravel()), Packing(None, real.shape))


def an_update(real=REAL, seed=1):
    h = np.random.default_rng(seed).normal(size=(real.size, D)) + 0.3
    return jnp.asarray(h * real.reshape(-1, 1), jnp.float32)


def replaced(part, used=None, query=None, key=KEY, users=USERS):
    index = list(REPLACEMENTS).index(part)
    used = an_update() if used is None else used
    return np.asarray(PROGRAM(index, used, query or stream(), key, users))


def norm(h):
    return np.linalg.norm(h, axis=-1)


def cos(a, b):
    some = (norm(a) > 0) & (norm(b) > 0)
    return (a * b).sum(-1)[some] / (norm(a) * norm(b))[some]


# ---- one by one


def test_full_is_bitwise_what_is_used():
    assert replaced("full").tobytes() == np.asarray(an_update()).tobytes()


def test_parallel_and_orthogonal_parts_add_up():
    x, used = np.asarray(stream().h_PxD), np.asarray(an_update())
    along, across = replaced("parallel"), replaced("orthogonal")
    np.testing.assert_allclose(along + across, used, atol=1e-5)
    np.testing.assert_allclose(np.abs(cos(along, x)), 1, atol=1e-5)
    np.testing.assert_allclose(cos(across, x), 0, atol=1e-5)
    assert 0.01 < np.abs(cos(used, x)).mean() < 0.9


@pytest.mark.parametrize("part", ["parallel_at_norm", "orthogonal_at_norm", "random"])
def test_norms_are_those_of_the_update(part):
    np.testing.assert_allclose(norm(replaced(part)), norm(np.asarray(an_update())), rtol=1e-5)
    if part != "random":
        plain = replaced(part.removesuffix("_at_norm"))
        np.testing.assert_allclose(cos(replaced(part), plain), 1, atol=1e-5)
        assert (norm(plain) < 0.999 * norm(replaced(part)))[REAL.ravel()].mean() > 0.5


def test_nothing_to_normalise_stays_nothing():
    x = stream()
    assert (replaced("orthogonal_at_norm", used=jnp.zeros_like(x.h_PxD)) == 0).all()
    no_x = x.replace(h_PxD=x.h_PxD * 0)
    assert (replaced("parallel_at_norm", query=no_x) == 0).all()
    assert (replaced("zero") == 0).all()


def test_on_a_parallel_update_orthogonal_removes_all_and_the_other_way_round():
    x = stream()
    along = parallel_part(an_update(), x.h_PxD)
    across = an_update() - along
    scale = norm(np.asarray(along)).max()
    assert norm(replaced("orthogonal", used=along)).max() < 1e-5 * scale
    np.testing.assert_allclose(replaced("parallel", used=along), along, atol=1e-5 * scale)
    assert norm(replaced("parallel", used=across)).max() < 1e-5 * scale
    np.testing.assert_allclose(replaced("orthogonal", used=across), across, atol=1e-5)
    assert norm(replaced("orthogonal")).max() > 0.1 * scale  # of an update of both kinds


def test_random_directions_are_a_function_of_key_user_and_column():
    one = replaced("random")
    np.testing.assert_array_equal(one, replaced("random"))
    order = np.array([3, 0, 4, 2, 1])  # another layout of the block
    rows = np.arange(B * L).reshape(B, L)[order].ravel()
    moved = PROGRAM(
        list(REPLACEMENTS).index("random"),
        an_update()[rows],
        stream(REAL[order]),
        KEY,
        USERS[order],
    )
    np.testing.assert_allclose(moved, one[rows], rtol=1e-6)
    for other in (
        replaced("random", key=jax.random.key(4)),
        replaced("random", users=USERS + 1),
    ):
        assert np.abs(cos(one, other)).mean() < 0.4
    assert (one[~REAL.ravel()] == 0).all()


def test_random_directions_have_the_null_angle():
    real = np.ones((60, 30), bool)
    found = replaced("random", an_update(real), stream(real), users=jnp.arange(60))
    angles = np.abs(cos(found, np.asarray(stream(real).h_PxD)))
    error = angles.std() / np.sqrt(len(angles))
    assert abs(angles.mean() - null_abs_cos(D)) < 4 * error
    assert (
        abs(np.abs(cos(an_update(real), stream(real).h_PxD)).mean() - null_abs_cos(2)) > 4 * error
    )


def loops(used, real):
    """of_other_users, token by token."""
    rows, length = real.shape
    used, out = used.reshape(rows, length, -1), np.zeros((rows, length, used.shape[-1]))
    for b in range(rows):
        donors = [(b + i) % rows for i in range(1, rows + 1)]
        donor = next((r for r in donors if real[r].any()), b)
        theirs = np.flatnonzero(real[donor])
        for from_end, column in enumerate(np.flatnonzero(real[b])[::-1], 1):
            out[b, column] = used[donor, theirs[max(len(theirs) - from_end, 0)]]
    return out.reshape(rows * length, -1)


GRIDS = {
    "left-padded": REAL,
    "holes": np.random.default_rng(5).random((B, L)) < 0.5,
    "one user only": REAL & (np.arange(B)[:, None] == 2),
    "nobody": np.zeros((B, L), bool),
    "two of one token": (np.arange(B)[:, None] % 3 == 0) & (np.arange(L) == L - 1),
}


@pytest.mark.parametrize("name", GRIDS)
def test_another_users_update_against_loops(name):
    real = GRIDS[name]
    used = an_update(real)
    found = replaced("other_user", used, stream(real))
    np.testing.assert_array_equal(found, loops(np.asarray(used), real))
    if name == "one user only":
        np.testing.assert_array_equal(found, used)
    if name == "left-padded":
        own = np.abs(found - np.asarray(used)).max(-1)
        assert (own[real.ravel()] > 0).all()  # nobody keeps an update of its own


def test_the_mean_update_is_one_vector():
    used, real = np.asarray(an_update()), REAL.ravel()
    found = replaced("mean")
    np.testing.assert_allclose(found[real], np.tile(used[real].mean(0), (real.sum(), 1)), atol=1e-6)
    assert (found[~real] == 0).all()


# ---- lists of interventions


def test_every_part_at_every_scale_and_place_once():
    found = lib.interventions(REPLACEMENTS, (0.5, 1.0), (0, 1))
    assert len(found) == len(set(found)) == 3 * (2 * len(REPLACEMENTS) - 2)  # full × 1; zero once
    assert Intervention() not in found and Intervention("zero") in found
    assert {i.places for i in found} == {"all", "0", "1"}
    assert lib.interventions(("full",), (1.0,)) == []
    with pytest.raises(UserError, match="--interventions=half: expected some of full, parallel"):
        lib.interventions(("half",), (1.0,))
    for bad in (-1.0, float("nan")):
        with pytest.raises(UserError, match="--scales="):
            lib.interventions(("full",), (bad,))


def test_one_place_leaves_the_others_as_they_are():
    modules = ["gca_0_A", "gca_0_B", "gca_1_A"]
    found = lib.variables({}, [4, 5], modules, Intervention("zero", 1.0, "0"))
    zero, full = list(REPLACEMENTS).index("zero"), list(REPLACEMENTS).index("full")
    parts = {name: index.tolist() for name, index in found["part"].items()}
    assert parts == {"gca_0_A": [zero] * 2, "gca_0_B": [zero] * 2, "gca_1_A": [full] * 2}
    everywhere = lib.variables({}, [4, 5], modules, Intervention("zero"))
    assert all((index == zero).all() for index in everywhere["part"].values())
    assert found["seed"].tolist() == [4, 5]


# ---- inside the model


@pytest.fixture(scope="module")
def encoders(stack):
    """Function (what the run was trained with, intervention) -> hidden states of 16 users."""
    params = jax.tree.map(lambda a: a[0], made.drawn(stack, 6).best_params)
    rows = {k: v[:16] for k, v in stack.data.task.eval_arrays("test").items()}
    modules = lib.modules_of(stack.engine.settings.backbone)
    assert modules == ["gca_0_A", "gca_0_B", "gca_1_A", "gca_1_B"]
    scales = {"scale_parallel": jnp.float32(0.5), "scale_orthogonal": jnp.float32(2.0)}
    params = params | {name: params[name] | scales for name in modules}  # of part=split alone
    programs = {}

    def trained_with(update):
        gca = dataclasses.replace(stack.engine.settings.backbone.gca, part=update)
        return dataclasses.replace(stack.engine.settings.backbone, gca=gca)

    def encode(update, intervention, part_of="update", seed=7):
        changed = lib.Intervened(trained_with(update), part_of)
        program = programs.setdefault((update, part_of), jax.jit(changed.encode))
        seeded = lib.variables(params, [seed], modules, intervention)
        of_seed = jax.tree.map(lambda a: a[0], seeded | {"params": None}) | {"params": params}
        return np.asarray(program(of_seed, rows))

    def plain(update):
        return np.asarray(jax.jit(trained_with(update).encode)(params, rows))

    return encode, plain


@pytest.mark.parametrize(
    "update, kept, removed",
    [
        ("parallel", "parallel", "orthogonal"),
        ("orthogonal", "orthogonal", "parallel"),
    ],
)
def test_a_model_trained_with_one_part(encoders, update, kept, removed):
    """What it was trained with is all that it has: the other part is nothing, up to rounding."""
    encode, _ = encoders
    as_trained = encode(update, Intervention())
    np.testing.assert_allclose(encode(update, Intervention(kept)), as_trained, atol=2e-4)
    zero = encode(update, Intervention("zero"))
    np.testing.assert_allclose(encode(update, Intervention(removed)), zero, atol=2e-4)
    assert np.abs(as_trained - zero).max() > 0.05


def test_a_model_trained_with_a_scale_for_each_part(encoders):
    encode, plain = encoders
    as_trained = encode("split", Intervention())
    np.testing.assert_allclose(as_trained, plain("split"), rtol=1e-4, atol=1e-5)
    assert np.abs(as_trained - plain("full")).max() > 1e-3


def test_interventions_on_a_model_trained_with_all_of_it(encoders):
    encode, plain = encoders
    full = encode("full", Intervention())
    # To the last digit or two: the choice of a part keeps XLA from fusing across it. Ranks are
    # compared bit by bit in test_intervene.py.
    np.testing.assert_allclose(full, plain("full"), rtol=1e-5, atol=1e-6)
    seen = {part: encode("full", Intervention(part)) for part in REPLACEMENTS}
    for part, states in seen.items():
        assert (np.abs(states - full).max() > 1e-3) == (part != "full"), part
        assert np.isfinite(states).all()
    # The part is the one that training would use.
    np.testing.assert_allclose(seen["parallel"], plain("parallel"), atol=1e-4)
    # Places are told apart, and a scale of nearly 0 is nearly nothing.
    first, second = (encode("full", Intervention("zero", 1.0, place)) for place in "01")
    assert min(np.abs(first - second).max(), np.abs(first - seen["zero"]).max()) > 1e-3
    tiny = encode("full", Intervention("full", 1e-6))
    np.testing.assert_allclose(tiny, seen["zero"], atol=1e-3)
    # Every seed has random directions of its own.
    assert np.abs(encode("full", Intervention("random"), seed=8) - seen["random"]).max() > 1e-3


def test_what_stands_in_is_of_whole_rows_and_of_each_module(stack, monkeypatch):
    """Also where only the last token is asked for: else the mean would be that of last tokens."""
    backbone, seen = stack.engine.settings.backbone, []

    def spied(part, used, query, key, users_B):
        seen.append((query.packing.shape, jax.random.key_data(key).tolist()))
        return used

    monkeypatch.setattr(lib, "replaced", spied)
    params = jax.tree.map(lambda a: a[0], made.drawn(stack, 6).best_params)
    asked = stack.data.task.eval_arrays("test")
    rows = {k: jnp.asarray(v[:4]) for k, v in asked.items() if k != "seen"}
    modules = lib.modules_of(backbone)
    one = jax.tree.map(lambda a: a[0], lib.variables({}, [7], modules, Intervention("random")))
    lib.Intervened(backbone).encode(one | {"params": params}, rows)
    assert len(seen) == len(modules) and {shape for shape, _ in seen} == {rows["seq_x"].shape}
    assert len({tuple(key) for _, key in seen}) == len(modules)


def turned(params, backbone, units):
    """The same function with some units of X' and of their gates of the other sign (tanh)."""
    out = jax.tree.map(lambda a: a, params)
    width = backbone.config.d_embed
    sign = np.where(np.isin(np.arange(width), units), -1.0, 1.0).astype(np.float32)
    for name in [name for name in out if name.startswith("gca_")]:
        module = dict(out[name])
        attention, last = dict(module["attention"]), dict(module["gate_out"])
        attention["out"] = {k: v * sign for k, v in attention["out"].items()}
        first = dict(module["gate_in"])
        first["kernel"] = first["kernel"].at[width:].multiply(sign[:, None])
        last = {k: v * sign for k, v in last.items()}
        out[name] = module | {"attention": attention, "gate_in": first, "gate_out": last}
    return out


def test_parts_of_the_gated_update_do_not_depend_on_arbitrary_signs(stack):
    """tanh gates: flipped signs change no output; nor an intervention on α ⊙ X', but one on X'."""
    backbone = dataclasses.replace(
        stack.engine.settings.backbone,
        gca=dataclasses.replace(stack.engine.settings.backbone.gca, gate_act="tanh"),
    )
    rows = {k: v[:16] for k, v in stack.data.task.eval_arrays("test").items()}
    plain = jax.tree.map(lambda a: jnp.asarray(a[0]), made.drawn(stack, 6).best_params)
    other = turned(plain, backbone, [0, 3, 5, 6])
    modules = lib.modules_of(backbone)
    states = {}
    for part_of in lib.PART_OF:
        program = jax.jit(lib.Intervened(backbone, part_of).encode)
        for part in ("full", "orthogonal", "parallel"):
            for name, params in (("plain", plain), ("other", other)):
                seeded = lib.variables({}, [7], modules, Intervention(part))
                seeded = jax.tree.map(lambda a: a[0], seeded) | {"params": params}
                states[part_of, part, name] = np.asarray(program(seeded, rows))
    trained = np.asarray(jax.jit(backbone.encode)(plain, rows))
    for part_of in lib.PART_OF:
        np.testing.assert_allclose(states[part_of, "full", "plain"], trained, atol=1e-5)
    for part in ("full", "orthogonal", "parallel"):
        moved = {
            k: np.abs(states[k, part, "plain"] - states[k, part, "other"]).max()
            for k in lib.PART_OF
        }
        assert moved["gated"] < 1e-4
        assert (moved["update"] > 1e-2) == (part != "full")


# ---- geometry of residual and norm


def layer_norm(x):
    """The layer of the models at its initial scale 1 and bias 0."""
    params = LayerNorm().init(jax.random.key(0), x)
    return np.asarray(LayerNorm().apply(params, x))


def test_parallel_updates_vanish_to_first_order_after_the_norm():
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        x, u = rng.normal(size=(2, 20, D)) * 3
        centred_x, centred_u = (h - h.mean(-1, keepdims=True) for h in (x, u))
        along = np.asarray(parallel_part(centred_u, centred_x))
        size = np.sqrt((centred_x**2).sum(-1, keepdims=True) + D * LAYER_NORM_EPSILON)
        predicted = np.sqrt(D) / size * (centred_u - along)

        def moved(direction, eta):
            return (layer_norm(x + eta * direction) - layer_norm(x)) / eta

        for update, first_order in ((u, predicted), (centred_u - along, predicted)):
            errors = [norm(moved(update, eta) - first_order).max() for eta in (1e-3, 1e-4)]
            assert errors[1] < 0.11 * errors[0] < 0.11 * 0.02  # O(η²) in all
        assert norm(moved(along, 1e-3)).max() < 1e-5 < 0.1 < norm(predicted).min()


def test_with_an_open_gate_the_parallel_part_is_lost_in_the_norm():
    """X'' = LN(X + X'): with X centred and X' its parallel part, LN(X) is all that is left."""
    query, used = stream(), an_update()
    centred = query.replace(h_PxD=query.h_PxD - query.h_PxD.mean(-1, keepdims=True))
    times = jnp.broadcast_to(jnp.arange(L), (B, L))
    seen = []

    @jax.jit
    def program(index):
        def update(raw, query, name):
            seen.append(name)
            return 0.5 * lib.replaced(index, used, query, KEY, USERS)

        module = GatedCrossAttention(2, part=update, name="gca_2_B")
        shapes = jax.eval_shape(module.init, KEY, centred, centred, times, times)["params"]
        params = jax.tree.map(lambda a: jnp.zeros(a.shape), shapes)
        params["gate_out"]["bias"] += 1e4
        params["norm"]["norm"]["scale"] += 1
        return module.apply({"params": params}, centred, centred, times, times)[0].h_PxD

    def output(part):
        return np.asarray(program(list(REPLACEMENTS).index(part)))

    alone = output("zero")
    along = np.abs(cos(np.asarray(centred.h_PxD), replaced("parallel", query=centred)))
    np.testing.assert_allclose(along, 1, atol=1e-5)
    forward = norm(replaced("parallel", query=centred)) < norm(np.asarray(centred.h_PxD))
    difference = norm(output("parallel") - alone)[REAL.ravel() & forward]
    assert difference.max() < 1e-3 < 0.1 < norm(output("orthogonal") - alone)[REAL.ravel()].min()
    assert set(seen) == {"gca_2_B"}
