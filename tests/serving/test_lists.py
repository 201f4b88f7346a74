"""Lists of stored runs against all scores, sorted."""

import dataclasses
import gzip
import json
import shutil
import sys

import jax
import numpy as np
import polars as pl
import pytest

sys.path.insert(0, str(__import__("pathlib").Path(__file__).parent))
from _runs import every_score, run_of, sorted_items

import oa_jax as oa
from oa_jax.backbones import known
from oa_jax.errors import UserError
from oa_jax.ranking.metrics import user_metrics
from oa_jax.serving import histories, lists
from oa_jax.serving.stored import StoredModel

pytestmark = pytest.mark.slow

K = 6


def before_target(experiment):
    """(rows of the evaluation, Histories, same) of test users; same: whose history has no copy of
    the target, which some backbones leave out."""
    log, task = experiment.data.log, experiment.data.task
    rows = experiment.evaluation.rows["test"]
    place = task.split.test[rows["user"]]
    items = [log.item[log.offsets[u] :][:p] for u, p in zip(rows["user"], place, strict=True)]
    same = np.array([t not in one for t, one in zip(rows["target"], items, strict=True)])
    offsets = np.r_[0, np.cumsum(place)]
    users = list(map(str, rows["user"]))
    return rows, histories.Histories(users, np.concatenate(items), offsets), same


@pytest.mark.parametrize("backbone", known.NAMES)
def test_lists_are_all_scores_sorted(backbone):
    experiment, path = run_of(backbone)
    model, (rows, asked, same) = StoredModel(path, seed=1), before_target(experiment)
    scores = every_score(experiment, jax.tree.map(lambda a: a[0], model.params), rows)
    found = pl.concat(lists.lists(model, asked, K))
    assert same.sum() > 20 and len(found) == 2 * K * len(asked)
    for n in np.flatnonzero(same):
        d = int(rows["domain"][n])
        expected = sorted_items(scores[n], d, rows["seen"][n], experiment.data.log.n_items)[:K]
        of = found.filter(user=asked.users[n], domain="AB"[d])
        assert of["item"].to_list() == list(map(str, expected)), n
        assert of["rank"].to_list() == list(range(1, K + 1))
        np.testing.assert_allclose(of["score"], scores[n, expected], rtol=1e-4, atol=1e-3)


def test_the_mean_of_the_seeds_ranks():
    experiment, path = run_of("abxi")
    model, (rows, asked, _) = StoredModel(path, ensemble=True), before_target(experiment)
    seeds = range(len(model.seeds))
    scores = [
        every_score(experiment, jax.tree.map(lambda a, s=s: a[s], model.params), rows)
        for s in seeds
    ]
    found, n_items = pl.concat(lists.lists(model, asked, K)), experiment.data.log.n_items
    assert model.room(10_000) == 32 * 32 // (3 * sum(n_items)) and model.of == "mean of 3 seeds"
    for n in range(len(asked)):
        d, ranks = int(rows["domain"][n]), np.zeros(1 + sum(n_items))
        history = asked.item[asked.offsets[n] : asked.offsets[n + 1]]
        for of_seed in scores:
            order = sorted_items(of_seed[n], d, history, n_items)
            ranks[order] += np.arange(1, len(order) + 1)
        order = np.sort(order)
        expected = order[np.argsort(ranks[order], kind="stable")][:K]
        of = found.filter(user=asked.users[n], domain="AB"[d])
        np.testing.assert_allclose(of["mean_rank"], ranks[expected] / len(scores), rtol=1e-6)
        assert of["item"].to_list() == list(map(str, expected))


def test_who_is_asked_with_whom_changes_no_list():
    """A user alone, in a block that is not full, and with others; with longer histories beside."""
    experiment, path = run_of("abxi")
    run = oa.open(path)
    everyone = run.recommend(k=3)
    assert everyone["user"].n_unique() == experiment.data.log.n_users
    alone = run.recommend(["7"], k=3, domain="B")
    there = everyone.filter(user="7", domain="B")
    assert alone["item"].to_list() == there["item"].to_list()
    np.testing.assert_allclose(alone["score"], there["score"], rtol=1e-5)
    assert not set(there["item"]) & set(map(str, experiment.data.log.take(np.array([7])).item))


