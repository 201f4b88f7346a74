"""What JAX is told once a process: where compiled programs are kept, and its own switches; and what
XLA is told of each program."""

import os
import pathlib
import re
import tempfile
from collections.abc import Callable

import jax

from oa_jax.errors import UserError

# Switches of JAX that people set for all of their programs, and what this one is made for: with
# others its numbers would be others, or it would not run.
SWITCHES = {
    "jax_enable_x64": False,
    "jax_disable_jit": False,
    "jax_threefry_partitionable": True,
    "jax_numpy_dtype_promotion": "standard",
    "jax_numpy_rank_promotion": "allow",
}
# What JAX's flag `jax_disable_most_optimizations` sets, for these programs alone.
QUICK_OPTIONS = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
# For an NVIDIA GPU XLA compiles and times each reduction as it would emit it, and as Triton would.
# Triton's form of a few (the draws compare all pairs) takes its compiler minutes.
GPU_OPTIONS = {"xla_gpu_experimental_enable_fusion_autotuner": False}


def set_switches(say: Callable[[str], None]) -> None:
    """Set JAX's switches to those of this program, and say which were others. For a command."""
    for name, ours in SWITCHES.items():
        theirs = getattr(jax.config, name)
        if theirs != ours:
            jax.config.update(name, ours)
            say(f"{name.upper()}={theirs}: not used by this program, which needs {ours}")


def check_switches() -> None:
    """Raise UserError where a switch of JAX is another than this program's. Where the process is
    its own, `set_switches` has set them."""
    for name, ours in SWITCHES.items():
        if (theirs := getattr(jax.config, name)) != ours:
            raise UserError(
                f"{name}={theirs}: expected {ours} while this program works: "
                f"jax.config.update({name!r}, {ours})"
            )


def use_compilation_cache(say: Callable[[str], None] = lambda line: None) -> None:
    """Keep programs in JAX_COMPILATION_CACHE_DIR, which a process may also have set as JAX's own
    option, or the user's cache; those that took a second, or
    JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS.

    JAX_ENABLE_COMPILATION_CACHE=false turns it off. Every command that compiles calls this first.
    say: is told in a line that there is none, as its folder cannot be written.
    """
    variable = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    folder = given = variable or jax.config.jax_compilation_cache_dir
    try:
        if "://" not in (given or ""):  # a URL is JAX's own affair
            root = given or os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
            folder = pathlib.Path(root) if given else pathlib.Path(root) / "oa-jax" / "xla"
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home directory
        reason, folder = getattr(error, "strerror", None) or error, None
        say(f"compiled programs are not kept: {reason} (JAX_COMPILATION_CACHE_DIR names a folder)")
    jax.config.update("jax_compilation_cache_dir", folder and str(folder))


def compiled(lowered: jax.stages.Lowered, platform: str, quick: bool) -> jax.stages.Compiled:
    """`lowered` compiled with the options above, without those that this XLA lacks.

    An option of a GPU that XLA_FLAGS sets is left to it.

    platform: of the devices.  quick: ready sooner, and slower.
    """
    options, given = QUICK_OPTIONS if quick else {}, os.environ.get("XLA_FLAGS", "")
    if platform == "gpu":
        options = options | {k: v for k, v in GPU_OPTIONS.items() if k not in given}
    while True:
        try:
            return lowered.compile(compiler_options=options)
        except jax.errors.JaxRuntimeError as error:
            unknown = re.search(r"No such compile option: '(\w+)'", str(error))
            if not unknown:
                raise
            options = {k: v for k, v in options.items() if k != unknown[1]}
