"""The same trained backbone with another update: which replacements there are, how they are made.

What is replaced, and by what, is an argument of the program: all interventions of a run share one
compilation, and the unchanged model goes through the same operations as the changed ones. Its
hidden states are those of the run's own program up to the last digit, as XLA fuses the two
differently; its ranks are the same.

`part_of` = "gated" replaces α ⊙ X', which is what is added to X; X' and the gate stay as they were.
"update" replaces X' before the gate, which sees the replacement: under a tanh gate the parts of X'
are arbitrary.
"""

import dataclasses
import functools
import itertools
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from oa_jax.errors import UserError
from oa_jax.nn.fusion import DOMAINS, PARTS, next_with_tokens
from oa_jax.nn.layers import parallel_part

RANDOM = 0x0A17  # folded into a seed's key: apart from the purposes of training
PART_OF = ("gated", "update")
# Replacement -> what stands in place of the update U, which is α ⊙ X' or X'.
REPLACEMENTS = {
    "full": "U as it is",
    "parallel": "U∥, along X",
    "orthogonal": "U⊥, the rest",
    "parallel_at_norm": "U∥ at the norm of U",
    "orthogonal_at_norm": "U⊥ at the norm of U",
    "random": "random at the norm of U",
    "other_user": "another user's U",
    "mean": "the mean U",
    "zero": "nothing",
}


@dataclasses.dataclass(frozen=True)
class Intervention:
    """The update replaced by `scale` times a part; at one place of GCA, such as "0", or at all."""

    part: str = "full"
    scale: float = 1.0
    places: str = "all"


UNCHANGED = Intervention()


def interventions(parts, scales, places=()) -> list[Intervention]:
    """Every part at every scale, at all places at once and, one by one, at each of `places`.

    Without what changes nothing. Raises UserError for an unknown part or a bad scale.
    """
    for part in parts:
        if part not in REPLACEMENTS:
            raise UserError(f"--interventions={part}: expected some of {', '.join(REPLACEMENTS)}")
    for scale in scales:
        if not np.isfinite(scale) or scale < 0:
            raise UserError(f"--scales={scale:g}: expected finite numbers from 0 up")
    found = [
        Intervention(part, float(scale), place)
        for place, part in itertools.product(("all", *map(str, places)), parts)
        for scale in ((1.0,) if part == "zero" else scales)  # zero has no scale,
        if scale > 0  # and a scale of zero is `zero`
    ]
    return [i for i in dict.fromkeys(found) if (i.part, i.scale) != ("full", 1.0)]


@dataclasses.dataclass(frozen=True)
class Intervened:
    """A backbone whose parameters are {"params", "seed", "part", "scale"}: see `variables`."""

    backbone: Any
    part_of: str = "gated"

    def on(self, tables):
        return dataclasses.replace(self, backbone=self.backbone.on(tables))

    def index(self, variables):
        return self.backbone.index(variables["params"])

    def encode(self, variables, batch):
        """`batch` has `user`, the ids. Where the run was trained with a part only, that part is
        what is replaced: `full` is always the model as it was trained."""
        trained, params = PARTS[self.backbone.gca.part], variables["params"]

        def replace(update, query, name):
            used = trained(update, query.h_PxD, params.get("net", params)[name])
            key = jax.random.fold_in(jax.random.key(variables["seed"]), RANDOM)
            key = jax.random.fold_in(key, np.uint32(zlib.crc32(name.encode())))
            part = variables["part"][name]
            return variables["scale"][name] * replaced(part, used, query, key, batch["user"])

        gca = dataclasses.replace(self.backbone.gca, part=replace, part_of=self.part_of)
        changed = dataclasses.replace(self.backbone, gca=gca)
        return changed.encode(params, batch)

    def score(self, index, encoded_BxD, candidates):
        return self.backbone.score(index, encoded_BxD, candidates)

    def probe(self, variables, batch):
        return {}  # ranks are all that is asked of it


