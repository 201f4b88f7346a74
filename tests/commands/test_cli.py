"""What the commands share: errors of one line, any sign on any output, JAX's own switches."""

import io
import logging
import os
import pathlib
import subprocess
import sys
import types

import jax
import pytest

from oa_jax import __main__
from oa_jax.commands import cli
from oa_jax.engine import compilation
from oa_jax.errors import Interrupted, UserError
from oa_jax.nn.draws import Purpose, key_of

OUTSIDE = {
    UserError("a: b"): (2, "error: a: b"),
    OSError(28, "No space left on device", "x.json"): (2, "error: x.json: No space left on device"),
    MemoryError("Unable to allocate 7 TiB"): (2, "error: out of memory: Unable to allocate 7 TiB"),
    jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 9\nGiB"): (
        2,
        "error: out of memory: RESOURCE_EXHAUSTED: 9; GiB",
    ),
    Interrupted("w is saved"): (75, "interrupted: w is saved: the same command goes on there"),
    Interrupted("w", by_key=True): (130, "interrupted: w: the same command goes on there"),
    KeyboardInterrupt(): (
        130,
        "interrupted: the same command goes on after the last epoch that was saved",
    ),
}


@pytest.mark.parametrize("error", OUTSIDE, ids=lambda error: type(error).__name__)
def test_what_goes_wrong_outside_is_a_line_and_a_status(monkeypatch, capsys, error):
    status, line = OUTSIDE[error]
    monkeypatch.setattr(os, "_exit", sys.exit)
    with pytest.raises(SystemExit) as left, cli.one_line_errors(resumes=True):
        raise error
    assert (left.value.code, capsys.readouterr().err) == (status, line + "\n")


AT_WORK = """
import os, signal, sys, threading, time
import jax, jax.numpy as jnp
from oa_jax import __main__
from oa_jax.commands import cli
work = jax.jit(lambda x: jax.lax.fori_loop(0, 10**7, lambda i, a: jnp.tanh(a @ a), x))
x = jnp.ones((64, 64))
work = work.lower(x).compile()
with cli.one_line_errors(resumes=True):
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    jax.device_get(work(x))
"""


def test_leaving_at_once_does_not_wait_for_the_device():
    """What is under way there would take minutes."""
    process = subprocess.run(
        [sys.executable, "-c", AT_WORK], capture_output=True, text=True, timeout=60
    )
    assert process.returncode == 130, process.stderr
    assert "goes on after the last epoch" in process.stderr


@pytest.mark.parametrize("error", [RuntimeError("ours"), AssertionError(), ValueError("ours")])
def test_what_goes_wrong_inside_keeps_its_traceback(error):
    with pytest.raises(type(error)), cli.one_line_errors(resumes=True):
        raise error


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_signs_that_the_output_has_not_are_replaced(monkeypatch, encoding):
    streams = [io.TextIOWrapper(io.BytesIO(), encoding) for _ in range(2)]
    for name, stream in zip(("stdout", "stderr"), streams, strict=True):
        monkeypatch.setattr(sys, name, stream)
    with pytest.raises(UnicodeEncodeError):
        sys.stdout.write("−")
    cli.write_any_sign()
    cli.say("0.25 ± 0.01 − …ü☃")
    print("a – b", file=sys.stderr)
    sys.stderr.flush()
    plain, none = ("+/-", "??") if encoding == "ascii" else ("±", "ü?")
    assert streams[0].buffer.getvalue().decode(encoding) == f"0.25 {plain} 0.01 - ...{none}\n"
    assert streams[1].buffer.getvalue() == b"a - b\n"


@pytest.fixture
def switches():
    """JAX's configuration is put back after the test."""
    names = [*compilation.SWITCHES, "jax_compilation_cache_dir", "jax_default_prng_impl"]
    before = {name: getattr(jax.config, name) for name in names}
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture
def no_cache(switches):
    """Nor one that the process has chosen."""
    jax.config.update("jax_compilation_cache_dir", None)


def test_switches_of_jax_are_put_to_ours_and_said(switches):
    said = []
    compilation.set_switches(said.append)
    assert said == []
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_disable_jit", True)
    compilation.set_switches(said.append)
    assert [line.split("=")[0] for line in said] == ["JAX_ENABLE_X64", "JAX_DISABLE_JIT"]
    assert not jax.config.jax_enable_x64 and not jax.config.jax_disable_jit


