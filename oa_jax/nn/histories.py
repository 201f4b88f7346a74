"""Streams out of histories, inside a program: what `events.rows` does with a whole log on the host.

A history is a row of item ids, the oldest first, left-padded with 0.
"""

import jax
import jax.numpy as jnp
import numpy as np

from oa_jax.events.rows import Ragged

# Evaluation rows go into programs as they are: what was seen comes along, read or not.
jax.tree_util.register_dataclass(Ragged, ["values", "size"], [])


# History and domain of a user with one event: what a network is initialised with.
ONE = np.ones((1, 1), np.int32), np.zeros(1, np.int32)


def last(history_BxH: jax.Array, length: int) -> jax.Array:
    """(B, length): the last events."""
    return jnp.pad(history_BxH, [(0, 0), (length, 0)])[:, -length:]


def columns(history_BxH: jax.Array, length: int) -> jax.Array:
    """(H,): the column of each event in `last`; below 0 for those that it has no longer."""
    n_events = history_BxH.shape[1]
    return jnp.arange(n_events) - n_events + length


def chosen_last(
    chosen_BxH: jax.Array, length: int, *values: tuple[jax.Array, int]
) -> tuple[jax.Array, ...]:
    """(B, length) of each (values (B, H) or (H,), fill): those of the last chosen events, without
    gaps, at the right end."""
    chosen = jnp.pad(chosen_BxH, [(0, 0), (length, 0)])
    # A stable sort keeps the order of the chosen ones, behind all others.
    place = jnp.argsort(chosen, axis=1, stable=True)[:, -length:]
    there = jnp.take_along_axis(chosen, place, 1)

    def of(array, fill):
        array = jnp.pad(jnp.broadcast_to(array, chosen_BxH.shape), [(0, 0), (length, 0)])
        return jnp.where(there, jnp.take_along_axis(array, place, 1), fill)

    return tuple(of(*one) for one in values)


def of_domain(history_BxH: jax.Array, domain: int, n_items: tuple[int, int]) -> jax.Array:
    """(B, H): which events are of a domain, 0 for A and 1 for B."""
    return (history_BxH > 0) & ((history_BxH > n_items[0]) == (domain == 1))
