import json

import numpy as np
import pytest

from oa_jax.backbones.abxi.arrays import evaluation_arrays, training_arrays
from oa_jax.data.catalogue import plain_or_packed
from oa_jax.data.published import read_abxi
from oa_jax.events.log import make_log
from oa_jax.events.rows import own_items
from oa_jax.events.split import leave_one_out, make_split

STREAMS = ("seq_x", "seq_a", "seq_b")
SOURCES = ("abe", "afk")


def histories(log):
    return [part.tolist() for part in np.split(log.item, log.offsets[1:-1])]


def pad(values, length, fill=0):
    """Left-padded, then trimmed to the last `length`."""
    return ([fill] * length + list(values))[-length:]


def slow_training(log, split, length):
    """The rules of `training_arrays` word by word, in plain Python."""
    rows = {"seq_x": [], "seq_a": [], "seq_b": [], "gt": []}
    n_a = log.n_items[0]
    for user, items in enumerate(histories(log)):
        part = items[: split.n_train[user]]
        x, gt = part[:-1], part[1:]
        rows["seq_x"].append(pad(x, length))
        rows["gt"].append(pad(gt, length))
        for name, mine in (("seq_a", lambda i: i <= n_a), ("seq_b", lambda i: i > n_a)):
            stream = []
            for p, target in enumerate(gt):
                earlier = [item for item in x[: p + 1] if mine(item)]
                stream.append(earlier[-1] if mine(target) and earlier else 0)
            rows[name].append(pad(stream, length))
    return {name: np.array(values) for name, values in rows.items()}


def slow_evaluation(log, places, length):
    """Those of `evaluation_arrays` and the horizons, in plain Python."""
    names = ("user", "target", "domain", "seen", *STREAMS, "until_a", "until_b")
    rows = {name: [] for name in names}
    n_a = log.n_items[0]
    for user, items in enumerate(histories(log)):
        place = places[user]
        if place < 0:
            continue
        history, target = items[:place], items[place]
        rows["user"].append(user)
        rows["target"].append(target)
        rows["domain"].append(int(target > n_a))
        rows["seen"].append(sorted({item for item in history if item != target}))
        rows["seq_x"].append(pad(history, length))
        for letter, mine in (("a", lambda i: i <= n_a), ("b", lambda i: i > n_a)):
            where = [k for k, item in enumerate(history) if mine(item)]
            rows[f"seq_{letter}"].append(pad([history[k] for k in where], length))
            # Column of the event before the next one of the domain: place k stands in column
            # length - len(history) + k.
            until = [max(length - len(history) + k - 1, -1) for k in where[1:]]
            until += [length - 1] if where else []
            rows[f"until_{letter}"].append(pad(until, length, fill=-1))
    seen = rows.pop("seen")
    return {name: np.array(values) for name, values in rows.items()} | {"seen": seen}


def assert_equal(found, expected):
    assert set(found) == set(expected)
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


@pytest.mark.parametrize("kind", ["leave_one_out", "global_time"])
@pytest.mark.parametrize("length", [1, 7, 47, 80])
@pytest.mark.parametrize("seed", range(3))
def test_equal_to_the_plain_construction(random_log, seed, length, kind):
    log = random_log(seed)
    split = make_split(log, kind)
    found = training_arrays(log, split, length)
    assert_equal(found, slow_training(log, split, length))
    assert {array.dtype for array in found.values()} == {np.dtype(np.int32)}
    for which in ("val", "test"):
        found = evaluation_arrays(log, split, which, length)
        expected = slow_evaluation(log, getattr(split, which), length)
        assert [row.tolist() for row in found.pop("seen")] == expected.pop("seen")
        assert_equal(found, expected)
        assert found.pop("domain").dtype == np.int8
        assert {array.dtype for array in found.values()} == {np.dtype(np.int32)}


