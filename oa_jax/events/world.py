"""A synthetic world of two domains whose cross-domain information is known exactly.

One knob, `redundancy` (ρ), sets how much of what domain B knows about A's next item is already in
A's own history. Others set what only both domains together tell (`synergy`) and how much each tells
(`silence`). README.md in this folder explains the model and has tables of its oracles.

Shapes: K topics, U users, I items of a domain, D latent width, L the longest sequence.
"""

import dataclasses
import difflib
import functools
import math

import numpy as np

from oa_jax.errors import UserError
from oa_jax.events.log import InteractionLog, make_log
from oa_jax.fields import flag, plain, real, two, whole

PER_DOMAIN = 3  # events that each domain has at least in the training part
SINGLE_LEAST = 5  # events of a single-domain user
HELD_OUT = 2  # validation and test target, the last two events
DAY = 86_400

# One random stream a purpose: changing a knob leaves items, users, lengths and coins alone.
ITEMS, USERS, COINS, TOPICS, CHOICES, TIMES, TEXTS, TOGETHER, SILENCE = range(9)
IMAGES, PAIRS, PLACES = range(9, 12)
# The kinds of users, in the order of their numbers. Each draws from streams of its own.
BOTH, ONLY_A, ONLY_B = range(3)
ALONE = 1.0, 0.0  # the chance that A leads, of the users of A only and of B only


@dataclasses.dataclass(frozen=True)
class World:
    """The parameters of a synthetic world; a group of the configuration.

    Raises UserError naming the first parameter that is out of range.
    """

    n_users: int = whole(600, "users of both domains")
    n_items: tuple[int, int] = two(whole(400, "items of A and B, topics * max_length or more"), 500)
    topics: int = whole(8, "topics that both domains share", 2)
    redundancy: float = real(0.5, "ρ, the chance that A leads an event: at 1 B adds nothing", 0, 1)
    stay: float = real(0.8, "chance that an event keeps its leader's topic", 0, 1)
    latent_dim: int = whole(8, "width of the vectors that a domain has of its own")
    taste: float = real(1.5, "weight of a user's interest, the sd of an item's log-odds")
    zipf: float = real(1.0, "exponent of popularity within a topic; 0 is uniform")
    share: tuple[float, float] = two(real(0.3, "range of a user's chance of A", 0, 1), 0.7)
    min_length: int = whole(12, "events of a user at least", 2 * PER_DOMAIN + HELD_OUT)
    max_length: int = whole(40, "events of a user at most")
    seed: int = whole(0, "decides all draws", 0)
    single: tuple[int, int] = two(whole(0, "further users of A only and of B only", 0), 0)
    synergy: float = real(0.0, "σ, the chance that A's and B's topics lead only together", 0, 1)
    silence: tuple[float, float] = two(
        real(0.0, "chances that A and that B, leading alone, says nothing", 0, 1), 0.0
    )
    views: int = whole(1, "encoders of item vectors: one; or A's of images, B's of texts", 1, 2)
    aligned: bool = flag(False, "item vectors trained contrastively: on both views, or purchases")
    rotation: float = real(0.0, "how far B's item vectors are turned away from A's", 0, 1)
    gap: float = real(0.0, "how far B's item vectors are shifted, in lengths of a vector")

    def __post_init__(self):
        for one in dataclasses.fields(self):
            value = plain(getattr(self, one.name))  # a world stays hashable
            object.__setattr__(self, one.name, value)
            if not one.metadata["holds"](value):
                self._refuse(one.name, one.metadata["expected"])
        if self.max_length < self.min_length:
            self._refuse("max_length", f"at least min_length = {self.min_length}")
        least = self.topics * self.max_length
        if min(self.n_items) < least:  # a topic would run dry
            self._refuse("n_items", f"at least topics * max_length = {least} of both domains")
        if self.share[0] > self.share[1]:
            self._refuse("share", "the lower one first")

    def log(self) -> InteractionLog:
        """The events of this world, see `generate`."""
        return generate(self)

    def _refuse(self, name, expected):
        raise UserError(f"synthetic: {name} {getattr(self, name)!r}: expected {expected}")


@functools.wraps(World.__init__)
def _named(self, *values, _init=World.__init__, **fields):
    known = World.__dataclass_fields__
    for name in (name for name in fields if name not in known):
        near = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UserError(f"synthetic: {name}: no such field: {hint}it has {', '.join(known)}")
    _init(self, *values, **fields)


World.__init__ = _named


