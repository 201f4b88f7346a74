"""`check` and `describe` against plain Python and against what is known of the published files."""

import collections
import types

import numpy as np
import pytest

from oa_jax.data import check, describe, store
from oa_jax.data import prepare as prepare_lib
from oa_jax.data.prepare import prepare
from oa_jax.data.texts import Reading
from oa_jax.events.log import TEST, TRAINING, VALIDATION, make_log


@pytest.fixture(scope="module")
def abxi(small_pair, tmp_path_factory):
    data = tmp_path_factory.mktemp("data")
    prepare("beauty_elec", small_pair, data, Reading(), print)
    return data


@pytest.fixture(scope="module")
def amid(raw_files, tmp_path_factory):
    """Rows sorted by id; half of the test rows are the other row of a training user."""
    folder = tmp_path_factory.mktemp("amid")
    rng = np.random.default_rng(3)

    def items(first):
        return sorted((first + rng.choice(60, 6, replace=False)).tolist())

    people = [(user, items(100), items(500)) for user in range(40)]
    train = [(*person, 0) for person in people]
    test = [(*person, 1) for person in people[:10]]
    test += [(user, [], items(500), 1) for user in range(90, 100)]
    raw_files.amid(folder, train, test)
    prepare("elec_phone_amid", folder, folder, Reading(), print)
    return folder


def lines_of(said, level):
    return [line for got, line in said if got == level]


def test_a_good_set_has_no_errors(abxi):
    said = check.check(abxi, "beauty_elec")
    assert not lines_of(said, check.ERROR)
    good = lines_of(said, check.OK)
    assert [line.split(":")[0] for line in good] == ["log", "items", "records", "split"]
    # Nine times among twelve events in each domain: ties, and nothing else to find.
    assert all(line.startswith("times: ") for line in lines_of(said, check.FINDING))


def test_the_defects_of_amid_are_found(amid):
    said = check.check(amid, "elec_phone_amid")
    assert not lines_of(said, check.ERROR)
    found = "\n".join(lines_of(said, check.FINDING))
    assert "the source has none: `time` is the place" in found
    assert "10 of 20 test sequences belong to a user with another sequence in training" in found
    assert "in 10 of these the target is an item of that sequence" in found
    for domain in "AB":
        expected = (
            f"domain {domain} is not chronological: 100.0% of neighbouring items ascend in id"
        )
        assert expected in found
    data = store.load(amid, "elec_phone_amid")
    a, b = (min(n - 1, 999) for n in data.log.n_items)
    assert f"NDCG@10 among {a} / {b} without learning: popularity" in found
    assert describe.describe(data)[-1][0] == f"NDCG@10 of popularity, 1 of {a + 1} / {b + 1}"
    assert describe.no_more(999, [999, 2000]) == "999"


def test_published_defects_with_their_counts(shared_file, tmp_path):
    """The counts that AMID's files are known for; no records are written for it."""
    folder = shared_file("data", "amid", "cloth_sport_test.csv.gz").parent
    built, source, paths = prepare_lib.build("cloth_sport_amid", folder, Reading())
    facts = [prepare_lib._file_facts(*pair) for pair in zip(paths, source.files, strict=True)]
    assert all(file["published"] for file in facts)
    assert built.notes["rows"]["cloth_sport_test.csv.gz"] == 4762
    log, role = store.with_roles(vars(built), built.n_items, "cloth_sport_amid")
    data = store.Prepared(log, role, built.raw_users, {"times": built.times}, tmp_path)
    found = "\n".join(check.user_leak(data) + check.id_order(data))
    assert "users: 920 of 4,762 test sequences belong to a user with another" in found
    assert "users: in 920 of these the target is an item of that sequence" in found
    assert "domain B is not chronological: 100.0% of neighbouring items ascend" in found
    assert "domain A is not chronological: 9" in found  # 90 to 94 per cent


@pytest.mark.parametrize("name, known, inside", [("loan_fund", 138, 21), ("loan_account", 343, 54)])
def test_published_defects_of_mybank(shared_file, tmp_path, name, known, inside):
    """Not in the order of ids, but with test users who train."""
    folder = shared_file("data", "amid_mybank", f"{name}_test.csv.gz").parent
    built, source, paths = prepare_lib.build(f"mybank_{name}25", folder, Reading())
    facts = [prepare_lib._file_facts(*pair) for pair in zip(paths, source.files, strict=True)]
    assert all(file["published"] for file in facts)
    log, role = store.with_roles(vars(built), built.n_items, name)
    data = store.Prepared(log, role, built.raw_users, {"times": built.times}, tmp_path)
    found = "\n".join(check.user_leak(data))
    assert f"users: {known} of 20,000 test sequences belong to a user with another" in found
    assert f"users: in {inside} of these the target is an item of that sequence" in found
    assert not check.id_order(data)


def damaged(abxi, tmp_path, change):
    """A copy whose columns `change` edits, with the fingerprint put right."""
    folder = store.folder(tmp_path, "beauty_elec")
    folder.mkdir(parents=True)
    for path in store.folder(abxi, "beauty_elec").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    change(folder)
    return check.check(tmp_path, "beauty_elec")


def test_records_that_differ_are_an_error(abxi, tmp_path):
    def change(folder):
        data = store.load(tmp_path, "beauty_elec")
        names = ["someone else", *data.raw_users[1:]]
        store.write_columns(folder, data.log, data.role, names)

    assert lines_of(damaged(abxi, tmp_path, change), check.ERROR) == [
        "records: record 0 is not user 0 of log.npz"
    ]


def test_an_item_table_that_differs_is_an_error(abxi, tmp_path):
    def change(folder):
        store.write_items(folder, store.read_items(folder)[0][:-1])

    (line,) = lines_of(damaged(abxi, tmp_path, change), check.ERROR)
    assert line.startswith("items: digest ") and "31 items: expected 32" in line