def test_the_comparison_notices_alignment_after_trimming(random_log):
    """Twin: the official order is align, then trim; the other order differs."""
    log = random_log(0)
    split = leave_one_out(log)
    assert (split.n_train > 8).any()
    short = training_arrays(log, split, 7)
    trimmed_first = {name: array[:, -7:] for name, array in short.items()}
    for letter, domain in (("a", 0), ("b", 1)):
        of_domain = (short["seq_x"] > log.n_items[0]) == domain
        earlier = np.logical_or.accumulate((short["seq_x"] > 0) & of_domain, axis=1)
        trimmed_first[f"seq_{letter}"] = np.where(earlier, short[f"seq_{letter}"], 0)
    with pytest.raises(AssertionError):
        assert_equal(trimmed_first, slow_training(log, split, 7))


@pytest.mark.parametrize("length", [1, 7, 80])
@pytest.mark.parametrize("seed", range(2))
def test_a_published_split_with_users_that_do_not_train(random_log, seed, length):
    """Users with targets only, with one training event, of one domain, with a lone target."""
    log = random_log(seed)
    kind = np.random.default_rng(seed).integers(0, 5, log.n_users)  # 3: one event, 4: none at all
    role = np.where(kind[log.user] == 0, 0, -1)
    last, first = log.offsets[1:] - 1, log.offsets[:-1]
    role[last] = np.where((kind == 1) | (kind == 2), kind, role[last])
    role[first[kind == 3]] = 0
    role[first[kind == 4]], role[last[kind == 4]] = 1, 2  # a target without any history
    log = make_log(log.user, log.item, log.time, log.n_items, "published", role)
    split = make_split(log, "published")
    assert set(np.unique(split.n_train)) >= {0, 1}
    assert_equal(training_arrays(log, split, length), slow_training(log, split, length))
    assert not training_arrays(log, split, length)["gt"][kind != 0].any()
    for which in ("val", "test"):
        found = evaluation_arrays(log, split, which, length)
        expected = slow_evaluation(log, getattr(split, which), length)
        assert [row.tolist() for row in found.pop("seen")] == expected.pop("seen")
        assert_equal(found, expected)
    history = own_items(log, split.in_training(log))
    assert not history["n_own_A"][kind == 1].any() and not history["n_own_B"][kind == 2].any()


def test_alignment_by_hand():
    # Items 1, 2, 3 are A and 4, 5, 6 are B. Training parts: 1 4 2 5 6 3 and 4 1 2 5.
    items = [1, 4, 2, 5, 6, 3, 1, 1] + [4, 1, 2, 5, 1, 1]
    log = make_log([0] * 8 + [1] * 6, items, np.arange(14), (3, 3), "toy")
    arrays = training_arrays(log, leave_one_out(log), 5)
    np.testing.assert_array_equal(arrays["seq_x"], [[1, 4, 2, 5, 6], [0, 0, 4, 1, 2]])
    np.testing.assert_array_equal(arrays["gt"], [[4, 2, 5, 6, 3], [0, 0, 1, 2, 5]])
    np.testing.assert_array_equal(arrays["seq_a"], [[0, 1, 0, 0, 2], [0, 0, 0, 1, 0]])
    np.testing.assert_array_equal(arrays["seq_b"], [[0, 0, 4, 5, 0], [0, 0, 0, 0, 4]])


def test_evaluation_by_hand():
    # History of the test target 3: 1 4 2 5 6, A in columns 0 and 2, B in columns 1, 3 and 4.
    log = make_log([0] * 6, [1, 4, 2, 5, 6, 3], np.arange(6), (3, 3), "toy")
    arrays = evaluation_arrays(log, leave_one_out(log), "test", 5)
    np.testing.assert_array_equal(arrays["seq_a"], [[0, 0, 0, 1, 2]])
    np.testing.assert_array_equal(arrays["until_a"], [[-1, -1, -1, 1, 4]])
    np.testing.assert_array_equal(arrays["seq_b"], [[0, 0, 4, 5, 6]])
    np.testing.assert_array_equal(arrays["until_b"], [[-1, -1, 2, 3, 4]])
    # Cut to the last two events, the streams still reach back (Q18), the horizons do not.
    arrays = evaluation_arrays(log, leave_one_out(log), "test", 2)
    np.testing.assert_array_equal(arrays["seq_x"], [[5, 6]])
    np.testing.assert_array_equal(arrays["seq_a"], [[1, 2]])
    np.testing.assert_array_equal(arrays["until_a"], [[-1, 1]])
    np.testing.assert_array_equal(arrays["seen"][0], [1, 2, 4, 5, 6])


