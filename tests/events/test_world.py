"""The synthetic world keeps its promises, and its oracles are right by independent counts."""

import dataclasses
import itertools
import math

import numpy as np
import pytest

from oa_jax.errors import UserError
from oa_jax.events.log import make_log
from oa_jax.events.world import World, generate, latents, topic_law, topic_oracles

KNOB = (0.0, 0.25, 0.5, 0.75, 1.0)
# The smallest world that is legal, for what can be enumerated.
TINY = World(n_users=6, n_items=(24, 24), topics=3, stay=0.6, min_length=8, max_length=8)
# Few topics and many users, for what has to be counted.
CROWD = World(n_users=3000, n_items=(160, 160), topics=4)


def users_of(log):
    """Rows of each user."""
    return [np.arange(*bounds) for bounds in itertools.pairwise(log.offsets)]


def topics_of(world, log):
    return latents(world).item_topic[log.item - 1]


# --- what a log promises


def test_a_log_is_a_pure_function_of_the_world():
    first, again, other = (generate(World(seed=seed)) for seed in (0, 0, 1))
    assert first.fingerprint() == again.fingerprint()
    assert first.fingerprint() != other.fingerprint()
    assert not np.array_equal(latents(World()).item_topic, latents(World(seed=1)).item_topic)


def test_the_default_world_stays_what_it_was():
    """Results name their data by this fingerprint."""
    assert generate(World()).fingerprint() == "741346d877f5827c"


@pytest.mark.parametrize("knob", [{"redundancy": 1}, {"synergy": 1}, {"silence": (0.5, 1)}])
def test_the_knobs_leave_lengths_and_coins_alone(knob):
    low, high = generate(World(redundancy=0)), generate(World(**{"redundancy": 0, **knob}))
    np.testing.assert_array_equal(low.user, high.user)
    np.testing.assert_array_equal(low.domain, high.domain)
    np.testing.assert_array_equal(low.time, high.time)
    assert (low.item != high.item).mean() > 0.5


def test_item_vectors_leave_the_events_alone():
    other = World(views=2, aligned=True, rotation=1.0, gap=2.0)
    assert generate(other).fingerprint() == generate(World()).fingerprint()


@pytest.mark.parametrize("world", [World(), TINY, World(share=(0, 0)), World(share=(1, 1))])
def test_users_have_the_promised_events(world):
    log = generate(world)
    make_log(log.user, log.item, log.time, log.n_items, log.name)
    lengths = np.diff(log.offsets)
    assert log.n_users == world.n_users
    assert lengths.min() == world.min_length and lengths.max() == world.max_length
    for row in users_of(log):
        trained = log.domain[row][:-2]
        assert min((trained == 0).sum(), (trained == 1).sum()) >= 3
        # Targets are all training events but the first: both domains must be among them.
        assert set(trained[1:]) == {0, 1}
        assert len(np.unique(log.item[row])) == len(row)
        assert (np.diff(log.time[row]) > 0).all()


@pytest.mark.parametrize("p", [0.0, 0.3, 0.7])
def test_the_coins_follow_the_share(p):
    log = generate(World(share=(p, p)))
    tossed_A = (log.domain == 0).sum() - 3 * log.n_users
    assert tossed_A / (len(log.user) - 6 * log.n_users) == pytest.approx(p, abs=0.02)


def test_a_topic_never_runs_dry():
    # stay = 1 and rho = 1: all of A in one topic, and nearly all events are of A.
    world = dataclasses.replace(TINY, n_users=50, stay=1, redundancy=1, share=(1, 1))
    log = generate(world)
    for row in users_of(log):
        mine = row[log.domain[row] == 0]
        assert len(set(topics_of(world, log)[mine])) == 1
        assert len(set(log.item[mine])) == len(mine)


# --- what B knows about A


def law(world, a, b, z):
    """P(z | latest topics a and b, None if silent), written down again from the equations."""

    def step(k):
        if k is None:
            return 1 / world.topics
        return world.stay if z == k else (1 - world.stay) / (world.topics - 1)

    def heard(k, silence):
        return (1 - silence) * step(k) + silence / world.topics

    lead_a, lead_b = world.redundancy, 1 - world.redundancy
    alone = lead_a * heard(a, world.silence[0]) + lead_b * heard(b, world.silence[1])
    both = step(None if None in (a, b) else (a + b) % world.topics)
    return (1 - world.synergy) * alone + world.synergy * both


