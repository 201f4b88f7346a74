"""What a notebook calls: lazy, documented, and equal to what the commands do."""

import dataclasses
import importlib.util
import inspect
import subprocess
import sys

import jax
import numpy as np
import polars as pl
import pytest
import toy

import oa_jax as oa
from oa_jax.backbones import known
from oa_jax.engine.step import Settings
from oa_jax.runs.workdir import Workdir

WORLD = {k.split(".")[-1]: v for k, v in toy.SMALL.items() if k.startswith("data.world.")}


def small(**changes):
    fields = {k: v for k, v in toy.SMALL.items() if not k.startswith("data.world.")}
    return oa.config("abxi", gca="early", **fields | toy.OWN["abxi"] | {"seeds": 2} | changes)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    said = []
    path = tmp_path_factory.mktemp("runs") / "early"
    out = oa.train(small(), oa.World(**WORLD), path, said.append)
    assert any(line.startswith("epoch   3") for line in said)
    return out


@pytest.fixture
def run(trained):
    return trained


def test_importing_it_costs_no_jax():
    program = (
        "import sys, oa_jax as oa; oa.config('abxi', gca='early'); sys.exit('jax' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_every_public_name_is_there_and_documented():
    assert len(oa.__all__) <= 25
    for name in oa.__all__:
        found = getattr(oa, name)
        assert inspect.getdoc(found), name
        if inspect.isfunction(found):
            hints = inspect.signature(found).parameters.values()
            assert all(p.annotation is not inspect.Parameter.empty for p in hints), name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        oa.nothing  # noqa: B018
    assert set(oa.__all__) <= set(dir(oa))


EVENTS = {
    "user": [u for u in "abc" for _ in range(6)],
    "item": list("pqrxyzpqrzyxqrpxzy"),
    "domain": ["books", "books", "books", "music", "music", "music"] * 3,
    "time": list(range(18)),
}


def test_events_are_read_from_frames_as_from_files(tmp_path):
    frame, said = pl.DataFrame(EVENTS), []
    frame.write_csv(tmp_path / "events.csv")
    expected = oa.read_events(tmp_path / "events.csv", say=None)
    parts = {
        name: part.drop("domain").to_dict(as_series=False)
        for (name,), part in frame.group_by("domain", maintain_order=True)
    }
    ways = frame, EVENTS, parts, frame.to_pandas() if has_pandas() else frame
    for way in ways:
        log = oa.read_events(way, say=said.append)
        assert log.fingerprint() == expected.fingerprint()
        assert log.origin.raw_users == expected.origin.raw_users == ["a", "b", "c"]
    assert said[0].startswith("events: frame, user=user, item=item")
    kept = [oa.read_events(frame, "mine", tmp_path, say=None) for _ in range(2)]
    assert kept[0].fingerprint() == kept[1].fingerprint() == oa.load("mine", tmp_path).fingerprint()
    with pytest.raises(oa.UserError, match=r"mine.* is of other files"):
        oa.read_events(frame.head(17), "mine", tmp_path, say=None)
    with pytest.raises(oa.UserError, match="^events: .*expected a file, or columns user, item"):
        oa.read_events({"user": [1], "item": [1, 2]})


def has_pandas():
    return importlib.util.find_spec("pandas") and importlib.util.find_spec("pyarrow")


def test_a_log_or_run_as_the_last_line_of_a_cell_is_short(run):
    log = oa.read_events(EVENTS, say=None)
    assert "raw_users" not in repr(log) and log.origin.raw_users == ["a", "b", "c"]
    assert repr(oa.open(run.path, log)) == f"Run(path={run.path!r})"


def test_the_first_seed_is_the_default_whatever_its_number(tmp_path):
    config = small(first_seed=7, **{"train.max_epochs": 2, "train.warmup_epochs": 0})
    run = oa.train(config, oa.World(**WORLD), tmp_path / "run", say=None)
    first, second = run.params(seed=7), run.params(seed=8)
    assert jax.tree.all(jax.tree.map(np.array_equal, run.params(), first))
    assert not jax.tree.all(jax.tree.map(np.array_equal, first, second))
    np.testing.assert_array_equal(run.probe(n_users=4).x, run.probe(n_users=4, seed=7).x)


def test_a_configuration_takes_arguments_fields_and_groups():
    config = oa.config("llm4cdsr", gca="stack", runlocal=True, train={"max_epochs": 9}, seeds=3)
    assert config.gca.positions == (0, 1) and config.model.d_embed == 8
    assert (config.train.max_epochs, config.seeds) == (9, 3)
    assert oa.config("abxi", **{"train.max_epochs": 30}).train.max_epochs == 30
    with pytest.raises(oa.UserError, match="did you mean learning_rate"):
        oa.config("abxi", train={"lerning_rate": 1})
    with pytest.raises(oa.UserError, match="backbone=bert: expected one of abxi"):
        oa.config("bert")


def test_a_configuration_takes_what_numpy_holds_and_shows_what_it_refuses():
    config = oa.config(
        gca=[0, np.int64(1)], seeds=np.int64(2), train={"learning_rate": np.float32(1)}
    )
    assert config.gca.positions == (0, 1) and oa.config(gca=()).gca.positions == ()
    assert type(config.seeds) is int and type(config.train.learning_rate) is float
    for changes, words in {
        "text": ({"seeds": "5"}, "--config.seeds='5': expected a whole number"),
        "inf": ({"train.learning_rate": np.inf}, "=inf: expected a number above 0, in float32"),
        "beyond float32": ({"train.weight_decay": 1e39}, "=1e.39: expected a number from 0 up"),
        "below float32": ({"train.learning_rate": 1e-50}, "=1e-50: expected a number above 0"),
    }.values():
        with pytest.raises(oa.UserError, match=words):
            oa.config(**changes)


def test_the_merged_stream_of_cdsrnp_is_no_shorter_than_the_others():
    assert oa.config("cdsrnp", model={"length": 40}).model.merged_length == 40
    with pytest.raises(oa.UserError, match="merged_length=40: expected at least length=41"):
        oa.config("cdsrnp", model={"length": 41})


def test_a_run_is_read_back(run):
    again = oa.open(run.path)
    assert again.is_finished and again.summary == run.summary
    assert again.config.data.world == oa.World(**WORLD)
    rows = again.history()
    assert {row["epoch"] for row in rows} == {0, 1, 2, 3} and {row["seed"] for row in rows} == {
        0,
        1,
    }
    ranks = again.ranks("test", "full")
    assert ranks["rank"].shape == (2, len(ranks["user"]))
    found = [
        oa.rank_metrics(ranks["rank"][0][of], ranks["ties"][0][of], ranks["n_candidates"][of], 0.0)
        for of in (ranks["domain"] == 0, ranks["domain"] == 1)
    ]
    seed = run.summary["per_seed"][0]
    assert [f["ndcg@10"] for f in found] == [seed[f"test/{d}/ndcg@10/full"] for d in "AB"]


def test_metrics_of_every_user_and_their_raw_ids(run, tmp_path):
    ranks = oa.open(run.path).ranks()
    counts = {name: ranks[name] for name in ("rank", "ties", "n_candidates", "tie_weight")}
    value_SxR, seed = oa.user_metrics(**counts)["ndcg@10"], run.summary["per_seed"][0]
    for d, domain in enumerate("AB"):
        mean = value_SxR[0, ranks["domain"] == d].mean()
        assert mean == pytest.approx(seed[f"test/{domain}/ndcg@10/full"])
    assert run.raw_users[ranks["user"]].tolist() == list(map(str, ranks["user"]))

    log, path = oa.World(**WORLD).log(), tmp_path / "shop.csv"
    rows = zip(log.user, log.item, log.time, np.where(log.domain, "music", "books"), strict=True)
    path.write_text(
        "user,item,time,domain\n" + "".join(f"u{u},i{i},{t},{d}\n" for u, i, t, d in rows)
    )
    shop = oa.read_events(path, "shop", say=lambda line: None)
    with Workdir(tmp_path / "run") as workdir:
        workdir.claim(small(pair="shop").to_dict())
    users = oa.open(workdir.path, shop).raw_users
    assert sorted(users) == sorted(f"u{user}" for user in np.unique(log.user))


def test_a_finished_run_is_not_trained_again(run):
    said = []
    again = oa.train(small(), oa.World(**WORLD), run.path, said.append)
    assert said == [f"{run.path} is finished: nothing to do"]
    assert again.summary == run.summary


def test_parameters_and_what_the_fusion_saw(run, monkeypatch):
    params, last = run.params("best", seed=1), run.params("last", seed=1)
    assert params["items"].shape == last["items"].shape and isinstance(params["items"], np.ndarray)
    assert not np.array_equal(run.params("best", seed=0)["items"], params["items"])
    entered, precision = [], Settings.precision
    monkeypatch.setattr(Settings, "precision", lambda self: entered.append(1) or precision(self))
    probe = run.probe("test", place=0, domain="B", seed=1)
    assert entered  # of the configuration, as in training
    x, update = (np.asarray(a)[probe.has_key_P] for a in (probe.x, probe.update))
    cos = (x * update).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(update, axis=1)
    expected = run.summary["per_seed"][1]["best/gca/0/B/abs_cos"]
    np.testing.assert_allclose(np.abs(cos).mean(), expected, rtol=1e-4)


def test_the_events_of_a_world_are_known_by_their_world(run):
    """As the front page trains: what the run stores is enough to read it back."""
    said = []
    again = oa.train(small(), oa.World(**WORLD).log(), run.path, said.append)
    assert said == [f"{run.path} is finished: nothing to do"] and again.data is None


def test_changed_events_of_a_world_are_not_taken_for_its_own(tmp_path, monkeypatch):
    taken = []
    monkeypatch.setattr("oa_jax.runs.run.run", lambda *args: taken.append(args[3]))
    log = oa.World(**WORLD).log()
    changed = dataclasses.replace(log, item=log.item[::-1].copy())
    for data in (log, changed):
        oa.train(small(), data, tmp_path / "run")
    assert taken[0] is None and taken[1] is changed


@pytest.mark.slow
def test_one_s_own_events(tmp_path):
    log = oa.World(**WORLD).log()
    own = oa.make_log(log.user, log.item, log.time, log.n_items, "my shop")
    config = small(pair="my shop")
    run = oa.train(config, own, tmp_path / "own", lambda line: None)  # the programs of `run`
    assert run.config.data.name == "my shop"
    assert oa.open(run.path, own).probe().x.ndim == 2
    with pytest.raises(oa.UserError, match="my shop"):
        oa.open(run.path).probe()
    other = oa.World(**WORLD | {"seed": 1}).log()
    with pytest.raises(oa.UserError, match="fingerprint"):
        oa.open(run.path, other).probe()


def test_events_of_another_pair_than_the_configuration_s_are_refused(tmp_path):
    log = oa.World(**WORLD).log()
    own = oa.make_log(log.user, log.item, log.time, log.n_items, "mine")
    for config, data, name in ((small(), own, "mine"), (small(pair="mine"), log, "synthetic")):
        with pytest.raises(oa.UserError, match=rf"expected oa.config\(…, pair='{name}'\)$"):
            oa.train(config, data, tmp_path / "run")
    for backbone in known.NAMES:
        assert oa.config(backbone, pair="mine", size="small").data.name == "mine"


def test_lists_of_users_by_number(run):
    found = run.recommend(np.arange(2), k=3)
    assert found.equals(run.recommend([0, 1], k=np.int64(3))) and len(found) == 12
    assert found.equals(run.recommend(["0", "1"], k=3))
    assert found.equals(run.recommend(pl.Series(["0", "1"]), k=3))


def test_a_study_and_files_of_domains_by_path(tmp_path):
    with pytest.raises(oa.UserError, match="nothing.py: no such file: expected a file such as"):
        oa.sweep(tmp_path / "nothing.py", tmp_path / "out")
    for name in "AB":
        rows = [f"{user},{name}{item},{item}" for user in range(3) for item in range(3)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["user,item,time", *rows]))
    log = oa.read_events({name: tmp_path / f"{name}.csv" for name in "AB"}, say=lambda line: None)
    assert log.n_items == (3, 3) and log.n_users == 3


