"""`table`: the paper's Table 1 from finished runs, with intervals, beside the published values.

A variant is compared with its baseline, the run without GCA whose configuration is the same in
everything else, or the one that `--baseline=NAME` names. Users are paired (ranks.npz), seeds only
with `--pair_seeds`: what they share is not known beforehand, see "Gains" in README.md.
"""

from collections.abc import Sequence

import numpy as np
import polars as pl
from absl import flags
from statsmodels.stats.multitest import multipletests

from oa_jax import files
from oa_jax.errors import UserError
from oa_jax.events.log import DOMAINS
from oa_jax.ranking.metrics import HR_CUTOFFS, NDCG_CUTOFFS, user_metrics
from oa_jax.sheets import Sheet

from . import figures, published
from .output import columns, interval, mean_sd, number, percent, sheet_of, write_frame
from .page import Section
from .resampling import DRAWS, compare, probability_of_improvement
from .runs import Run, finished

METRICS = (*(f"ndcg@{k}" for k in NDCG_CUTOFFS), *(f"hr@{k}" for k in HR_CUTOFFS), *("mrr", "auc"))
LEAD = ("run", "variant", "data", "protocol", "width", "domain")  # what every row of a page says
SCHEMA = columns("setting run variant data protocol", "width parameters seeds")
SCHEMA |= columns("domain ranking metric", "", "mean sd published_mean published_sd")
SCHEMA |= columns("baseline", "", "gain low high df relative_gain p p_holm improvement mde")
SCHEMA |= columns("", "users least_seeds own_baseline")  # 1: no GCA, the same configuration


def measured(run: Run, domain: str, ranking: str):
    """(seeds (S,), test users (R,), every metric of them (M, S, R)) from ranks.npz.

    Diverged seeds are left out. domain: or a set of users. Raises UserError when arrays are missing
    or do not fit together or with summary.json, or no seed is left.
    """
    if run.seeds().is_empty():
        raise UserError(f"{run.name}: no seed that ended well")
    key, path, ranks = f"test/{ranking}", run.path / "ranks.npz", run.ranks()
    members = "test/domain" if domain in DOMAINS else f"test/in/{domain}"
    try:
        slots = np.isin(ranks["seed"], run.seeds()["seed"])
        rows = ranks[members] == (DOMAINS.index(domain) if domain in DOMAINS else True)
        counts = [ranks[f"{key}/{name}"] for name in ("rank", "ties", "n_candidates")]
        counts = [c[slots][:, rows] if c.ndim == 2 else c[rows] for c in counts]
        values = user_metrics(*counts, run.tie_weight)
        seeds_S, users_R = ranks["seed"][slots], ranks["test/user"][rows]
        values_MxSxR = np.stack([values[metric] for metric in METRICS])
        values_MxSxR = values_MxSxR.reshape(len(METRICS), len(seeds_S), len(users_R))
    except KeyError as error:
        raise UserError(f"{path}: no array {error}: expected one") from None
    except (ValueError, IndexError, UserError) as error:
        raise UserError(f"{path}: {key}: {error}") from None
    if not (users_R[1:] > users_R[:-1]).all():  # else runs would be paired by wrong users
        raise UserError(f"{path}: test/user: found no ascending order, expected one")
    stated = {row["seed"]: row for row in run.seeds().iter_rows(named=True)}
    for i, name in enumerate(METRICS if len(users_R) else ()):
        for seed, mean in zip(seeds_S.tolist(), values_MxSxR[i].mean(1), strict=True):
            value = stated[seed].get(column := f"test/{domain}/{name}/{ranking}")
            if value is not None and not abs(value - mean) <= 1e-6:
                text = f"found {mean:.6f} for seed {seed}, expected {value:.6f} of summary.json"
                raise UserError(f"{path}: {column}: {text}: the two are not of one run")
    return seeds_S, users_R, values_MxSxR