def brute_force(world, domains, topics, target):
    """Law of the last topic given the target domain's earlier topics, by summing over all others.

    domains, topics: those of a user's events so far; topics[-1] and the other domain's are unused.
    """
    hidden = [n for n, domain in enumerate(domains[:-1]) if domain != target]
    total = np.zeros(world.topics)
    for guess in itertools.product(range(world.topics), repeat=len(hidden)):
        path = list(topics[:-1])
        for n, z in zip(hidden, guess, strict=True):
            path[n] = z
        latest, probability = [None, None], 1.0
        for domain, z in zip(domains, path, strict=False):
            probability *= law(world, *latest, z)
            latest[domain] = z
        total += [probability * law(world, *latest, z) for z in range(world.topics)]
    return total / total.sum()


KNOBS = [
    {"redundancy": 0},
    {"redundancy": 0.35},
    {"redundancy": 1},
    {"redundancy": 0.35, "synergy": 0.7, "silence": (0.1, 0.4)},
    {"synergy": 1},
]


@pytest.mark.parametrize("target", [0, 1])
@pytest.mark.parametrize("knobs", KNOBS)
def test_the_filter_agrees_with_brute_force(target, knobs):
    world = dataclasses.replace(TINY, **knobs)
    wrong = dataclasses.replace(TINY, redundancy=0.6)
    log = generate(world)
    oracles = topic_oracles(world, log, target)
    topics, furthest = topics_of(world, log), 0.0
    for n, row in enumerate(oracles.row):
        past = slice(log.offsets[log.user[row]], row + 1)
        history = list(log.domain[past]), list(topics[past])
        np.testing.assert_allclose(oracles.own[n], brute_force(world, *history, target), atol=1e-12)
        off = np.abs(oracles.own[n] - brute_force(wrong, *history, target)).max()
        furthest = max(furthest, off)
    assert furthest > 0.05  # the agreement above is no accident of the setting


@pytest.mark.parametrize("knobs", KNOBS[1::2])
def test_the_oracle_of_both_is_the_law_that_was_drawn_from(knobs):
    world = dataclasses.replace(TINY, **knobs)
    log = generate(world)
    for a, b in itertools.product((0, 1, 2, None), repeat=2):
        expected = [law(world, a, b, z) for z in range(world.topics)]
        found = topic_law(world)[3 if a is None else a, 3 if b is None else b]
        np.testing.assert_allclose(found, expected, atol=1e-12)
    oracles, topics = topic_oracles(world, log), topics_of(world, log)
    np.testing.assert_array_equal(oracles.row, np.flatnonzero(log.domain == 0))
    np.testing.assert_array_equal(oracles.topic, topics[oracles.row])
    for n, row in enumerate(oracles.row):
        latest = [None, None]
        for r in range(log.offsets[log.user[row]], row):
            latest[log.domain[r]] = topics[r]
        expected = [law(world, *latest, z) for z in range(world.topics)]
        np.testing.assert_allclose(oracles.both[n], expected, atol=1e-12)


def test_b_gains_nothing_when_redundant_and_much_when_complementary():
    summary = {}
    for rho in KNOB:
        world = World(redundancy=rho)
        summary[rho] = topic_oracles(world, generate(world)).summary()
    gain = [summary[rho]["gain"] for rho in KNOB]
    assert gain == sorted(gain, reverse=True)
    assert gain[-1] == 0  # exactly: not only below 1e-9
    assert gain[0] > 0.4
    # The table in the README.
    np.testing.assert_allclose(gain, [0.48, 0.33, 0.18, 0.06, 0], atol=0.006)
    own, both = ([summary[rho][hit] for rho in KNOB] for hit in ("hit_own", "hit_both"))
    np.testing.assert_allclose(own, [0.53, 0.56, 0.62, 0.68, 0.75], atol=0.006)
    np.testing.assert_allclose(both, [0.75, 0.69, 0.64, 0.69, 0.75], atol=0.006)
    # The ends differ in who knows, not in how much there is to know.
    assert summary[0.0]["loss_both"] == pytest.approx(summary[1.0]["loss_both"], abs=0.01)


