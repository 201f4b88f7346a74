"""Sweeps: each run is what it is alone, whatever shared its program and whoever was killed."""

import concurrent.futures
import contextlib
import errno
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import types

import jax
import numpy as np
import pytest
import swept
import toy

from oa_jax import files
from oa_jax.engine.program import Engine
from oa_jax.errors import Interrupted, UserError
from oa_jax.runs import index, stored, study, sweep
from oa_jax.runs.checkpoint import Checkpoints
from oa_jax.runs.claims import Claims
from oa_jax.runs.run import stored_config
from oa_jax.runs.sweep import Progress
from oa_jax.runs.training import STOPPED
from oa_jax.runs.workdir import Workdir, listed

SCRIPT = pathlib.Path(swept.__file__)


@pytest.fixture(autouse=True)
def toys(monkeypatch):
    monkeypatch.setattr(sweep.experiment_lib, "build", swept.build)
    monkeypatch.setattr(sweep, "use_compilation_cache", lambda say: None)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """{name: workdir} of the same runs, each made for itself."""
    root = tmp_path_factory.mktemp("alone")
    for name, config in swept.runs().items():
        toy.train_whole(swept.build(config), root / name)
    return {name: root / name for name in swept.runs()}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    out = tmp_path_factory.mktemp("sweep")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep.experiment_lib, "build", swept.build)
        patch.setattr(sweep, "use_compilation_cache", lambda say: None)
        return out, swept.sweep_of(out).run()


def results(path):
    """What a run says, without its timings."""
    summary = json.loads((path / "summary.json").read_text())
    del summary["seconds"]
    with np.load(path / "ranks.npz") as ranks:
        arrays = {name: ranks[name].tobytes() for name in ranks.files}
    return summary, arrays, (path / "metrics.jsonl").read_bytes()


def check_equal(out, alone):
    for name, path in alone.items():
        assert results(out / name) == results(path), name


def check_close(out, alone):
    """Equal but for ranks that rounding turns."""
    for name, path in alone.items():
        (summary, _, _), (expected, _, _) = results(out / name), results(path)
        for found, there in zip(summary["per_seed"], expected["per_seed"], strict=True):
            assert found["epochs"] == there["epochs"]
            assert found["test/A/mrr/full"] == pytest.approx(there["test/A/mrr/full"], abs=0.02)


def test_a_run_of_a_sweep_is_the_run_made_alone(done, alone):
    """Also of seeds that came late into a slot: there are 6 seeds and 2 slots."""
    out, progress = done
    last = {e["epochs"] for path in alone.values() for e in results(path)[0]["per_seed"]}
    assert len(last) > 1, "choose rates at which the seeds stop unevenly"
    assert progress.finished == 3 and progress.slots == swept.SLOTS
    check_equal(out, alone)
    with pytest.raises(AssertionError):  # twin: runs differ
        check_equal(out, {"slow": alone["quick"]})


def test_slots_are_given_to_those_that_wait(done):
    _, progress = done
    (use,) = progress.uses
    # Idle at the end at most: the epochs of one seed.
    assert use.slots == use.epochs * swept.SLOTS
    assert use.slots - use.busy <= 6
    assert use.host > 0 and use.other > 0


@pytest.mark.parametrize("shrinks", [True, False])
def test_side_by_side_it_is_so_to_rounding(tmp_path, alone, monkeypatch, shrinks):
    sizes, epoch = [], Engine.epoch

    def counted(self, states, *args):
        sizes.append(len(states.seed))
        return epoch(self, states, *args)

    monkeypatch.setattr(Engine, "epoch", counted)
    studied = swept.runs(seed_axis="vmap", train__compaction=shrinks)
    progress = swept.sweep_of(tmp_path, studied, slots=4).run()
    assert progress.finished == 3
    assert sizes[0] == 4 and sizes == sorted(sizes, reverse=True) and (sizes[-1] < 4) == shrinks
    check_close(tmp_path, alone)


