"""A synthetic world of two domains whose cross-domain information is known exactly.

One knob, `redundancy` (rho), says how much of what domain B knows about A's next item A's own
history knows already. Nothing but numpy and a seed is needed, so this is the default data set.

Notation: K topics, U users, I items of a domain, D latent width, d a domain (0 is A, 1 is B).

Items. The topic k_i is the latent that both domains share; y_i ~ N(0, 1_D) is the domain's own.
A domain deals its items to topics evenly, and r_i = 1, 2, … is the item's rank within its topic:
    popularity_i = r_i ** -zipf
Users. x_u^d ~ N(0, 1_D), one interest for each domain, independent of each other; what a user
wants across domains is the topic at hand, which moves from event to event.

Domain of an event. Six events at random places of the training part (all but the last two) are 3
of A and 3 of B, so that both domains have at least two training targets. Every other event tosses
a coin: A with probability p_u ~ Uniform(share). The coins know nothing about topics or items.

Topic of an event. Let a and b be the topics of the user's latest event in A and in B. Every
event, whichever its domain, draws
    z ~ rho S(a, .) + (1 - rho) S(b, .)
    S(k, z) = stay if z == k else (1 - stay) / (K - 1);     S(silent, z) = 1 / K
where a domain without events so far is `silent`. In words: A leads with probability rho, else B,
and the event keeps the leader's topic with probability `stay`. Hence
  - rho = 1: A is a Markov chain of its own and B a noisy echo of it. Whatever B knows about A's
    next event, A's history knows too: I(next A ; B history | A history) = 0, exactly.
  - rho = 0: B is a Markov chain of its own and A its noisy echo. Given b, A's history adds nothing;
    A's history alone remembers only where B once was, and the more B moved since, the less.
  - The law of z given both histories is a row of S at either end: the knob changes who knows A's
    next topic, not how well it can be known. (In between the unknown leader adds uncertainty.)
  - Swapping the domains is rho -> 1 - rho. What is redundant for A is complementary for B.

Item of an event. Among the items of domain d and topic z that the user has not taken yet:
    P(i) proportional to popularity_i * exp(taste * <x_u^d, y_i> / sqrt(D))
No (user, item) pair repeats. Drawing so without replacement is the same as ranking each topic's
items once by log P + Gumbel noise and taking them from the top (Plackett-Luce), which is how it is
done here. Given its topic, an item of A owes nothing to B: topics are the only channel between the
domains, and I(next A item ; B history | A history) is the same number as that of its topic.
(Histories are taken with their coins: it is known when the other domain spoke, if not what.)

Single-domain users. `single` adds users with events of A only and of B only, numbered after the
others, whom they leave as they are. Such a user has half as many events as one of both domains, at
least 5; items are chosen as above, but topics are led by its own domain alone, whatever rho is:
    z ~ S(k, .),   k the topic of the user's latest event
Its own history says all there is to know: the two oracles agree and it gains nothing.

Embeddings. Where a model wants text embeddings, `embeddings` stands in for a language model that
read the items' descriptions: unit vectors that mix topic and y_i through one random map, blurred.

What the next A topic owes to B, by `topic_oracles` of the default world (nats; chance of a hit):
    rho                           0      0.25   0.5    0.75   1
    gain in log-loss from B       0.48   0.33   0.18   0.06   0
    top-1 from A's history        0.53   0.56   0.62   0.68   0.75
    top-1 from both histories     0.75   0.69   0.64   0.69   0.75
"""

from __future__ import annotations

import dataclasses
import math
import numbers

import numpy as np

from oa_jax.errors import UserError
from oa_jax.events.log import DOMAINS, InteractionLog, make_log

PER_DOMAIN = 3  # events that each domain has at least in the training part
SINGLE_LEAST = 5  # events of a single-domain user
HELD_OUT = 2  # validation and test target, the last two events
DAY = 86_400

# One random stream a purpose: changing the knob leaves items, users, lengths and coins alone.
ITEMS, USERS, COINS, TOPICS, CHOICES, TIMES, TEXTS = range(7)
# The kinds of users, in the order of their numbers. Each draws from streams of its own.
BOTH, ONLY_A, ONLY_B = KINDS = range(3)


