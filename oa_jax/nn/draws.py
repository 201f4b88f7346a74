"""Batches and negatives drawn on the device. What is drawn is a pure function of (seed, step).

Keys are folded from integers, one stream a purpose, so that nothing random has to be stored and
the draws do not depend on the number of seeds or devices.
"""

from __future__ import annotations

import enum

import jax
import jax.numpy as jnp


class Purpose(enum.IntEnum):
    """What a random stream is for; the first number folded into the key of a seed."""

    INIT = 0
    ORDER = 1
    NEGATIVES = 2
    DROPOUT = 3
    SUPPORT = 4


def key_of(seed, purpose: Purpose, index):
    """The key of (seed, purpose, index); `seed` and `index` may be traced int32."""
    # Named: JAX_DEFAULT_PRNG_IMPL chooses another generator for the whole of a process, and the
    # draws of `rbg` under vmap are not those of its seeds alone.
    key = jax.random.key(seed, impl="threefry2x32")
    return jax.random.fold_in(jax.random.fold_in(key, purpose), index)


def epoch_rows(seed, epoch, n_users: int, batch_size: int):
    """Users of every batch of an epoch: (n_steps, batch_size), each user once.

    The last batch is filled up with `n_users`, an index out of range.
    """
    order = jax.random.permutation(key_of(seed, Purpose.ORDER, epoch), n_users)
    n_steps = steps_per_epoch(n_users, batch_size)
    fill = n_steps * batch_size - n_users
    return jnp.pad(order, (0, fill), constant_values=n_users).reshape(n_steps, batch_size)


def steps_per_epoch(n_users: int, batch_size: int) -> int:
    return -(-n_users // batch_size)


def distinct(key, n, size: int):
    """`size` distinct integers of [0, n), a uniformly drawn set (R. Floyd's algorithm).

    n may be traced and must be at least `size`. The modulo's bias is n / 2**32.
    """
    bits = jax.random.bits(key, (size,))
    last = (n - size + jnp.arange(size)).astype(jnp.int32)  # step j draws from 0..last[j]
    draws = (bits % (last + 1).astype(jnp.uint32)).astype(jnp.int32)

    def step(j, chosen):
        taken = jnp.any(chosen == draws[j])
        return chosen.at[j].set(jnp.where(taken, last[j], draws[j]))

    return jax.lax.fori_loop(0, size, step, jnp.full(size, -1, jnp.int32))


def distinct_outside(key, n: int, excluded, n_excluded, size: int):
    """`size` distinct integers of [0, n) that are not in `excluded`, exactly and without rejection.

    excluded: (H,) ascending, padded with large values; n_excluded: how many are real.
    """
    ranks = distinct(key, n - n_excluded, size)
    # The r-th admitted integer is r plus the number of excluded e_j with e_j - j <= r.
    shifted = excluded - jnp.arange(len(excluded))
    return ranks + jnp.searchsorted(shifted, ranks, side="right").astype(jnp.int32)
