"""Programs are kept in the user's cache, unless one says otherwise; options of the compiler."""

import os
import subprocess
import sys

import jax
import pytest

from oa_jax.engine.compilation import GPU_OPTIONS, QUICK_OPTIONS, compiled

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


class Lowered:
    """Takes the options that its XLA knows."""

    def __init__(self, *known):
        self.known, self.options = known, None

    def compile(self, compiler_options=None):
        if unknown := set(compiler_options or {}) - set(self.known):
            raise jax.errors.JaxRuntimeError(f"No such compile option: '{unknown.pop()}'")
        self.options = compiler_options


def test_a_gpu_does_not_time_two_forms_of_each_reduction(monkeypatch):
    """Triton's form of some takes minutes to compile (jax 0.11.2 on an H200)."""
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    (ours,) = GPU_OPTIONS
    lowered = Lowered(ours, *QUICK_OPTIONS)
    compiled(lowered, "gpu", quick=False)
    assert lowered.options == {ours: False}
    compiled(lowered, "cpu", quick=True)
    assert lowered.options == QUICK_OPTIONS
    monkeypatch.setenv("XLA_FLAGS", f"--{ours}=true")
    compiled(lowered, "gpu", quick=True)
    assert lowered.options == QUICK_OPTIONS


def test_an_option_that_this_xla_lacks_stops_nothing(monkeypatch):
    monkeypatch.setattr("oa_jax.engine.compilation.QUICK_OPTIONS", {"xla_no_such_option": 1})
    program = jax.jit(lambda x: x + 1).lower(1.0)
    assert compiled(program, "cpu", quick=True)(1.0) == 2.0
