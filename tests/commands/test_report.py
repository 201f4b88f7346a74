"""Tables of summaries: means and sds in their cells, what is missing said as missing."""

import json

import pytest

from oa_jax.commands import cli, report
from oa_jax.errors import UserError

KEYS = [f"test/{d}/{m}/{p}" for d in "AB" for m in report.METRICS for p in ("uni999", "full")]


def summary(gca=False, seeds=5, diverged=0):
    mean = {"epochs": 12.0} | {key: 0.25 + i / 100 for i, key in enumerate(KEYS)}
    if gca:
        for domain in "AB":
            for when in ("init", "best"):
                mean |= {f"{when}/gca/0/{domain}/{s}": 0.5 for s in ("abs_cos", "xy_abs_cos")}
            mean[f"best/gca/0/{domain}/gate_mean"] = 0.75
    return {
        "label": "abxi + GCA[0]" if gca else "abxi",
        "n_parameters": 1234567,
        "null_abs_cos": 0.0998,
        "mean": mean,
        "sd": dict.fromkeys(mean, 0.0125 if seeds > 1 else None),
        "per_seed": [{"seed": 3, "diverged_step": diverged, "epochs": 2}],
    }


def markdown(*summaries, groups=False):
    return "\n".join(s.markdown() for s in report.sheets(summaries, "test", groups))


def test_cells_are_mean_and_sd():
    table = markdown(summary())
    assert "| 1,234,567 | 12 ± 0 | A | uni999 | 0.2500 ± 0.0125 |" in table
    assert f"{summary()['mean']['test/B/auc/full']:.4f} ± 0.0125 |" in table


def test_a_single_seed_has_no_sd():
    assert "| 0.2500 |" in markdown(summary(seeds=1))


def test_angles_stand_beside_their_null_only_with_gca():
    assert "null" not in markdown(summary())
    table = markdown(summary(), summary(gca=True))
    assert "| abxi + GCA[0] | – | – | 0 A | 0.500 ± 0.013 | 0.500 ± 0.013 | 0.100 |" in table
    # A bar in a header would be read as the end of its cell.
    assert r"\|cos(X,X')\|" in table


def test_nothing_measured_is_a_dash():
    empty = summary()
    empty["mean"]["test/A/auc/full"] = None
    assert "| – |" in markdown(empty)
    assert "| abxi | – | – | 7 | – | A | – | – |" in markdown(
        summary() | {"mean": {}, "n_parameters": 7}
    )


def test_the_console_shows_the_same_numbers():
    with cli.console.capture() as captured:
        report.show([summary(gca=True), summary(seeds=1)])
    out = captured.get()
    assert "0.2500 ± 0.0125" in out and out.count("abxi + GCA[0]") > 2
    # What all rows have in common stands above them.
    assert out.splitlines()[1].split() == [
        "run",
        "–,",
        "data",
        "–,",
        "protocol",
        "–,",
        "parameters",
        "1,234,567",
    ]


def test_diverged_seeds_are_named_and_change_the_status():
    said = []
    assert report.status(summary(), said.append) == 0 and not said
    assert report.status(summary(diverged=7), said.append) == 1
    assert "seed 3 diverged" in said[0] and "step 7" in said[0]


NO_SUMMARIES = {
    "missing": (None, "no finished run in it: expected a workdir or a folder of them"),
    "cut off": ("{", "not valid JSON"),
    "no fields": ("{}", "no field 'label'"),
    "text": ('"label"', "holds a str, not an object or a list"),
    "nothing": ("[]", "an empty list: expected the summary of a run"),
    "numbers": ("[1]", "no field 'label'"),
    "no size": (json.dumps(summary() | {"n_parameters": None}), "n_parameters: found null"),
    "a list": (json.dumps(summary() | {"mean": []}), r"mean: found \[\]"),
    "a word": (json.dumps(summary() | {"mean": {"test/A/auc/full": "x"}}), 'full: found "x"'),
    "no mean": (json.dumps({k: v for k, v in summary().items() if k != "mean"}), "field 'mean'"),
    "a null in words": (json.dumps(summary() | {"null_abs_cos": "x"}), 'null_abs_cos: found "x"'),
    "a number as seed": (json.dumps(summary() | {"per_seed": [5]}), "no field 'seed'"),
}


@pytest.mark.parametrize("kind", NO_SUMMARIES)
def test_what_is_no_summary_is_one_line(tmp_path, kind):
    content, words = NO_SUMMARIES[kind]
    if content is not None:
        (tmp_path / "summary.json").write_text(content)
    with pytest.raises(UserError, match=words) as error:
        report.read(str(tmp_path))
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("lists", [5], "no field 'of'"),
        ("lists", [None], "no field 'of'"),
        ("lists", [{}], "no field 'of'"),
        ("lists", [{"of": "seed 0", "k": 2, "figures": 5}], "figures: found 5"),
        ("lists", [{"of": "seed 0", "k": 2, "figures": {"A": 5}}], "A: found 5"),
        ("lists", [{"of": "seed 0", "k": 2, "figures": {"A": {"gini": "x"}}}], 'gini: found "x"'),
        ("config", {"protocol": ["official"]}, r'protocol: found \["official"\]: expected the con'),
    ],
)
def test_what_is_beside_a_summary_is_checked(tmp_path, name, content, words):
    (tmp_path / "summary.json").write_text(json.dumps(summary()))
    (tmp_path / f"{name}.json").write_text(json.dumps(content))
    where = f"{name}.json: " + "entry 1: " * (name == "lists")
    with pytest.raises(UserError, match=where + words) as error:
        report.show(report.read(str(tmp_path)))
    assert "\n" not in str(error.value)


