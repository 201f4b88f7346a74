"""slurm.sbatch under a real Slurm, which the test starts for itself on loopback.

Debian's packages slurmctld, slurmd and slurm-client are enough; without them it is skipped.
"""

import contextlib
import getpass
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import time

import polars as pl
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
LIMIT = 600
NEEDED = ("slurmctld", "slurmd", "sbatch", "srun", "scancel", "scontrol", "sinfo")
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
CredType=cred/none
AuthInfo=cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
NodeName={host} NodeAddr=127.0.0.1 Port={node_port} CPUs=16 Gres=gpu:2 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""

STUDY = """
from oa_jax import presets

def get_study(arg=None):
    configs = {act: presets.load("configs/abxi.py:gca=0,runlocal") for act in ("sigmoid", "tanh")}
    for act, config in configs.items():
        fields = {"gca.gate_act": act, "train.max_epochs": 40, "train.stop_patience": 99}
        config.update_from_flattened_dict(fields | {"seeds": 2})
    return configs
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        any(shutil.which(name) is None for name in NEEDED),
        reason="needs Slurm's programs (Debian: slurmctld, slurmd, slurm-client)",
    ),
]


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """Function (command, …) -> its standard output, with the cluster of one node running."""
    folder = tmp_path_factory.mktemp("slurm")
    for name in ("state", "spool"):
        (folder / name).mkdir()
    text = CONFIGURATION.format(
        host=socket.gethostname().split(".")[0],
        user=getpass.getuser(),
        folder=folder,
        controller_port=free_port(),
        node_port=free_port(),
    )
    (folder / "slurm.conf").write_text(text)
    (folder / "gres.conf").write_text("Name=gpu File=/dev/null\nName=gpu File=/dev/zero\n")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SLURM")}
    environment |= {"SLURM_CONF": str(folder / "slurm.conf"), "PYTHON": sys.executable}
    environment |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}

    def call(*command):
        command = [*map(str, command)]
        return subprocess.run(
            command, capture_output=True, text=True, env=environment, cwd=ROOT, check=True
        ).stdout

    with contextlib.ExitStack() as daemons:
        for name in ("slurmctld", "slurmd"):
            log = daemons.enter_context((folder / f"{name}.out").open("w"))
            daemon = subprocess.Popen([name, "-D"], env=environment, stdout=log, stderr=log)
            daemons.callback(daemon.wait)
            daemons.callback(daemon.terminate)
        wait_for(lambda: "idle" in call("sinfo", "-h", "-o", "%T"), 30)
        yield call


def wait_for(holds, limit=LIMIT):
    deadline = time.monotonic() + limit
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_a_notice_saves_queues_again_and_the_run_ends(slurm, tmp_path):
    out, workdir = tmp_path / "job.out", tmp_path / "run"
    job = slurm(
        *("sbatch", "--parsable", "--ntasks-per-node=2", "--gpus-per-node=1", "--cpus-per-task=1"),
        *(f"--output={out}", "launch/slurm.sbatch"),
        *("--config=configs/abxi.py:pair=synthetic,runlocal", f"--workdir={workdir}"),
        *("--config.seeds=2", "--config.train.max_epochs=40", "--config.train.stop_patience=99"),
        "--config.train.checkpoint_every=99",
    ).strip()

    def said(words):
        state = slurm("squeue", "-h", "-j", job, "-o", "%T").strip()
        text = out.read_text() if out.exists() else ""
        assert state or "results in" in text, text
        return re.search(words, text)

    wait_for(lambda: said(r"(?m)^epoch +2 "))
    slurm("scancel", "--signal=TERM", job)  # as Slurm itself, to the tasks
    wait_for(lambda: said("queued again"))
    epoch = int(said(r"is saved after epoch (\d+)")[1])
    assert 2 <= epoch < 40
    wait_for(lambda: said("results in"))
    wait_for(lambda: slurm("squeue", "-h") == "")  # a job's end is told to the controller
    text = out.read_text()
    assert "1 node(s), 2 task(s), restart 0" in text and "2 task(s), restart 1" in text
    assert f"going on after epoch {epoch}\n" in text and text.count("cpu x2 (seed:2") == 2
    rows = (workdir / "metrics.jsonl").read_text().count("\n")
    assert rows == (40 + 1) * 2  # every epoch once, and the one before training


def test_workers_of_an_array_share_a_sweep(slurm, tmp_path):
    study, sweep = tmp_path / "study.py", tmp_path / "sweep"
    study.write_text(STUDY)
    array = slurm(
        *("sbatch", "--parsable", "--array=1-2", "--ntasks-per-node=1", "--gpus-per-node=1"),
        *("--cpus-per-task=1", f"--output={tmp_path}/%a.out", "launch/slurm.sbatch"),
        *(f"--study={study}", f"--out={sweep}"),
    ).strip()
    texts = {}

    def said(task, words):
        path = tmp_path / f"{task}.out"
        texts[task] = path.read_text() if path.exists() else ""
        return re.search(words, texts[task])

    wait_for(lambda: all((sweep / name / "metrics.jsonl").exists() for name in ("sigmoid", "tanh")))
    slurm("scancel", "--signal=TERM", f"{array}_1")
    wait_for(lambda: said("1", "queued again"))
    wait_for(lambda: slurm("squeue", "-h") == "")
    assert said("1", "restart 1") and said("2", "restart 0")
    rows = pl.read_csv(sweep / "index.csv")
    assert rows["status"].to_list() == ["finished"] * len(rows) and len(rows) == 2 * 2
