"""Fixtures for all tests: reference files beside the repository, and random logs."""

import atexit
import gc
import importlib.metadata
import os
import pathlib
import shutil
import sys
import tempfile

import numpy as np
import pytest

from oa_jax.events.log import make_log

# The toy backbone, which tests of several rooms train, and scripts that import it.
for folder in ("toys", "backbones"):
    sys.path.insert(0, str(pathlib.Path(__file__).parent / folder))

# Also where there is a GPU: bits are promised for CPUs, and its products are rounded (TF32).
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# One folder of compiled programs for all processes of a session, and not the user's own. Also of
# those that are compiled in a blink: tests run many operations one by one.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="oa-jax-xla-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

# Tests compile for longer than they compute. Where the compiler matters: toy.as_users.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": "true"}
QUICK["xla_cpu_parallel_codegen_split_count"] = 1
if importlib.metadata.version("jaxlib").startswith("0.10."):  # later ones do not know the flag
    QUICK["xla_cpu_use_fusion_emitters"] = "false"
flags = os.environ.get("XLA_FLAGS", "").split()
flags += [f"--{k}={v}" for k, v in QUICK.items() if not any(f"--{k}=" in f for f in flags)]
os.environ["XLA_FLAGS"] = " ".join(flags)
# A tracing leaves many objects behind, and those of a session are few enough to be kept.
gc.set_threshold(50_000, 20, 100)

SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared"
# Made by training, or by compiling many programs: tests that wait for one are slow.
SLOW_FIXTURES = {"alone", "finished", "found", "resident", "stack", "trained", "uneven", "whole"}


@pytest.hookimpl(tryfirst=True)  # before those that are marked are left out
def pytest_collection_modifyitems(items):
    """Files with slow tests first: one that began last would run alone while the others wait."""
    for item in items:
        if SLOW_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker("slow")
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
    """Folder `shared` beside the repository, with `data` and `golden`; skips where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("needs the folder ../shared with published data and golden files")
    return SHARED


@pytest.fixture(scope="session")
def shared_file(shared):
    """Function (*parts) -> path below `shared`; skips, naming the file, where it is absent."""

    def find(*parts) -> pathlib.Path:
        path = shared.joinpath(*parts)
        if not path.exists():
            pytest.skip(f"needs ../shared/{'/'.join(parts)}")
        return path

    return find


@pytest.fixture(scope="session")
def random_log():
    """Function (seed, n_users, n_items, longest) -> a log with every shape of user.

    Lengths 3..longest, many ties in time, repeated items; among the first users one of A items
    only, one of B items only, one that starts in A and one that starts in B.
    """

    def draw(seed, n_users=30, n_items=(12, 17), longest=70):
        rng = np.random.default_rng(seed)
        n_a, n_all = n_items[0], sum(n_items)
        columns = []
        for user in range(n_users):
            count = longest if user == 4 else int(rng.integers(3, longest + 1))
            item = rng.integers(1, n_all + 1, count)
            if user == 0:
                item = rng.integers(1, n_a + 1, count)
            if user == 1:
                item = rng.integers(n_a + 1, n_all + 1, count)
            if user in (2, 3):
                item[0] = n_a if user == 2 else n_a + 1
            time = int(rng.integers(0, 40)) + np.cumsum(rng.integers(0, 3, count))
            columns.append((np.full(count, user), item, time))
        return make_log(*map(np.concatenate, zip(*columns, strict=True)), n_items, "random")

    return draw


@pytest.fixture(scope="session")
def bitwise():
    """Function (tree, other) -> whether all leaves agree bit for bit."""
    import jax

    def same(tree, other):
        pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True)
        return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)

    return same