@dataclasses.dataclass(frozen=True)
class World:
    """The parameters of a synthetic world.

    n_users: users of both domains, at least 1.
    n_items: items of A and of B, each at least topics * max_length, so that no topic runs dry.
    topics: K, the topics that both domains share, at least 2.
    redundancy: rho in 0..1, the chance that A leads an event. 1: B adds nothing to what A's
        history says about A's next topic; 0: all that A follows is B.
    stay: chance in 0..1 that an event keeps its leader's topic; 1 / topics is pure noise.
    latent_dim: D, width of the domain-specific vectors, at least 1.
    taste: weight >= 0 of a user's own interest on the log-odds of an item within its topic
        (it is their standard deviation); 0 makes all users alike.
    zipf: exponent >= 0 of item popularity within a topic; 0 is uniform.
    share: range (low, high) within 0..1 of a user's chance that an event belongs to A, if it is
        not one of the six that are given to both domains evenly.
    min_length, max_length: events of a user, drawn uniformly from min..max inclusive, at least 8.
    seed: integer >= 0; the log is a pure function of this record.
    single: further users with events of A only and of B only, each at least 0.

    Raises UserError naming the first field that is out of range.
    """

    n_users: int = 600
    n_items: tuple[int, int] = (400, 500)
    topics: int = 8
    redundancy: float = 0.5
    stay: float = 0.8
    latent_dim: int = 8
    taste: float = 1.5
    zipf: float = 1.0
    share: tuple[float, float] = (0.3, 0.7)
    min_length: int = 12
    max_length: int = 40
    seed: int = 0
    single: tuple[int, int] = (0, 0)

    def __post_init__(self):
        for field in ("n_items", "share", "single"):
            pair = getattr(self, field)
            if not isinstance(pair, (tuple, list)) or len(pair) != 2:
                raise UserError(f"synthetic: {field} {pair!r}: expected two numbers")
            object.__setattr__(self, field, tuple(pair))  # a list from a config stays hashable
        shortest = 2 * PER_DOMAIN + HELD_OUT
        _whole("n_users", self.n_users, 1)
        _whole("topics", self.topics, 2)
        _whole("latent_dim", self.latent_dim, 1)
        _whole("seed", self.seed, 0)
        _whole("min_length", self.min_length, shortest)
        _whole("max_length", self.max_length, self.min_length, "min_length")
        for domain, found in zip(DOMAINS, self.n_items, strict=True):
            least = self.topics * self.max_length
            _whole(f"n_items of {domain}", found, least, "topics * max_length")
        for domain, found in zip(DOMAINS, self.single, strict=True):
            _whole(f"single of {domain}", found, 0)
        for field in ("redundancy", "stay"):
            _real(field, getattr(self, field), 0, 1)
        for field in ("taste", "zipf"):
            _real(field, getattr(self, field), 0, math.inf)
        _real("share low", self.share[0], 0, 1)
        _real("share high", self.share[1], self.share[0], 1)


def _whole(field, found, least, why=""):
    # bool is an int to Python, but True users are a mistake.
    if isinstance(found, bool) or not isinstance(found, numbers.Integral) or found < least:
        bound = f"{why} = {least}" if why else least
        raise UserError(f"synthetic: {field} {found!r}: expected a whole number >= {bound}")


def _real(field, found, low, high):
    is_real = isinstance(found, numbers.Real) and not isinstance(found, bool)
    if not (is_real and math.isfinite(found) and low <= found <= high):
        bound = f"in {low}..{high}" if high < math.inf else f">= {low}, finite"
        raise UserError(f"synthetic: {field} {found!r}: expected a number {bound}")


@dataclasses.dataclass(frozen=True)
class Latents:
    """The truth behind a world. I = sum(n_items); row i of an item array is item id i + 1.

    item_topic: (I,) int, 0..K-1.       item_rank: (I,) int, popularity rank in its topic, from 1.
    item_latent: (I, D).                user_latent: (2, U, D), a user's interest in A and in B,
                                        drawn for both whether it has events of both or not.
    """

    item_topic: np.ndarray
    item_rank: np.ndarray
    item_latent: np.ndarray
    user_latent: np.ndarray


def latents(world: World) -> Latents:
    """The latents of a world, independent of `redundancy`, `stay`, `taste`, `zipf` and `share`."""
    rng, D = _stream(world, ITEMS), world.latent_dim
    # Shuffled, so that an id betrays neither topic nor popularity.
    dealt_I = np.concatenate([rng.permutation(n) for n in world.n_items])
    shapes = [(2, len(users), D) for users in _users(world)]
    interests = [_stream(world, USERS, k).standard_normal(shapes[k]) for k in KINDS]
    return Latents(
        item_topic=dealt_I % world.topics,
        item_rank=dealt_I // world.topics + 1,
        item_latent=rng.standard_normal((len(dealt_I), D)),
        user_latent=np.concatenate(interests, axis=1),
    )