def test_items_of_the_history_may_come_again():
    experiment, path = run_of("abxi")
    run, n_items = oa.open(path), experiment.data.log.n_items
    found = run.recommend(["7"], k=1000, keep_seen=True)
    assert [len(found.filter(domain=d)) for d in "AB"] == list(n_items)
    taken = np.unique(experiment.data.log.take(np.array([7])).item)
    assert len(run.recommend(["7"], k=1000)) == sum(n_items) - len(taken)


def test_new_histories_by_raw_ids(tmp_path):
    """The events of users of the set, under other names and in any order of lines."""
    experiment, path = run_of("abxi")
    log = experiment.data.log.take(np.array([3, 5]))
    user = np.array(["maïs", "7"])[log.user]
    events = pl.DataFrame({"user": user, "item": log.item, "time": np.arange(len(log.item))})
    late = pl.DataFrame({"user": ["7", "x"], "item": ["no", "such"], "time": [99, 99]})
    shuffled = pl.concat([events.with_columns(pl.col("item").cast(pl.String)), late]).sample(
        fraction=1, shuffle=True, seed=1
    )
    run = oa.open(path)
    expected = run.recommend(["3", "5"], k=4)
    text = shuffled.write_csv(separator=";", include_bom=True).replace("\n", "\r\n")
    inter = shuffled.select("time", "item", "user").write_csv(separator="\t")
    inter = inter.replace("time\titem\tuser", "timestamp:float\titem_id:token\tuser_id:token")
    (tmp_path / "events.csv").write_text(text)
    (tmp_path / "packed").write_bytes(gzip.compress(shuffled.write_ndjson().encode()))
    (tmp_path / "events.inter").write_text(inter)
    shuffled.write_parquet(tmp_path / "events.parquet")
    for name in ("events.csv", "packed", "events.inter", "events.parquet"):
        file = tmp_path / name
        with pytest.warns(UserWarning, match="left out: ") as told:
            found = run.recommend(file, k=4)
        said = [str(one.message) for one in told]
        assert "2 events of unknown items" in said[0]
        assert "1 users without a known item, the first 'x'" in said[1]
        for name, raw in (("maïs", "3"), ("7", "5")):
            of, there = found.filter(user=name), expected.filter(user=raw)
            assert of["item"].to_list() == there["item"].to_list()


def test_a_checkpoint_that_is_not_that_of_the_results_is_refused(tmp_path):
    """As an older one is, where the newest is damaged."""
    path = shutil.copytree(run_of("abxi")[1], tmp_path / "run")
    (path / "summary.json").write_text(json.dumps({"per_seed": [{"epochs": 9, "best_epoch": 9}]}))
    with pytest.raises(UserError, match=r"epochs \[9\], but .* in checkpoint 1, the newest that"):
        StoredModel(path)


def test_unknown_users_are_counted_once():
    experiment, path = run_of("abxi")
    found = histories.of_set(experiment.data.log, StoredModel(path).names, ["zz", "3", "zz"])
    assert found.users == ["3"] and found.notes == ("left out: 1 users, the first 'zz'",)


def test_a_user_with_several_sequences_has_a_list_for_each():
    from oa_jax.events.log import make_log
    from oa_jax.runs.names import Names

    log = make_log([0, 0, 1, 2, 2, 2], [1, 2, 2, 1, 3, 2], [1, 2, 1, 1, 2, 3], (2, 1), "amid")
    names = Names(["a", "b", "a"], ["x", "y", "z"], [None] * 3, (2, 1), True)
    note = "a list for each sequence of 1 users that have several, the first 'a'"
    for asked in (None, ["a", "b"], ["b", "a", "b"]):
        found = histories.of_set(log, names, asked)
        of = np.split(found.item, found.offsets[1:-1])
        pairs = [(user, items.tolist()) for user, items in zip(found.users, of, strict=True)]
        expected = [("a", [1, 2]), ("a", [1, 3, 2])]
        alone = [("b", [2])]
        assert pairs == (alone + expected if asked == ["b", "a", "b"] else expected + alone)
        assert found.notes == (note,)
    assert histories.of_set(log, names, ["b"]).notes == ()