def test_slots_are_what_the_memory_holds(monkeypatch):
    """By the program of all seeds; one that the compiler refuses is asked for half as many."""
    experiment, asked = swept.build(next(iter(swept.runs().values()))), []

    def memory_of(experiment, n_seeds):
        asked.append(n_seeds)
        if n_seeds > 8:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: program")
        return 500, 1000 * n_seeds

    stats = {"bytes_limit": 6100 / 0.85}
    device = types.SimpleNamespace(platform="gpu", memory_stats=lambda: stats)
    with monkeypatch.context() as patch:
        patch.setattr("jax.devices", lambda: [device])
        patch.setattr(sweep, "memory_of", memory_of)
        assert sweep.default_slots(experiment, 16) == 5 and asked == [16, 8]
        assert sweep.default_slots(experiment, 3) == 3 and asked[2:] == [3]
        patch.setattr(sweep, "memory_of", lambda *_: None)  # a compiler that does not say
        assert sweep.default_slots(experiment, 16) == 10
    assert sweep.default_slots(experiment, 16) == 10  # a CPU
    # The program that is asked is the one that runs.
    data, used = sweep.memory_of(experiment, 2)
    assert data > 0 and used > 0
    compiled = set(experiment.engine._programs)
    states = experiment.engine.create(np.resize(experiment.seeds, 2), experiment.hparams())
    experiment.engine.epoch(
        states, experiment.train_arrays(), experiment.engine.capacity(experiment.seeds, 0)
    )
    assert {name for name, _ in set(experiment.engine._programs) - compiled} <= {"create"}


@pytest.mark.slow
def test_slots_lie_over_the_devices(tmp_path, alone):
    """Two devices, two slots on each: another program, and so to rounding."""
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"
    process = worker(tmp_path, slots=4, XLA_FLAGS=flags)
    said = process.communicate(timeout=300)[0].split()
    assert said[0] == "3" and said[3] == "2"
    check_close(tmp_path, alone)


def test_told_to_leave_it_saves_its_runs_and_goes_on(tmp_path, alone):
    calls = []

    def leave(now):
        calls.append(now)
        if len(calls) == 4:
            first._notice._receive(signal.SIGTERM, None)

    first = swept.sweep_of(tmp_path, watch=leave, save_seconds=1e6)
    with pytest.raises(Interrupted, match="saved after epoch"):
        first.run()
    assert list(tmp_path.glob("*/checkpoints/[0-9]*"))  # long before the next one was due
    assert not list(tmp_path.glob("*/summary.json"))
    second = swept.sweep_of(tmp_path, keep="best")
    second.run()
    assert 0 < second.progress.before < second.progress.done_here == len(alone)
    check_equal(tmp_path, alone)
    for run in alone:  # and not the whole step of before, which is of other parameters
        assert len(list((tmp_path / run / "checkpoints").iterdir())) == 1


def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path, alone, monkeypatch):
    append, calls = Workdir.append_rows, []

    def full(self, rows):
        calls.append(rows)
        if len(calls) == 9:
            raise UserError(f"{self.path}: cannot write: No space left on device")
        append(self, rows)

    monkeypatch.setattr(Workdir, "append_rows", full)
    with pytest.raises(UserError, match="No space left on device"):
        swept.sweep_of(tmp_path).run()
    swept.sweep_of(tmp_path).run()  # there is room again
    check_equal(tmp_path, alone)


def test_a_disk_that_is_full_at_the_end_of_a_run_is_no_fault_of_the_run(tmp_path, monkeypatch):
    def full(*_, **more):
        try:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise UserError(f"ranks.npz: cannot write: {error.strerror}") from None

    monkeypatch.setattr(sweep, "conclude", full)
    with pytest.raises(UserError, match="No space left on device"):
        swept.sweep_of(tmp_path, {"quick": swept.runs()["quick"]}).run()
    assert not (tmp_path / "quick" / "failed.json").exists()


