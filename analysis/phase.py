"""`phase`: where GCA gains, and how its update lies to X, over two fields of the configuration.

A cell is a run with GCA at one value of `--x` and of `--y`: its gain over the baseline of the same
configuration, and the angle of its best parameters, beside what `orthogonality` has measured of
them if that was run. Runs that differ in more are drawn apart, each kind on a diagram of its own; a
field that follows from the two, as a feed-forward width that is a multiple of the width, makes no
kind.
"""

import functools
import itertools
import json

import numpy as np
import polars as pl
from absl import flags
from matplotlib import colormaps, colors
from matplotlib.cm import ScalarMappable
from matplotlib.patches import Rectangle
from scipy.stats import kendalltau

from oa_jax.errors import UserError
from oa_jax.events.log import DOMAINS
from oa_jax.events.oracles import target_ranks
from oa_jax.events.world import World, generate

from . import correlate, figures, table
from .differences import differing_fields, few, follows, in_words
from .output import columns, interval, number, percent, read_frame, sheet_of, write_frame
from .page import Section
from .resampling import cluster_interval, mean_interval
from .runs import Run, finished

ANGLE = "gated_abs_cos"
SCHEMA = columns("kind domain run baseline x y", "", "gain low high")
SCHEMA |= columns("", "", "angle angle_low angle_high shuffled centred oracle")
LEAST_ORACLE = 0.005  # of which a gain is shown as a share
FEWEST_KINDS = 6  # whose order says something


def define_flags() -> None:
    flags.DEFINE_string("x", "data.world.redundancy", "phase: the field from left to right.")
    flags.DEFINE_string("y", "model.d_embed", "phase: the field from bottom to top.")
    table.define_pair_seeds()


def kinds(runs: list[Run], x: str, y: str) -> dict[str, str]:
    """{run: its places, and what else but x and y is not as in most runs}: `early, source=self`."""
    more = apart(runs, x, y)
    return {run.name: ", ".join([run.placement, *more[run.name]]) for run in runs}


def apart(runs: list[Run], x: str, y: str, group: str = "") -> dict[str, list[str]]:
    """{run's name: in which fields of a group it is not as most runs}; not the places, x and y, nor
    what follows from these."""
    values, usual = differing_fields(runs)
    alike = [None] * len(runs)  # in a field that is no difference
    cells = list(zip(values.pop(x, alike), values.pop(y, alike), strict=True))
    values.pop("gca.positions", None)
    values = {k: of for k, of in values.items() if k.startswith(group) and not follows(of, cells)}
    return {
        run.name: [in_words(name, of[i]) for name, of in values.items() if of[i] != usual[name]]
        for i, run in enumerate(runs)
    }


def cells(
    runs: list[Run],
    x: str,
    y: str,
    metric: str = "ndcg@10",
    draws: int = table.DRAWS,
    measured: pl.DataFrame | None = None,
    pair_seeds: bool = False,
) -> tuple[pl.DataFrame, list[str]]:
    """-> (a row per run with GCA and domain, see `SCHEMA`; sentences about what is missing).

    measured: of `orthogonality`, for `shuffled`, the angle of X with what another user's token
    takes, and `centred`, the angle once the means of both are removed.  pair_seeds: see `table`.
    """
    chosen = [run for run in finished(runs) if run.places]
    with_field = [run for run in chosen if {x, y} <= run.fields.keys()]
    if chosen and not with_field:
        raise UserError(f"--x={x} --y={y}: expected two fields of config.json: no run has both")
    kind, rows = kinds(with_field, x, y), []
    metrics = (metric.partition("/")[0],)
    gains, notes = table.gains(runs, None, metrics, draws, pair_seeds)
    points = correlate.points_of(with_field, ANGLE, metric, "mean", measured)
    for run, domain in itertools.product(with_field, DOMAINS):
        row = {"kind": kind[run.name], "domain": domain, "run": run.name}
        row |= {"x": run.fields[x], "y": run.fields[y]}
        ranking = run.full_name(metric).partition("/")[2]
        found = gains.filter(run=run.name, domain=domain, ranking=ranking)
        row |= next(found.select("baseline", "gain", "low", "high").iter_rows(named=True), {})
        if not points.is_empty():
            values = points.filter(run=run.name, domain=domain)["x"].to_numpy()
            row["angle"], row["angle_low"], row["angle_high"] = mean_interval(values)
        for name in ("shuffled", "centred") if measured is not None else ():
            of = {"run": run.name, "domain": domain, "parameters": "best", "split": "test"}
            of["statistic"] = ANGLE.replace("abs", f"{name}_abs")
            row[name] = measured.filter(**of)["value"].mean()
        rows.append(row | {"oracle": _oracle_gain(run, domain, metric)})
    return pl.DataFrame(rows, schema=SCHEMA).fill_nan(None), notes