def embeddings(world: World, width: int = 64, noise: float = 0.5) -> np.ndarray:
    """(I, width) float32 unit rows, one for each item, as a text encoder might give them:

        e_i = unit( (M [√K onehot(k_i) ; y_i]) / √(K + D) + noise ε_i ),   M, ε ~ N(0, 1)

    With K = D the topic counts as much as all of y. Users and events have no part in it.
    """
    truth, rng = latents(world), _stream(world, TEXTS)
    topic_IxK = math.sqrt(world.topics) * np.eye(world.topics)[truth.item_topic]
    meaning_IxF = np.concatenate([topic_IxK, truth.item_latent], axis=1)
    map_FxW = rng.standard_normal((meaning_IxF.shape[1], width)) / math.sqrt(meaning_IxF.shape[1])
    rows_IxW = meaning_IxF @ map_FxW + noise * rng.standard_normal((len(meaning_IxF), width))
    return (rows_IxW / np.linalg.norm(rows_IxW, axis=1, keepdims=True)).astype(np.float32)


def generate(world: World) -> InteractionLog:
    """Draw the log of a world. Times are whole seconds from 0, strictly increasing in a user.

    No user takes an item twice. Users of both domains have min_length..max_length events, in all
    but the last two of them at least 3 of each domain; single-domain users half as many, and at
    least 5.
    """
    truth = latents(world)
    groups = [_events(world, truth, kind) for kind in KINDS if len(_users(world)[kind])]
    columns = (np.concatenate(parts) for parts in zip(*groups, strict=True))
    return make_log(*columns, world.n_items, "synthetic")


def _events(world, truth, kind):
    """Columns user, item, time of the users of a kind."""
    users = _users(world)[kind]
    length_U, domain_UxL = _lengths_and_domains(world, kind)
    topic_UxL, visit_UxL = _topics(world, domain_UxL, kind)
    menu_U2KxM = _menus(world, truth, kind)
    user_Ux1 = np.arange(len(users))[:, None]
    item_UxL = menu_U2KxM[user_Ux1, domain_UxL, topic_UxL, visit_UxL]
    gap_UxL = _stream(world, TIMES, kind).exponential(DAY, item_UxL.shape)
    time_UxL = np.cumsum(1 + gap_UxL.astype(np.int64), axis=1)
    real_UxL = np.arange(world.max_length) < length_U[:, None]
    user_UxL = np.broadcast_to(users.start + user_Ux1, item_UxL.shape)
    return [column[real_UxL] for column in (user_UxL, item_UxL, time_UxL)]


def _users(world):
    """The numbers of the users of each kind."""
    ends = np.cumsum([world.n_users, *world.single]).tolist()
    return [range(first, end) for first, end in zip([0, *ends], ends, strict=False)]


def _stream(world, purpose, kind=BOTH):
    return np.random.default_rng([world.seed, purpose] + ([kind] if kind != BOTH else []))


def _lengths_and_domains(world, kind):
    """length_U and domain_UxL (0 or 1); positions past a user's length are drawn but not used."""
    rng, n_users = _stream(world, COINS, kind), len(_users(world)[kind])
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
    rng, K = _stream(world, TOPICS, kind), world.topics
    shape = domain_UxL.shape
    a_leads_UxL = rng.random(shape) < _chance_of_a(world)[kind]
    stays_UxL = rng.random(shape) < world.stay
    jump_UxL = rng.integers(1, K, shape)
    fresh_UxL = rng.integers(0, K, shape)
    topic_UxL, visit_UxL = np.empty(shape, int), np.empty(shape, int)
    user_U = np.arange(len(domain_UxL))
    latest_Ux2 = np.full((len(user_U), 2), K)  # K is `silent`
    count_Ux2xK = np.zeros((len(user_U), 2, K), int)
    for t, domain_U in enumerate(domain_UxL.T):
        leader_U = np.where(a_leads_UxL[:, t], latest_Ux2[:, 0], latest_Ux2[:, 1])
        led_U = (leader_U + np.where(stays_UxL[:, t], 0, jump_UxL[:, t])) % K
        topic_U = np.where(leader_U == K, fresh_UxL[:, t], led_U)
        topic_UxL[:, t] = topic_U
        visit_UxL[:, t] = count_Ux2xK[user_U, domain_U, topic_U]
        count_Ux2xK[user_U, domain_U, topic_U] += 1
        latest_Ux2[user_U, domain_U] = topic_U
    return topic_UxL, visit_UxL


def _chance_of_a(world):
    """Of each kind of users, the chance that A leads an event."""
    return np.array([world.redundancy, 1, 0])