def test_a_run_whose_last_checkpoint_cannot_be_saved_has_not_ended(tmp_path, alone, monkeypatch):
    """Its save goes on in the background while its users are ranked."""
    write, studied = Checkpoints._write_sums, {"quick": swept.runs()["quick"]}

    def full(self):
        time.sleep(0.5)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Checkpoints, "_write_sums", full)
    with contextlib.suppress(UserError):
        assert swept.sweep_of(tmp_path, studied, save_seconds=1e6).run().failed == ["quick"]
    assert not (tmp_path / "quick" / "summary.json").exists()
    monkeypatch.setattr(Checkpoints, "_write_sums", write)
    assert swept.sweep_of(tmp_path, studied).run().done_here == 1
    check_equal(tmp_path, {"quick": alone["quick"]})
    assert listed(tmp_path / "quick" / "checkpoints")


@pytest.mark.parametrize("keep", ["last", "best"])
def test_a_pruned_run_that_is_killed_before_its_summary_stays_pruned(tmp_path, keep):
    class Pruning(sweep.Sweep):
        def _after_epoch(self, training, seconds):
            super()._after_epoch(training, seconds)
            training.stop = training.stop or training.epochs[0] >= 2

    studied = {"patient": swept.runs(train__stop_patience=9)["patient"]}
    options = {"keep": keep, "save_seconds": 0.0, "slots": 2}
    Pruning(studied, tmp_path, lambda line: None, **options).run()
    expected = results(tmp_path / "patient")
    assert expected[0]["stopped"] == "pruned"
    assert all(entry["epochs"] < 6 for entry in expected[0]["per_seed"])
    (tmp_path / "patient" / "summary.json").unlink()  # the kill
    assert not sweep.Sweep(studied, tmp_path, lambda line: None, **options).run().failed
    assert results(tmp_path / "patient") == expected
    # To `evaluate` it has ended; an extension goes on.
    config = stored_config(Workdir(tmp_path / "patient"))
    for most, stopped in ((6, True), (7, False)):
        experiment = swept.build(config.replace(train={"max_epochs": most}))
        _, states, seconds, found = stored.newest_states(tmp_path / "patient", experiment)
        assert found == stopped == bool(states.done.all()) and STOPPED not in seconds


def test_who_cannot_build_a_program_leaves_the_runs_of_others_alone(tmp_path, monkeypatch):
    def refuse(config):
        raise UserError("data.dir=nowhere: no such folder")

    monkeypatch.setattr(sweep.experiment_lib, "build", refuse)
    with Claims(tmp_path / ".workers") as other:
        assert other.take(["quick"]) == "quick"
        progress = swept.sweep_of(tmp_path).run()
        assert sorted(progress.failed) == ["patient", "slow"]
        assert not (tmp_path / "quick" / "failed.json").exists()
        progress = swept.sweep_of(tmp_path)
        progress._claims.free("quick")  # not its own
        assert progress._claims.others(["quick"]) == {"quick"}


def test_the_same_command_again_does_nothing(done):
    out, _ = done
    before = {p: p.stat().st_mtime_ns for p in out.glob("*/summary.json")}
    progress = swept.sweep_of(out).run()
    assert progress.finished == 3 and progress.done_here == 0
    assert before == {p: p.stat().st_mtime_ns for p in out.glob("*/summary.json")}


def worker(out, pause=0.0, slots=swept.SLOTS, **more):
    env = os.environ | more | {"PYTHONPATH": os.pathsep.join([str(SCRIPT.parent), str(toy.ROOT)])}
    command = [sys.executable, str(SCRIPT), str(out), str(pause), str(slots)]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_killed_anywhere_the_same_command_gives_the_same_files(tmp_path, alone):
    """Kills at moments of a fixed seed, with workers in between that go on."""
    moments = random.Random(0)
    for _ in range(3):
        process = worker(tmp_path, pause=0.1)
        begun = time.monotonic()
        while time.monotonic() - begun < 120 and not list(tmp_path.glob("*/metrics.jsonl")):
            time.sleep(0.05)  # compiling, in which a kill would be too early to lose anything
        time.sleep(moments.uniform(0.05, 1.5))
        process.send_signal(signal.SIGKILL)
        process.wait()
    swept.sweep_of(tmp_path).run()
    check_equal(tmp_path, alone)


