"""Tables of summaries: means and sds in their cells, what is missing said as missing."""

import io
import json

import pytest
from rich.console import Console

from oa_jax.commands import report
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


def test_cells_are_mean_and_sd():
    table = report.markdown([summary()])
    assert "| abxi | 1,234,567 | 12 ± 0 | A | uni999 | 0.2500 ± 0.0125 |" in table
    assert f"{summary()['mean']['test/B/auc/full']:.4f} ± 0.0125 |" in table


def test_a_single_seed_has_no_sd():
    assert "| 0.2500 |" in report.markdown([summary(seeds=1)])


def test_angles_stand_beside_their_null_only_with_gca():
    assert "null" not in report.markdown([summary()])
    table = report.markdown([summary(), summary(gca=True)])
    assert "| abxi + GCA[0] | 0 A | 0.500 ± 0.013 | 0.500 ± 0.013 | 0.100 |" in table
    # A bar in a header would be read as the end of its cell.
    assert r"\|cos(X,X')\|" in table


def test_nothing_measured_is_a_dash():
    empty = summary()
    empty["mean"]["test/A/auc/full"] = None
    assert "| – |" in report.markdown([empty])


def test_the_console_shows_the_same_numbers():
    out = io.StringIO()
    report.show([summary(gca=True)], Console(file=out, width=200))
    assert "0.2500 ± 0.0125" in out.getvalue() and "1,234,567" in out.getvalue()


def test_diverged_seeds_are_named_and_change_the_status():
    said = []
    assert report.status(summary(), said.append) == 0 and not said
    assert report.status(summary(diverged=7), said.append) == 1
    assert "seed 3 diverged" in said[0] and "step 7" in said[0]


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "No such file"), ("{", "not valid JSON"), ("{}", "no field 'label'")],
)
def test_what_is_no_summary_is_one_line(tmp_path, content, words):
    if content is not None:
        (tmp_path / "summary.json").write_text(content)
    with pytest.raises(UserError, match=words) as error:
        report.read(str(tmp_path))
    assert "summary.json" in str(error.value) and "\n" not in str(error.value)


def test_a_workdir_and_its_summary_are_read_alike(tmp_path):
    file = tmp_path / "summary.json"
    file.write_text(json.dumps(summary()))
    assert report.read(str(tmp_path)) == report.read(str(file)) == [summary()]


def test_a_list_of_summaries_is_read_whole(tmp_path):
    file = tmp_path / "rules.json"
    file.write_text(json.dumps([summary(), summary(gca=True)]))
    assert report.read(str(file)) == [summary(), summary(gca=True)]
    file.write_text(json.dumps([summary(), {}]))
    with pytest.raises(UserError, match="no field 'label'"):
        report.read(str(file))


def test_groups_are_shown_when_asked_for():
    found = summary()
    sets = {"A": 30, "B": 20, "all": 50, "short": 10}
    found["mean"] |= {f"test/{name}/users": n for name, n in sets.items()}
    found["mean"] |= {"val/long/users": 1, "test/short/mrr/full": 0.125, "test/all/mrr/full": 0.5}
    users = {}
    for groups in (False, True):
        header, rows = report.tables([found], "test", groups)[0]
        users[groups] = [row[3] for row in rows]
    assert users[False] == ["A", "A", "B", "B", "all", "all"]
    assert users[True] == [*users[False], "short", "short"]
    assert header[3] == "users" and rows[-1][-2] == "0.1250"