def baseline_of(run: Run, runs: list[Run], name: str | None = None) -> Run | None:
    """The run that `run` is compared with, None for a baseline itself and where there is none.

    name: compare with the run of this name instead. Either shares the setting, the candidates and
    what counts among equal scores.
    """
    others = [r for r in finished(runs) if r is not run and r.setting == run.setting]
    others = [r for r in others if r.ranked_by == run.ranked_by]
    if name:
        return next((r for r in others if r.name == name), None)
    same = run.backbone_configuration
    plain = (r for r in others if run.places and not r.places)
    return next((r for r in plain if r.backbone_configuration == same), None)


def gains(
    runs: list[Run],
    baseline: str | None = None,
    metrics=METRICS,
    draws: int = DRAWS,
    pair_seeds: bool = False,
    groups: bool = False,
):
    """-> (frame with the columns of `SCHEMA`, a row per run, domain, ranking, metric; notes).

    metrics: names of `METRICS`, or one. groups: the sets of users that a backbone tells apart come
    as further domains. gain: variant minus baseline, with the interval and the degrees of freedom
    of `resampling.compare`; p: of its test, and p_holm after Holm over all gains of the frame;
    improvement: see `probability_of_improvement`; mde: the true gain found with power 0.8 at 5 %
    two-sided by this test with these seeds and users. What cannot be computed is null.

    Raises UserError for an unknown metric or baseline.
    """
    rows, notes, metrics = [], [], checked_metrics(metrics)
    names = [run.name for run in runs]
    if baseline and baseline not in names:
        raise UserError(f"--baseline={baseline}: no such run: expected one of {', '.join(names)}")
    for run in sorted(finished(runs), key=lambda r: (r.setting, r.summary["n_parameters"])):
        other = baseline_of(run, runs, baseline)
        if (run.places or baseline) and other is None and run.name != baseline:
            text = "no finished baseline of the same configuration among the runs: no gain"
            if baseline:
                text = f"{baseline} is of another setting, other candidates or ties: no gain"
            notes.append(f"{run.name}: {text}")
        for domain in _user_sets(run, groups):
            for ranking in dict.fromkeys(ranking for _, ranking in run.measures):
                rows += _means(run, domain, ranking, metrics)
                if other is not None:
                    _add_gains(rows[-len(metrics) :], run, other, notes, draws, pair_seeds)
    tested = [row for row in rows if "p" in row]
    holm = multipletests([row["p"] for row in tested], method="holm")[1] if tested else ()
    for row, p in zip(tested, holm, strict=True):
        row["p_holm"] = float(p)
    return pl.DataFrame(rows, schema=SCHEMA), list(dict.fromkeys(notes))


def checked_metrics(metrics: str | Sequence[str]) -> tuple[str, ...]:
    """Each once. Raises UserError for one that is not of `METRICS`, and where there is none."""
    metrics = tuple(dict.fromkeys([metrics] if isinstance(metrics, str) else metrics))
    for name in metrics or [""]:
        if name not in METRICS:
            expected = f"expected some of {', '.join(METRICS)}"
            raise UserError(f"--metrics={name}: {'' if name else 'empty: '}{expected}")
    return metrics


def _user_sets(run, groups):
    """A and B, then the names of the sets of users that the run was measured on."""
    parts = [column.split("/") for column in run.seeds().columns if groups]
    named = [part[1] for part in parts if part[0] == "test" and part[2:] == ["users"]]
    return [*DOMAINS, *(name for name in named if name not in DOMAINS)]


