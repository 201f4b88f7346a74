"""Partial information of A and B about the next topic, computed exactly.

What two sources say about a target is redundant (either says it), unique to one of them, or
synergistic (only both together say it). There is no agreed measure, so we compute two:

    i_min   Williams and Beer, arXiv 1004.2515. It compares only amounts: what both sources say
            equally much counts as redundant, even if they say different things.
    broja   Bertschinger et al., arXiv 1311.2765. Unique to a source is what it says beyond the
            other, at the least over all joint laws with the same marginals (source, target).

Shapes: A and B values of the sources, Z values of the target, K topics. Unit: nats.
"""

import numpy as np

from oa_jax.events.world import World, topic_law

SWEEPS, ROUNDS, TOLERANCE = 10, 5000, 1e-13


def partial_information(world: World, chance: float | None = None) -> dict[str, dict[str, float]]:
    """{measure: {redundant, unique_a, unique_b, synergistic}}: what the latest topics of A and of B
    say about the next topic, for a user of both domains. The four add up to I(next ; A, B).

    chance: probability that an event is of A, by default the middle of `share`. The latest topics
    have the stationary distribution, as after a long history.
    """
    chance = sum(world.share) / 2 if chance is None else chance
    law_KxKxK = topic_law(world)[:-1, :-1]
    return decompose(_latest(law_KxKxK, chance)[:, :, None] * law_KxKxK)


def _latest(law_KxKxK, chance):
    """(K, K): the stationary law of the latest topics of A and of B."""
    latest_KxK = np.full(law_KxKxK.shape[:2], 1 / len(law_KxKxK) ** 2)
    for _ in range(ROUNDS):
        joint = latest_KxK[:, :, None] * law_KxKxK
        old, latest_KxK = latest_KxK, chance * joint.sum(0).T + (1 - chance) * joint.sum(1)
        if np.abs(latest_KxK - old).max() < TOLERANCE:
            break
    return latest_KxK


def decompose(joint_AxBxZ: np.ndarray) -> dict[str, dict[str, float]]:
    """As `partial_information`, for any joint law (A, B, Z) of two sources and a target."""
    a_AxZ, b_BxZ = joint_AxBxZ.sum(1), joint_AxBxZ.sum(0)
    of_a, of_b, of_both = map(_information, (a_AxZ, b_BxZ, _flat(joint_AxBxZ)))
    # The target's value z has the specific informations of this row over P(z).
    least = np.minimum(_terms(a_AxZ).sum(0), _terms(b_BxZ).sum(0)).sum()
    union = _information(_flat(_least_telling(a_AxZ, b_BxZ)))
    redundancy = {"i_min": least, "broja": of_a + of_b - union}
    return {
        measure: {
            "redundant": float(both_say),
            "unique_a": float(of_a - both_say),
            "unique_b": float(of_b - both_say),
            "synergistic": float(of_both - of_a - of_b + both_say),
        }
        for measure, both_say in redundancy.items()
    }


def _flat(joint_AxBxZ):
    return joint_AxBxZ.reshape(-1, joint_AxBxZ.shape[-1])


def _terms(joint_XxZ):
    """What each pair of values adds to the mutual information."""
    apart = joint_XxZ.sum(1, keepdims=True) * joint_XxZ.sum(0)
    ratio = np.divide(joint_XxZ, apart, out=np.ones_like(joint_XxZ), where=joint_XxZ > 0)
    return joint_XxZ * np.log(ratio)


def _information(joint_XxZ):
    return _terms(joint_XxZ).sum()


def _least_telling(a_AxZ, b_BxZ):
    """(A, B, Z): the law with these pairs in which both sources together say least of the target.

    With R(a, b) = Σ_z Q(a, b, z), I(Z ; A, B) is the divergence of Q(·, ·, z) from R, which is
    convex in both: so they are fitted in turn, Q to its marginals by scaling rows and columns
    (Sinkhorn) and R to Q (Banerjee, Rauh and Montúfar, arXiv 1709.07487).
    """
    total_Z = a_AxZ.sum(0)
    scale_A, scale_B = a_AxZ[:, None] / np.where(total_Z > 0, total_Z, 1), b_BxZ[None]
    law, last = scale_A * scale_B, np.inf
    for _ in range(ROUNDS):
        middle = law.sum(2, keepdims=True)
        for _ in range(SWEEPS):
            scale_A = _over(a_AxZ[:, None], (middle * scale_B).sum(1, keepdims=True))
            scale_B = _over(b_BxZ[None], (middle * scale_A).sum(0, keepdims=True))
        law, now = middle * scale_A * scale_B, _information(_flat(law))
        if abs(now - last) < TOLERANCE:
            break
        last = now
    return law


def _over(above, below):
    return np.divide(above, below, out=np.zeros_like(below), where=below > 0)
