"""An export, loaded here and by a process with jax and numpy alone, gives the lists of the run."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys
import types

import numpy as np
import polars as pl
import pytest
import toy

sys.path.insert(0, str(__import__("pathlib").Path(__file__).parent))
from _runs import run_of, stored

import oa_jax as oa
from oa_jax import experiment as experiment_lib
from oa_jax.backbones import known
from oa_jax.errors import UserError
from oa_jax.runs import initial
from oa_jax.serving import exported, lists
from oa_jax.serving.histories import Histories
from oa_jax.serving.stored import StoredModel

pytestmark = pytest.mark.slow
K = 5
# A process in which this program and what it is made of cannot be imported.
ELSEWHERE = """
import json, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("oa_jax", "flax", "optax", "orbax", "polars", "safetensors"):
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
{block}
asked = json.loads(sys.stdin.read())
found = [[best(history, d, {k}) for d in "AB"] for history in asked]
print(json.dumps([[[of.tolist() for of in one] for one in both] for both in found]))
"""


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    made = {}

    def make(backbone):
        if backbone not in made:
            path = tmp_path_factory.mktemp("exports") / f"{backbone}[1]"  # a name, and no pattern
            made[backbone] = exported.export(run_of(backbone)[1], path, seed=1, licence="cc0-1.0")
        return made[backbone]

    return make


@pytest.mark.parametrize("backbone", known.NAMES)
def test_another_process_without_this_program_gets_the_same_lists(backbone, folder_of):
    experiment, path = run_of(backbone)
    folder, log = folder_of(backbone), experiment.data.log
    some = log.take(np.array([2, 30, 5]))
    users = [some.item[some.offsets[n] : some.offsets[n + 1]].tolist() for n in range(3)]
    asked = Histories(["2", "30", "5"], some.item, some.offsets)
    expected = pl.concat(lists.lists(StoredModel(path, seed=1), asked, K))
    here = pl.concat(lists.lists(oa.load_export(folder), asked, K))
    assert here["item"].to_list() == expected["item"].to_list()
    np.testing.assert_allclose(here["score"], expected["score"], rtol=1e-3, atol=1e-3)
    blocks = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S)
    program = ELSEWHERE.format(block=blocks[-1], k=K)
    result = subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        input=json.dumps(users),
        capture_output=True,
        text=True,
        env={"PATH": "", "JAX_PLATFORMS": "cpu"},
    )
    assert result.returncode == 0, result.stderr
    raw = [[str(item) for d in both for item in d[0]] for both in json.loads(result.stdout)]
    assert sum(raw, []) == expected["item"].to_list()
    scores = [score for both in json.loads(result.stdout) for d in both for score in d[1]]
    np.testing.assert_allclose(scores, expected["score"], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("given", ["default", "highest"])
def test_a_scorer_has_the_precision_of_its_configuration(given):
    settings = toy.toy_experiment(train__matmul_precision=given).engine.settings
    model = types.SimpleNamespace(settings=settings)

    def score(tensors, history_BxH, domain_B, items_N):
        rows_BxD = tensors["w"][history_BxH[:, 0]]
        return rows_BxD @ tensors["w"][items_N].T

    module = exported._exported(model, score, {"w": np.ones((5, 3), np.float32)}).mlir_module()
    assert ("HIGHEST" in module) == (given == "highest")


def test_what_lies_in_the_folder(folder_of):
    experiment, path = run_of("llm4cdsr")
    folder = folder_of("llm4cdsr")
    about = json.loads((folder / "model.json").read_text())
    assert about["fingerprint"] == experiment.data.log.fingerprint() and about["seed"] == 1
    assert about["tables"] == experiment.data.identity()["tables"]
    assert initial.read(str(folder)).tables == about["tables"]
    assert json.loads((folder / "config.json").read_text()) == experiment.config.to_dict()
    items = pl.read_parquet(folder / "items.parquet", glob=False)
    assert items.columns == ["id", "domain", "raw", "title", "users"]
    assert items["domain"].value_counts().sort("domain")["count"].to_list() == [24, 30]
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: oa-jax\nlicense: cc0-1.0\ndata_license: unknown\n")
    assert about["fingerprint"] in card
    # The profiles of users are not there: the scorer does not read them.
    from safetensors.numpy import load_file

    names = set(load_file(folder / "scorer.safetensors"))
    assert names == {"index", "tables/items", "tables/local_A", "tables/local_B"}
    params = load_file(folder / "parameters.safetensors")
    model = StoredModel(path, seed=1)
    assert {k: v.shape for k, v in params.items()} == {
        k: v.shape[1:] for k, v in initial.flat(model.params).items()
    }


def test_the_card_shows_the_runs_metrics():
    from oa_jax.serving import card

    about = {"oa-jax": "1", "label": "abxi + GCA[0]", "protocol": "official", "data": "mine"}
    about |= {"fingerprint": "f00", "n_items": [2, 3], "n_users": 9, "n_events": 40, "seed": 4}
    about |= {"n_parameters": 1234, "example": ["x", "y"], "domains": ["A", "B"]}
    found = {f"test/{d}/{m}/uni9": 0.25 for d in "AB" for m in card.METRICS}
    text = card.text(about | {"metrics": found | {"best_epoch": 7}}, "mit", "own")
    assert "| B | uni9 | 0.2500 | 0.2500 | 0.2500 |" in text and "| epoch | 7 |" in text
    assert "# abxi + GCA[0] on mine" in text and "license: mit\ndata_license: own" in text
    assert "next in A or B. Made by" in text
    # A run of one domain: its summary has null for the other's.
    found |= {name: None for name in found if name.startswith("test/A/")}
    text = card.text(about | {"metrics": found, "domains": ["B"]}, "mit", "own")
    assert "| B | uni9 |" in text and "| A | uni9 |" not in text and "next in B. Made by" in text


@pytest.mark.parametrize("domain", "AB")
def test_a_run_of_one_domain_gives_lists_of_that_one(domain, tmp_path):
    other = {"A": "B", "B": "A"}[domain]
    experiment, path = run_of("sasrec", "none", model__stream=domain)
    folder = exported.export(path, tmp_path / "model")
    for model in (oa.open(path), oa.load_export(folder)):
        events = {"user": ["u"] * 3, "item": ["3", "40", "7"], "time": [3, 1, 2]}
        found = model.recommend(events, k=3)
        assert found["domain"].to_list() == [domain] * 3
        assert found.equals(model.recommend(events, k=3, domain=domain))
        with pytest.raises(UserError, match=f"--domain={other}: expected .*ranks: {domain}$"):
            model.recommend(events, domain=other)
    assert list(lists.beyond_of(StoredModel(path))) == [domain]
    about = json.loads((folder / "model.json").read_text())
    for name in ("domains", "domain_names", "tables"):  # as of an earlier version
        del about[name]
    (folder / "model.json").write_text(json.dumps(about))
    assert len(oa.load_export(folder).recommend(events, k=3)) == 6
    assert initial.read(str(folder)).tables is None


def test_new_histories_by_raw_ids(folder_of):
    model, run = oa.load_export(folder_of("abxi")), oa.open(run_of("abxi")[1])
    events = {"user": ["u"] * 3, "item": ["3", "40", "7"], "time": [3, 1, 2]}
    found, expected = model.recommend(events, k=3), run.recommend(events, k=3, seed=1)
    assert found.drop("score").equals(expected.drop("score"))
    with pytest.raises(UserError, match="no known item"):
        model.recommend({"user": ["u"], "item": ["no"]})


def test_a_run_on_events_in_memory_is_exported_with_them(tmp_path):
    of, _ = run_of("abxi")
    log = dataclasses.replace(of.data.log, name="mine", origin=None)
    mine = experiment_lib.build(of.config.replace(data={"name": "mine"}), log)
    run = oa.open(stored(mine, tmp_path / "run"), log)
    folder = run.export(tmp_path / "model", seed=1, licence="mit", data_licence="own")
    about = json.loads((folder / "model.json").read_text())
    assert (about["data"], about["fingerprint"], about["seed"]) == ("mine", log.fingerprint(), 1)
    assert "license: mit\ndata_license: own" in (folder / "README.md").read_text()
    with pytest.raises(UserError, match="found 'mine'"):  # which are in no set
        oa.open(run.path).export(tmp_path / "other")


def test_a_folder_that_is_in_use_or_no_export_is_refused(folder_of, tmp_path):
    path = run_of("abxi")[1]
    (tmp_path / "some").touch()
    with pytest.raises(UserError, match="not empty: expected a new folder"):
        exported.export(path, tmp_path)
    with pytest.raises(UserError, match="expected the folder of an export"):
        oa.load_export(path)
    with pytest.raises(UserError, match="--seed=8: expected one of"):
        exported.export(path, tmp_path / "new", seed=8)
    assert [file.name for file in tmp_path.iterdir()] == ["some"]
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in folder_of("abxi").iterdir():
        (broken / file.name).write_bytes(file.read_bytes()[:100])
    (broken / "model.json").write_text((folder_of("abxi") / "model.json").read_text())
    with pytest.raises(UserError, match="broken: .*: expected the folder of an export"):
        oa.load_export(broken)
    for file in folder_of("abxi").iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    (broken / "scorer.safetensors").unlink()
    with pytest.raises(UserError, match="scorer.safetensors: .*: expected an export"):
        oa.load_export(broken).recommend({"user": ["u"], "item": ["1"]})
    about = json.loads((broken / "model.json").read_text())
    (broken / "model.json").write_text(json.dumps({k: v for k, v in about.items() if k != "seed"}))
    with pytest.raises(UserError, match="model.json: seed=None: expected a whole number"):
        oa.load_export(broken)


@pytest.fixture
def copied(folder_of, tmp_path):
    return shutil.copytree(folder_of("abxi"), tmp_path / "copy")


@pytest.mark.parametrize(
    "field, value",
    [("n_items", bad) for bad in (5, None, ["a", "b"], [1], [24.0, 30.0])]
    + [("domain_names", 5), ("domain_names", ["x"]), ("domains", 5), ("domains", ["C"])]
    + [("n_users", "x"), ("items_are_raw", None), ("fingerprint", None), ("tables", 5)],
)
def test_a_wrong_field_of_model_json_is_named(field, value, copied):
    about = json.loads((copied / "model.json").read_text())
    (copied / "model.json").write_text(json.dumps(about | {field: value}))
    with pytest.raises(UserError, match=rf"^\S*model.json: {field}=.*: expected .*$"):
        oa.load_export(copied)


RAW, ID = pl.col("raw"), pl.col("id")


@pytest.mark.parametrize(
    "field, change",
    [
        (r"id, domain: found None, expected \(50, 'B'\)", lambda items: items.head(49)),
        (r"id, domain: found \(1, 'A'\), expected \(2, ", lambda items: pl.concat([items] * 2)),
        ("id, domain: found", lambda items: items.with_columns(domain=pl.lit("B"))),
        ("raw, users: found", lambda items: items.with_columns(raw=pl.lit("same"))),
        ("raw, users: found", lambda items: items.with_columns(raw=pl.when(ID > 3).then(RAW))),
        ("raw, users: found", lambda items: items.with_columns(users=-ID)),
        ("raw: found Int64, expected String", lambda items: items.with_columns(raw=ID)),
        ("users: found String, expected Int64", lambda items: items.with_columns(users=RAW)),
        ("title: found None, expected String", lambda items: items.drop("title")),
    ],
)
def test_wrong_items_are_named(field, change, copied):
    change(pl.read_parquet(copied / "items.parquet")).write_parquet(copied / "items.parquet")
    with pytest.raises(UserError, match=f"items.parquet: {field}"):
        oa.load_export(copied)


def test_rows_of_items_may_stand_in_another_order(copied):
    expected = oa.load_export(copied).names
    items = pl.read_parquet(copied / "items.parquet")
    items.reverse().write_parquet(copied / "items.parquet")
    assert oa.load_export(copied).names == expected


def test_a_panic_of_polars_is_one_line(copied, monkeypatch):
    def panics(*_, **__):
        raise pl.exceptions.PanicException("index out of bounds")

    monkeypatch.setattr(pl, "read_parquet", panics)
    with pytest.raises(UserError, match="copy: index out of bounds: expected the folder"):
        oa.load_export(copied)


@pytest.mark.parametrize("first, last", [(0, 32), (64, 128), (1000, None)])
def test_a_damaged_program_is_one_line(first, last, copied):
    file = copied / exported.PROGRAM
    raw = file.read_bytes()
    file.write_bytes(raw[:first] + bytes(last - first) + raw[last:] if last else raw[:first])
    with pytest.raises(UserError, match=r"^\S*scorer.jaxexport: .*: expected an export$"):
        oa.load_export(copied).recommend({"user": ["u"], "item": ["1"]})