@pytest.mark.parametrize("target", [0, 1])
def test_each_domain_is_predictable_from_its_own_history(target):
    for rho in KNOB:
        world = World(redundancy=rho)
        loss = topic_oracles(world, generate(world), target).summary()["loss_own"]
        assert loss < math.log(world.topics) - 0.5


def test_swapping_the_domains_turns_the_knob_around():
    gain = {}
    for rho, target in itertools.product((0.2, 0.8), (0, 1)):
        world = dataclasses.replace(CROWD, redundancy=rho)
        gain[rho, target] = topic_oracles(world, generate(world), target).summary()["gain"]
    assert gain[0.2, 0] == pytest.approx(gain[0.8, 1], abs=0.01)
    assert gain[0.8, 0] == pytest.approx(gain[0.2, 1], abs=0.01)
    assert gain[0.2, 0] - gain[0.8, 0] > 0.1


def test_what_synergy_and_silence_are_worth():
    """The second table in the README."""
    for knobs, gains, hits in (
        ({"synergy": 0.5}, (0.32, 0.32), (0.35, 0.45)),
        ({"synergy": 1.0}, (0.47, 0.47), (0.51, 0.72)),
        ({"silence": (0.0, 0.5)}, (0.08, 0.23), (0.50, 0.51)),
        ({"silence": (0.0, 1.0)}, (0.00, 0.26), (0.44, 0.44)),
    ):
        world = World(**knobs)
        log = generate(world)
        of_a, of_b = (topic_oracles(world, log, target).summary() for target in (0, 1))
        np.testing.assert_allclose((of_a["gain"], of_b["gain"]), gains, atol=0.006)
        np.testing.assert_allclose((of_a["hit_own"], of_a["hit_both"]), hits, atol=0.006)


def realised_loss(law_NxK, topic):
    return -np.log(law_NxK[np.arange(len(topic)), topic])


@pytest.mark.parametrize(
    ("knobs", "others"),
    [
        ({"redundancy": 0.3}, {"redundancy": 0.7}),
        ({"synergy": 0.6}, {"synergy": 0.3}),
        ({"silence": (0.1, 0.6)}, {"silence": (0.6, 0.1)}),
    ],
)
def test_oracles_are_calibrated_and_a_wrong_knob_is_not(knobs, others):
    world = dataclasses.replace(CROWD, **knobs)
    log = generate(world)
    right = topic_oracles(world, log)
    wrong = topic_oracles(dataclasses.replace(world, **others), log)
    for name in ("own", "both"):
        loss = realised_loss(getattr(right, name), right.topic)
        error = loss.std() / math.sqrt(len(loss))
        assert abs(loss.mean() - right.summary()["loss_" + name]) < 4 * error
        # The same log under another knob: the same events, dearer.
        excess = realised_loss(getattr(wrong, name), right.topic) - loss
        assert excess.mean() > 5 * excess.std() / math.sqrt(len(loss))


def conditional_information(x, y, given):
    """Plug-in I(x ; y | given) in nats, from counts of small integers."""
    table = np.zeros((given.max() + 1, x.max() + 1, y.max() + 1))
    np.add.at(table, (given, x, y), 1)
    table /= table.sum()
    apart = table.sum(1, keepdims=True) * table.sum(2, keepdims=True)
    together = table * table.sum((1, 2), keepdims=True)
    seen = table > 0
    return float((table[seen] * np.log(together[seen] / apart[seen])).sum())


def counted_information(world):
    """I(next A topic ; last B topic | last A topic) by counting, and the same for shuffled B."""
    log = generate(world)
    topics, triples = topics_of(world, log), []
    for row in users_of(log):
        latest = [None, None]
        for domain, z in zip(log.domain[row], topics[row], strict=True):
            if domain == 0 and None not in latest:
                triples.append((z, *latest))
            latest[domain] = z
    following, a, b = np.array(triples).T
    rng, shuffled = np.random.default_rng(0), []
    for _ in range(20):
        mixed = b.copy()
        for k in range(world.topics):
            mixed[a == k] = rng.permutation(b[a == k])
        shuffled.append(conditional_information(following, mixed, a))
    return conditional_information(following, b, a), np.array(shuffled)