def _oracle_gain(run, domain, metric):
    """What knowing both histories is worth on the test events of a synthetic world, in NDCG@10
    among all items; None of other data, splits and metrics."""
    data = run.config["data"]
    if (data["name"], data["split"], metric) != ("synthetic", "leave_one_out", "ndcg@10/full"):
        return None
    return _of_world(json.dumps(data["world"]))[DOMAINS.index(domain)]


@functools.cache
def _of_world(world):
    world = World(**json.loads(world))
    log = generate(world)
    rows = log.offsets[1:] - 1  # leave one out: the last event of each user
    ranks, domain = target_ranks(world, log, rows), log.domain[rows]
    ndcg = np.where(ranks <= 10, 1 / np.log2(1 + ranks), 0)
    return [float((ndcg[1] - ndcg[0])[domain == d].mean()) for d in (0, 1)]


def orders(frame: pl.DataFrame, draws: int = table.DRAWS) -> list[str]:
    """Does a smaller angle go with a larger gain, over kinds of runs on the same data at one x and
    y? Sentences with Kendall's τ; its interval draws kinds, of which several runs are one."""
    lines, at = [], ["x", "y", "domain"]
    kinds = frame.drop_nulls(["gain", "angle"]).group_by(*at, "kind", maintain_order=True)
    means = kinds.agg(pl.col("angle", "gain").mean())
    for (x, y, domain), part in means.group_by(*at, maintain_order=True):
        if len(part) < FEWEST_KINDS:
            continue
        values_Kx2 = part.select("angle", "gain").to_numpy()

        def tau(i, values_Kx2=values_Kx2):
            return float(kendalltau(*values_Kx2[i].T).statistic)

        low, high, _ = cluster_interval(np.arange(len(part)), tau, np.random.default_rng(0), draws)
        low, high = np.clip([low, high], -1, 1)
        value = f"{number(tau(np.arange(len(part))), 2, sign=True)} {interval(low, high, 2, True)}"
        lines.append(f"{x}, {y}, {domain}: τ of angle and gain over {len(part)} kinds {value}")
    return lines


def applies(runs: list[Run], options) -> bool:
    """Whether these runs have two values of either field, so that `report` shows them."""
    fields = [run.fields for run in finished(runs) if run.places]
    return all(len({of.get(axis) for of in fields}) > 1 for axis in (options.x, options.y))


def section(runs: list[Run], out, options) -> Section:
    """The diagrams and their numbers; writes `phase`."""
    x, y, metric = options.x, options.y, options.metric
    measured = read_frame(out, "orthogonality", runs)
    frame, notes = cells(runs, x, y, metric, options.draws, measured, options.pair_seeds)
    write_frame(out, "phase", frame)
    cell = ["kind", "domain", "x", "y"]
    twice = frame.filter(pl.struct(cell).is_duplicated())["run"].unique(maintain_order=True)
    if len(twice):
        notes.append(f"{few(twice.to_list())}: several of one cell: the diagram has the first")
    first = frame.unique(cell, keep="first", maintain_order=True)
    drawn = draw(first, x, y, metric)
    how = (
        "Each cell is a run: above its gain over the baseline of the same configuration, bold "
        "where the 95 % interval over seeds and users leaves 0 out; below the angle, whose null "
        "is that of independent directions, √(2/πd). Where `orthogonality` was run, the table has "
        "it for what another user's token takes, too, and without both means. In a synthetic "
        "world, ranked among all items, the gain stands beside that of an oracle that knows the "
        "tastes and both histories."
    )
    missing = notes + ([] if drawn else [f"no two values of {x} and of {y} among runs of one kind"])
    shown = {"kind": "kind", x: "x", y: "y", "domain": "domain"} | {
        "gain": lambda r: number(r["gain"], 4, sign=True),
        "95 % interval": lambda r: interval(r["low"], r["high"], 4, sign=True),
        "angle": lambda r: number(r["angle"]),
        "its interval": lambda r: interval(r["angle_low"], r["angle_high"]),
        "another user's": lambda r: number(r["shuffled"]),
        "centred": lambda r: number(r["centred"]),
        "of the oracle's gain": _share,
    }
    sheet = sheet_of(frame, f"Gain in {metric} and angle", 4, shown)
    lines, whole = [], [run for run in runs if run.name in set(frame["run"]) and run.part == "full"]
    data = apart(whole, x, y, "data.")  # of a part, the angle is that before it is taken
    alike = {run.name: (run.config["backbone"], run.config["protocol"]) for run in whole}
    for group in dict.fromkeys((*alike[name], *of) for name, of in data.items()):
        names = [name for name, of in data.items() if (*alike[name], *of) == group]
        found = orders(frame.filter(pl.col("run").is_in(names)), options.draws)
        words = group[2:] if len(set(alike.values())) == 1 else group
        lines += [", ".join([*words, line]) for line in found]
    return Section("Phase diagram", how, "", lines, missing, [sheet] * (len(frame) > 0), drawn)