@dataclasses.dataclass(frozen=True)
class Latents:
    """The hidden variables of a world. I = sum(n_items); row i of an item array is item id i + 1.

    item_topic: (I,) int, 0..K-1.       item_rank: (I,) int, popularity rank in its topic, from 1.
    item_latent: (I, D).                user_latent: (2, U, D), a user's interest in A and in B,
                                        also if it has events of one domain only.
    """

    item_topic: np.ndarray
    item_rank: np.ndarray
    item_latent: np.ndarray
    user_latent: np.ndarray


def latents(world: World) -> Latents:
    """The latents of a world. They depend only on its sizes and `seed`."""
    rng, D = stream(world, ITEMS), world.latent_dim
    # Shuffled, so that an id betrays neither topic nor popularity.
    dealt_I = np.concatenate([rng.permutation(n) for n in world.n_items])
    interests = [
        stream(world, USERS, kind).standard_normal((2, len(users), D))
        for kind, users in enumerate(_users(world))
    ]
    return Latents(
        item_topic=dealt_I % world.topics,
        item_rank=dealt_I // world.topics + 1,
        item_latent=rng.standard_normal((len(dealt_I), D)),
        user_latent=np.concatenate(interests, axis=1),
    )


def generate(world: World) -> InteractionLog:
    """Draw the log of a world. Times are whole seconds from 0, strictly increasing for each user.

    No user takes an item twice. Users of both domains have min_length..max_length events, and at
    least 3 of each domain before the last two. Single-domain users have half as many events, but at
    least 5.
    """
    truth, columns = latents(world), []
    for kind, users in enumerate(_users(world)):
        if not users:
            continue
        length_U, domain_UxL = _lengths_and_domains(world, kind)
        topic_UxL, visit_UxL = _topics(world, domain_UxL, kind)
        user_Ux1 = np.arange(len(users))[:, None]
        menu_U2KxM = _menus(world, truth, kind)
        item_UxL = menu_U2KxM[user_Ux1, domain_UxL, topic_UxL, visit_UxL]
        gap_UxL = stream(world, TIMES, kind).exponential(DAY, item_UxL.shape)
        time_UxL = np.cumsum(1 + gap_UxL.astype(np.int64), axis=1)
        user_UxL = np.broadcast_to(users.start + user_Ux1, item_UxL.shape)
        real_UxL = np.arange(world.max_length) < length_U[:, None]
        columns.append([column[real_UxL] for column in (user_UxL, item_UxL, time_UxL)])
    log = make_log(*map(np.concatenate, zip(*columns, strict=True)), world.n_items, "synthetic")
    return dataclasses.replace(log, origin=world)


def _users(world):
    """The numbers of the users of each kind."""
    ends = np.cumsum([world.n_users, *world.single]).tolist()
    return [range(first, end) for first, end in zip([0, *ends], ends, strict=False)]


def stream(world: World, purpose: int, kind: int = BOTH) -> np.random.Generator:
    """A random generator for one purpose and one kind of users, in the same state at every call."""
    return np.random.default_rng([world.seed, purpose] + ([kind] if kind != BOTH else []))