@pytest.mark.slow
def test_two_workers_share_a_folder(tmp_path, alone):
    workers = [worker(tmp_path, pause=0.2) for _ in range(2)]
    said = [process.communicate(timeout=300)[0].split() for process in workers]
    assert all(process.returncode == 0 for process in workers)
    assert sum(int(words[1]) for words in said) == 3  # each run once
    swept.sweep_of(tmp_path).run()
    check_equal(tmp_path, alone)


def test_a_dead_worker_is_taken_over_and_one_that_lives_is_not(tmp_path):
    with Claims(tmp_path) as first, Claims(tmp_path) as second:
        assert first.take("ab") == "a" and second.take("ab") == "b"
        assert first.take("ab") is second.take("ab") is None
        assert (first.others("abc"), second.others("abc")) == ({"b"}, {"a"})
        second.free("b")
        assert first.take(["b"]) == "b"
    with Claims(tmp_path) as third:  # the first has ended
        assert third.others("ab") == set() and third.take("ab") == "a"
    holds = "from oa_jax.runs.claims import Claims; import pathlib, sys; "
    holds += "kept = Claims(pathlib.Path(sys.argv[1])); print(kept.take('c'), flush=True); input()"
    command, pipe = [sys.executable, "-c", holds, str(tmp_path)], subprocess.PIPE
    options = {"cwd": toy.ROOT, "stdin": pipe, "stdout": pipe}
    with subprocess.Popen(command, **options) as other, Claims(tmp_path) as fourth:
        assert other.stdout.readline() == b"c\n"
        other.send_signal(signal.SIGSTOP)
        assert fourth.take("c") is None and fourth.others("c") == {"c"}  # it may yet go on
        other.kill()
        other.wait()
        assert fourth.take("c") == "c"


def test_diverged_and_failing_runs_harm_no_other(tmp_path, alone):
    studied = swept.runs()
    bad = studied["quick"].replace(train={"learning_rate": 1e30})
    broken = studied["quick"].replace(model={"d_embed": 5, "heads": 1})
    progress = swept.sweep_of(tmp_path, {"bad": bad, "broken": broken, **studied}).run()
    assert progress.failed == ["broken"] and progress.diverged == ["bad"]
    assert json.loads((tmp_path / "broken/failed.json").read_text()) == {
        "error": "data.dir=nowhere: no such folder"
    }
    assert results(tmp_path / "bad")[0]["tied_share"] == {}  # of seeds that ended well
    check_equal(tmp_path, alone)
    again = swept.sweep_of(tmp_path, {"bad": bad, "broken": broken, **studied}).run()
    assert again.failed == ["broken"]
    said = json.loads((tmp_path / "broken/failed.json").read_text())["error"]
    assert said == "data.dir=nowhere: no such folder"  # and not that the folder is a stranger's
    rows = index.rows(tmp_path, {"bad": bad, "broken": broken, **studied})
    states = [(row["run"], row["status"]) for row in rows]
    assert states[:4] == [("bad", "diverged")] * 2 + [("broken", "failed")] * 2
    assert {status for _, status in states[4:]} == {"finished"}