MISTAKES = {
    "no run": (lambda run: oa.open(run.path / "nothing"), "config.json: No such file"),
    "no ranking": (lambda run: run.ranks("test", "uni5"), "test/uni5: no such ranking: expected"),
    "no seed": (lambda run: run.params(seed=7), "seed=7: expected one of 0, 1"),
    "no parameters": (lambda run: run.params("first"), "which=first: expected one of best, last"),
    "no place": (lambda run: run.probe(place=2), "2/A: no such fusion: expected one of 0/A, 0/B"),
    "no split": (lambda run: run.probe("foo"), "split=foo: expected one of "),
    "no users": (
        lambda run: run.probe(n_users=0),
        "n_users=0: expected a whole number of at least",
    ),
    "half an item": (lambda run: run.recommend(k=2.5), "--k=2.5: expected a whole number"),
    "no user": (
        lambda run: run.recommend("u1"),
        "expected a file, or a list of ids such as ['u1']",
    ),
    "a number": (lambda run: run.recommend(5), "expected a file, or columns user, item and time"),
    "columns": (lambda run: run.recommend({"user": [1], "item": [1, 2]}), "and time of one length"),
    "no data": (lambda run: oa.train(run.config, "synthetic"), "data: found str: expected events"),
    "no log": (lambda run: oa.make_split(None, "own"), "log: found NoneType: expected events"),
    "no workdir": (
        lambda run: oa.train(run.config, workdir=None),
        "--workdir=None: expected a path",
    ),
    "nothing": (lambda run: oa.open(None), "workdir=None: expected a path"),
    "no export": (lambda run: oa.load_export(None), "FOLDER=None: expected a path"),
    "no file": (lambda run: oa.read_events(None), "files=None: expected a path, or a frame"),
    "a number of files": (lambda run: oa.read_events(5), "expected a file, or columns user, item"),
    "no folder": (
        lambda run: oa.read_events("a.csv", directory=run.path / "env.json"),
        "env.json: a file: expected a folder",
    ),
    "a public name": (
        lambda run: oa.read_events("a.csv", "synthetic"),
        "name=synthetic: the name of a public set: expected another",
    ),
    "a unit": (
        lambda run: run.recommend({"user": [1], "item": [1], "time": [1]}, time_unit="h"),
        "time_unit=h: expected one of s, ms, us, ns, number",
    ),
    "letters": (
        lambda run: oa.read_events("a.csv", filters="both"),
        "filters='both': expected a list",
    ),
    "no study": (lambda run: oa.sweep(None, "out"), "study: found NoneType: expected {name: conf"),
    "no out": (lambda run: oa.sweep({"a": run.config}, None), "--out=None: expected a path"),
    "no slots": (lambda run: oa.sweep({"a": run.config}, "out", slots=0), "--slots=0: expected a"),
    "keep": (
        lambda run: oa.sweep({"a": run.config}, "out", keep="foo"),
        "--keep=foo: expected one",
    ),
}


