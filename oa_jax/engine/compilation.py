"""Compiled programs are kept between calls of the commands."""

from __future__ import annotations

import os
import pathlib

import jax


def use_compilation_cache() -> None:
    """Keep programs in JAX_COMPILATION_CACHE_DIR or the user's cache, those that took a second.

    JAX_ENABLE_COMPILATION_CACHE=false turns it off. Every command that compiles calls this first.
    """
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        root = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
        jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(root) / "oa-jax" / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
