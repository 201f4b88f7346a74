"""Shared by the tests of training: the toy backbone's folder on the path, tree comparison."""

import pathlib
import sys

import jax
import numpy as np
import pytest

# Test modules of several folders may have equal names, so these folders are not packages.
sys.path.insert(0, str(pathlib.Path(__file__).parent))


@pytest.fixture(scope="session")
def bitwise():
    """Function (tree, other) -> whether all leaves agree bit for bit."""

    def same(tree, other):
        pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True)
        return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)

    return same
