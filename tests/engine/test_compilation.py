"""Programs are kept in the user's cache, unless one says otherwise."""

import os
import subprocess
import sys

import pytest

# A run and its commands call this first (runs/test_extend.py).
PROGRAM = """
import jax
from oa_jax.engine.compilation import use_compilation_cache
use_compilation_cache()
assert jax.config.jax_persistent_cache_min_compile_time_secs == 1
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.jit(lambda x: x + 1)(1.0)
"""


@pytest.mark.parametrize(
    ("variables", "kept"), [({}, True), ({"JAX_ENABLE_COMPILATION_CACHE": "false"}, False)]
)
def test_programs_are_kept_unless_turned_off(tmp_path, variables, kept):
    ours = ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")
    environment = {k: v for k, v in os.environ.items() if k not in ours}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=environment | {"XDG_CACHE_HOME": str(tmp_path)} | variables,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert any((tmp_path / "oa-jax" / "xla").glob("*-cache")) == kept
