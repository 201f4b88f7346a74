"""Studies: names, programs, equal sizes; the files of configs/studies."""

import os
import pathlib
import re
import resource
import subprocess
import sys

import pytest
import toy

from oa_jax import experiment, presets
from oa_jax.errors import UserError
from oa_jax.runs import study

STUDIES = sorted((toy.ROOT / "configs" / "studies").glob("*.py"))


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_a_study_is_what_its_docstring_says(path):
    text = path.read_text()
    assert f"--study=configs/studies/{path.name}" in text and "`runlocal`" in text
    assert "Primary comparison" in text
    runs = study.load(str(path))
    said = re.search(r"(\d+) runs in (\d+)\s+programs", " ".join(text.split()))
    if said:
        found = sum(config.seeds for config in runs.values()), len(study.programs(runs))
        assert tuple(map(int, said.groups())) == found


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_runlocal_of_a_study_can_be_built(path):
    """Two seeds of at most four programs of a narrow model; one study is really trained below."""
    runs = study.load(f"{path}:runlocal")
    assert len(study.programs(runs)) <= 4
    for config in runs.values():
        assert config.seeds == 2 and config.train.max_epochs <= 2
        assert study.n_parameters(config) < 2_000_000
        experiment.load(config)


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_runlocal_is_true_or_false(path):
    with pytest.raises(UserError, match="runlocal=yes: expected one of true, false"):
        study.load(f"{path}:runlocal=yes")


@pytest.mark.slow
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs")
def test_runlocal_ends_in_a_minute_of_two_workers(tmp_path):
    words = [f"--study={toy.ROOT}/configs/studies/ablation.py:runlocal", f"--out={tmp_path}/out"]
    command = [sys.executable, "-m", "oa_jax", "sweep", *words]

    def sweep(*more):
        return subprocess.run([*command, *more], cwd=toy.ROOT, capture_output=True, text=True)

    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = sweep("--workers=2", "--slots=2")  # room for the seeds of one run
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0 and "2 of 2 runs are finished" in done.stdout, done.stderr
    other = (tmp_path / "out" / ".workers" / "worker-2.log").read_text()
    assert "program of " in other and "/2 " in other  # each took one of them
    assert after.ru_utime - before.ru_utime < 120  # two cores
    refused = sweep("--workers=1000")
    assert refused.returncode == 2 and "--workers=1000: expected at most" in refused.stderr


def test_names_are_folders_and_say_what_differs():
    runs = study.grid(lambda a, b: None if a else {"a": a}, a=(0.5, 0), b=((0, 1), ()))
    assert list(runs) == ["a=0,b=0-1", "a=0,b=none"]
    with pytest.raises(UserError, match=r"two runs are called a=1.23457e\+07"):
        study.grid(lambda a: {"a": a}, a=(12345678.0, 12345679.0))
    for wrong in ("a/b", ".hidden", "", "x" * 201, 3):
        with pytest.raises(UserError, match="expected a name"):
            study.checked({wrong: {"backbone": "abxi"}}, "file.py")
    with pytest.raises(UserError, match="file.py: run one: --config.seeds=0: expected"):
        study.checked({"one": {"backbone": "abxi", "seeds": 0}}, "file.py")
    for wrong in ([], {}, None):
        with pytest.raises(UserError, match="file.py: found .*: expected {name: conf"):
            study.checked(wrong, "file.py")


def test_one_object_for_two_runs_is_refused():
    """What was set for the first run would be that of the last."""
    base = presets.load("configs/abxi.py:runlocal")

    def make(rate):
        base.train.learning_rate = rate
        return base

    with pytest.raises(UserError, match="runs rate=0.1 and rate=0.2 are one object: expected a"):
        study.checked(study.grid(make, rate=(0.1, 0.2)), "study.py")
    same = dict.fromkeys(("a", "b"), presets.load("configs/abxi.py:runlocal").to_dict())
    with pytest.raises(UserError, match="study.py: runs a and b are one object"):
        study.checked(same, "study.py")


def test_one_program_trains_what_differs_in_traced_values():
    one = presets.load("configs/abxi.py:gca=early")
    config = study.checked({"a": one}, "")["a"]
    same = {"train.learning_rate": 1.0, "train.stop_patience": 3, "model.dropout": 0.1, "seeds": 2}
    same |= {"gca.ortho_weight": 1.0, "model.temperature": 0.1, "first_seed": 9}
    for name, value in same.items():
        other = config.replace(**{name: value})
        assert len(study.programs({"a": config, "b": other})) == 1, name
    for name, value in {"train.warmup_epochs": 1, "model.d_embed": 64, "data.name": "x"}.items():
        other = config.replace(**{name: value})
        assert len(study.programs({"a": config, "b": other})) == 2, name


@pytest.mark.parametrize("name", ["compare", "real"])
def test_sasrec_is_compared_with_as_many_streams(name):
    runs = study.load(f"{toy.ROOT}/configs/studies/{name}.py:backbone=sasrec,runlocal")
    assert (runs["none"].model.stream, runs["early"].model.stream) == ("apart", "merged")


def test_a_weight_of_zero_is_another_program():
    """LLM4CDSR without its user loss has no user adapter, and none of its losses counts 0 times."""
    runs = study.checked({"a": presets.load("configs/llm4cdsr.py")}, "")
    for name in ("alpha", "beta"):
        runs |= {f"{name}={x}": runs["a"].replace(model={name: x}) for x in (0.0, 0.3)}
    assert [len(group) for group in study.programs(runs)] == [3, 1, 1]
    assert study.n_parameters(runs["beta=0.0"]) < study.n_parameters(runs["beta=0.3"])


def test_matched_finds_the_nearest_size():
    early, base = (presets.load(f"configs/abxi.py:gca={gca}") for gca in ("early", "none"))
    target = study.n_parameters(study.checked({"a": early}, "")["a"])
    found = study.matched(of=early, base=base)
    error = abs(study.n_parameters(found) - target)
    for step in (-2, 2):  # the next widths, which its two heads allow
        near = found.replace(**{"model.d_embed": found.model.d_embed + step})
        assert abs(study.n_parameters(near) - target) > error
    with pytest.raises(UserError, match="expected"):
        study.matched(of=early, base=base, by="colour")


def test_known_widths_of_the_paper(monkeypatch):
    """Baselines of ABXI on Food-Kitchen as wide as GCA at one, two and three places."""
    monkeypatch.setattr(study.sources, "load", lambda *args: FOOD_KITCHEN)
    monkeypatch.setattr(study.splits, "make_split", lambda *args: None)
    study._events.cache_clear()
    study._parameters.cache_clear()
    base = presets.load("configs/abxi.py:pair=food_kitchen")
    for places, width, number in [("0", 310, 11_753_960), ("0-1", 364, 13_880_048)]:
        of = presets.load(f"configs/abxi.py:pair=food_kitchen,gca={places}")
        found = study.matched(of=of, base=base)
        assert (found.model.d_embed, study.n_parameters(found)) == (width, number)
    study._events.cache_clear()
    study._parameters.cache_clear()


class FOOD_KITCHEN:  # no more of it is asked for
    n_items = (11_837, 16_258)


def test_a_file_that_is_wrong_is_named(tmp_path):
    path = tmp_path / "study.py"
    path.write_text("def get_study(arg=None):\n    return {'a': missing}\n")
    with pytest.raises(UserError, match=rf"{re.escape(str(path))}: line 2: NameError"):
        study.load(str(path))
    with pytest.raises(UserError, match="--study=nowhere.py: no such file"):
        study.load("nowhere.py")
    assert pathlib.Path(path).exists()