def _means(run, domain, ranking, metrics):
    seeds, paper = run.seeds(), {}
    if ranking == run.candidates and published.beside(run):
        paper = published.table1(run.config["backbone"], run.config["data"]["name"])
        paper = paper.get(run.variant, {})
    lead = {"setting": run.setting, "run": run.name, "variant": run.variant, "width": run.width}
    lead["data"] = f"{run.config['data']['name']} {run.fingerprint[:8]}"
    lead |= {"protocol": run.config["protocol"], "domain": domain}
    lead |= {"parameters": int(run.summary["n_parameters"]), "ranking": ranking}
    rows = []
    for metric in metrics:
        column = f"test/{domain}/{metric}/{ranking}"
        known = column in seeds.columns
        values = seeds[column].drop_nulls().to_numpy() if known else np.empty(0)
        mean, sd = paper.get(f"{domain}/{metric}", (None, None))
        row = {"metric": metric, "seeds": len(values), "published_mean": mean, "published_sd": sd}
        row["mean"] = float(values.mean()) if len(values) else None
        row["sd"] = float(values.std(ddof=1)) if len(values) > 1 else None
        rows.append(lead | row)
    return rows


def _add_gains(rows, run, other, notes, draws, pair_seeds):
    """Fill the gains of these rows, which share run, domain and ranking."""
    domain, ranking = rows[0]["domain"], rows[0]["ranking"]
    try:
        found = [measured(side, domain, ranking) for side in (run, other)]
    except UserError as error:
        notes.append(f"{error}: no gain of {run.name}")
        return
    (seeds_a, users_a, a_MxSxR), (seeds_b, users_b, b_MxTxR) = found
    common, at_a, at_b = np.intersect1d(users_a, users_b, return_indices=True)
    if len(common) < max(len(users_a), len(users_b)):
        text = f"{len(common)} test users of {domain} in common: only these are compared"
        notes.append(f"{run.name} and {other.name}: {text}")
    chosen = [METRICS.index(row["metric"]) for row in rows]
    sides = [a_MxSxR[chosen][:, :, at_a], b_MxTxR[chosen][:, :, at_b]]
    if pair_seeds:
        _, *slots = np.intersect1d(seeds_a, seeds_b, return_indices=True)
        sides = [side[:, slot] for side, slot in zip(sides, slots, strict=True)]
    counts = [side.shape[1] for side in sides]
    if len(common) < 2 or not min(counts):
        notes.append(f"{run.name} against {other.name}: nothing in common: no gain in {domain}")
        return
    if min(counts) == 1:
        text = "the interval covers users only, not seeds, so there is no p and no detectable gain"
        if max(counts) > 1:
            text = "the variance of the other side's seeds stands for its own"
        notes.append(f"{run.name} against {other.name}: a single seed on a side: {text}")
    # Differences of paired seeds are compared with 0.
    compared = (sides[0] - sides[1], None) if pair_seeds else sides
    for i, found in enumerate(compare(*compared, np.random.default_rng(0), draws)):
        means = [side[i].mean(1) for side in sides]
        row = {"baseline": other.name, "users": len(common), "gain": found.estimate}
        row |= {k: getattr(found, k) for k in ("low", "high", "df", "p", "mde")}
        row["own_baseline"] = int(baseline_of(run, [other]) is other)
        row |= {"least_seeds": min(counts), "improvement": probability_of_improvement(*means)}
        if means[1].mean():
            row["relative_gain"] = found.estimate / float(means[1].mean())
        rows[i].update({k: v for k, v in row.items() if v == v})  # nan is unlike itself


def sheets(frame: pl.DataFrame) -> list[Sheet]:
    """For each setting and ranking: the means with the published ones, then the gains."""
    out = []
    for (setting, ranking), part in frame.group_by("setting", "ranking", maintain_order=True):
        among = "ranked among all items" if ranking == "full" else f"ranking {ranking}"
        place = f"{setting}, {among}"
        out.append(_mean_sheet(part, f"Test metrics, mean ± sd over seeds: {place}"))
        if part["gain"].is_not_null().any():
            out.append(_gain_sheet(part, f"Gain over the baseline, 95 % intervals: {place}"))
    return out


