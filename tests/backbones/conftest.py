"""The official values in the file that a module's `GOLDEN` names."""

import numpy as np
import pytest


@pytest.fixture(scope="module")
def golden(request):
    with np.load(request.module.GOLDEN) as archive:
        return dict(archive)


@pytest.fixture
def save(golden, tmp_path):
    """Function (drop, changed) -> path of the golden fixture with arrays changed."""

    def write(drop="", changed=()):
        path = tmp_path / "fixture.npz"
        np.savez(path, **{k: v for k, v in (golden | dict(changed)).items() if k != drop})
        return str(path)

    return write
