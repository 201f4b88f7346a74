"""The best possible ranking in a synthetic world, by the true probabilities of the next item."""

import math
from collections.abc import Iterator

import numpy as np

from oa_jax.events.log import InteractionLog
from oa_jax.events.world import World, latents, topic_oracles


def item_laws(
    world: World, log: InteractionLog, rows: np.ndarray
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """For each event of `rows` (R,), rows of the log, yields (its place in `rows`, own, both).

    own, both: (I,) exact probabilities of the items of the event's domain, given the history of
    that domain and given both histories; 0 for items that the user has taken. Both oracles know the
    user's tastes, which no model can know exactly, and differ only in the topic: a probability is
    that of the topic times that of the item among the remaining ones of its topic. log: as for
    `topic_oracles`, with all users of the world.
    """
    truth = latents(world)
    for domain, first in enumerate((0, world.n_items[0])):
        mine = slice(first, first + world.n_items[domain])
        topic_I, oracles = truth.item_topic[mine], topic_oracles(world, log, domain)
        popularity_I = -world.zipf * np.log(truth.item_rank[mine])
        for place in np.flatnonzero(log.domain[rows] == domain):
            row, user = rows[place], log.user[rows[place]]
            affinity_I = truth.item_latent[mine] @ truth.user_latent[domain, user]
            odds_I = np.exp(popularity_I + world.taste / math.sqrt(world.latent_dim) * affinity_I)
            taken = log.item[log.offsets[user] : row] - 1 - first
            odds_I[taken[(taken >= 0) & (taken < len(odds_I))]] = 0
            odds_I /= np.bincount(topic_I, odds_I, world.topics)[topic_I]
            event = np.searchsorted(oracles.row, row)
            yield int(place), *(law[event, topic_I] * odds_I for law in (oracles.own, oracles.both))


def target_ranks(world: World, log: InteractionLog, rows: np.ndarray) -> np.ndarray:
    """(2, R) int: ranks of the items of the events `rows` among all items of their domain that the
    user had not taken; first by the oracle of the own domain, then by that of both."""
    ranks, item_R = np.empty((2, len(rows)), int), log.local[rows] - 1
    for place, *laws in item_laws(world, log, rows):
        ranks[:, place] = [1 + np.sum(law > law[item_R[place]]) for law in laws]
    return ranks