def test_counts_agree_that_b_is_redundant_at_one_and_complementary_at_zero():
    redundant, chance = counted_information(dataclasses.replace(CROWD, redundancy=1))
    assert abs(redundant - chance.mean()) < 5 * chance.std(ddof=1)
    assert redundant < 0.002
    complementary, chance = counted_information(dataclasses.replace(CROWD, redundancy=0))
    assert complementary - chance.mean() > 0.2


@pytest.mark.parametrize(("rho", "leader"), [(1, 0), (0, 1)])
def test_events_keep_the_leaders_topic_as_often_as_configured(rho, leader):
    world = dataclasses.replace(CROWD, redundancy=rho, stay=0.7)
    log = generate(world)
    topics, kept = topics_of(world, log), ([], [])
    for row in users_of(log):
        latest = None
        for domain, z in zip(log.domain[row], topics[row], strict=True):
            if latest is not None:
                kept[domain].append(z == latest)
            latest = z if domain == leader else latest
    for domain in (0, 1):
        assert np.mean(kept[domain]) == pytest.approx(0.7, abs=0.01)


# --- items within a topic


def first_ranks(world):
    """Popularity ranks of the first item that each user takes of each topic of each domain."""
    log, truth = generate(world), latents(world)
    topics = topics_of(world, log)
    # Later items of a topic exclude the earlier ones, which flattens the head.
    meeting = np.stack([log.user, log.domain, topics])
    _, first = np.unique(meeting, axis=1, return_index=True)
    return truth.item_rank[log.item[first] - 1]


def fitted_exponent(ranks, n_ranks):
    """Maximum likelihood of z in P(rank) ~ rank ** -z over ranks 1..n_ranks, on a grid."""
    grid = np.linspace(0, 2, 401)
    log_rank = np.log(np.arange(1, n_ranks + 1))
    log_norm = np.log(np.exp(-grid[:, None] * log_rank).sum(1))
    return grid[np.argmax(-grid * np.log(ranks).mean() - log_norm)]