def test_the_generator_is_the_programs_own(switches):
    """JAX_DEFAULT_PRNG_IMPL chooses another for the process."""
    ours = jax.random.key_data(key_of(3, Purpose.INIT, 0)).tolist()
    jax.config.update("jax_default_prng_impl", "unsafe_rbg")
    assert jax.random.key_data(key_of(3, Purpose.INIT, 0)).tolist() == ours
    assert jax.random.key_data(jax.random.key(3)).shape == (4,)  # twin: the switch is on


def no_home():
    raise RuntimeError("Could not determine home directory.")


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({}, "Could not determine home directory."),
        ({"XDG_CACHE_HOME": "/proc/none"}, "No such file or directory"),
        ({"JAX_COMPILATION_CACHE_DIR": "/dev/null/cache"}, "Not a directory"),
    ],
)
def test_without_a_place_for_it_there_is_no_cache_and_a_line(
    no_cache, monkeypatch, variables, words
):
    monkeypatch.setattr(pathlib.Path, "home", no_home)
    for name in ("JAX_COMPILATION_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    said = []
    compilation.use_compilation_cache(said.append)
    assert len(said) == 1 and f"are not kept: {words}" in said[0]
    assert jax.config.jax_compilation_cache_dir is None


def test_a_cache_that_the_process_has_chosen_stays(no_cache, monkeypatch, tmp_path):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "mine"))
    compilation.use_compilation_cache()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "mine")


def test_a_cache_is_made_where_it_can_be(no_cache, monkeypatch, tmp_path):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    said = []
    compilation.use_compilation_cache(said.append)
    assert said == [] and os.listdir(tmp_path / "oa-jax") == ["xla"]
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "gs://bucket/xla")
    compilation.use_compilation_cache(said.append)
    assert said == [] and jax.config.jax_compilation_cache_dir == "gs://bucket/xla"


ABANDONED = """
import asyncio, logging, sys, warnings
from oa_jax import __main__
from oa_jax.commands import cli
if sys.argv[1] == "quiet":
    cli.leave_abandoned_reads_unsaid()
class Left:
    def __del__(self):
        raise RuntimeError("Event loop is closed")
del (left := [Left()])[0]
logging.getLogger("asyncio").error("Future exception was never retrieved\\nfuture: x")
async def read(): pass
read()
class Other:
    def __del__(self):
        raise RuntimeError("something else")
del (other := [Other()])[0]
"""


@pytest.mark.parametrize("how", ["quiet", "told"])
def test_what_a_failed_restore_leaves_behind_is_unsaid_in_a_command(how):
    done = subprocess.run([sys.executable, "-c", ABANDONED, how], capture_output=True, text=True)
    said = ("Event loop is closed", "never retrieved", "never awaited")
    assert [words in done.stderr for words in said] == [how == "told"] * 3
    assert "something else" in done.stderr


def test_the_name_of_the_process_is_one_word(monkeypatch):
    started = []
    module = types.SimpleNamespace(
        __doc__="", main=None, run=lambda *_, **__: started.append(sys.argv)
    )
    monkeypatch.setattr("importlib.import_module", lambda name: module)
    monkeypatch.setattr(sys, "argv", ["-m", "data", "list"])
    monkeypatch.setattr(sys.modules["__main__"], "__doc__", "")
    __main__.main()
    assert started == [["oa_jax-data", "list"]]


def test_why_a_device_is_not_used_is_said(monkeypatch, capsys):
    """All other notes of libraries are hidden; these would leave a GPU's owner on the CPU."""
    log = logging.getLogger("jax._src.xla_bridge")
    for one in (log, logging.getLogger("jax_plugins")):
        for name in ("handlers", "propagate", "level"):
            monkeypatch.setattr(one, name, getattr(one, name))
    cli.tell_of_devices()
    log.warning("An NVIDIA GPU may be present")
    log.info("Unable to initialize backend 'tpu'")
    assert capsys.readouterr().err == "warning: An NVIDIA GPU may be present\n"
