"""Filters against plain Python, and ABXI's published text from a raw file."""

import collections

import numpy as np
import polars as pl
import pytest

from oa_jax.data import filters, published, sources
from oa_jax.data.filters import joined
from oa_jax.data.roles import hash_rank
from oa_jax.events.log import make_log


def draw(seed, n=400, users=14, items=18, shared=3, span=12):
    """Rows (user, item, time, domain), A before B; some items in both domains, many ties."""
    rng = np.random.default_rng(seed)
    rows = []
    for domain in (0, 1):
        for _ in range(n // 2):
            item = int(rng.integers(0, items))
            name = f"s{item}" if item < shared else f"{'ab'[domain]}{item}"
            user = int(users * rng.random() ** 2)
            rows.append((f"u{user}", name, int(rng.integers(0, span)), domain))
    return rows


def frame(rows):
    schema = {"user": pl.String, "item": pl.String, "time": pl.Int64, "domain": pl.Int8}
    return pl.DataFrame(rows, schema=schema, orient="row")


def slow_abxi(rows, item_least, length, user_least):
    """The six steps, one by one."""
    of = [{r[1] for r in rows if r[3] == d} for d in (0, 1)]
    rows = [r for r in rows if r[1] not in of[0] & of[1]]
    users = [{r[0] for r in rows if r[3] == d} for d in (0, 1)]
    rows = [r for r in rows if r[0] in users[0] & users[1]]
    rows = sorted(rows, key=lambda r: (r[0], r[2]))
    count = collections.Counter(r[1] for r in rows)
    rows = [r for r in rows if count[r[1]] >= item_least]
    by_user = collections.defaultdict(list)
    for r in rows:
        by_user[r[0]].append(r)
    kept = []
    for own in by_user.values():
        own = own[-length:]
        if min(sum(r[3] == d for r in own) for d in (0, 1)) >= user_least:
            kept += own
    return kept


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("least", [(10, 50, 5), (6, 15, 4), (14, 9, 2)])
def test_abxi(seed, least):
    rows = draw(seed)
    expected = slow_abxi(rows, *least)
    assert filters.abxi(frame(rows), *least).rows() == expected
    assert 0 < len(expected) < len(rows) or least[0] == 14


def slow_core(rows, user_core, item_core, strict):
    """The stop test is not strict, a pass of the official code is."""
    while True:
        users = collections.Counter(r[0] for r in rows)
        items = collections.Counter(r[1] for r in rows)
        if all(n >= user_core for n in users.values()) and all(
            n >= item_core for n in items.values()
        ):
            return rows
        more = int(strict)
        rows = [r for r in rows if users[r[0]] >= user_core + more]
        rows = [r for r in rows if items[r[1]] >= item_core + more]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("over_prune", [True, False])
def test_core(seed, over_prune):
    rows = draw(seed, n=150, users=20, items=24)
    expected = slow_core(rows, 5, 3, over_prune)
    assert filters.core(frame(rows), over_prune=over_prune).rows() == expected


def test_over_pruning_loses_what_the_true_core_keeps():
    """Quirk Q18: 5 events and 3 uses are enough, yet one event too few elsewhere costs them."""
    core = [(f"u{u}", f"a{i}", 0, 0) for u in range(3) for i in range(5)]
    assert filters.core(frame(core)).rows() == core
    with_stray = [*core, ("stray", "a0", 0, 0)]
    assert filters.core(frame(with_stray), over_prune=False).rows() == core
    assert filters.core(frame(with_stray)).rows() == []


def test_core_counts_an_item_of_both_domains_once():
    rows = [(f"u{u}", "both", 0, u % 2) for u in range(3) for _ in range(5)]
    assert len(filters.core(frame(rows), over_prune=False)) == 15


@pytest.mark.parametrize("seed", range(4))
def test_douban(seed):
    rng = np.random.default_rng(seed)
    dates = [20151231, 20160101, 20160102, 20161231, 20170101, 201605011200]
    rows = [
        (int(rng.integers(0, 25)), int(rng.integers(0, 25)), dates[rng.integers(0, 6)], d)
        for d in (0, 1, 2)
        for _ in range(25)
    ]
    users = collections.Counter(r[0] for r in rows)
    items = collections.Counter(r[1] for r in rows)  # the number alone, whatever the kind
    expected = [
        r for r in rows if users[r[0]] > 1 and items[r[1]] > 2 and 20160101 < r[2] < 20161232
    ]
    schema = {"user": pl.Int64, "item": pl.Int64, "time": pl.Int64, "domain": pl.Int8}
    found = filters.douban(pl.DataFrame(rows, schema=schema, orient="row"))
    assert found.rows() == expected and expected


def slow_domain_core(rows, user_least, item_least):
    while True:
        users = collections.Counter((r[0], r[3]) for r in rows)
        items = collections.Counter((r[1], r[3]) for r in rows)
        kept = [r for r in rows if users[r[0], r[3]] >= user_least]
        kept = [r for r in kept if items[r[1], r[3]] >= item_least]
        if len(kept) == len(rows):
            return rows
        rows = kept


@pytest.mark.parametrize("seed", range(6))
def test_domain_core(seed):
    rows = draw(seed, n=300, users=40, items=20)
    expected = slow_domain_core(rows, 5, 7)
    assert filters.domain_core(frame(rows), 5, 7).rows() == expected


def test_a_share_of_single_domain_users():
    rows = [(f"both{u}", "x", 0, d) for u in range(7) for d in (0, 1)]
    rows += [(f"one{u}", "x", 0, u % 2) for u in range(40)]
    kept = {
        share: set(filters.keep_single(frame(rows), share)["user"]) for share in (0.25, 0.75, 1)
    }
    assert [len(kept[s]) for s in (0.25, 0.75, 1)] == [7 + 10, 7 + 30, 47]
    assert kept[0.25] < kept[0.75] < kept[1]
    assert {f"both{u}" for u in range(7)} <= kept[0.25]
    backwards = filters.keep_single(frame(rows[::-1]), 0.25)
    assert set(backwards["user"]) == kept[0.25]  # no order of the files in it


def test_copies_are_equal_in_all_columns():
    rows = [("u", "a", 1, 0), ("u", "b", 1, 0), ("u", "a", 1, 0), ("u", "a", 2, 0)]
    rows += [("u", "a", 1, 1), ("v", "a", 1, 0)]
    kept = {k: filters.without_copies(frame(rows), k).rows() for k in ("keep", "first", "last")}
    assert kept["keep"] == rows
    assert kept["first"] == rows[:2] + rows[3:]
    assert kept["last"] == rows[1:]


def test_hash_rank_is_a_permutation_of_its_own():
    names = [f"u{k}" for k in range(50)]
    rank = hash_rank(names, "split")
    assert sorted(rank) == list(range(50))
    assert rank.tolist() != hash_rank(names, "other").tolist()
    np.testing.assert_array_equal(hash_rank(names[::-1], "split"), rank[::-1])


def test_joined_keeps_the_order():
    a, b = (frame(rows).drop("domain") for rows in (draw(0, n=10), draw(1, n=10)))
    both = joined(a, b)
    assert both["domain"].to_list() == [0] * 10 + [1] * 10
    assert both["user"].to_list() == a["user"].to_list() + b["user"].to_list()


# --- ABXI's text from a raw file --------------------------------------------------------------


def raw_rows(log, names):
    """Rows (user, item, time, domain) whose filtered form is the log.

    Beside the events of the log: what each step must remove, and what makes the log's rare items
    as frequent in step 4 as they must have been.
    """
    n_a = log.n_items[0]
    rows = [
        (f"U{u:06d}", names[i - 1], int(t), int(i > n_a))
        for u, i, t in zip(log.user, log.item, log.time, strict=True)
    ]
    start, count = int(log.time.min()), np.bincount(log.user)
    # Step 1: ids of both files, the last thing that some users took.
    rows += [(f"U{u:06d}", f"S{u % 5}", 2 * 10**9, d) for u in range(0, 900, 3) for d in (0, 1)]
    # Step 2: users of one domain. Z0 is frequent only with them.
    rows += [(f"V{u:06d}", "Z0", start + u, 0) for u in range(30)]
    # Step 4: items of 9 events among users of both domains.
    rows += [(f"U{u:06d}", f"Z{u % 4}", 2 * 10**9, 0) for u in range(36)]
    # Step 5: older events of users that have 50 anyway.
    rows += [
        (f"U{u:06d}", names[k], start - 9 + k, 0)
        for u in np.flatnonzero(count == 50)
        for k in (0, 5)
    ]
    # Step 6: five of B, of which the last 50 hold four; and users with four of A.
    for u in range(20):
        rows += [(f"W{u:06d}", names[n_a + k], start + k, 1) for k in range(5)]
        rows += [(f"W{u:06d}", names[k], start + 9 + k, 0) for k in range(46)]
        rows += [(f"X{u:06d}", names[k], start + k, 0) for k in range(4)]
        rows += [(f"X{u:06d}", names[n_a + k], start + k, 1) for k in range(9)]
    return rows + fillers(rows, names, n_a, start)


def fillers(rows, names, n_a, start):
    """Events of users that step 6 removes, so that every item of the log has 10 in step 4."""
    count = collections.Counter(r[1] for r in rows)
    lacking = [[], []]
    for k, name in enumerate(names):
        lacking[int(k >= n_a)] += [name] * max(0, 10 - count[name])
    out = []
    for domain, items in enumerate(lacking):
        other = names[n_a] if domain == 0 else names[0]
        for first in range(0, len(items), 40):
            user = f"Y{domain}{first:07d}"
            out += [(user, item, start + k, domain) for k, item in enumerate(items[first:][:40])]
            out.append((user, other, start + 99, 1 - domain))
    return out


def write_shuffled(rows, raw_files, folder):
    """Both files with the users mixed; a user's own rows keep their order."""
    rng = np.random.default_rng(1)
    for domain, category in enumerate(("Beauty", "Electronics")):
        own = [r for r in rows if r[3] == domain]
        by_user = collections.defaultdict(list)
        for r in own:
            by_user[r[0]].append(r)
        for queue in by_user.values():
            queue.reverse()
        order = rng.permutation(np.array([r[0] for r in own]))
        mixed = [by_user[user].pop() for user in order]
        lines = [(u, i, rng.integers(1, 6), t) for u, i, t, _ in mixed]
        raw_files.ratings_2014(folder, category, lines, packed=domain == 1)
    return folder


@pytest.fixture(scope="module")
def beauty(shared_file):
    """The published log, its item names, and a raw form with surplus."""
    path = shared_file("data", "abxi", "abe", "map_item_50.txt.gz")
    log = sources.load("beauty_elec", path.parents[2])
    names = published.read_item_map(path)[1]
    rows = raw_rows(log, names)
    assert len(rows) > 1.5 * len(log.user)
    return log, names, rows


def test_the_published_text_from_a_raw_file(beauty, raw_files, built_from, tmp_path):
    log, names, rows = beauty
    built, reading = built_from("beauty_elec", write_shuffled(rows, raw_files, tmp_path))
    found = make_log(built.user, built.item, built.time, built.n_items, "raw")
    for column in ("user", "item", "time"):
        np.testing.assert_array_equal(getattr(found, column), getattr(log, column), column)
    assert found.fingerprint() == log.fingerprint() and found.n_users == 4474
    assert [item["raw"] for item in built.items] == names and not reading.malformed


def test_the_surplus_is_noticed(beauty):
    """Twin: with a step left out or moved the raw file does not give the published text."""
    log, _, rows = beauty
    events = frame(sorted(rows, key=lambda r: r[3]))
    for step in ({"item_least": 1}, {"item_least": 11}, {"length": 51}, {"user_least": 4}):
        assert len(filters.abxi(events, **step)) != len(log.user), step