BAD = {
    "no column of item: found 'user, time': expected a column called item": {
        "user": ["a"],
        "time": [1],
    },
    "row 2: time: found 'soon', expected a unix time": {
        "user": ["a", "a"],
        "item": ["1", "2"],
        "time": ["1", "soon"],
    },
    "row 2: item: found None, expected an id": {"user": ["a", "a"], "item": ["1", None]},
    "row 1: item: found None, expected an id": {"user": ["a", "a"], "item": [None, None]},
    "row 1: user: found '', expected an id": {"user": [""], "item": ["1"]},
    "row 1: domain: found 'C', expected A or B": {"user": ["a"], "item": ["1"], "domain": ["C"]},
    "column time: found Binary, expected times": {"user": ["a"], "item": ["1"], "time": [b"1"]},
    "expected rows, found": {"user": [], "item": []},
    "no known item in 1 events: the first is 'such'": {"user": ["a"], "item": ["such"]},
}


@pytest.mark.parametrize("expected", BAD)
def test_bad_events_are_one_line(expected):
    names = StoredModel(run_of("abxi")[1]).names
    with pytest.raises(UserError, match="^histories: ") as error:
        histories.of_events(BAD[expected], names)
    assert expected in str(error.value)


def test_a_bad_file_is_one_line(tmp_path):
    names, file = StoredModel(run_of("abxi")[1]).names, tmp_path / "new.csv"
    for text, expected in {
        "user,item\na,1\na\n": "new.csv: line 3: found 1 fields, expected 2",
        "user,item,time\na,1,1.7e9\na,2,1.7e12\n": "line 3: time: found '1.7e12', expected unix s",
        "user,thing\na,1\n": "line 1: no column of item: .*: expected a column called item or i",
    }.items():
        file.write_text(text)
        with pytest.raises(UserError, match=expected):
            histories.of_events(file, names)


def test_dates_order_events_and_an_id_of_both_domains_needs_its_domain():
    from oa_jax.runs.names import Names

    names = Names([], ["x", "y", "x"], [None] * 3, (2, 1), True)
    columns = {"user": ["u"] * 3, "item": ["x", "y", "x"]}
    times = ["2024-01-02T00:00:00Z", "2024-01-02T00:30:00+01:00", "2023-05-01T12:00:00Z"]
    with pytest.raises(UserError, match="row 1: item: found 'x', expected a column domain, A or B"):
        histories.of_events(columns | {"time": times}, names)
    columns["domain"] = ["A", "A", "B"]
    found = histories.of_events(columns | {"time": times}, names)
    np.testing.assert_array_equal(found.item, [3, 2, 1])
    assert list(histories.of_events(columns, names).item) == [1, 2, 3]
    called = dataclasses.replace(names, domains=("books", "B-sides"))
    columns["domain"] = ["books", "A", "B-sides"]
    assert list(histories.of_events(columns, called).item) == [1, 2, 3]
    own = dataclasses.replace(names, domains=("B", "A"))  # of an older version: its names win
    columns["domain"] = ["B", "B", "A"]
    assert list(histories.of_events(columns, own).item) == [1, 2, 3]
    columns["domain"] = ["books", "music", "B-sides"]
    expected = "row 2: domain: found 'music', expected A or B or books or B-sides"
    with pytest.raises(UserError, match=expected):
        histories.of_events(columns, called)


def test_columns_that_were_not_read_are_told():
    from oa_jax.runs.names import Names

    names, two = Names([], ["x", "y"], [None] * 2, (1, 1), True), {"user": ["u"] * 2}
    columns = two | {"item": ["x", "y"]}
    assert histories.of_events(columns, names).notes == ()
    found = histories.of_events(columns | {"when": [2, 1]}, names)
    assert found.notes == ("histories: times: none: the order is that of the rows",)
    assert list(found.item) == [1, 2]
    found = histories.of_events(columns | {"timestamp": [1, 2], "time": [2, 1]}, names)
    assert "time=time (not timestamp)" in found.notes[0] and list(found.item) == [2, 1]


def test_lists_of_one_score_are_counted(monkeypatch):
    model = StoredModel(run_of("abxi")[1])
    best, calls = model.best, []

    def flat(*args):
        calls.append(found := best(*args))
        return found._replace(scores=found.scores * 0) if args[2][0] == 1 else found

    monkeypatch.setattr(model, "best", flat)
    asked, said = histories.of_set(model.experiment.data.log, model.names), []
    list(lists.lists(model, asked, 3, say=said.append))
    n = len(asked)
    assert said == [
        f"{n} of {n} lists of B have one score for all items, which stand in the order of the set"
    ]
    said.clear()
    list(lists.lists(model, asked, 1, say=said.append))
    assert calls and not said