@pytest.mark.parametrize("zipf", [0.0, 0.6, 1.0, 1.3])
def test_popularity_is_zipf_within_a_topic(zipf):
    ranks = first_ranks(dataclasses.replace(CROWD, taste=0, zipf=zipf))
    assert fitted_exponent(ranks, CROWD.n_items[0] // CROWD.topics) == pytest.approx(zipf, abs=0.03)


def test_popular_items_are_popular_in_the_default_world():
    world = World()
    log, truth = generate(world), latents(world)
    count = np.bincount(log.item, minlength=sum(world.n_items) + 1)[1:]
    by_rank = [count[truth.item_rank == rank].mean() for rank in (1, 5, 20)]
    assert by_rank[0] > 2 * by_rank[1] > 4 * by_rank[2]


def mean_affinity(world, interest):
    """Mean over events of <interest, y>; interest_2xUxD, a vector for each event's domain, user."""
    log, truth = generate(world), latents(world)
    chosen = truth.item_latent[log.item - 1]
    return float((interest[log.domain, log.user] * chosen).sum(1).mean())


def test_items_are_close_to_the_users_own_interest_in_their_domain():
    world = World()
    x = latents(world).user_latent
    assert mean_affinity(world, x) > 1.5
    assert abs(mean_affinity(world, x[:, ::-1])) < 0.2  # another user's
    assert abs(mean_affinity(world, x[::-1])) < 0.2  # one's own in the other domain
    assert abs(mean_affinity(dataclasses.replace(world, taste=0), x)) < 0.1  # no taste


def test_ids_betray_neither_topic_nor_popularity():
    truth, n = latents(World()), World().n_items[0]
    for column in (truth.item_topic[:n], truth.item_rank[:n]):
        assert abs(np.corrcoef(np.arange(n), column)[0, 1]) < 0.2
    assert np.ptp(np.bincount(truth.item_topic[:n])) <= 1


# --- single-domain users

MIXED = World(n_users=40, n_items=(160, 160), topics=4, single=(500, 700))


def test_single_domain_users_come_after_the_others_and_leave_them_alone():
    log, without = generate(MIXED), generate(dataclasses.replace(MIXED, single=(0, 0)))
    assert (log.n_users, without.n_users) == (1240, 40)
    for column in ("user", "item", "time"):
        found = getattr(log, column)[log.user < 40]
        np.testing.assert_array_equal(found, getattr(without, column))
    share_of_b = np.bincount(log.user, log.domain) / np.diff(log.offsets)
    assert ((share_of_b[:40] > 0) & (share_of_b[:40] < 1)).all()
    assert (share_of_b[40:540] == 0).all() and (share_of_b[540:] == 1).all()
    only_b = generate(dataclasses.replace(MIXED, single=(0, 700)))
    np.testing.assert_array_equal(only_b.item[only_b.user >= 40], log.item[log.user >= 540])


def test_single_domain_users_keep_the_promises_of_a_log():
    shortest = dataclasses.replace(MIXED, min_length=8, max_length=11)
    for world, most in ((MIXED, 20), (shortest, 5)):
        log = generate(world)
        make_log(log.user, log.item, log.time, log.n_items, log.name)
        lengths = np.diff(log.offsets)[40:]
        assert lengths.min() == max(world.min_length // 2, 5) and lengths.max() == most
        for row in users_of(log)[40:]:
            assert len(np.unique(log.item[row])) == len(row)
    other = dataclasses.replace(MIXED, seed=1)
    assert generate(MIXED).fingerprint() == generate(MIXED).fingerprint()
    assert generate(MIXED).fingerprint() != generate(other).fingerprint()


@pytest.mark.parametrize("rho", [0, 0.5, 1])
def test_single_domain_users_are_led_by_themselves(rho):
    world = dataclasses.replace(MIXED, redundancy=rho, stay=0.7)
    log = generate(world)
    topics = topics_of(world, log)
    same_user = np.diff(log.user) == 0
    kept = topics[1:] == topics[:-1]
    for first, end in ((40, 540), (540, 1240)):
        mine = same_user & (log.user[1:] >= first) & (log.user[1:] < end)
        assert kept[mine].mean() == pytest.approx(0.7, abs=0.02)
    assert world.stay != pytest.approx(kept[same_user & (log.user[1:] < 40)].mean(), abs=0.02)


def test_single_domain_users_share_taste_and_popularity():
    log, truth = generate(MIXED), latents(MIXED)
    assert truth.user_latent.shape == (2, 1240, 8)
    chosen = truth.item_latent[log.item - 1]
    for interest, low, high in ((0, 1.2, 9), (1, -0.2, 0.2)):  # one's own, the other domain's
        wanted = truth.user_latent[log.domain ^ interest, log.user]
        affinity = (wanted * chosen).sum(1)[log.user >= 40].mean()
        assert low < affinity < high
    taken = log.item[log.user >= 40]
    count = np.bincount(taken, minlength=321)[1:]
    by_rank = [count[truth.item_rank == rank].mean() for rank in (1, 5, 20)]
    assert by_rank[0] > 1.5 * by_rank[1] > 2 * by_rank[2]


@pytest.mark.parametrize("target", [0, 1])
def test_oracles_agree_on_single_domain_users(target):
    world = dataclasses.replace(MIXED, redundancy=0.35)
    log = generate(world)
    oracles, topics = topic_oracles(world, log, target), topics_of(world, log)
    single = log.user[oracles.row] >= 40
    assert single.sum() == ((log.domain == target) & (log.user >= 40)).sum()
    own, both = oracles.own[single], oracles.both[single]
    np.testing.assert_allclose(own, both, atol=1e-12)
    for n, row in enumerate(oracles.row[single][:400]):
        is_first = row == log.offsets[log.user[row]]
        expected = np.full(4, 0.25 if is_first else (1 - world.stay) / 3)
        if not is_first:
            expected[topics[row - 1]] = world.stay
        np.testing.assert_allclose(both[n], expected, atol=1e-12)
    assert np.abs(oracles.own - oracles.both)[~single].max() > 0.1
    # The others' laws are what they are without the newcomers.
    alone = dataclasses.replace(world, single=(0, 0))
    without = topic_oracles(alone, generate(alone), target)
    np.testing.assert_array_equal(oracles.own[~single], without.own)
    np.testing.assert_array_equal(oracles.both[~single], without.both)


# --- mistakes


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"redundancy": 1.01}, "redundancy 1.01: expected a number from 0 to 1"),
        ({"redundancy": -0.1}, "redundancy -0.1: expected a number from 0 to 1"),
        ({"redundancy": math.nan}, "redundancy nan"),
        ({"redundancy": "1"}, "redundancy '1'"),
        ({"stay": 2}, "stay 2: expected a number from 0 to 1"),
        ({"n_users": 0}, "n_users 0: expected a whole number of at least 1"),
        ({"n_users": 2.5}, "n_users 2.5"),
        ({"n_users": True}, "n_users True"),
        ({"topics": 1}, "topics 1: expected a whole number of at least 2"),
        ({"n_items": (400, 7)}, "n_items (400, 7): expected at least topics * max_length = 320 of"),
        ({"n_items": (319, 400)}, "n_items (319, 400): expected at least"),
        ({"n_items": 400}, "n_items 400: expected two, each a whole number of at least 1"),
        ({"latent_dim": 0}, "latent_dim 0"),
        ({"taste": -1}, "taste -1: expected a number from 0 up"),
        ({"zipf": math.inf}, "zipf inf"),
        ({"share": (0.7, 0.3)}, "share (0.7, 0.3): expected the lower one first"),
        ({"share": (-0.1, 0.3)}, "share (-0.1, 0.3): expected two, each a number from 0 to 1"),
        ({"min_length": 7}, "min_length 7: expected a whole number of at least 8"),
        ({"min_length": 41}, "max_length 40: expected at least min_length = 41"),
        ({"seed": -1}, "seed -1: expected a whole number of at least 0"),
        ({"single": (3, -1)}, "single (3, -1): expected two, each a whole number of at least 0"),
        ({"single": (2.5, 0)}, "single (2.5, 0): expected two, each a whole number"),
        ({"single": (1, 2, 3)}, "single (1, 2, 3): expected two"),
        ({"single": 5}, "single 5: expected two"),
        ({"synergy": 1.5}, "synergy 1.5: expected a number from 0 to 1"),
        ({"silence": (0, 2)}, "silence (0, 2): expected two, each a number from 0 to 1"),
        ({"views": 3}, "views 3: expected a whole number from 1 to 2"),
        ({"aligned": 1}, "aligned 1: expected True or False"),
        ({"rotation": -1}, "rotation -1: expected a number from 0 to 1"),
        ({"gap": -1}, "gap -1: expected a number from 0 up"),
        ({"redundency": 0.5}, "redundency: no such field: did you mean redundancy? it has n_users"),
    ],
)
def test_a_bad_field_is_named_with_what_was_found_and_expected(fields, words):
    with pytest.raises(UserError) as caught:
        World(**fields)
    message = str(caught.value)
    assert words in message and message.startswith("synthetic: ") and "\n" not in message


def test_the_limits_themselves_are_legal():
    for fields in ({"redundancy": 0}, {"redundancy": 1}, {"n_items": (320, 320)}, {"stay": 1}):
        World(**fields)
    assert hash(World(n_items=[400, 500], single=[0, 0])) == hash(World())
    assert World(seed=np.int64(3), stay=np.float32(0.5)) == World(seed=3, stay=0.5)


def test_oracles_refuse_the_log_of_another_world():
    with pytest.raises(UserError, match="n_items"):
        topic_oracles(World(), generate(TINY))


def test_oracles_survive_laws_with_zeros():
    for stay, rho, sigma in itertools.product((0, 1), (0, 0.5, 1), (0, 1)):
        world = dataclasses.replace(TINY, n_users=40, stay=stay, redundancy=rho, synergy=sigma)
        with np.errstate(all="raise"):
            summary = topic_oracles(world, generate(world)).summary()
        assert all(map(math.isfinite, summary.values()))
        assert summary["gain"] > -1e-12