@pytest.mark.parametrize("item", [1, 4], ids=["only A", "only B"])
def test_a_domain_without_targets_gives_zeros(item):
    """Q17: the official alignment fails here."""
    log = make_log([0] * 6, [item] * 6, np.arange(6), (3, 3), "toy")
    split = leave_one_out(log)
    other = "b" if item == 1 else "a"
    assert not training_arrays(log, split, 5)[f"seq_{other}"].any()
    arrays = evaluation_arrays(log, split, "test", 5)
    assert not arrays[f"seq_{other}"].any() and (arrays[f"until_{other}"] == -1).all()


def test_a_repeated_target_is_not_among_the_seen():
    log = make_log([0] * 5, [1, 4, 2, 1, 1], np.arange(5), (3, 3), "toy")
    arrays = evaluation_arrays(log, leave_one_out(log), "test", 5)
    np.testing.assert_array_equal(arrays["seen"][0], [2, 4])


def test_no_users_with_a_target_gives_empty_arrays():
    log = make_log([0] * 3, [1, 4, 2], np.arange(3), (3, 3), "toy")
    split = leave_one_out(log)
    split.val[:] = -1
    arrays = evaluation_arrays(log, split, "val", 5)
    assert len(arrays.pop("seen")) == 0
    shapes = {name: array.shape for name, array in arrays.items()}
    assert shapes["seq_x"] == shapes["until_a"] == (0, 5) and shapes["user"] == (0,)


def check_same_horizon(log, train, evaluation, domain):
    """The validation history is the training part, so apart from its last entry a stream holds
    the same items with and without gaps, and both look at the same merged columns. The merged
    axis of evaluation holds one event more: column c in training is column c - 1 there."""
    letter = "ab"[domain]
    aligned, compact = train[f"seq_{letter}"], evaluation[f"seq_{letter}"]
    until = evaluation[f"until_{letter}"]
    for user in range(log.n_users):
        columns = np.flatnonzero(aligned[user])
        entries = np.flatnonzero(compact[user])
        np.testing.assert_array_equal(aligned[user, columns], compact[user, entries[:-1]])
        np.testing.assert_array_equal(columns - 1, until[user, entries[:-1]])


@pytest.mark.parametrize("domain", [0, 1])
def test_horizons_are_those_of_training(random_log, domain):
    log = random_log(1)
    split = leave_one_out(log)
    train, evaluation = training_arrays(log, split, 80), evaluation_arrays(log, split, "val", 80)
    check_same_horizon(log, train, evaluation, domain)
    # Twin: a horizon of one column more is noticed.
    evaluation[f"until_{'ab'[domain]}"] += 1
    with pytest.raises(AssertionError):
        check_same_horizon(log, train, evaluation, domain)


def swap_from(log, places):
    """The log with every item from a user's place on replaced by another of its domain."""
    position = np.arange(len(log.user)) - log.offsets[log.user]
    n_a, n_b = log.n_items
    other = np.where(log.domain == 0, log.item % n_a + 1, (log.item - n_a) % n_b + n_a + 1)
    item = np.where(position >= places[log.user], other, log.item)
    return make_log(log.user, item, log.time, log.n_items, log.name)


def check_inputs_ignore(log, changed, split, which):
    before, after = (evaluation_arrays(each, split, which, 47) for each in (log, changed))
    for name in (*STREAMS, "until_a", "until_b"):
        np.testing.assert_array_equal(before[name], after[name], err_msg=name)
    assert (before["target"] != after["target"]).all()


@pytest.mark.parametrize("kind", ["leave_one_out", "global_time"])
@pytest.mark.parametrize("which", ["val", "test"])
def test_evaluation_inputs_know_nothing_from_the_target_on(random_log, kind, which):
    log = random_log(2)
    split = make_split(log, kind)
    place = getattr(split, which)
    check_inputs_ignore(log, swap_from(log, place), split, which)
    # Twin: a change just before the target is noticed.
    with pytest.raises(AssertionError):
        check_inputs_ignore(log, swap_from(log, place - 1), split, which)