def test_a_null_that_is_none_is_a_dash():
    table = markdown(summary(gca=True) | {"null_abs_cos": None})
    assert "| 0 A | 0.500 ± 0.013 | 0.500 ± 0.013 | – |" in table


@pytest.mark.parametrize("more", [{}, {"n_seeds": "x"}])
def test_the_seeds_of_a_sweep_are_those_that_ended_well(more):
    seeds = [{"seed": s, "diverged_step": 7 * (s == 2), "epochs": 2} for s in range(3)]
    sheet = report.ranked([summary() | {"run": "a", "per_seed": seeds} | more])
    assert sheet.rows[0][:3] == ["a", "1,234,567", "2"]


def test_a_workdir_and_its_summary_are_read_alike(tmp_path):
    file = tmp_path / "summary.json"
    file.write_text(json.dumps(summary()))
    expected = [summary() | {"run": tmp_path.name}]
    assert report.read(str(tmp_path)) == report.read(str(file)) == expected


@pytest.mark.parametrize(("more", "mark"), [({}, ""), ({"stopped": "pruned"}, " (pruned)")])
def test_a_pruned_trial_is_marked(tmp_path, more, mark):
    (tmp_path / "summary.json").write_text(json.dumps(summary() | more))
    assert report.read(str(tmp_path))[0]["run"] == tmp_path.name + mark


def test_a_list_of_summaries_is_read_whole(tmp_path):
    file = tmp_path / "rules.json"
    file.write_text(json.dumps([summary(), summary(gca=True)]))
    rules = {"run": "rules"}
    assert report.read(str(file)) == [summary() | rules, summary(gca=True) | rules]
    file.write_text(json.dumps([summary(), {}]))
    with pytest.raises(UserError, match="no field 'label'"):
        report.read(str(file))


def workdir(path, name, fingerprint, finished=True, split="leave_one_out", per_kind=0):
    path.mkdir(parents=True)
    config = {"data": {"name": name, "split": split}, "protocol": "corrected"}
    config["evaluate"] = {"users_per_kind": per_kind}
    (path / "config.json").write_text(json.dumps(config))
    (path / "env.json").write_text(json.dumps({"fingerprints": {"data": fingerprint}}))
    if finished:
        (path / "summary.json").write_text(json.dumps(summary()))


def test_a_folder_of_runs_is_told_apart_in_every_row(tmp_path, capsys):
    workdir(tmp_path / "abe", "beauty_elec", "0123456789")
    workdir(tmp_path / "worlds" / "one", "synthetic", "aaaaaaaaaa")
    workdir(tmp_path / "worlds" / "two", "synthetic", "bbbbbbbbbb")
    workdir(tmp_path / "timed", "abe", "cccccc", split="global_time")
    workdir(tmp_path / "few", "abe", "cccccc", per_kind=50)
    workdir(tmp_path / "begun", "synthetic", "bbbbbbbbbb", finished=False)
    workdir(tmp_path / "exported", "synthetic", "bbbbbbbbbb", finished=False)
    (tmp_path / "exported" / "parameters.safetensors").touch()
    (sheet,) = report.sheets(report.read(str(tmp_path)), "test")
    assert {tuple(row[:4]) for row in sheet.rows} == {
        ("abe", "abxi", "beauty_elec 012345", "corrected"),
        ("worlds/one", "abxi", "synthetic aaaaaa", "corrected"),
        ("worlds/two", "abxi", "synthetic bbbbbb", "corrected"),
        ("timed", "abxi", "abe cccccc, by time", "corrected"),
        ("few", "abxi", "abe cccccc, 50 users of a kind", "corrected"),
    }
    assert len(sheet.rows) == 20 and "" not in sum(sheet.rows, [])
    assert sheet.csv().splitlines()[1].startswith('abe,abxi,beauty_elec 012345,corrected,"1,234,')
    assert capsys.readouterr().err == f"{tmp_path / 'begun'}: not finished: left out\n"
    with pytest.raises(UserError, match="summary.json: No such file"):
        report.read(str(tmp_path / "begun"))


def test_groups_are_shown_when_asked_for():
    found = summary()
    sets = {"A": 30, "B": 20, "all": 50, "short": 10}
    found["mean"] |= {f"test/{name}/users": n for name, n in sets.items()}
    found["mean"] |= {"val/long/users": 1, "test/short/mrr/full": 0.125, "test/all/mrr/full": 0.5}
    users = {}
    for groups in (False, True):
        (sheet,) = report.sheets([found], "test", groups)
        users[groups] = [row[6] for row in sheet.rows]
    assert users[False] == ["A", "A", "B", "B", "all", "all"]
    assert users[True] == [*users[False], "short", "short"]
    assert sheet.header[6] == "users" and sheet.rows[-1][-2] == "0.1250"
