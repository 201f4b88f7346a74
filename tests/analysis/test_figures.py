"""The style: told apart without colour, numbers for people, files written at once."""

import types

import matplotlib.colors
import numpy as np
import polars as pl
import pytest

from analysis import figures, output
from oa_jax.errors import UserError


def luminance(colour):
    """Relative luminance of sRGB (ITU-R BT.709)."""
    c = np.array(matplotlib.colors.to_rgb(colour))
    linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def test_no_two_marks_share_colour_marker_or_line():
    for key in ("color", "marker", "linestyle"):
        assert len({str(mark[key]) for mark in figures.MARKS}) == len(figures.MARKS)
    greys = sorted(luminance(mark["color"]) for mark in figures.MARKS[:3])
    assert min(np.diff(greys)) > 0.05  # the three variants differ in print, too


def test_variants_keep_their_marks_and_other_names_differ():
    names = ["early", "GCA[1]", "baseline", "stack (run 2)"]
    marks = figures.marks(names)
    assert [marks[n]["marker"] for n in ("baseline", "early", "stack (run 2)")] == ["o", "s", "^"]
    assert len({mark["marker"] for mark in marks.values()}) == 4
    assert len(figures.marks([f"x{i}" for i in range(20)])) == 20


def test_a_figure_is_saved_as_png_and_pdf(tmp_path):
    _, figure = figures.by_domain(
        "a", "b", lambda axis, _: axis.plot([0, 1], [1, 2]), "c", "d", 3.0
    )
    figures.save(tmp_path, {"one": figure})
    assert (tmp_path / "figures/one.png").read_bytes()[:4] == b"\x89PNG"
    assert (tmp_path / "figures/one.pdf").read_bytes()[:4] == b"%PDF"
    assert len(list((tmp_path / "figures").iterdir())) == 2


def test_names_of_files_are_plain():
    assert figures.file_name("scaling", "ABXI · Food-Kitch (λ) · as drawn") == (
        "scaling_abxi_food_kitch_as_drawn"
    )


@pytest.mark.parametrize(
    ("value", "sign", "text"),
    [
        (0.12345, False, "0.123"),
        (-0.5, False, "−0.500"),
        (0.5, True, "+0.500"),
        (-0.0001, False, "0.000"),
        (None, True, "–"),
        (float("nan"), False, "–"),
        (float("inf"), False, "–"),
    ],
)
def test_numbers_for_people(value, sign, text):
    assert output.number(value, 3, sign) == text


def test_an_interval_needs_both_ends():
    assert output.interval(-1, 1, 1) == "[−1.0, 1.0]"
    assert output.interval(None, 1) == output.interval(0.0, float("nan")) == ""


def test_a_folder_is_no_pattern(tmp_path):
    runs = [types.SimpleNamespace(name="x", digest="of x", setting="s")]
    for folder, value in (("out[1]", 1), ("out1", 2)):
        output.write_frame(tmp_path / folder, "t", pl.DataFrame({"a": [value], "run": ["x"]}))
    assert output.read_frame(tmp_path / "out[1]", "t", runs)["a"].to_list() == [1]


def test_frames_are_read_back(tmp_path):
    frame = pl.DataFrame({"a": [1, None, 3], "run": ["x", "x", "y"]})
    runs = [types.SimpleNamespace(name="x", digest="of x", setting="s")]
    output.write_frame(tmp_path, "t", frame)
    read = output.read_frame(tmp_path, "t", runs)
    assert read.drop("setting").equals(frame[:2]) and set(read["setting"]) == {"s"}
    assert output.read_frame(tmp_path, "none", runs) is None
    (tmp_path / "t.parquet").write_bytes(b"PAR1 cut")
    with pytest.raises(UserError, match="t.parquet: not a parquet file"):
        output.read_frame(tmp_path, "t", runs)