@pytest.mark.parametrize("kind", ["leave_one_out", "global_time"])
def test_training_arrays_know_nothing_beyond_the_training_part(random_log, kind):
    log = random_log(2)
    split = make_split(log, kind)

    def own(each):
        return own_items(each, split.in_training(each))

    for build in (lambda each: training_arrays(each, split, 47), own):
        assert_equal(build(swap_from(log, split.n_train)), build(log))
        with pytest.raises(AssertionError):
            assert_equal(build(swap_from(log, split.n_train - 1)), build(log))


def test_training_inputs_come_before_their_target(random_log):
    """Changing the items from place q on leaves columns whose target lies before q alone."""
    log = random_log(3)
    split = leave_one_out(log)
    before = training_arrays(log, split, 47)
    for back in range(4):
        # Place n_train-1-back is the target of column 46-back, an input from the next on.
        after = training_arrays(swap_from(log, split.n_train - 1 - back), split, 47)
        unchanged = slice(0, 47 - back)
        for name in STREAMS:
            np.testing.assert_array_equal(before[name][:, unchanged], after[name][:, unchanged])
        assert back == 0 or (before["seq_x"][:, -back:] != after["seq_x"][:, -back:]).any()


def test_wrong_arguments_are_refused(random_log):
    log = random_log(0)
    split = leave_one_out(log)
    with pytest.raises(ValueError, match="'train'"):
        evaluation_arrays(log, split, "train", 5)


@pytest.fixture(scope="module")
def golden(shared_file):
    with np.load(shared_file("golden", "abxi_preprocess.npz")) as archive:
        return dict(archive)


@pytest.fixture(scope="module", params=SOURCES)
def published_log(request, shared_file):
    return read(shared_file("data", "abxi", request.param), request.param)


def read(folder, name):
    files = (f"{name}_50_preprocessed.txt", "map_item_50.txt")
    return read_abxi([plain_or_packed(folder / file) for file in files], name)


def check_golden(log, golden, users):
    split, length = leave_one_out(log), int(golden["len_trim"])
    train = training_arrays(log, split, length)
    for name in (*STREAMS, "gt"):
        np.testing.assert_array_equal(train[name][users], golden[f"train/{name}"], err_msg=name)
    for which in ("val", "test"):
        arrays = evaluation_arrays(log, split, which, length)
        for name in STREAMS:
            np.testing.assert_array_equal(arrays[name][users], golden[f"{which}/{name}"])
        np.testing.assert_array_equal(arrays["target"][users, None], golden[f"{which}/gt"])


def test_equal_to_the_official_arrays(golden):
    count = np.diff(golden["offsets"])
    n_items = (int(golden["n_item_a"]), int(golden["n_item_b"]))
    user = np.repeat(np.arange(len(count)), count)
    log = make_log(user, golden["flat"], np.arange(len(user)), n_items, "golden")
    check_golden(log, golden, np.arange(len(count)))
    # Twin: a reference with one entry changed is not met.
    row, column = np.argwhere(golden["train/seq_a"])[7]
    broken = {**golden, "train/seq_a": golden["train/seq_a"].copy()}
    broken["train/seq_a"][row, column] += 1
    with pytest.raises(AssertionError):
        check_golden(log, broken, np.arange(len(count)))


def test_equal_to_the_official_arrays_from_the_published_file(golden, shared_file):
    log = read(shared_file("data", "abxi", "abe"), "abe")
    check_golden(log, golden, golden["user_index"])


def quantiles(values):
    keys = (0, 5, 10, 25, 50, 75, 90, 95, 99, 100)
    return {str(key): np.percentile(values, key) for key in keys} | {"mean": np.mean(values)}


