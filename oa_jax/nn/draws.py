"""Batches and negatives drawn on the device. What is drawn is a pure function of (seed, step).

Keys are folded from integers, one stream a purpose, so that nothing random has to be stored and
the draws do not depend on the number of seeds or devices.
"""

import enum

import jax
import jax.numpy as jnp

# Named: JAX_DEFAULT_PRNG_IMPL chooses another generator for the whole of a process, and the draws
# of `rbg` under vmap are not those of its seeds alone.
GENERATOR = "threefry2x32"


class Purpose(enum.IntEnum):
    """What a random stream is for; the first number folded into the key of a seed."""

    INIT = 0
    ORDER = 1
    NEGATIVES = 2
    DROPOUT = 3
    SUPPORT = 4


def key_of(seed: int | jax.Array, purpose: Purpose, index: int | jax.Array) -> jax.Array:
    """The key of (seed, purpose, index); `seed` and `index` may be traced int32."""
    key = jax.random.key(seed, impl=GENERATOR)
    return jax.random.fold_in(jax.random.fold_in(key, purpose), index)


def epoch_rows(
    seed: int | jax.Array, epoch: int | jax.Array, n_users: int, batch_size: int
) -> jax.Array:
    """Users of every batch of an epoch: (n_steps, batch_size), each user once.

    The last batch is filled up with `n_users`, an index out of range.
    """
    order = jax.random.permutation(key_of(seed, Purpose.ORDER, epoch), n_users)
    n_steps = -(-n_users // batch_size)
    fill = n_steps * batch_size - n_users
    return jnp.pad(order, (0, fill), constant_values=n_users).reshape(n_steps, batch_size)


def distinct(key: jax.Array, n: int | jax.Array, size: int) -> jax.Array:
    """`size` distinct integers of [0, n), a uniformly drawn set (R. Floyd's algorithm).

    n may be traced and must be at least `size`. The modulo's bias is n / 2**32.
    """
    bits, at = jax.random.bits(key, (size,)), jnp.arange(size)
    last = (n - size + at).astype(jnp.int32)  # step j draws from 0..last[j]
    draws = (bits % (last + 1).astype(jnp.uint32)).astype(jnp.int32)
    if size == 1:  # nothing is taken before
        return draws
    # Step j takes last[j] where its draw is taken: by the draw of an earlier step, or because it
    # is the last[i] of an earlier step i that took it. The second is a chain of steps, which is
    # followed until nothing changes: two or three turns for all rows at once, not `size`.
    repeated = jnp.any((draws[:, None] == draws) & (at < at[:, None]), 1)
    link = draws - last[0]
    link = jnp.where((link >= 0) & (link < at), link, size)

    def follow(taken):
        _, now = taken
        return now, repeated | now.at[link].get(mode="fill", fill_value=False)

    start = (jnp.zeros_like(repeated), repeated)
    _, taken = jax.lax.while_loop(lambda taken: jnp.any(taken[0] != taken[1]), follow, start)
    return jnp.where(taken, last, draws)


def distinct_outside(
    key: jax.Array,
    n: int,
    excluded: jax.Array,
    n_excluded: int | jax.Array,
    size: int,
    first: int | jax.Array = 0,
    most: int | None = None,
) -> jax.Array:
    """`size` distinct integers of [0, n) that are not in `excluded`, exactly and without rejection.

    excluded: (H,) of which the places first, …, first + n_excluded - 1 count, and ascend; what
    stands elsewhere, padding or other rows' integers, does not matter.  first, n_excluded: may be
    traced.  most: not below n_excluded, and static; H by default.
    """
    ranks = distinct(key, n - n_excluded, size)

    # The r-th admitted integer is r plus the number of excluded e_j with e_j - j <= r, which is
    # found by bisection. (jnp.searchsorted would need a copy of every row's part, in one width.)
    def halve(_, bounds):
        low, high = bounds
        middle = (low + high) // 2
        above = (low < high) & (excluded[first + middle] - middle <= ranks)
        return jnp.where(above, middle + 1, low), jnp.where(above, high, middle)

    low = jnp.zeros_like(ranks)
    n_halvings = (len(excluded) if most is None else most).bit_length()
    passed, _ = jax.lax.fori_loop(0, n_halvings, halve, (low, low + n_excluded))
    return ranks + passed
