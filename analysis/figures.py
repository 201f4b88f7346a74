"""One style for all figures: told apart by marker and line as well as by colour, print-friendly."""

import functools
import io
import pathlib
import re
from collections.abc import Callable

import matplotlib
import numpy as np
import polars as pl
from matplotlib.figure import Figure

from oa_jax import files

STYLE = {
    "font.size": 9.0,
    "axes.titlesize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "xtick.labelsize": 8.0,
    "ytick.labelsize": 8.0,
    "legend.fontsize": 8.0,
    "legend.frameon": False,
    "savefig.dpi": 160,
    "pdf.fonttype": 42,  # letters stay letters
}
# Okabe and Ito's colours, in an order whose greys differ, with a marker and a line each.
MARKS = (
    {"color": "#000000", "marker": "o", "linestyle": "-"},
    {"color": "#0072B2", "marker": "s", "linestyle": "--"},
    {"color": "#D55E00", "marker": "^", "linestyle": "-."},
    {"color": "#009E73", "marker": "D", "linestyle": (0, (1, 1))},
    {"color": "#CC79A7", "marker": "v", "linestyle": (0, (5, 1, 1, 1, 1, 1))},
    {"color": "#56B4E9", "marker": "P", "linestyle": (0, (6, 2))},
    {"color": "#E69F00", "marker": "X", "linestyle": (0, (3, 1))},
)
# A null as a dotted line, so that a number can be held against it.
NULL = {"color": "#777777", "linestyle": (0, (1, 2)), "linewidth": 1.1, "zorder": 1}
PLACE_LINES = {"0": "-", "1": "--", "2": ":"}  # of the places of GCA
FIRST = ("baseline", "early", "stack")  # these look the same in every figure
WIDTH = 7.2  # inches


def marks(names) -> dict[str, dict]:
    """A colour, marker and line for each name; `baseline`, `early` and `stack` keep theirs. Where
    one of them is missing, the first name such as `early (run 1)` has its mark."""
    names = list(dict.fromkeys(names))
    out = {}
    for first, mark in zip(FIRST, MARKS, strict=False):
        if of_kind := [n for n in names if n.split(" (")[0] == first]:
            out[first if first in of_kind else of_kind[0]] = mark
    spare = [mark for mark in MARKS if mark not in out.values()] or list(MARKS)
    for i, name in enumerate(n for n in names if n not in out):
        out[name] = spare[i % len(spare)]
    return out


def of_runs(frame: pl.DataFrame, runs) -> tuple[list, dict[str, str], dict[str, dict]]:
    """The runs that a frame has, {run's name: how figures call it}, {run's name: its mark}.

    A run is called by its variant, with its name where that is not enough.
    """
    runs = [run for run in runs if run.name in frame["run"]]
    variants = [run.variant for run in runs]
    one_model = len({run.backbone_configuration for run in runs}) == 1
    enough = {name for name in variants if one_model and variants.count(name) == 1}
    labels = {r.name: r.variant + f" ({r.name})" * (r.variant not in enough) for r in runs}
    looks = marks(labels.values())
    return runs, labels, {name: looks[label] for name, label in labels.items()}


def point_style(mark: dict, place: str = "0") -> dict:
    """The mark for points without a line: filled at place 0 of GCA, hollow at 1, half at 2."""
    filling = {"1": "none", "2": "bottom"}.get(place, "full")
    return mark | {"linestyle": "none", "fillstyle": filling}


def spans(axis, x, y, low, high, look: dict, label: str) -> None:
    """Points with horizontal intervals; where an end is nan, the point alone."""
    widths = np.nan_to_num(np.maximum([x - low, high - x], 0))
    axis.errorbar(x, y, xerr=widths, label=label, **look | {"elinewidth": 0.9, "markersize": 4})


def title(axis, text: str) -> None:
    """A title over the axis' left end."""
    axis.set_title(text, loc="left", fontsize=STYLE["axes.titlesize"])


def for_each(*keys: str) -> Callable:
    """Of `drawn(rows, *key, *more) -> (file's name, figure), None if there is nothing to show` a
    decorator makes `draw(frame, *more) -> {file's name: figure}`, one for each key of the frame."""

    def decorate(drawn):
        @functools.wraps(drawn)
        def draw(frame: pl.DataFrame, *more) -> dict[str, Figure]:
            groups = frame.group_by(keys, maintain_order=True)
            return dict(filter(None, (drawn(part, *key, *more) for key, part in groups)))

        return draw

    return decorate


def by_domain(name, setting, panel, heading, label, height, rows=1, **more) -> tuple[str, Figure]:
    """(file's name, figure) with a column of panels for each domain, a heading and one legend.

    panel: function (column of axes, domain) that draws; a single axis where there is one row.
    label: what the figure shows, for those who cannot see it; the panels' titles are added.
    """
    with matplotlib.rc_context(STYLE):  # a figure that pyplot does not know
        figure = Figure(figsize=(WIDTH, height * rows), layout="constrained")
        axes = figure.subplots(rows, 2, squeeze=False, **more)
    for column, domain in zip(axes.T, "AB", strict=True):
        title(column[0], f"Domain {domain}")
        panel(column if rows > 1 else column[0], domain)
    figure.suptitle(heading, fontsize=8.5, x=0.01, ha="left", color="#444444")
    found = {}  # one legend for all axes, equal labels once
    for axis in axes.flat:
        for handle, text in zip(*axis.get_legend_handles_labels(), strict=True):
            found.setdefault(text, handle)
    if found:
        fit = 3 if max(map(len, found)) < 40 else 2
        place = {"loc": "outside lower center", "ncols": min(fit, len(found))}
        with matplotlib.rc_context(STYLE):
            figure.legend(found.values(), found, **place)
    titles = "; ".join(axis.get_title("left") for axis in axes[0])
    figure.set_label(f"{label}. {titles}")
    return file_name(name, setting), figure


@functools.lru_cache(maxsize=128)
def render(figure: Figure, kind: str) -> bytes:
    """The figure as `png` or `pdf`, drawn once; it must not change afterwards."""
    buffer = io.BytesIO()
    metadata = {"CreationDate": None} if kind == "pdf" else {"Software": None}
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, format=kind, metadata=metadata)
    return buffer.getvalue()


def save(out: pathlib.Path, figures: dict[str, Figure]) -> None:
    """`figures/NAME.png` and `.pdf` in `out`."""
    for name, figure in figures.items():
        for kind in ("png", "pdf"):
            files.write(pathlib.Path(out) / "figures" / f"{name}.{kind}", render(figure, kind))


def file_name(*parts: str) -> str:
    """A plain name for a file from texts: `correlate_abxi_synthetic`."""
    return re.sub(r"[^a-z0-9]+", "_", "_".join(parts).lower()).strip("_")