def test_a_run_that_cannot_begin_or_end_is_recorded_and_the_others_go_on(
    tmp_path, alone, monkeypatch
):
    first = swept.runs()["quick"].replace(first_seed=7)
    studied = {"first": first, "sourced": first.replace(train={"init_from": "nowhere"})}
    conclude = sweep.conclude

    def ended(experiment, *args, **more):
        if experiment.config.first_seed == 7:
            raise UserError("a score is not finite")
        return conclude(experiment, *args, **more)

    monkeypatch.setattr(sweep, "conclude", ended)
    progress = swept.sweep_of(tmp_path, studied | swept.runs()).run()
    assert sorted(progress.failed) == ["first", "sourced"]
    assert "init_from=nowhere" in (tmp_path / "sourced" / "failed.json").read_text()
    check_equal(tmp_path, alone)
    monkeypatch.undo()
    monkeypatch.setattr(sweep.experiment_lib, "build", swept.build)
    mended = swept.sweep_of(tmp_path, studied | swept.runs()).run()
    assert (mended.failed, mended.done_here) == (["sourced"], 1)
    assert not (tmp_path / "first" / "failed.json").exists()


def test_a_domain_without_users_has_no_score():
    """As of a SASRec model of one domain, whose metrics of the other are None."""
    mean = {"val/A/ndcg@10/uni99": 0.25, "val/B/ndcg@10/uni99": None}
    mean |= {"test/A/ndcg@10/full": 0.125, "test/B/ndcg@10/full": None}
    assert index.score_of(mean, "uni99") == index.score_of(mean, None) == 0.25
    words = index.in_words({"mean": mean, "per_seed": []})
    assert words == "test ndcg@10 among all items A 0.1250"
    assert index.score_of({"val/B/ndcg@10/uni99": None}, "uni99") == -1
    mean["val/B/ndcg@10/uni99"] = float("nan")  # in a row of metrics.jsonl before it is written
    assert index.score_of(mean, "uni99") == 0.25


def test_the_score_is_of_the_ranking_that_selects():
    """LLM4CDSR has two sampled ones."""
    both = {"val/A/ndcg@10/official100": 0.3, "val/A/ndcg@10/uni100": 0.1}
    both |= {"val/A/ndcg@10/full": 0.0}
    assert index.score_of({"val/A/ndcg@10/uni99": 0.2, "val/A/ndcg@10/uni999": 0.0}, "uni99") == 0.2
    assert index.score_of(both, "official100") == 0.3
    assert index.score_of(both, None) == pytest.approx(0.2)  # summaries that do not name it


def test_the_index_has_what_varies_and_what_came_out(done):
    out, _ = done
    text = (out / "index.csv").read_text().splitlines()
    names = text[0].split(",")
    assert names[:3] == ["run", "seed", "status"] and len(text) == 7
    varying = {"train.learning_rate", "train.stop_patience"}
    assert varying <= set(names) and "model.d_embed" not in names
    row = dict(zip(names, text[1].split(","), strict=True))
    summary = results(out / "slow")[0]["per_seed"][0]
    name = "test/A/ndcg@10/full"
    assert (row["run"], float(row[name])) == ("slow", summary[name])
    assert (out / "index.parquet").exists()


def test_a_trial_that_was_pruned_is_no_finished_run(done, tmp_path):
    shutil.copytree(done[0] / "quick", tmp_path / "quick")
    path = tmp_path / "quick" / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"stopped": "pruned"}))
    found = index.rows(tmp_path, {"quick": swept.runs()["quick"]})
    assert {row["status"] for row in found} == {"pruned"}


@pytest.mark.parametrize("keep", ["best", "none"])
def test_what_is_kept_of_a_run(tmp_path, alone, keep):
    studied = {"quick": swept.runs()["quick"]}
    swept.sweep_of(tmp_path, studied, keep=keep).run()
    check_equal(tmp_path, {"quick": alone["quick"]})
    checkpoints = tmp_path / "quick" / "checkpoints"
    assert checkpoints.exists() == (keep == "best")
    if keep == "best":  # killed after its last checkpoint: the end is made of it
        (tmp_path / "quick" / "summary.json").unlink()
        swept.sweep_of(tmp_path, studied, keep=keep).run()
        check_equal(tmp_path, {"quick": alone["quick"]})