def _lengths_and_domains(world, kind):
    """length_U and domain_UxL (0 or 1); positions past a user's length are drawn but not used."""
    rng, n_users = stream(world, COINS, kind), len(_users(world)[kind])
    shape = (n_users, world.max_length)
    length_U = rng.integers(world.min_length, world.max_length, n_users, endpoint=True)
    if kind != BOTH:
        return np.maximum(length_U // 2, SINGLE_LEAST), np.full(shape, int(kind == ONLY_B))
    share_U = rng.uniform(*world.share, n_users)
    domain_UxL = (rng.random(shape) >= share_U[:, None]).astype(np.int64)
    lottery_UxL = rng.random(shape)
    lottery_UxL[np.arange(world.max_length) >= length_U[:, None] - HELD_OUT] = np.inf
    granted_Ux6 = np.argsort(lottery_UxL, axis=1)[:, : 2 * PER_DOMAIN]
    np.put_along_axis(domain_UxL, granted_Ux6, np.repeat([[0, 1]], PER_DOMAIN, axis=1), axis=1)
    return length_U, domain_UxL


def _topics(world, domain_UxL, kind):
    """topic_UxL, and visit_UxL: how often the user met that domain and topic before (0 = never)."""
    rng, K = stream(world, TOPICS, kind), world.topics
    shape = domain_UxL.shape
    a_leads_UxL = rng.random(shape) < (world.redundancy, *ALONE)[kind]
    stays_UxL = rng.random(shape) < world.stay
    jump_UxL = rng.integers(1, K, shape)
    fresh_UxL = rng.integers(0, K, shape)
    synergy = world.synergy if kind == BOTH else 0
    together_UxL = stream(world, TOGETHER, kind).random(shape) < synergy
    chance_UxL = np.where(a_leads_UxL, *world.silence)
    says_nothing_UxL = stream(world, SILENCE, kind).random(shape) < chance_UxL
    pair = _pairs(K)
    topic_UxL, visit_UxL = np.empty(shape, int), np.empty(shape, int)
    user_U = np.arange(len(domain_UxL))
    latest_Ux2 = np.full((len(user_U), 2), K)  # K is `silent`
    count_Ux2xK = np.zeros((len(user_U), 2, K), int)
    for t, domain_U in enumerate(domain_UxL.T):
        alone_U = np.where(a_leads_UxL[:, t], latest_Ux2[:, 0], latest_Ux2[:, 1])
        alone_U = np.where(says_nothing_UxL[:, t], K, alone_U)
        leader_U = np.where(together_UxL[:, t], pair[tuple(latest_Ux2.T)], alone_U)
        led_U = (leader_U + np.where(stays_UxL[:, t], 0, jump_UxL[:, t])) % K
        topic_U = np.where(leader_U == K, fresh_UxL[:, t], led_U)
        topic_UxL[:, t] = topic_U
        visit_UxL[:, t] = count_Ux2xK[user_U, domain_U, topic_U]
        count_Ux2xK[user_U, domain_U, topic_U] += 1
        latest_Ux2[user_U, domain_U] = topic_U
    return topic_UxL, visit_UxL


def _menus(world, truth, kind):
    """(U, 2, K, max_length): the item ids that a user takes from a domain's topic, in order."""
    rng, L, users = stream(world, CHOICES, kind), world.max_length, _users(world)[kind]
    menu = np.empty((len(users), 2, world.topics, L), np.int32)
    for domain, first in enumerate((0, world.n_items[0])):
        mine = slice(first, first + world.n_items[domain])
        log_popularity_I = -world.zipf * np.log(truth.item_rank[mine])
        interest_UxD = truth.user_latent[domain, users.start : users.stop]
        affinity_UxI = interest_UxD @ truth.item_latent[mine].T
        score_UxI = log_popularity_I + world.taste / math.sqrt(world.latent_dim) * affinity_UxI
        score_UxI += rng.gumbel(size=score_UxI.shape)
        for topic in range(world.topics):
            member_M = np.flatnonzero(truth.item_topic[mine] == topic)
            order_UxM = np.argsort(-score_UxI[:, member_M], axis=1)
            menu[:, domain, topic] = 1 + first + member_M[order_UxM[:, :L]]
    return menu


@dataclasses.dataclass(frozen=True)
class TopicOracles:
    """What can be known about the topic of each event of one domain, N events in log order.

    row: (N,) row of the event in the log.      topic: (N,) its actual topic.
    own: (N, K) probabilities of the topic given the target domain's own history.
    both: (N, K) the same given the histories of both domains; the topic was drawn from these.
    """

    row: np.ndarray
    topic: np.ndarray
    own: np.ndarray
    both: np.ndarray

    def summary(self) -> dict[str, float]:
        """Mean losses in nats and top-1 hit rates of the two oracles.

        Each is an expectation over the possible topics of an event, which has less noise than its
        actual topic. `gain` = loss_own - loss_both is never negative and estimates
        I(next topic ; other domain's history | own history); single-domain users add 0 to it.
        """
        log_own, log_both = (np.log(np.where(self.both > 0, q, 1)) for q in (self.own, self.both))
        hit = np.take_along_axis(self.both, self.own.argmax(1)[:, None], axis=1)
        return {
            "loss_own": float(-(self.both * log_own).sum(1).mean()),
            "loss_both": float(-(self.both * log_both).sum(1).mean()),
            "gain": float((self.both * (log_both - log_own)).sum(1).mean()),
            "hit_own": float(hit.mean()),
            "hit_both": float(self.both.max(1).mean()),
        }


def topic_oracles(world: World, log: InteractionLog, target: int = 0) -> TopicOracles:
    """Exact probabilities of the topics of domain `target` (0 is A), for all values of the knobs.

    Both oracles know the kind of each user, the domain of each event, and all earlier topics of the
    target domain. `both` also sees the topics of the other domain, so the model gives its
    probabilities directly. `own` keeps a belief over the other domain's latest topic, by a forward
    filter over K + 1 states (the last is `silent`).

    log: a log of this world with whole histories; users may be left out.
    Raises UserError if log and world differ in their numbers of items.
    """
    if tuple(log.n_items) != tuple(world.n_items):
        raise UserError(f"{log.name}: n_items {log.n_items}: expected {world.n_items} of the world")
    topic_N, row = latents(world).item_topic[log.item - 1], np.flatnonzero(log.domain == target)
    own_NxK, both_NxK = _filter(world, log, topic_N, target)
    return TopicOracles(row, topic_N[row], own_NxK[row], both_NxK[row])


def _filter(world, log, topic_N, target):
    """The two laws of every event's topic, be it of the target domain (`own`) or of the other."""
    K, S, pair = world.topics, _kernel(world), _pairs(world.topics)
    S_own, S_other = (_kernel(world, domain) for domain in (target, 1 - target))
    of_a, of_b = (np.bincount(log.user[log.domain == d], minlength=log.n_users) for d in (0, 1))
    a_leads_U = np.select([of_b == 0, of_a == 0], ALONE, world.redundancy)
    lead_Ux1 = (a_leads_U if target == 0 else 1 - a_leads_U)[:, None]
    together_Ux1 = np.where((of_a > 0) & (of_b > 0), world.synergy, 0)[:, None]
    own_NxK, both_NxK = np.empty((2, len(topic_N), K))
    own_U, other_U = np.full((2, log.n_users), K)  # latest topics
    belief_UxK1 = np.tile(np.eye(K + 1)[K], (log.n_users, 1))  # over other_U
    place_N, is_own_N = log.position, log.domain == target

    def mixed(user, own_led, other_led, both_led):
        lead, together = lead_Ux1[user], together_Ux1[user]
        return (1 - together) * (lead * own_led + (1 - lead) * other_led) + together * both_led

    for t in range(place_N.max() + 1):
        row = np.flatnonzero(place_N == t)
        user, is_own = log.user[row], is_own_N[row]
        own, other, belief = own_U[user], other_U[user], belief_UxK1[user]
        both_led = np.einsum("nj,njk->nk", belief, S[pair[own]])
        own_NxK[row] = mixed(user, S_own[own], belief @ S_other, both_led)
        both_NxK[row] = mixed(user, S_own[own], S_other[other], S[pair[own, other]])
        # An own event is evidence on other_U: Bayes' rule.
        u, seen = user[is_own], topic_N[row[is_own]]
        own_led, both_led = S_own[own_U[u], seen][:, None], S[pair[own_U[u]], seen[:, None]]
        joint = belief_UxK1[u] * mixed(u, own_led, S_other[:, seen].T, both_led)
        belief_UxK1[u] = joint / joint.sum(1, keepdims=True)
        own_U[u] = seen
        # An event of the other domain sets other_U to a topic that `own` does not see: the law of
        # that topic is the prediction just made, and the domain is silent no more.
        u, unseen = user[~is_own], row[~is_own]
        belief_UxK1[u] = np.pad(own_NxK[unseen], ((0, 0), (0, 1)))
        other_U[u] = topic_N[unseen]
    return own_NxK, both_NxK


def topic_law(world: World) -> np.ndarray:
    """(K + 1, K + 1, K): probabilities of the next topic given the latest topics of A and of B, for
    a user of both domains. Index K is `silent`: no event of that domain so far."""
    alone_A, alone_B = _kernel(world, 0)[:, None], _kernel(world, 1)
    alone = world.redundancy * alone_A + (1 - world.redundancy) * alone_B
    return (1 - world.synergy) * alone + world.synergy * _kernel(world)[_pairs(world.topics)]


def _kernel(world, leader=None):
    """S: (K + 1, K), the law of an event's topic given its leader's; the last row is `silent`.

    leader: the domain that leads alone and may say nothing; None is both together."""
    K = world.topics
    kernel = np.full((K + 1, K), (1 - world.stay) / (K - 1))
    np.fill_diagonal(kernel, world.stay)
    kernel[K] = 1 / K
    silence = 0 if leader is None else world.silence[leader]
    return (1 - silence) * kernel + silence / K


def _pairs(K):
    """(K + 1, K + 1): the topic that topics a and b lead to together, (a + b) mod K; K is `silent`,
    as both together say nothing while one of them has said nothing."""
    told = np.arange(K)
    return np.pad((told[:, None] + told) % K, (0, 1), constant_values=K)
