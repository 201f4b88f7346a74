"""What a workdir holds is read as it is; what is missing or damaged becomes one sentence."""

import json
import pathlib
import re

import numpy as np
import pytest

import analysis
import oa_jax as oa
from analysis import table, trajectory
from analysis.runs import find_runs, finished, notes, read_run
from oa_jax import presets
from oa_jax.backbones import known
from oa_jax.errors import UserError
from oa_jax.nn.known import changed
from oa_jax.runs.workdir import Workdir
from tests.analysis._made_runs import contents
from tests.analysis._plain import plain_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two finished runs and one that is not."""
    path = tmp_path_factory.mktemp("runs")
    plain_run(path / "none")
    plain_run(path / "early", "early", commit="beef")
    plain_run(path / "later", "0-2", finished=False)
    return path


def test_a_run_is_read_whole(folder):
    run = read_run(folder / "early")
    assert run.summary and run.places == (0,) and run.variant == "early"
    assert run.candidates == "uni99" and run.tie_weight == 0.0
    seeds = run.seeds()
    assert seeds["seed"].to_list() == [0, 1, 2] and seeds["epochs"].to_list() == [4, 4, 4]
    stored = json.loads((folder / "early" / "summary.json").read_text())["per_seed"]
    key = "test/B/mrr/full"
    assert seeds[key].to_list() == [entry[key] for entry in stored]
    assert run.epochs().select("epoch", "seed").rows() == [
        (e, s) for e in range(5) for s in (0, 1, 2)
    ]
    assert run.ranks()["test/full/rank"].shape == (3, 40)


def test_nothing_is_written_and_no_lock_is_taken(folder):
    before = contents(folder)
    for run in find_runs(str(folder))[0]:
        run.seeds(), run.epochs()
    assert contents(folder) == before


@pytest.mark.parametrize("spec", ["{}", "{}/none,{}/early,{}/later", "{}/*", "{}/none,{}"])
def test_folders_lists_and_globs_name_the_same_runs(folder, spec):
    runs, left_out = find_runs(spec.replace("{}", str(folder)))
    assert [run.name for run in runs] == ["early", "later", "none"] and not left_out
    assert [run.name for run in finished(runs)] == ["early", "none"]


@pytest.mark.parametrize("kind", [pathlib.Path, str, oa.open])
def test_paths_and_runs_of_the_library_are_taken_alone_and_in_lists(folder, kind):
    paths = [folder / name for name in ("none", "early", "later")]
    runs, left_out = find_runs([kind(path) for path in paths])
    assert [run.name for run in runs] == ["early", "later", "none"] and not left_out
    assert [run.name for run in find_runs(kind(paths[1]))[0]] == ["early"]
    assert read_run(kind(paths[1])).name == "early"
    with pytest.raises(UserError, match=r"^--runs=5: expected a path$"):
        find_runs([kind(paths[0]), 5])


def test_the_python_of_the_page_runs(tmp_path, monkeypatch):
    page = pathlib.Path(analysis.__file__).parent / "README.md"
    (block,) = re.findall(r"^```python\n(.*?)^```$", page.read_text(), flags=re.M | re.S)
    monkeypatch.chdir(tmp_path)
    plain_run("runs/abe_none")
    plain_run("runs/abe_early", "early", better=0.1, seed=1)
    made = {}
    exec(block, made)
    assert made["frame"]["gain"].drop_nulls().len() and set(made["frame"]["metric"]) == {"ndcg@10"}


def test_equal_folder_names_are_told_apart(tmp_path):
    for parent in "ab":
        plain_run(tmp_path / parent / "run", fingerprint=parent)
    runs, _ = find_runs(f"{tmp_path}/a/run,{tmp_path}/b/run")
    assert [run.name for run in runs] == ["a/run", "b/run"]


def test_names_of_a_sweep_hold_commas(tmp_path):
    for name in ("arm=a,rho=0", "arm=a,rho=1", "arm=b,rho=0"):
        plain_run(tmp_path / name, fingerprint=name)
    runs, _ = find_runs(f"{tmp_path}/arm=a,rho=0, {tmp_path}/arm=b,rho=*")
    assert [run.name for run in runs] == ["arm=a,rho=0", "arm=b,rho=0"]
    with pytest.raises(UserError, match="--runs: .*arm=c: no such folder"):
        find_runs(f"{tmp_path}/arm=a,rho=0,{tmp_path}/arm=c,rho=0")


def test_a_twin_of_a_run_is_left_out_and_said(tmp_path):
    plain_run(tmp_path / "a" / "run", "early")
    plain_run(tmp_path / "b" / "run", "early", train__quick_compile=True)  # changes no result
    plain_run(tmp_path / "b" / "seeds", "early", first_seed=3)
    plain_run(tmp_path / "b" / "gate", "early", gca__gate_act="tanh")
    plain_run(tmp_path / "b" / "data", "early", fingerprint="other")
    plain_run(tmp_path / "b" / "open", "early", finished=False)
    runs, left_out = find_runs(f"{tmp_path}/a,{tmp_path}/b")
    assert [run.name for run in runs] == ["a/run", "data", "gate", "open", "seeds"]
    said = "b/run: the configuration, data and seeds of a/run: the run is left out"
    assert left_out == [said]


def test_an_unfinished_run_says_how_far_it_is(folder):
    run = read_run(folder / "later")
    assert run.summary is None and run.variant == "GCA[0,2]" and len(run.seeds()) == 0
    assert run.problems == (
        "later: unfinished (no summary.json, 4 epochs so far): left out of final metrics",
    )


def test_runs_of_different_code_are_named(folder):
    said = notes(find_runs(str(folder))[0])
    assert any("different code versions" in s and "beef (early)" in s for s in said)
    assert not any("code versions" in s for s in notes([read_run(folder / "none")]))


def test_seeds_do_not_make_a_configuration_but_lambda_does(tmp_path):
    names = {"a": {}, "b": {"first_seed": 3, "seeds": 2}, "c": {"gca__ortho_weight": 0.1}}
    for name, changes in names.items():
        plain_run(tmp_path / name, "early", **changes)
    a, b, c = find_runs(str(tmp_path))[0]
    assert a.configuration == b.configuration != c.configuration
    assert a.backbone_configuration == c.backbone_configuration
    assert c.variant == "early, λ=0.1"


def rewritten(path, name, change):
    file = path / name
    values = json.loads(file.read_text())
    change(values)
    file.write_text(json.dumps(values))


def test_runs_of_other_tables_users_or_ties_are_of_other_settings(tmp_path):
    for name in ("plain", "tables", "users", "ties"):
        plain_run(tmp_path / name, "early")
    rewritten(
        tmp_path / "tables", "env.json", lambda v: v["fingerprints"].update(tables="feed" * 4)
    )
    rewritten(tmp_path / "users", "config.json", lambda v: v["evaluate"].update(users_per_kind=9))
    ties = {"q10_ties_favour_target": False}
    rewritten(tmp_path / "ties", "config.json", lambda v: v["quirks"].update(ties))
    runs, left_out = find_runs(str(tmp_path))
    ends = {run.name: run.setting.rpartition(" · ")[2] for run in runs}
    assert ends.pop("plain") == "data abcdef12" and not left_out
    assert ends.pop("tables") == "data abcdef12+feedfeed"
    assert ends.pop("users") == "data abcdef12, 9 users of a kind"
    assert ends.pop("ties") == "data abcdef12, other ties"


def test_a_trial_that_was_pruned_has_no_final_metrics(tmp_path):
    run = plain_run(tmp_path / "trial-0000", "early")
    rewritten(run, "summary.json", lambda v: v.update(stopped="pruned"))
    run = read_run(run)
    assert run.summary is None and run.problems[0].startswith("trial-0000: pruned by its search")


def test_a_summary_without_a_seed_is_no_traceback(tmp_path):
    run = plain_run(tmp_path / "early", "early")
    rewritten(run, "summary.json", lambda v: v.update(per_seed=[]))
    assert read_run(run).problems == ("early: 0 of 3 seeds in summary.json",)


def test_a_field_that_an_older_version_lacked_has_todays_default(tmp_path):
    for name in ("new", "old"):
        plain_run(tmp_path / name, "early")
    rewritten(tmp_path / "old", "config.json", lambda v: v["train"].pop("activation_dtype"))
    runs, left_out = find_runs(str(tmp_path))
    assert len(runs) == 1 and "the configuration, data and seeds of" in left_out[0]


def damaged(path, name, change):
    file = path / name
    if change is None:
        file.unlink()
    else:
        file.write_bytes(change(file.read_bytes()))


CUT = lambda content: content[: len(content) // 2]  # noqa: E731


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("env.json", None, "env.json: No such file"),
        ("env.json", CUT, "env.json: not valid JSON"),
        ("summary.json", CUT, "summary.json: not valid JSON"),
        ("summary.json", lambda _: b'{"per_seed": 3, "n_parameters": 1}', "no usable `per_seed`"),
        ("summary.json", lambda c: c.replace(b"best_epoch", b"best"), "no usable `per_seed`"),
        ("summary.json", lambda _: b"[]", "summary.json: holds a list"),
        ("summary.json", lambda _: b'"words"', "summary.json: holds a str"),
        ("summary.json", lambda _: b'{"per_seed": []}', "n_parameters: found None, expected"),
        ("summary.json", lambda c: c.replace(b": 1000", b": 0"), "n_parameters: found 0, exp"),
        ("summary.json", lambda c: c.replace(b": 1000", b": 1e308"), "n_parameters: found 1e+308"),
        (
            "summary.json",
            lambda c: c.replace(b'"seed": 1', b'"seed": 0'),
            "expected each seed once",
        ),
        ("metrics.jsonl", lambda c: b"7\n" + c, "metrics.jsonl: 1 unreadable, left out"),
        ("metrics.jsonl", lambda c: c + b'{"seed": 1}\n', "metrics.jsonl: 1 unreadable"),
        ("metrics.jsonl", lambda c: c.replace(b'"epoch": 4', b'"epoch": "4"'), "3 unreadable"),
        ("metrics.jsonl", lambda c: b"\xff\xfe\n" + c, "metrics.jsonl: 1 unreadable"),
    ],
)
def test_a_damaged_file_is_a_sentence(tmp_path, name, change, words):
    damaged(plain_run(tmp_path / "run"), name, change)
    run = read_run(tmp_path / "run")
    assert len(run.problems) == 1 and words in run.problems[0]
    assert "\n" not in run.problems[0]
    assert (run.summary is not None) == (name != "summary.json")
    assert run.epochs()["epoch"].max() == (3 if "3 unreadable" in words else 4)
    trajectory.trajectories([run])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda c: c.replace(b'"positions": [', b'"positions": 3, "x": ['),
            "positions=3: expected",
        ),
        (None, "No such file"),
        (CUT, "not valid JSON"),
        (lambda _: b"{}", "backbone=None: expected one of"),
    ],
)
def test_a_run_without_configuration_is_left_out_and_the_others_stay(tmp_path, change, words):
    plain_run(tmp_path / "good")
    damaged(plain_run(tmp_path / "bad"), "config.json", change)
    runs, left_out = find_runs(str(tmp_path))
    assert [run.name for run in runs] == ["good"]
    assert len(left_out) == 1 and "bad/config.json" in left_out[0] and words in left_out[0]
    with pytest.raises(UserError, match="no readable run"):
        find_runs(str(tmp_path / "bad"))


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("config", "first_seed", "x"),
        ("config", "first_seed", None),
        ("config", "first_seed", 1.5),
        ("config", "quirks", None),
        ("config", "quirks", 5),
        ("config", "protocol", ["official"]),
        ("config", "gca.positions", [[0]]),
        ("config", "gca.ortho_weight", "x"),
        ("config", "gca.ortho_weight", None),
        ("config", "gca.fusion", 5),
        ("config", "gca.fusion", None),
        ("config", "gca.gate_act", [1]),
        ("env", "fingerprints.tables", 5),
    ],
)
def test_a_run_with_a_bad_field_is_left_out_and_the_others_stay(tmp_path, name, field, value):
    plain_run(tmp_path / "good")
    *groups, last = field.split(".")

    def change(values):
        for group in groups:
            values = values[group]
        values[last] = value

    rewritten(plain_run(tmp_path / "bad", "early"), f"{name}.json", change)
    runs, (said,) = find_runs(str(tmp_path))
    assert f"bad/{name}.json: " in said and field in said and "expected" in said
    assert [run.setting for run in runs] and table.gains(runs, draws=100)


def test_missing_and_diverged_seeds_are_named(tmp_path):
    path = plain_run(tmp_path / "run", seeds=3)
    summary = json.loads((path / "summary.json").read_text())
    del summary["per_seed"][2]
    summary["per_seed"][0] = {"seed": 0, "epochs": 1, "best_epoch": 0, "diverged_step": 9}
    (path / "summary.json").write_text(json.dumps(summary))
    run = read_run(path)
    assert run.problems == ("run: seed 0 diverged: left out", "run: 2 of 3 seeds in summary.json")
    assert run.seeds()["seed"].to_list() == [1]


def test_null_and_words_are_no_numbers(tmp_path):
    path = plain_run(tmp_path / "run")
    summary = json.loads((path / "summary.json").read_text())
    summary["per_seed"][1]["test/A/auc/full"] = None
    (path / "summary.json").write_text(json.dumps(summary).replace("NaN", "null"))
    values = read_run(path).seeds()["test/A/auc/full"].to_list()
    assert values[1] is None and all(np.isfinite([values[0], values[2]]))


def test_a_line_cut_off_by_a_kill_is_left_out(tmp_path):
    path = plain_run(tmp_path / "run", finished=False)
    lines = (path / "metrics.jsonl").read_text()
    (path / "metrics.jsonl").write_text(lines + '{"epoch": 5, "se')
    assert read_run(path).epochs()["epoch"].max() == 4


@pytest.mark.parametrize("change", [None, CUT, lambda _: b"nothing"])
def test_damaged_ranks_are_one_line(tmp_path, change):
    damaged(plain_run(tmp_path / "run"), "ranks.npz", change)
    with pytest.raises(UserError, match="ranks.npz: ") as error:
        read_run(tmp_path / "run").ranks()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("spec", ["", "/no/such/folder", "{}"])
def test_no_run_at_all_is_one_line(tmp_path, spec):
    with pytest.raises(UserError, match="--runs"):
        find_runs(spec.replace("{}", str(tmp_path)))


def test_a_variant_says_what_is_unusual_and_a_stack_begins_at_0(tmp_path):
    arm = {"gca__layer_norm": False, "gca__part": "parallel"}
    gated = {"gca__part": "parallel", "gca__part_of": "gated"}
    penalty = {"gca__ortho_weight": 0.1, "gca__part_of": "gated"}
    kinds = ("0-1", {}), ("1-2", {}), ("early", arm), ("early", gated), ("early", penalty)
    for name, (gca, fields) in zip("abcde", kinds, strict=True):
        plain_run(tmp_path / name, gca, **fields)
    found = [run.variant for run in find_runs(str(tmp_path))[0]]
    assert found[:2] == ["stack", "GCA[1,2]"]
    assert found[2] == "early, layer_norm=False, parallel part"
    assert found[3] == "early, parallel part of α ⊙ X′"
    assert found[4] == "early, λ=0.1 of α ⊙ X′"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"source": "other", "own_item": "hidden"}, ["source=other"]),
        ({"source": "self", "own_item": "hidden"}, ["source=self", "own_item=hidden"]),
        ({"gate": "none", "gate_hidden": 2, "latents": 8}, ["gate=none", "gate_hidden=2"]),
        ({"fusion": "film", "gate": "none", "experts": ("gca",), "width": 8}, ["width=8"]),
        ({"fusion": "experts", "gate": "none", "latents": 8}, []),
        ({"fusion": "experts", "gate": "none", "experts": ["gca"]}, ["gate=none", "experts=gca"]),
    ],
    ids=str,
)
def test_a_field_without_effect_is_no_arm(fields, expected):
    assert changed(fields) == expected


def test_seeds_that_another_run_has_do_not_count_twice(tmp_path):
    for name, first, seeds in (("few", 0, 2), ("many", 0, 4), ("more", 3, 3)):
        plain_run(tmp_path / name, "early", first_seed=first, seeds=seeds)
    runs, left_out = find_runs(str(tmp_path))
    assert [run.name for run in runs] == ["many", "more"]
    assert left_out == ["few: the configuration, data and seeds of many: the run is left out"]
    assert "many and more: one configuration: seeds 3 count twice" in notes(runs)


def test_the_baseline_of_sasrec_has_its_streams_apart(tmp_path):
    """`merged` without a fusion is another model."""
    found = {}
    for name in ("gca=early", "gca=none,stream=apart", "gca=none,stream=merged"):
        config = known.resolve(presets.load(f"configs/sasrec.py:pair=synthetic,{name}"))
        with Workdir(tmp_path / name) as workdir:
            workdir.claim(config.to_dict())
            workdir.write_json("env.json", {"fingerprints": {"data": "abcdef12"}})
        found[name] = read_run(tmp_path / name).backbone_configuration
    early, apart, merged = found.values()
    assert early == apart != merged
