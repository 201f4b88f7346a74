"""The forms of the softmax over items side by side: memory of the compiled gradient, and time."""

from __future__ import annotations

import dataclasses
import functools

import flax
import jax
import jax.numpy as jnp

from oa_jax.bench.clock import interleaved, seconds_of
from oa_jax.nn import losses
from oa_jax.nn.layers import Packing

GATHERED, POSITION, ROW = "per position, gathered", "per position, blocks", "per sequence"
BATCH, ALL = "per batch", "all items, blocks"
FORMS = (POSITION, GATHERED, ROW, BATCH, ALL)


@dataclasses.dataclass(frozen=True)
class Sizes:
    """n_positions P in rows of `length`, half of a row's places real; K negatives of width D.
    block: positions per block of the form per position.  block_items: items per block."""

    n_positions: int
    length: int
    n_negatives: int
    width: int
    block: int
    block_items: int


@flax.struct.dataclass
class Inputs:
    """Random arrays of the loss: what is differentiated, and what is drawn."""

    table: jax.Array
    h_PxD: jax.Array
    weight_P: jax.Array
    target_P: jax.Array
    packing: Packing
    per_position_PxK: jax.Array
    per_row_BxK: jax.Array
    per_batch_K: jax.Array

    @classmethod
    def draw(cls, sizes: Sizes, n_items: int, key) -> Inputs:
        keys = jax.random.split(key, 5)
        n_rows = -(-2 * sizes.n_positions // sizes.length)
        shape = (n_rows, sizes.length)

        def items(key, shape):
            return jax.random.randint(key, shape, 1, n_items + 1)

        return cls(
            0.02 * jax.random.normal(keys[0], (n_items + 1, sizes.width)),
            jax.random.normal(keys[1], (sizes.n_positions, sizes.width)),
            jnp.full(sizes.n_positions, 1 / sizes.n_positions),
            items(keys[2], (sizes.n_positions,)),
            Packing(2 * jnp.arange(sizes.n_positions), shape),
            items(keys[3], (sizes.n_positions, sizes.n_negatives)),
            items(keys[4], (n_rows, sizes.n_negatives)),
            items(keys[4], (sizes.n_negatives,)),
        )


def loss(form: str, sizes: Sizes, inputs: Inputs):
    """The loss of one form."""
    given = (inputs.table, inputs.h_PxD, inputs.weight_P, inputs.target_P)
    if form == POSITION:
        return losses.position_negatives(*given, inputs.per_position_PxK, sizes.block)[0]
    if form == GATHERED:
        return gathered(*given, inputs.per_position_PxK)
    if form == ROW:
        return losses.shared_negatives(*given, inputs.packing, inputs.per_row_BxK)[0]
    if form == BATCH:
        return losses.batch_negatives(*given, inputs.per_batch_K)[0]
    return losses.all_items(*given, sizes.block_items)[0]


def gathered(table, h_PxD, weight_P, target_P, negatives_PxK):
    """The plain definition: all (P, K, D) vectors at once."""
    ids = jnp.concatenate([target_P[:, None], negatives_PxK], 1)
    scores = jnp.einsum("pd,pkd->pk", h_PxD, table[ids])
    return -jnp.sum(weight_P * jax.nn.log_softmax(scores)[:, 0])


def compare(sizes: Sizes, n_items: int, rounds: int) -> dict[str, dict]:
    """{form: {temp_bytes, seconds of every round}}; a form that does not fit says so instead."""
    inputs, out, cases = Inputs.draw(sizes, n_items, jax.random.key(0)), {}, {}
    for form in FORMS:
        try:
            compiled = _compiled(form, sizes, inputs)
            jax.block_until_ready(compiled(inputs.table, inputs.h_PxD, inputs))
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            out[form] = {"error": "out of memory"}
            continue
        memory = compiled.memory_analysis()
        out[form] = {} if memory is None else {"temp_bytes": float(memory.temp_size_in_bytes)}
        cases[form] = functools.partial(seconds_of, compiled, inputs.table, inputs.h_PxD, inputs)
    for form, spread in interleaved(cases, rounds).items():
        out[form]["seconds"] = list(spread.seconds)
    return out


def _compiled(form, sizes, inputs):
    def of(table, h_PxD, inputs):
        return loss(form, sizes, inputs.replace(table=table, h_PxD=h_PxD))

    program = jax.jit(jax.value_and_grad(of, (0, 1)))
    return program.lower(inputs.table, inputs.h_PxD, inputs).compile()
