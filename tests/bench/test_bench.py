"""The command, on the embedded pair and tiny models."""

import json
import subprocess
import sys

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


def test_seeds(tmp_path):
    out = tmp_path / "bench.json"
    done = bench(
        CONFIG,
        *SMALL,
        "--seeds=3,1",
        "--vary=seed_axis=vmap,map",
        "--steps=2",
        "--rounds=2",
        "--users=20",
        f"--out={out}",
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    labels = [(row["variant"], row["seeds"]) for row in found["seeds"]]
    assert labels == [("vmap", 1), ("vmap", 3), ("map", 1), ("map", 3)]
    for row in found["seeds"]:
        assert len(row["seconds"]) == 2 and row["program_bytes"] > 0 and row["peak_bytes"] > 0
        assert row["compile_seconds"] > 0 and 0 < row["roofline_share"] < 1
    held = [row["program_bytes"] for row in found["seeds"]]
    assert held[1] > held[0] and held[1] != held[3]  # by map a seed's temporaries do for all
    assert set(found["evaluation"]) == {"uni99", "full"} and found["evaluated_users"] == 20
    assert found["checkpoint"]["seeds"] == 3 and found["checkpoint"]["bytes"] > 1e4
    assert found["seeds"][0]["step_flops"] > 1e6 and found["ceilings"]["copy"] > 1e8
    lines = done.stdout.splitlines()
    first = next(line for line in lines if line.split()[:2] == ["vmap", "1"])
    assert first.split()[2] == "1.00"
    assert "steps/s" not in done.stdout and "Tflop/s" not in done.stdout  # ratios alone on a CPU


def test_mistakes_are_one_line():
    done = bench(CONFIG, *SMALL, "--vary=seed_axis=map,spin")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "--config.seed_axis=spin: expected one of" in done.stderr


def test_softmax(tmp_path):
    out = tmp_path / "bench.json"
    done = bench(
        CONFIG,
        *SMALL,
        "--softmax",
        "--items=50,200",
        "--positions=32",
        "--rounds=1",
        f"--out={out}",
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())["softmax"]
    assert list(found) == ["50", "200"] and "all items, blocks" in found["50"]