def _menus(world, truth, kind):
    """(U, 2, K, max_length): the item ids that a user takes from a domain's topic, in order."""
    rng, L = _stream(world, CHOICES, kind), world.max_length
    users = _users(world)[kind]
    menu = np.empty((len(users), 2, world.topics, L), np.int32)
    for domain, (first, n) in enumerate(((0, world.n_items[0]), world.n_items)):
        mine = slice(first, first + n)
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
    """What can be known of the topic of each event of one domain, N of them in log order.

    row: (N,) row of the event in the log.      topic: (N,) the topic that it had.
    own: (N, K) law of the topic given the target domain's own history.
    both: (N, K) law of the topic given the histories of both domains: the law it was drawn from.
    """

    row: np.ndarray
    topic: np.ndarray
    own: np.ndarray
    both: np.ndarray

    def summary(self) -> dict[str, float]:
        """Mean losses in nats and top-1 hit rates of the two oracles.

        Each is the expectation over the topics that an event could have had, which spares the
        noise of the one it did have. `gain` = loss_own - loss_both is never negative; it
        estimates I(next topic ; other domain's history | own history). Events of single-domain
        users count like others, with gain 0.
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
    """Exact laws of the topics of domain `target` (0 is A), for every value of the knob.

    Both oracles know which events are of A and which of B (the coins are independent of topics)
    and all earlier topics of the target domain. `both` also sees the other domain's topics, so it
    reads its law off the model; `own` keeps a belief over the other domain's latest topic, by a
    forward filter over K + 1 states (the last is `silent`). Both know the kind of each user; of one
    with events of a single domain they are the same law, S of the latest topic.

    log: a log of this world with whole histories, users may be left out.
    Raises UserError if log and world differ in their numbers of items.
    """
    if tuple(log.n_items) != tuple(world.n_items):
        raise UserError(f"{log.name}: n_items {log.n_items}: expected {world.n_items} of the world")
    topic_N = latents(world).item_topic[log.item - 1]
    is_own_N = log.domain == target
    own_NxK, both_NxK = _filter(world, log, topic_N, is_own_N, target)
    row = np.flatnonzero(is_own_N)
    return TopicOracles(row, topic_N[row], own_NxK[row], both_NxK[row])


def _filter(world, log, topic_N, is_own_N, target):
    """The two laws of every event's topic, be it of the target domain (`own`) or of the other."""
    K, kernel = world.topics, _kernel(world)
    chance = _chance_of_a(world)[_kind_of_users(log)]
    lead_Ux1 = (chance if target == 0 else 1 - chance)[:, None]
    own_NxK, both_NxK = np.empty((2, len(topic_N), K))
    own_U, other_U = np.full((2, log.n_users), K)  # latest topics
    belief_UxK1 = np.tile(np.eye(K + 1)[K], (log.n_users, 1))  # over other_U
    place_N = log.position
    for t in range(place_N.max() + 1):
        row = np.flatnonzero(place_N == t)
        user = log.user[row]
        lead = lead_Ux1[user]
        own_led = lead * kernel[own_U[user]]
        own_NxK[row] = own_led + (1 - lead) * (belief_UxK1[user] @ kernel)
        both_NxK[row] = own_led + (1 - lead) * kernel[other_U[user]]
        is_own, z = is_own_N[row], topic_N[row]
        # An own event is evidence on other_U: Bayes' rule.
        u, seen = user[is_own], z[is_own]
        lead = lead[is_own]
        likelihood = lead * kernel[own_U[u], seen][:, None] + (1 - lead) * kernel[:, seen].T
        joint = belief_UxK1[u] * likelihood
        belief_UxK1[u] = joint / joint.sum(1, keepdims=True)
        own_U[u] = seen
        # An event of the other domain sets other_U to a topic that `own` does not see: the law of
        # that topic is the prediction just made, and the domain is silent no more.
        u = user[~is_own]
        belief_UxK1[u] = np.pad(own_NxK[row[~is_own]], ((0, 0), (0, 1)))
        other_U[u] = z[~is_own]
    return own_NxK, both_NxK


def _kind_of_users(log):
    """(U,) the kind of each user of a log, by the domains of its events."""
    a, b = (np.bincount(log.user[log.domain == d], minlength=log.n_users) for d in (0, 1))
    return np.where(b == 0, ONLY_A, np.where(a == 0, ONLY_B, BOTH))


def _kernel(world):
    """S: (K + 1, K), the law of an event's topic given its leader's; the last row is `silent`."""
    K = world.topics
    kernel = np.full((K + 1, K), (1 - world.stay) / (K - 1))
    np.fill_diagonal(kernel, world.stay)
    kernel[K] = 1 / K
    return kernel