# --- describe -----------------------------------------------------------------------------------


def rows_of(data):
    return {what: cells for what, *cells in describe.describe(data)}


def test_figures_against_plain_python(abxi):
    data = store.load(abxi, "beauty_elec")
    log, rows = data.log, rows_of(data)
    users = [list(range(*log.offsets[u : u + 2])) for u in range(log.n_users)]
    assert rows["items"] == ["16", "16", "32"] and rows["interactions"] == ["360", "360", "720"]
    assert rows["users with both"][2] == "30 (100.0%)"
    assert rows["length: mean / median / longest"] == ["12.0 / 12 / 12"] * 2 + ["24.0 / 24 / 24"]
    pairs = [(a, b) for own in users for a, b in zip(own, own[1:], strict=False)]
    tied = [(a, b) for a, b in pairs if log.time[a] == log.time[b]]
    assert rows["neighbours at the same time"][2] == f"{len(tied) / len(pairs):.1%}"
    up = sum(log.item[a] <= 16 < log.item[b] for a, b in tied)
    assert rows["of these A then B, B then A"] == [str(up), "0", ""]
    targets = collections.Counter("AB"[int(log.item[own[-1]] > 16)] for own in users)
    assert rows["test targets"] == [str(targets["A"]), str(targets["B"]), "30"]


def test_users_with_one_domain_alone(amid):
    data = store.load(amid, "elec_phone_amid")
    domains = [set() for _ in range(data.log.n_users)]
    for user, domain in zip(data.log.user, data.log.domain, strict=True):
        domains[user].add(int(domain))
    alone = [sum(found == {d} for found in domains) for d in (0, 1)]
    assert sum(alone) > 0 and max(map(len, domains)) == 2
    rows = rows_of(data)
    assert rows["users with one domain alone"] == [*map(str, alone), str(sum(alone))]
    assert rows["users with both"][2].startswith(str(len(domains) - sum(alone)) + " ")


def test_cold_targets_and_repeats(amid):
    data = store.load(amid, "elec_phone_amid")
    trained = set(data.log.item[data.role == TRAINING].tolist())
    cold = [r for r in np.flatnonzero(data.role == TEST) if data.log.item[r] not in trained]
    np.testing.assert_array_equal(np.flatnonzero((data.role == TEST) & describe.cold(data)), cold)
    assert rows_of(data)["repeats of an item by a user"] == ["0.0%"] * 3
    assert "neighbours at the same time" not in rows_of(data)


@pytest.mark.parametrize("above", [False, True])
def test_popularity_against_many_draws(amid, above):
    """The expectation over negatives, by drawing them; 20 of the 60 rivals."""
    data = store.load(amid, "elec_phone_amid")
    log, rng = data.log, np.random.default_rng(0)
    count = np.bincount(log.item[data.role == TRAINING], minlength=sum(log.n_items) + 1)
    pool = np.arange(log.n_items[0] + 1, sum(log.n_items) + 1)
    values = []
    for row in np.flatnonzero(data.role == TEST):
        own = log.item[log.offsets[log.user[row]] : row]
        top = own[own > log.n_items[0]].max(initial=log.n_items[0]) if above else 0
        score = np.where(pool > top, count[pool], -1)
        mine = score[pool == log.item[row]][0]
        others = score[pool != log.item[row]]
        twice = 2 * (others > mine).sum() + (others == mine).sum()  # how many beat it: ties half
        marked = [np.arange(len(others)) < n for n in (twice // 2, -(-twice // 2))]
        rank = [rng.permutation(one)[:20].sum() for one in marked for _ in range(200)]
        values.append(np.mean([(1 / np.log2(r + 2)) * (r < 10) for r in rank]))
    found = describe.popularity_ndcg(data, above, n_negatives=20)
    assert np.isnan(found[0]) and found[1] == pytest.approx(np.mean(values), abs=0.02)


def test_one_tied_rival_of_popularity_is_above_the_target_every_other_time():
    """One user with the items 1 and 2 of each domain, the last event the target: by popularity the
    target ties with the other item; above the history it is alone."""
    item = np.array([1, 3, 1, 2, 4, 3, 2, 4])
    role = np.array([TRAINING] * 6 + [TEST] * 2)
    log = make_log(np.zeros(8, int), item, np.arange(8), (2, 2), "ties")
    data = types.SimpleNamespace(log=log, role=role)
    first, second = 1.0, 1 / np.log2(3)
    assert describe.popularity_ndcg(data, n_negatives=1) == pytest.approx((second, second))
    item = np.array([1, 3, 2, 2, 4, 4, 1, 3])
    data.log = make_log(np.zeros(8, int), item, log.time, (2, 2), "ties")
    data.role[[3, 5]] = VALIDATION
    assert describe.popularity_ndcg(data, n_negatives=1) == pytest.approx(
        ((first + second) / 2,) * 2
    )


def test_the_plot_is_a_picture(abxi, tmp_path):
    from matplotlib import image

    describe.plot(store.load(abxi, "beauty_elec"), tmp_path / "p.png")
    pixels = image.imread(tmp_path / "p.png")
    assert pixels.shape[0] > 300 and pixels.shape[1] > 900
    # Both lines of both panels, in their colours: matplotlib's C0 and C1.
    for colour in ((0x1F, 0x77, 0xB4), (0xFF, 0x7F, 0x0E)):
        drawn = (np.abs(pixels[..., :3] - np.array(colour) / 255) < 0.02).all(-1).any(0)
        half = len(drawn) // 2
        assert drawn[:half].any() and drawn[half:].any()
