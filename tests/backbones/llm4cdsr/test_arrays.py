"""LLM4CDSR's arrays: element for element as the official data set makes them, and word by word."""

import json
import pathlib

import numpy as np
import pytest

from oa_jax.backbones.llm4cdsr import arrays as arrays_lib
from oa_jax.events.log import make_log
from oa_jax.events.split import Split, leave_one_out

GOLDEN = pathlib.Path(__file__).parents[2] / "golden" / "llm4cdsr_small.npz"
DOMAINS = "AB"


@pytest.fixture(scope="module")
def golden():
    fixture = dict(np.load(GOLDEN))
    meta = json.loads(str(fixture["meta"]))
    n_items = meta["item_num_A"], meta["item_num_B"]
    offsets = fixture["raw/offsets"]
    user = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    item = fixture["raw/items"] + n_items[0] * (fixture["raw/domains"] == 1)
    return fixture, make_log(user, item, np.arange(len(item)), n_items, "golden"), meta["max_len"]


def ours(arrays, name):
    return arrays[name if name[-1] not in DOMAINS else f"{name[:-1]}_{name[-1]}"]


NAMES = ("seq", "pos", "domain_mask", "seqA", "posA", "seqB", "posB")


def test_training_rows_are_the_official_ones(golden):
    fixture, log, length = golden
    split = leave_one_out(log)
    built = arrays_lib.training_arrays(log, split, length)
    for name in NAMES:
        np.testing.assert_array_equal(ours(built, name), fixture[f"ds_train/{name}"], name)
    for stream in ("", *DOMAINS):
        real = fixture[f"ds_train/seq{stream}"] != 0
        counted = np.cumsum(real, 1) * real  # what the model counts for itself
        np.testing.assert_array_equal(counted, fixture[f"ds_train/positions{stream}"])
    users = arrays_lib.training_users(log, split)
    np.testing.assert_array_equal(users, fixture["ds_train/user_id"])
    # A window that begins one event later is another data set.
    shorter = arrays_lib.training_arrays(log, split, length - 1)
    assert (shorter["seq"][:, -1] == built["seq"][:, -1]).all()
    assert (shorter["seq"][0, 0] != built["seq"][0, 1:]).any() or len(shorter["seq"][0]) == 9


@pytest.mark.parametrize(("which", "theirs"), [("val", "valid"), ("test", "test")])
def test_evaluation_rows_are_the_official_ones(golden, which, theirs):
    fixture, log, length = golden
    built = arrays_lib.evaluation_arrays(log, leave_one_out(log), which, length)
    for name in ("seq", "seqA", "seqB"):
        np.testing.assert_array_equal(ours(built, name), fixture[f"{theirs}/{name}"], name)
    np.testing.assert_array_equal(built["target"], fixture[f"{theirs}/pos"])
    np.testing.assert_array_equal(built["domain"], fixture[f"{theirs}/target_domain"])
    whole = arrays_lib.evaluation_arrays(log, leave_one_out(log), which, length, False)
    for d, name in enumerate(DOMAINS):
        mine = built["domain"] == d
        np.testing.assert_array_equal(whole[f"seq_{name}"][mine], built[f"seq_{name}"][mine])
        # Of the other domain the official stream lacks the latest item.
        lost = (whole[f"seq_{name}"] != 0).sum(1) - (built[f"seq_{name}"] != 0).sum(1)
        assert lost[~mine].max() == 1 and lost[mine].max(initial=0) == 0


def rows_by_hand(items, n_a, length):
    """One training row, from the words of `training_arrays`."""
    window = items[-(length + 1) :]
    shift = length - (len(window) - 1)
    out = {"seq": list(window[:-1]), "pos": list(window[1:])}
    for d, name in enumerate(DOMAINS):
        at = [i for i, item in enumerate(window) if (item > n_a) == bool(d)]
        out[f"seq_{name}"] = [window[i] - n_a * d for i in at[:-1]]
        out[f"pos_{name}"] = [window[i] - n_a * d for i in at[1:]]
        out[f"time_{name}"] = [i + shift for i in at[:-1]]
        out[f"pair_{name}"] = [i - 1 + shift for i in at[1:]]
    fills = {name: -1 if name[:4] in ("time", "pair") else 0 for name in out}
    return {k: [fills[k]] * (length - len(v)) + v for k, v in out.items()}


