"""The commands keep compiled programs, unless they are told not to."""

import os
import subprocess
import sys

import pytest

SMALL = ("--config.model.d_embed=8", "--config.model.d_ffn=8", "--config.data.world.n_users=60")


@pytest.mark.parametrize(
    ("variables", "kept"), [({}, True), ({"JAX_ENABLE_COMPILATION_CACHE": "false"}, False)]
)
def test_programs_are_kept_unless_turned_off(tmp_path, variables, kept):
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    config = "--config=configs/abxi.py:pair=synthetic,gca=none,runlocal"
    command = [sys.executable, "-m", "oa_jax.inspect", config, *SMALL]
    done = subprocess.run(
        command, env=environment | {"XDG_CACHE_HOME": str(tmp_path)} | variables,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert any((tmp_path / "oa-jax" / "xla").glob("*-cache")) == kept