def variables(params, seeds, modules, intervention: Intervention) -> dict:
    """Arguments of `Intervened` with a leading S: parameters, seeds, and what each module uses."""
    order, part, scale = list(REPLACEMENTS), {}, {}
    for name in modules:
        # The number in a module's name is its place: gca_0_A.
        chosen = intervention if intervention.places in ("all", name.split("_")[1]) else UNCHANGED
        part[name] = np.full(len(seeds), order.index(chosen.part), np.int32)
        scale[name] = np.full(len(seeds), chosen.scale, np.float32)
    return {"params": params, "seed": np.asarray(seeds, np.int32), "part": part, "scale": scale}


def modules_of(backbone) -> list[str]:
    """Names of the GCA modules, such as gca_0_A."""
    return [f"gca_{place}_{domain}" for place in backbone.gca.positions for domain in DOMAINS]


def replaced(part, used, query, key, users_B):
    """What stands in place of U, `used`: (P, D). query: X. part: index in `REPLACEMENTS`."""
    along = functools.partial(parallel_part, used, query.h_PxD)
    branches = {
        "full": lambda: used,
        "parallel": along,
        "orthogonal": lambda: used - along(),
        "parallel_at_norm": lambda: at_norm(along(), used),
        "orthogonal_at_norm": lambda: at_norm(used - along(), used),
        "random": lambda: at_norm(random_directions(query, key, users_B), used),
        "other_user": lambda: of_other_users(used, query),
        "mean": lambda: mean_of_tokens(used, query),
        "zero": lambda: jnp.zeros_like(used),
    }
    return jax.lax.switch(part, [branches[name] for name in REPLACEMENTS])


def at_norm(part, used):
    """`part` at the norm of `used`, per token; 0 where the part is 0."""
    norm = jnp.linalg.norm(part, axis=-1, keepdims=True)
    target = jnp.linalg.norm(used, axis=-1, keepdims=True)
    return part * jnp.where(norm > 0, target / jnp.where(norm > 0, norm, 1.0), 0.0)


def random_directions(query, key, users_B):
    """(P, D) normal vectors: they follow from the key, the user's id and the token's column."""
    shape = (query.packing.shape[1], query.h_PxD.shape[-1])
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, users_B)
    grid_BxLxD = jax.vmap(lambda k: jax.random.normal(k, shape))(keys)
    return query.packing.pack(grid_BxLxD) * query.real_P[:, None]


def mean_of_tokens(used, query):
    """(P, D): every token gets the mean U of the tokens of its block of users."""
    real_Px1 = query.real_P[:, None]
    mean_D = jnp.sum(used * real_Px1, 0) / jnp.maximum(jnp.sum(real_Px1), 1)
    return mean_D * real_Px1


def of_other_users(used, query):
    """(P, D): every token gets the U of the next user of the block that has any token.

    Tokens are counted from the end, so that the latest gets the latest, wherever padding stands; a
    user with fewer tokens lends its oldest one to what lies before. Alone in its block, a user
    keeps its own.
    """
    real_BxL = query.packing.unpack(query.real_P)
    grid_BxLxD = query.packing.unpack(used)
    length, count_B, donor_B = real_BxL.shape[1], real_BxL.sum(1), next_with_tokens(real_BxL)
    from_end_BxL = jnp.cumsum(real_BxL[:, ::-1], 1)[:, ::-1]  # 1 for the latest token
    column_BxL = jnp.argsort(real_BxL, 1, stable=True)  # padding first, then tokens in order
    place_BxL = length - jnp.clip(from_end_BxL, 1, jnp.maximum(count_B[donor_B], 1)[:, None])
    donor_column_BxL = jnp.take_along_axis(column_BxL[donor_B], place_BxL, 1)
    found_BxLxD = grid_BxLxD[donor_B[:, None], donor_column_BxL]
    return query.packing.pack(found_BxLxD) * query.real_P[:, None]