def _mean_sheet(part, title):
    metrics = part["metric"].unique(maintain_order=True).to_list()
    header = [*LEAD, "parameters", "seeds", *map(str.upper, metrics)]
    rows = []
    for _, cells in part.group_by("run", "domain", maintain_order=True):
        first = cells.row(0, named=True)
        lead = [str(first[name]) for name in LEAD] + [f"{first['parameters']:,}"]
        values = [mean_sd(r["mean"], r["sd"]) for r in cells.iter_rows(named=True)]
        rows.append([*lead, str(first["seeds"]), *values])
        if cells["published_mean"].is_not_null().any():
            lead = ["paper", first["variant"], first["data"], "", "", first["domain"], "", "5"]
            values = cells.select("published_mean", "published_sd").rows()
            rows.append(lead + [mean_sd(*value) if value[0] else "" for value in values])
    return Sheet(title, header, rows, words=4)


def _gain_sheet(part, title):
    known = part.select("variant", "domain", "metric", "published_mean").drop_nulls()
    means = {tuple(key): mean for *key, mean in known.rows()}

    def of_paper(row):
        what = row["domain"], row["metric"]
        mean, base = means.get((row["variant"], *what)), means.get(("baseline", *what))
        return percent(mean / base - 1) if mean and base and row["own_baseline"] else ""

    cells = {name: name for name in LEAD} | {
        "against": "baseline",
        "metric": lambda r: r["metric"].upper(),
        "gain": lambda r: number(r["gain"], 4, sign=True),
        "95 % interval": lambda r: interval(r["low"], r["high"], 4, sign=True),
        "relative": lambda r: percent(r["relative_gain"]),
        "P(better seed)": lambda r: number(r["improvement"], 2),
        "p": lambda r: small(r["p"]),
        "p (Holm)": lambda r: small(r["p_holm"]),
        # An estimate of so few seeds has so little freedom that its power is a guess.
        "detectable gain": lambda r: (
            ("≈ " if r["least_seeds"] <= 3 and r["mde"] is not None else "") + number(r["mde"], 4)
        ),
        "paper's gain": of_paper,
    }
    return sheet_of(part.drop_nulls("gain"), title, 8, cells)


def small(p) -> str:
    """A p-value."""
    return "<0.001" if p is not None and p < 0.001 else number(p, 3)


@figures.for_each("setting")
def draw(part: pl.DataFrame, setting: str):
    """The gains of a setting with their intervals, a panel per domain."""
    part = part.drop_nulls("gain")
    if part.is_empty():
        return None
    metrics = part["metric"].unique(maintain_order=True).to_list()
    series = part.select("run", "ranking").unique(maintain_order=True).rows()
    of = dict(part.select("run", "variant").rows())
    names = {run: f"{v} ({run})" if [*of.values()].count(v) > 1 else v for run, v in of.items()}
    looks = figures.marks(names.values())

    def panel(axis, domain):
        limits = [0.0]
        for at, (run, ranking) in enumerate(series):
            here = part.filter(run=run, ranking=ranking, domain=domain)
            shift = (at - (len(series) - 1) / 2) * 0.8 / len(series)
            look = figures.point_style(looks[names[run]], "1" if ranking == "full" else "0")
            limits += _intervals(axis, here, metrics, shift, look, f"{run}, {ranking}")
        axis.axvline(0, label="no gain", **figures.NULL)
        room = 0.05 * (max(limits) - min(limits)) or 1
        axis.set(xlim=(min(limits) - room, max(limits) + room), ylim=(len(metrics) - 0.5, -0.5))
        axis.set_xlabel("gain in percent of the baseline")
        axis.set_yticks(range(len(metrics)), [m.upper() for m in metrics])

    height = min(1.3 + 0.15 * len(metrics) * max(len(series), 2), 9)
    heading = f"{setting}: gain over the baseline, 95 % intervals"
    label = f"Gain over the baseline by metric, {setting}; intervals that leave the axis are cut"
    return figures.by_domain("gains", setting, panel, heading, label, height, sharey=True)


