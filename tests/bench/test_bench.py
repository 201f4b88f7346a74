"""The command, on the embedded pair and tiny models."""

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

SMALL = (
    "--config.model.d_embed=8", "--config.model.d_ffn=8", "--config.train.batch_size=16",
    "--config.evaluate.block_users=16", "--config.train.probe_users=8",
    "--config.data.world.n_users=60", "--config.train.quick_compile=true",
)  # fmt: skip
CONFIG = "--config=configs/abxi.py:pair=synthetic,gca=none,runlocal"


def bench(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "oa_jax.bench", *arguments],
        capture_output=True, text=True, timeout=1800, check=False,
    )  # fmt: skip


def test_one_number_of_seeds(tmp_path):
    out = tmp_path / "bench.json"
    done = bench(
        CONFIG, *SMALL, "--seeds=1", "--steps=1", "--rounds=1", "--users=20", f"--out={out}"
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert [row["seeds"] for row in found["seeds"]] == [1] and found["steps"] == 1
    assert found["ceilings"]["copy"] > 1e8 and found["environment"]["packages"]["jax"]
    assert "compiling" in done.stderr  # said before it takes long
    assert any(line.split()[:2] == ["1", "1.00"] for line in done.stdout.splitlines())


def test_mistakes_are_one_line():
    done = bench(CONFIG, *SMALL, "--vary=seed_axis=map,spin")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "--config.seed_axis=spin: expected one of" in done.stderr
    done = bench("--study=configs/studies/compare.py:runlocal", "--vary=nonsense")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1) and "--vary: with" in done.stderr
    done = bench(CONFIG, *SMALL, "--out=/proc/none/x.json")  # before it measures for minutes
    assert (done.returncode, done.stderr.count("\n")) == (2, 1) and "--out=/proc" in done.stderr
