"""Fixtures for all tests: reference files beside the repository, and random logs."""

import pathlib
import sys

import numpy as np
import pytest

from oa_jax.events.log import make_log

# The toy backbone, which tests of several rooms train, and scripts that import it.
for folder in ("toys", "backbones"):
    sys.path.insert(0, str(pathlib.Path(__file__).parent / folder))

SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared"


def pytest_collection_modifyitems(items):
    """Files with slow tests first: one that began last would run alone while the others wait."""
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


@pytest.fixture(scope="module")
def quick_compile():
    """Programs compile in a fraction of the time and run slower: for tests that mostly compile."""
    import jax

    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="session")
def bitwise():
    """Function (tree, other) -> whether all leaves agree bit for bit."""
    import jax

    def same(tree, other):
        pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True)
        return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)

    return same