def test_a_search_is_told_what_its_trials_are_worth(tmp_path, monkeypatch):
    """Trials of one program share its slots; what optuna knows survives the process."""

    def make(trial):
        rate = trial.suggest_float("rate", 1e-3, 0.1, log=True)
        return swept.runs()["quick"].replace(train={"learning_rate": rate})

    search = study.Search(make, trials=5)
    first = swept.sweep_of(tmp_path, search, slots=4)
    progress = first.run()
    assert progress.finished == 5 and len(progress.uses) == 1 and progress.slots == 4
    trials = first._study.trials
    assert len({trial.params["rate"] for trial in trials}) == 5
    told = [t for t in trials if t.state.name == "COMPLETE"]
    assert told and {t.state.name for t in trials} <= {"COMPLETE", "PRUNED"}
    for trial in told:
        summary, *_ = results(tmp_path / f"trial-{trial.number:04d}")
        assert summary["label"] and summary["n_seeds"] == 2
        scores = [index.score_of(entry, summary["watched"]) for entry in summary["per_seed"]]
        assert trial.value == pytest.approx(np.median(scores))
    for trial in trials:
        summary, *_ = results(tmp_path / f"trial-{trial.number:04d}")
        assert (summary.get("stopped") == "pruned") == (trial.state.name == "PRUNED")
    best = first._study.best_trial
    # Another worker has told it since this one looked.
    seen = types.SimpleNamespace(state=first._optuna.trial.TrialState.RUNNING)
    stale = types.SimpleNamespace(trials=[seen] * 5, tell=first._study.tell)
    with monkeypatch.context() as context:
        context.setattr(first, "_study", stale)
        first._count(f"trial-{best.number:04d}")
    again = swept.sweep_of(tmp_path, search)
    assert again.run().done_here == 0 and again._study.best_value == best.value
    first._study.ask()  # by a worker that was killed before it knew its parameters
    more = swept.sweep_of(tmp_path, study.Search(make, trials=6)).run()
    assert (more.finished, more.done_here) == (6, 1)
    rates = [trial.params["rate"] for trial in first._study.trials if trial.params]
    assert len(set(rates)) == len(rates) == 6  # the later process does not draw the same again

    def changed(trial):
        return make(trial).replace(train={"max_epochs": 9})

    with pytest.raises(UserError, match="trial-0000 holds a run of another configuration"):
        swept.sweep_of(tmp_path, study.Search(changed, trials=6)).run()
    log = tmp_path / "optuna.log"
    log.write_bytes(b"{\n" + log.read_bytes())  # and not cut at its end, as by a kill
    with pytest.raises(UserError, match="optuna.log: .*expected what optuna wrote"):
        swept.sweep_of(tmp_path, search).run()
    with pytest.raises(UserError, match="study.json: runs without a search"):
        (tmp_path / "study.json").write_text("{}")
        swept.sweep_of(tmp_path, search).run()


def test_a_trial_that_is_no_run_fails_alone(tmp_path):
    """And again, by the same command: the search goes on."""

    def make(trial):
        rate = trial.suggest_float("rate", 1e-3, 0.1, log=True)
        heads = 3 if trial.number == 1 else 2  # no divisor of the width
        changed = {"train": {"learning_rate": rate}, "model": {"heads": heads}}
        return swept.runs()["quick"].replace(**changed)

    search = study.Search(make, trials=3)
    first = swept.sweep_of(tmp_path, search)
    assert (first.run().finished, first.progress.failed) == (2, ["trial-0001"])
    assert [t.state.name for t in first._study.trials][1] == "FAIL"
    assert "model.heads=3" in (tmp_path / "trial-0001" / "failed.json").read_text()
    again = swept.sweep_of(tmp_path, search).run()
    assert (again.finished, again.done_here, again.failed) == (2, 0, ["trial-0001"])