@pytest.mark.parametrize("length", [1, 5, 20, 80])
def test_rows_by_hand(random_log, length):
    log = random_log(3)
    split = leave_one_out(log)
    built = arrays_lib.training_arrays(log, split, length)
    for user in range(log.n_users):
        begin = log.offsets[user]
        items = log.item[begin : begin + split.n_train[user]].tolist()
        for name, row in rows_by_hand(items, log.n_items[0], length).items():
            assert built[name][user].tolist() == row, (user, name)


def test_pairs_meet_the_same_target(random_log):
    """Stream x at a token's pair predicts the item that the domain's stream predicts there."""
    log = random_log(5)
    built = arrays_lib.training_arrays(log, leave_one_out(log), 30)
    for d, name in enumerate(DOMAINS):
        row, column = np.nonzero(built[f"seq_{name}"])
        pair, time = built[f"pair_{name}"][row, column], built[f"time_{name}"][row, column]
        local = built[f"pos_{name}"][row, column] + d * log.n_items[0]
        np.testing.assert_array_equal(built["pos"][row, pair], local)
        token = built[f"seq_{name}"][row, column] + d * log.n_items[0]
        np.testing.assert_array_equal(built["seq"][row, time], token)
        assert (time <= pair).all()
        assert (built["domain_mask"] == d).sum() == len(row)
    assert (built["pos"][row, pair - 1] != local).any()


def test_short_users_have_no_row():
    user, item = [0, 0, 1, 1, 1, 2, 2, 2, 2], [1, 2, 1, 3, 2, 3, 1, 2, 3]
    log = make_log(user, item, np.zeros(9, int), (2, 2), "short")
    split = leave_one_out(log, skip_short=True)
    assert arrays_lib.training_users(log, split).tolist() == [1, 2]
    built = arrays_lib.training_arrays(log, split, 4)
    assert built["seq"].tolist() == [[0, 0, 0, 0], [0, 0, 0, 3]]  # user 1: Q17, no input
    assert arrays_lib.evaluation_arrays(log, split, "test", 4)["user"].tolist() == [1, 2]


def test_users_that_are_only_evaluated():
    log = make_log([0, 0, 0, 1, 1, 1], [1, 3, 2, 2, 4, 1], np.zeros(6, int), (2, 2), "roles")
    split = Split(*(np.array(c, np.int32) for c in ([3, 0], [-1, 2], [-1, -1])))
    assert arrays_lib.training_users(log, split).tolist() == [0]
    rows = arrays_lib.evaluation_arrays(log, split, "val", 3)
    assert rows["seq"].tolist() == [[0, 2, 4]] and rows["target"].tolist() == [1]
    assert rows["n_history"].tolist() == [2]


def test_pools_and_windows(random_log):
    log, length = random_log(7), 10
    split = leave_one_out(log)
    pools, window = arrays_lib.pair_pools(log, split), arrays_lib.in_window(log, split, length)
    counts = arrays_lib.token_counts(log, split, length)
    built = arrays_lib.training_arrays(log, split, length)
    for stream, count in zip(("seq", "seq_A", "seq_B"), counts, strict=True):
        np.testing.assert_array_equal((built[stream] != 0).sum(1), count)
    for user in range(log.n_users):
        begin, n_train = log.offsets[user], split.n_train[user]
        places = np.flatnonzero(window[begin : log.offsets[user + 1]]).tolist()
        assert places == list(range(max(0, n_train - length - 1), n_train))
        early = log.item[begin : begin + n_train - 1]
        for d, name in enumerate(DOMAINS):
            first, n = pools[f"first_pool_{name}"][user], pools[f"n_pool_{name}"][user]
            of_domain = early[(early > log.n_items[0]) == bool(d)]
            assert pools[f"pool_{name}"][first : first + n].tolist() == of_domain.tolist()