def test_what_is_due_to_the_update():
    """Score with X' less score without: with a gate of 0, which takes X' away, the score is the
    one without; weights are those of the last token and add up to 1."""
    experiment, path = run_of("abxi")
    model, (_, asked, _) = StoredModel(path), before_target(experiment)
    found = pl.concat(lists.lists(model, asked, K, explain=True))
    shut = jax.tree.map(lambda a: a, model.params)
    for name in (name for name in shut if name.startswith("gca_")):
        gate = shut[name]["gate_out"]
        shut[name]["gate_out"] = {"kernel": 0 * gate["kernel"], "bias": gate["bias"] * 0 - 1e9}
    without = StoredModel(path)
    without.params = shut
    every = pl.concat(lists.lists(without, asked, 1000)).select("user", "item", "score")
    both = found.join(every, on=["user", "item"], suffix="_without")
    assert len(both) == len(found) and found["due_to_update"].abs().min() > 0
    np.testing.assert_allclose(
        both["due_to_update"], both["score"] - both["score_without"], rtol=1e-3, atol=1e-5
    )
    for place in (0, 1):
        for user, text in found.select("user", f"looked_at_{place}").unique().iter_rows():
            looked, n = json.loads(text), asked.users.index(user)
            history = set(map(str, asked.item[asked.offsets[n] : asked.offsets[n + 1]]))
            assert {item for item, _ in looked} <= history and 1 <= len(looked) <= 5
            weights = [weight for _, weight in looked]
            assert weights == sorted(weights, reverse=True) and 0.4 < sum(weights) < 1.001


def test_explaining_needs_a_fusion_and_a_seed():
    with pytest.raises(UserError, match="--explain: no GCA: expected a seed of a run with GCA"):
        oa.open(run_of("abxi", "none")[1]).recommend(["1"], explain=True)
    with pytest.raises(UserError, match="--explain: .* mean of 3 seeds"):
        oa.open(run_of("abxi")[1]).recommend(["1"], explain=True, ensemble=True)


def test_a_bad_request_is_one_line():
    run = oa.open(run_of("abxi")[1])
    for error, request in {
        "--k=0: expected": {"k": 0},
        "--domain=C: expected": {"domain": "C"},
        "--seed=9: expected one of 0, 1, 2": {"seed": 9},
        "--users: none of 1 is a user": {"histories": ["nobody"]},
        "--seed, --ensemble: expected one": {"seed": 0, "ensemble": True},
    }.items():
        with pytest.raises(UserError, match=error):
            run.recommend(**request)
    _, shuffled = run_of("abxi", "0", **{"gca.source": "shuffled"})
    with pytest.raises(UserError, match="gca.source=shuffled: expected another: whom"):
        oa.open(shuffled).recommend(["1"])


def test_a_score_that_is_not_finite_names_the_user():
    model = StoredModel(run_of("abxi")[1])
    model.params = jax.tree.map(lambda a: a * np.nan, model.params)
    asked = histories.of_set(model.experiment.data.log, model.names, ["11", "4"])
    with pytest.raises(UserError, match="user 11: a score is not finite"):
        next(lists.lists(model, asked))


def test_the_first_place_of_the_evaluation():
    """HR@10 of the lists is that of the ranks."""
    experiment, path = run_of("abxi")
    model, (rows, asked, same) = StoredModel(path), before_target(experiment)
    found, hits = pl.concat(lists.lists(model, asked, 10)), []
    for user, target, d in zip(asked.users, rows["target"], rows["domain"], strict=True):
        hits.append(str(target) in found.filter(user=user, domain="AB"[d])["item"])
    padded = experiment.evaluation.padded(rows)
    ranks, _ = experiment.engine.final(model.params, padded, ("full",), experiment.tables)
    of = jax.tree.map(lambda a: np.asarray(a)[0, : len(hits)], ranks["full"])
    metrics = user_metrics(of.rank, of.ties, of.n_candidates, 0.5)
    np.testing.assert_array_equal(metrics["hr@10"][same], np.array(hits, float)[same])
