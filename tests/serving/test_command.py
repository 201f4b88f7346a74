"""`recommend`, `report` and `export` as people call them, on one small run."""

import json
import pathlib
import subprocess
import sys
from concurrent import futures

import polars as pl
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from _runs import run_of

from oa_jax.commands import report
from oa_jax.errors import UserError
from oa_jax.serving import lists

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).resolve().parents[2]


def call(*words):
    """(status, standard output, standard error)"""
    command = [sys.executable, "-m", "oa_jax", *map(str, words)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return result.returncode, result.stdout, result.stderr


def test_lists_of_all_users_and_what_is_kept_of_them(tmp_path):
    experiment, path = run_of("abxi")
    n_users = experiment.data.log.n_users
    out = tmp_path / "recs.parquet"
    status, said, error = call("recommend", f"--workdir={path}", "--k=3", f"--out={out}")
    assert status == 0, error
    assert f"{6 * n_users} items of {n_users} users in {out}" in said
    assert "popularity lift" in said and "seed 0" in said
    found = pl.read_parquet(out)
    assert (
        found.columns == ["user", "domain", "rank", "item", "score"] and len(found) == 6 * n_users
    )
    assert [file.name for file in tmp_path.iterdir()] == ["recs.parquet"]
    (kept,) = json.loads((path / "lists.json").read_text())
    assert (kept["of"], kept["k"], kept["users"]) == ("seed 0", 3, n_users)
    other = ("recommend", f"--workdir={path}", "--k=3", f"--out={tmp_path / 'other.csv'}")
    for flag in ("--domain=A", "--keep_seen"):  # lists of another kind
        assert call(*other, flag)[0] == 0
    assert json.loads((path / "lists.json").read_text()) == [kept]
    counts = found.filter(domain="B")["item"].n_unique()
    assert kept["figures"]["B"]["coverage"] == pytest.approx(counts / 30)
    summary = {"mean": {}, "sd": {}, "label": "abxi", "n_parameters": 1, "per_seed": []}
    table = report.sheets([report.described(summary, path)], "test")[-1]
    assert [row[1:4] for row in table.rows] == [["seed 0", "3", "A"], ["seed 0", "3", "B"]]
    assert table.rows[1][4] == f"{counts / 30:.3f}"


@pytest.mark.parametrize("text", ["[5]", "[null]", "[{}]"])
def test_figures_that_are_none_are_refused(tmp_path, text):
    (tmp_path / "lists.json").write_text(text)
    with pytest.raises(UserError, match="lists.json: entry 1: no field 'of': expected figures"):
        lists.keep(tmp_path, {"of": "seed 0", "k": 10, "figures": {}})
    assert (tmp_path / "lists.json").read_text() == text


def test_figures_that_are_kept_at_once_all_stay(tmp_path):
    with futures.ThreadPoolExecutor(8) as pool:
        made = [{"of": "seed 0", "k": k, "figures": {}} for k in range(24)]
        list(pool.map(lambda one: lists.keep(tmp_path, one), made))
    kept = json.loads((tmp_path / "lists.json").read_text())
    assert sorted(one["k"] for one in kept) == list(range(24))


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_other_forms(tmp_path, suffix):
    frames = [pl.DataFrame({"user": ["a", "ü"], "score": [1.5, n]}) for n in (1.0, 2.0)]
    out = tmp_path / f"recs[1].{suffix}"  # a name, and no pattern
    assert lists.write(iter(frames), out) == 4
    read = pl.read_csv if suffix == "csv" else pl.read_ndjson
    assert read(out.read_bytes()).equals(pl.concat(frames))


def test_what_fails_leaves_nothing(tmp_path):
    def frames():
        yield pl.DataFrame({"user": ["a"]})
        raise RuntimeError

    with pytest.raises(RuntimeError):
        lists.write(frames(), tmp_path / "recs.csv")
    assert not list(tmp_path.iterdir())


WRONG = {
    "--out: missing: expected a file that ends in": [],
    "expected a file that ends in .parquet, .csv, .jsonl": ["--out=recs.txt"],
    "--users, --histories: expected one of them": ["--out=a.csv", "--users=a", "--histories=b"],
    "no_such.csv: expected a readable file, found: No such file": [
        "--out=a.csv",
        "--histories=no_such.csv",
    ],
}


def test_mistakes_are_one_line(tmp_path, monkeypatch):
    """In this process: of each only the last line matters."""
    from absl import flags

    from oa_jax.commands import recommend

    path = run_of("abxi")[1]
    monkeypatch.chdir(tmp_path)
    for expected, words in WRONG.items():
        flags.FLAGS.unparse_flags()
        flags.FLAGS(["recommend", f"--workdir={path}", *words])
        with pytest.raises(UserError) as error:
            recommend.main([])
        assert expected in str(error.value) and "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_an_export_by_command(tmp_path):
    path = run_of("abxi")[1]
    out = tmp_path / "model"
    status, said, error = call("export", f"--workdir={path}", f"--out={out}", "--license=mit")
    assert status == 0, error
    assert "README.md says how to load it" in said
    assert {file.name for file in out.iterdir()} == {
        *("README.md", "config.json", "items.parquet", "model.json"),
        *("parameters.safetensors", "scorer.jaxexport", "scorer.safetensors"),
    }
    status, _, error = call("export", f"--workdir={path}", f"--out={out}")
    assert status == 2 and error.count("\n") == 1 and "expected a new folder" in error