def test_other_events_in_a_finished_workdir_are_refused(tmp_path):
    log = oa.World(**WORLD).log()
    mine = oa.make_log(log.user, log.item, log.time, log.n_items, "mine")
    config = small(**{"data.name": "mine", "seeds": 1, "train.max_epochs": 1})
    before = oa.train(config, mine, tmp_path, say=None).summary
    other = oa.make_log(log.user, log.item, log.time + 1, log.n_items, "mine")
    with pytest.raises(oa.UserError, match="its data fingerprint is .*: expected the data that"):
        oa.train(config, other, tmp_path, say=None)
    assert oa.train(config, mine, tmp_path, say=None).summary == before


@pytest.mark.parametrize("name", ["jax_threefry_partitionable", "jax_enable_x64"])
def test_a_switch_that_would_change_results_is_refused(name, tmp_path):
    theirs = not getattr(jax.config, name)
    jax.config.update(name, theirs)
    try:
        with pytest.raises(oa.UserError, match=f"^{name}={theirs}: expected {not theirs} while"):
            oa.train(small(), oa.World(**WORLD), tmp_path)
    finally:
        jax.config.update(name, not theirs)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line(run, mistake):
    call, words = MISTAKES[mistake]
    with pytest.raises(oa.UserError) as caught:
        call(run)
    assert words in str(caught.value) and "\n" not in str(caught.value)