def log_counts(log):
    """Counts of the log alone, under the names of the golden file."""
    per_domain = [np.bincount(log.user[log.domain == d], minlength=log.n_users) for d in (0, 1)]
    length = np.diff(log.offsets)
    same_user = np.diff(log.user) == 0
    tied = same_user & (np.diff(log.time) == 0)
    step = np.diff(log.domain)
    used = np.unique(log.item)
    pairs = log.user.astype(np.int64) * sum(log.n_items) + log.item
    return {
        "n_user": log.n_users,
        "n_item_a": log.n_items[0],
        "n_item_b": log.n_items[1],
        "n_item": sum(log.n_items),
        "items_in_map_but_never_in_sequences": sum(log.n_items) - len(used),
        "items_used_A": int(np.sum(used <= log.n_items[0])),
        "items_used_B": int(np.sum(used > log.n_items[0])),
        "interactions": len(log.item),
        "interactions_A": int(per_domain[0].sum()),
        "interactions_B": int(per_domain[1].sum()),
        "seq_len_quantiles": quantiles(length),
        "seq_len_A_quantiles": quantiles(per_domain[0]),
        "seq_len_B_quantiles": quantiles(per_domain[1]),
        "users_with_first_item_A": int(np.sum(log.domain[log.offsets[:-1]] == 0)),
        "repeated_user_item_pairs": len(pairs) - len(np.unique(pairs)),
        "adjacent_pairs": int(same_user.sum()),
        "adjacent_pairs_same_timestamp": int(tied.sum()),
        "same_timestamp_pairs_A_then_B": int(np.sum(tied & (step == 1))),
        "same_timestamp_pairs_B_then_A": int(np.sum(tied & (step == -1))),
        "min_item_count_in_sequences": int(np.bincount(log.item)[used].min()),
        "users_with_exactly_50": int(np.sum(length == 50)),
    }


def array_counts(log):
    """Counts of the arrays under leave-one-out, under the names of the golden file."""
    split = leave_one_out(log)
    gt = training_arrays(log, split, 47)["gt"]
    history, n_a = own_items(log, split.in_training(log)), log.n_items[0]
    in_a, in_b = (gt > 0) & (gt <= n_a), gt > n_a
    trained = [history["own_A"][:-1] + 1, history["own_B"][:-1] + 1 + n_a]
    counts = {
        "train_interactions_A": int(history["n_own_A"].sum()),
        "train_interactions_B": int(history["n_own_B"].sum()),
        "train_targets_A": int(in_a.sum()),
        "train_targets_B": int(in_b.sum()),
        "min_train_targets_A_per_user": int(in_a.sum(1).min()),
        "min_train_targets_B_per_user": int(in_b.sum(1).min()),
        "steps_per_epoch_bs256": -(-len(gt) // 256),
    }
    for which in ("val", "test"):
        arrays = evaluation_arrays(log, split, which, 47)
        target, domain, x = arrays["target"], arrays["domain"], arrays["seq_x"]
        counts[f"{which}_targets_A"] = int(np.sum(domain == 0))
        counts[f"{which}_targets_B"] = int(np.sum(domain == 1))
        seen = np.isin(target, np.concatenate(trained))
        counts[f"{which}_target_items_seen_in_train_frac"] = float(np.mean(seen))
        repeated = (x == target[:, None]).any(1)
        counts[f"{which}_target_already_in_user_history_frac"] = float(np.mean(repeated))
    return counts


def test_counts_of_the_published_files(published_log, shared_file):
    golden = json.loads(shared_file("golden", "abxi_fullsize_counts.json").read_text())
    expected = golden[published_log.name]
    counts = {**log_counts(published_log), **array_counts(published_log)}
    for name, value in counts.items():
        assert value == pytest.approx(expected[name], rel=1e-12), name
    # What is left needs a model, or was checked by the reader itself.
    rest = {"params", "user_ids_are_0_to_n", "item_ids_contiguous_A_first"}
    assert set(expected) - set(counts) == rest


def test_no_training_position_is_lost_to_trimming(published_log):
    """Length 47 is the longest training part of the published files less one."""
    split = leave_one_out(published_log)
    assert split.n_train.max() == 48
    gt = training_arrays(published_log, split, 47)["gt"]
    assert np.count_nonzero(gt) == np.sum(split.n_train - 1)