def test_a_search_whose_file_is_wrong_stops_and_goes_on_when_it_is_right(tmp_path):
    wrong, where = True, f"{re.escape(__file__)}: line \\d+: "

    def make(trial):
        rate = trial.suggest_float("rate", 1e-3, 0.1, log=True)
        return swept.runs()["quick"].replace(train={"learning_rate": rate / (not wrong)})

    def empty(trial):
        return trial.suggest_float("rate", 0.1, 1e-3)

    search = study.Search(make, trials=2)
    for _ in range(2):  # asked for, and found there
        with pytest.raises(UserError, match=where + "ZeroDivisionError"):
            swept.sweep_of(tmp_path / "one", search).run()
    wrong = False
    assert swept.sweep_of(tmp_path / "one", search).run().finished == 2
    for _ in range(2):
        with pytest.raises(UserError, match=where + "ValueError"):
            swept.sweep_of(tmp_path / "two", study.Search(empty, trials=2)).run()


@pytest.mark.parametrize(("make", "trials"), [(None, 3), (str, "3"), (str, 0), (str, True)])
def test_what_is_no_search(make, trials):
    with pytest.raises(UserError, match="^Search: (make|trials)=.*: expected"):
        study.Search(make, trials)


def test_folders_of_others_are_refused(done, tmp_path):
    out, _ = done
    fewer = {name: config for name, config in swept.runs().items() if name != "slow"}
    with pytest.raises(UserError, match="run slow: not in the study of now"):
        swept.sweep_of(out, fewer).run()
    other = swept.runs() | {"quick": swept.runs()["patient"]}
    with pytest.raises(UserError, match="run quick: train.stop_patience: there 0, asked for 1"):
        swept.sweep_of(out, other).run()
    (tmp_path / "study.json.tmp").write_text("{")  # of another worker, or of one that was killed
    files.check_folder(tmp_path, "study.json", "--out")
    with Workdir(tmp_path):
        (tmp_path / "notes.txt").write_text("")
    with pytest.raises(UserError, match="holds notes.txt but no study.json"):
        swept.sweep_of(tmp_path).run()


def test_what_other_workers_end_counts(done, tmp_path):
    """Of ten runs two were there; since then two have ended in a minute, six wait."""
    now = Progress(runs=10, found=2, finished=4, begun=time.monotonic() - 60)
    assert now.seconds_left == pytest.approx(180, abs=1)
    now.before = 1.5  # both were well under way when this one began
    assert now.seconds_left == pytest.approx(720, abs=4)
    sweep = swept.sweep_of(tmp_path)
    sweep._count_finished()
    assert sweep.progress.finished == 0
    name = next(iter(swept.runs()))
    shutil.copytree(done[0] / name, tmp_path / name)  # as another worker leaves it
    for _ in range(2):
        sweep._count_finished()
        assert sweep.progress.finished == 1 and sweep.progress.best[1] == name


def test_workers_write_the_index_one_after_the_other(done):
    sweeps = [swept.sweep_of(done[0]) for _ in range(4)]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for _ in pool.map(lambda i: sweeps[i % 4]._write_index(), range(60)):
            pass
    assert len((done[0] / "index.csv").read_text().splitlines()) == 7


def test_workers_begin_apart_and_go_on_with_the_neighbour(tmp_path):
    """Eight programs, as a study lists them: neighbours are often one to the compiler."""
    one = swept.runs()["slow"]
    experiment = swept.build(one)
    studied = {f"{i}": one.replace(model={"d_embed": 8 + 2 * i}) for i in range(8)}
    workers = [swept.sweep_of(tmp_path, studied) for _ in range(4)]

    def takes(worker):
        (name,) = worker._next_program()
        assert list(worker._queue({name: one}, experiment)) == ["begun"]
        return name

    with contextlib.ExitStack() as stack:
        for worker in workers:
            worker._begin = lambda name, experiment: "begun"
            stack.enter_context(worker._claims)
        first, second, third, fourth = workers
        assert [takes(first), takes(second)] == ["0", "4"]
        assert [takes(first), takes(second), takes(first)] == ["1", "5", "2"]
        assert takes(third) == "7"  # 3, and 6 and 7 are left
        assert [takes(second), takes(first), fourth._next_program()] == ["6", "3", None]