def _intervals(axis, part, metrics, shift, look, label):
    """Draw the relative gains; -> the ends that the axis should hold.

    Those of the first rank alone (NDCG@1) are many times wider than all others and do not count.
    """
    part, gain = part.drop_nulls("relative_gain"), pl.col("gain")
    # Without a gain the run's mean is the baseline's.
    share = pl.when(gain == 0).then(1 / pl.col("mean")).otherwise(pl.col("relative_gain") / gain)
    ends = [(100 * share * pl.col(k).fill_null(gain)).alias(k) for k in ("gain", "low", "high")]
    x, low, high = part.select(ends).to_numpy().T
    if len(part):
        y = [metrics.index(metric) + shift for metric in part["metric"]]
        figures.spans(axis, x, y, low, high, look, label)
    counts = ~part["metric"].str.ends_with("@1").to_numpy() | (len(metrics) == 1)
    return [*low[counts], *high[counts]]


def define_pair_seeds() -> None:
    """The flag of `table` and `phase`; `report` has both."""
    if "pair_seeds" not in flags.FLAGS:
        flags.DEFINE_bool("pair_seeds", False, "Pair seeds of one number across runs.")


def define_flags() -> None:
    flags.DEFINE_string("baseline", None, "Name of the run that all others are compared with.")
    define_pair_seeds()
    flags.DEFINE_bool("groups", False, "Also the sets of users that a backbone tells apart.")
    flags.DEFINE_list("metrics", list(METRICS), "Which metrics; Holm runs over these.")


def section(runs: list[Run], out, options) -> Section:
    """The table of options.metrics and its gains in words. Raises UserError for an unknown one."""
    how = (
        "Means and standard deviations over seeds; the published values beside runs on the paper's "
        "data at about its width. A gain is a variant minus the baseline of the same "
        "configuration; its interval is a bootstrap over seeds and users, users paired. 'P(better "
        "seed)' is the share of pairs of seeds in which the variant is better, 'detectable gain' "
        "the true gain that this comparison would find with power 0.8 (≈: from two seeds, a rough "
        "guess). Holm's correction runs over all gains of the table."
    )
    metrics = checked_metrics(options.metrics)
    if not finished(runs):
        return Section("Ranking quality", how, missing=["no finished run: no table"])
    frame, notes = gains(
        runs, options.baseline, metrics, options.draws, options.pair_seeds, options.groups
    )
    pages = sheets(frame)
    write_frame(out, "table", frame)
    files.write(out / "table.md", "\n".join(page.markdown() for page in pages))
    files.write(out / "table.tex", "\n".join(page.latex() for page in pages))
    first = options.metric.split("/")[0]
    rows = frame.filter(pl.col("variant") != "baseline", metric=first).drop_nulls("gain").to_dicts()
    return Section("Ranking quality", how, _in_short(rows), notes, [], pages, draw(frame))


def _in_short(rows):
    """How many gains there are, and how many of them chance does not explain."""
    if not rows:
        return "Does GCA rank better? No gain can be computed from these runs."
    known = [row for row in rows if row["p_holm"] is not None]
    better = sum(row["p_holm"] < 0.05 and row["gain"] > 0 for row in known)
    worse = sum(row["p_holm"] < 0.05 and row["gain"] < 0 for row in known)
    relative = [row["relative_gain"] for row in rows if row["relative_gain"] is not None]
    spread = f", from {percent(min(relative))} to {percent(max(relative))}" if relative else ""
    chance = f"{better} are positive, {worse} negative beyond chance (Holm over all metrics, 5 %)"
    without = f"{len(rows) - len(known)} have no test: single seeds say nothing of chance"
    said = [chance] * bool(known) + [without] * (len(known) < len(rows))
    return (
        f"Does GCA rank better? Of {len(rows)} gains in {rows[0]['metric'].upper()} (runs, domains "
        f"and rankings){spread}, {'; '.join(said)}."
    )