def _share(row):
    large = row["oracle"] is not None and row["oracle"] >= LEAST_ORACLE
    return percent(row["gain"] / row["oracle"]) if large and row["gain"] is not None else ""


@figures.for_each("kind")
def draw(part: pl.DataFrame, kind: str, x: str, y: str, metric: str):
    """Gain and angle of one kind of runs as heat maps, by domain."""
    values = {name: sorted(part[name].unique(), key=order) for name in ("x", "y")}
    if min(map(len, values.values())) < 2:
        return None
    most, widest = part["gain"].abs().max() or 1.0, max(part["angle"].max() or 0, 0.5)
    gain = f"gain in {metric}", colormaps["PuOr_r"], colors.Normalize(-most, most), 3
    angle = "mean |cos(X, α ⊙ X′)|", colormaps["cividis"], colors.Normalize(0, widest), 2

    def panel(axes, domain):
        for axis, what, look in zip(axes, ("gain", "angle"), (gain, angle), strict=True):
            title, colours, norm, digits = look
            axis.set(xlim=(-0.5, len(values["x"]) - 0.5), ylim=(-0.5, len(values["y"]) - 0.5))
            for row in part.filter(domain=domain).drop_nulls(what).iter_rows(named=True):
                at = values["x"].index(row["x"]), values["y"].index(row["y"])
                _cell(axis, at, row, what, colours(norm(row[what])), digits)
            axis.set_xticks(range(len(values["x"])), values["x"])
            axis.set_yticks(range(len(values["y"])), values["y"])
            axis.grid(False)
            axis.set_ylabel(y)
            if domain == "B":  # one bar for both panels of a row, which share its colours
                axis.figure.colorbar(ScalarMappable(norm, colours), ax=axis, label=title)
        axes[-1].set_xlabel(x)

    label = f"Gain and angle over {x} and {y}: {kind}"
    height = 0.9 + 0.45 * len(values["y"])
    return figures.by_domain("phase", kind, panel, kind, label, height, rows=2, sharex=True)


def _cell(axis, at, row, what, colour, digits):
    """A coloured square with its number and interval, in black or white by its lightness."""
    square = (at[0] - 0.5, at[1] - 0.5)
    axis.add_patch(Rectangle(square, 1, 1, facecolor=colour, edgecolor="w"))
    low, high = ("low", "high") if what == "gain" else ("angle_low", "angle_high")
    known = row[low] is not None and row[high] is not None
    text = number(row[what], digits, sign=what == "gain")
    text += f"\n±{number((row[high] - row[low]) / 2, digits)}" if known else ""
    sure = what == "gain" and known and (row[low] > 0 or row[high] < 0)
    light = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 0.5
    style = {"ha": "center", "va": "center", "fontsize": 6, "color": "k" if light else "w"}
    axis.text(*at, text, weight="bold" if sure else "normal", **style)


def order(text: str) -> tuple:
    """Sorts values, as JSON: numbers by size, others by name."""
    value = json.loads(text)
    return (0, value, "") if isinstance(value, (int, float)) else (1, 0, text)
