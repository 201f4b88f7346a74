"""PCA against its definition, the sign convention, caps."""

import numpy as np
import pytest
from sklearn.decomposition import PCA

from oa_jax.errors import UserError
from oa_jax.text import vectors as reduction


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(1)
    return (rng.normal(size=(60, 9)) * np.arange(9, 0, -1) + 3).astype(np.float32)


def by_library(rows, width):
    """scikit-learn's PCA, the sign of an axis by its largest entry."""
    model = PCA(width, svd_solver="full")
    projected = model.fit_transform(rows.astype(np.float64))
    at = np.abs(model.components_).argmax(1)
    signs = np.sign(model.components_[np.arange(width), at])
    return projected * signs, model.explained_variance_ratio_.sum()


def test_projection_and_variance_are_those_of_the_library(rows):
    found, kept = reduction.pca(rows, 4)
    expected, share = by_library(rows, 4)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert found.dtype == np.float32
    assert kept == pytest.approx(share)


def test_repeats_are_bitwise_and_signs_do_not_follow_the_order_of_rows(rows):
    first = reduction.pca(rows, 5)[0]
    assert reduction.pca(rows.copy(), 5)[0].tobytes() == first.tobytes()
    order = np.random.default_rng(0).permutation(len(rows))
    np.testing.assert_allclose(reduction.pca(rows[order], 5)[0], first[order], atol=1e-4)
    # Twin: mirrored data must move, or the comparison above could not fail.
    assert np.abs(reduction.pca(-rows, 5)[0] - first).max() > 1


def test_all_axes_keep_distances(rows):
    found, kept = reduction.pca(rows, reduction.widest(rows))
    assert kept == pytest.approx(1)
    distances = [np.linalg.norm(r[:, None] - r[None], axis=-1) for r in (rows, found)]
    np.testing.assert_allclose(*distances, atol=1e-4)
    assert reduction.widest(rows[:5]) == 4 and reduction.widest(rows) == 9


def test_equal_rows_have_no_variance():
    found, kept = reduction.pca(np.ones((6, 4), np.float32), 2)
    assert kept == 0 and not found.any()


def test_a_width_that_the_data_do_not_allow_is_cut_aloud():
    said = []
    assert reduction.capped("local_width", 128, 40, "41 vectors", said.append) == 40
    assert said == ["--local_width=128: cut to 40, which is what 41 vectors allow"]
    assert reduction.capped("local_width", 8, 40, "41 vectors", said.append) == 8
    assert len(said) == 1


@pytest.mark.parametrize(("width", "most"), [(0, 5), (3, 0)])
def test_no_width_at_all_is_refused(width, most):
    with pytest.raises(UserError, match=f"--global_width={width}: "):
        reduction.capped("global_width", width, most, "1 vector", print)
