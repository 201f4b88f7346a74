"""`orthogonality`: statistics of X, X' and Y of trained models, with null controls.

Angles of X with three forms of the update (`FORMS`), the distribution of cos(X, X') over tokens,
and what second moments tell (subspaces.py). One seed and one block of users are on the device at a
time; sums are added up in float64 on the host, so memory grows with neither.
"""

import dataclasses
import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
import scipy.stats

from oa_jax import files
from oa_jax.errors import UserError
from oa_jax.events.log import InteractionLog
from oa_jax.experiment import Experiment
from oa_jax.nn import angles as sums_lib

from . import restore, subspaces, tokens
from .output import columns, number
from .runs import Run

N_FINE, N_BINS = 2000, 40  # bins of the streamed histogram, and of the one in the table
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
# Every fourth user fits the regressions, every fourth chooses their ridge, the others test them.
USER_PARTS = {"fit": (0,), "choose": (1,), "test": (2, 3)}
VIEWS = {"pooled": "", "aligned": "_aligned"}  # of Y -> end of the statistic's name
# Begin of a statistic's name -> which update: X' as it is; α ⊙ X', which is what is added to X; X'
# with each unit's sign turned so that its mean gate is positive. Under a tanh gate the signs of the
# first are arbitrary: turning a unit of X' and of its gate changes no output.
FORMS = {"": "X′", "gated_": "α ⊙ X′", "fixed_": "X′, signs by the gate"}
SCHEMA = columns("run", "seed") | columns("parameters split", "step place")
SCHEMA |= columns("domain statistic", real="value")

define_flags = restore.define_flags


def command(runs: list[Run], out, say) -> int:
    """Measure every run with GCA and write orthogonality.parquet and .csv, and tokens.md."""
    frame, status = restore.of_every_run(runs, "orthogonality", SCHEMA, out, say, measure)
    main = frame.filter(pl.col("parameters").is_in(["best", "last"]), statistic="gated_abs_cos")
    for (run, place), part in main.group_by("run", "place", maintain_order=True):
        means = (f"{d} {number(part.filter(domain=d)['value'].mean())}" for d in "AB")
        say(f"{run}, place {place}: mean |cos(X, α ⊙ X′)| {', '.join(means)}")
    if pages := [sheet.markdown() for sheet in tokens.sheets(frame)]:
        files.write(out / "tokens.md", "\n".join(pages))
        say(f"which tokens, where they look: {out / 'tokens.md'}")
    return status


def measure(
    run: Run,
    which: str = "best",
    split: str = "test",
    say=print,
    data_dir: str | None = None,
    data: InteractionLog | None = None,
) -> pl.DataFrame:
    """A tidy table of the statistics of one run: columns `SCHEMA`.

    Of the parameters that `which` names (see restore.parameters), and of the untrained ones of the
    same seeds, a null control. data_dir, data: see restore.experiment_of. Raises UserError when
    nothing can be restored.
    """
    if not run.places:
        return pl.DataFrame(schema=SCHEMA)
    experiment = restore.experiment_of(run, say, data_dir, data)
    rows, records = parts_of_users(experiment, split), []
    if "key_A" not in rows["fit"]:
        fusion = experiment.config.gca.fusion
        say(f"{run.name}: fusion {fusion} has no attention weights: nothing of where tokens look")
    chosen_S = np.zeros(len(experiment.seeds), bool)
    for restored in restore.parameters(run, experiment, which, say):
        chosen_S |= restored.good_S
        records += _measured(run, experiment, restored, restored.good_S, rows, split, say)
    start = restore.initial(experiment)
    records += _measured(run, experiment, start, chosen_S, rows, split, say)
    return pl.DataFrame(records, schema=SCHEMA, orient="row")


def _measured(run, experiment, restored, slots_S, rows, split, say):
    out, block_users = [], experiment.evaluation.block_users
    for slot in np.flatnonzero(slots_S):
        begin, seed = time.perf_counter(), int(experiment.seeds[slot])
        model = experiment.engine.settings.backbone, restored.of_seed(slot)
        with experiment.engine.settings.precision():
            totals = stream(*model, rows, block_users, experiment.tables)
        epoch = int(restored.epoch_S[slot])
        for module, total in totals.items():
            place, domain = module.split("/")
            lead = (run.name, seed, restored.kind, split, epoch, int(place), domain)
            out += [(*lead, name, value) for name, value in statistics(total).items()]
        seconds = time.perf_counter() - begin
        say(f"{run.name}: seed {seed}, {restored.kind} parameters, epoch {epoch}: {seconds:.1f} s")
    return out


def parts_of_users(experiment: Experiment, split: str) -> dict[str, dict[str, np.ndarray]]:
    """Evaluation rows of each of `USER_PARTS`, in whole blocks of users.

    A user's part follows from its place among the users with a target, whatever the block size.
    """
    rows = experiment.evaluation.rows[split]
    unused = {"seen", *experiment.evaluation.rankings}
    rows = {name: array for name, array in rows.items() if name not in unused}
    rows |= tokens.described(experiment, rows)
    part_R = np.arange(len(rows["user"])) % 4
    if len(part_R) < 4:
        raise UserError(f"--split={split}: {len(part_R)} users have a target: expected at least 4")
    chosen = {part: np.isin(part_R, numbers) for part, numbers in USER_PARTS.items()}
    padded = dataclasses.replace(experiment.evaluation, packed={}).padded  # grids: see tokens.py
    return {part: padded({k: v[some] for k, v in rows.items()}) for part, some in chosen.items()}


def stream(backbone, params, parts, block_users: int, tables=None) -> dict:
    """Totals of one seed over blocks of users: {"place/domain": see `statistics`}.

    params: one seed's. parts: {part: rows in whole blocks}. Two passes: the first finds the means,
    by which the second shifts vectors before it takes second moments and centred cosines. tables:
    the backbone's, if it has any.
    """
    blocks, params = [], jax.device_put(params)
    for part, rows in parts.items():
        starts = range(0, len(rows["real"]), block_users)
        blocks += [(part, {n: a[i : i + block_users] for n, a in rows.items()}) for i in starts]

    def added(program, *more):
        totals: dict = {}
        for part, block in blocks:
            for module, found in jax.device_get(program(backbone, params, block, *more)).items():
                total = totals.setdefault(module, {})
                for name, value in found.items():
                    name = f"{name}/{part}" if name in VIEWS else name
                    total[name] = total.get(name, 0) + np.asarray(value, np.float64)
        return totals

    means = {module: _means(found) for module, found in added(first_sums, tables).items()}
    totals = added(block_sums, jax.tree.map(np.float32, means), tables)
    return {module: total | {"means": means[module]} for module, total in totals.items()}


def _probes(backbone, params, rows, tables):
    return (backbone if tables is None else backbone.on(tables)).probe(params, rows)


@functools.partial(jax.jit, static_argnames="backbone")
def first_sums(backbone, params, rows, tables=None):
    """{"place/domain": sums over the tokens of a block of users of what `_means` divides}."""
    out = {}
    for module, probe in _probes(backbone, params, rows, tables).items():
        used_P = probe.has_key_P.astype(jnp.float32)
        found = {"gate": used_P @ probe.gate, "gated": used_P @ (probe.gate * probe.update)}
        for view, token_P in (("pooled", used_P), ("aligned", used_P * probe.has_aligned_P)):
            vectors = (probe.x, probe.update, getattr(probe, f"y_{view}"))
            found[f"sum_{view}"] = jnp.stack([token_P @ vector for vector in vectors])
            found[f"n_{view}"] = token_P.sum()
        out[module] = found
    return out


def _means(total):
    """{view: (3, D) means of X, X', Y}, the mean of each form, the sign of each unit's gate."""
    n = {view: max(total[f"n_{view}"], 1) for view in VIEWS}
    sign_D, update = np.where(total["gate"] < 0, -1.0, 1.0), total["sum_pooled"][1]
    forms = np.stack([update, total["gated"], sign_D * update]) / n["pooled"]
    means = {view: total[f"sum_{view}"] / n[view] for view in VIEWS}
    return means | {"forms": forms, "sign": sign_D}


@functools.partial(jax.jit, static_argnames="backbone")
def block_sums(backbone, params, rows, means, tables=None):
    """Sums over the tokens of a block of users, for every GCA module.

    -> {"place/domain": {"sums/…": of oa_jax.nn.angles; "cos": counts of cos(X, X'); "tokens/…": of
    tokens.py; "form:FORM/…": of `_of_form`; "pooled", "aligned": of subspaces.gram with that Y}}.
    """
    out = {}
    for module, probe in _probes(backbone, params, rows, tables).items():
        mean, used_P = means[module], probe.has_key_P
        cos_P = sums_lib.cosine(probe.x, probe.update)
        bin_P = jnp.clip(((cos_P + 1) * (N_FINE / 2)).astype(int), 0, N_FINE - 1)
        found = {"cos": jnp.zeros(N_FINE, jnp.int32).at[bin_P].add(used_P.astype(jnp.int32))}
        found |= {f"sums/{name}": value for name, value in sums_lib.sums(probe).items()}
        forms = (probe.update, probe.gate * probe.update, probe.update * mean["sign"])
        for form, update, centre in zip(FORMS, forms, mean["forms"], strict=True):
            of_form = _of_form(probe.x, update, mean["pooled"][0], centre, used_P)
            found |= {f"form:{form}/{name}": value for name, value in of_form.items()}
        found |= tokens.sums(probe, rows, module[-1])
        has_y = {"pooled": used_P, "aligned": used_P & probe.has_aligned_P}
        for view, token_P in has_y.items():
            vectors = (probe.x, probe.update, getattr(probe, f"y_{view}"))
            found[view] = subspaces.gram(vectors, token_P, mean[view])
        out[module] = found
    return out


def _of_form(x, update, mean_x, mean_update, used_P):
    """Sums of cosines of X with an update, with that of another user, and about their means.

    The other's token is the one half of the block's tokens further on: of another user, as tokens
    lie user by user, unless one user has more than half of them.
    """
    order_P = jnp.argsort(~used_P, stable=True)  # tokens that count first
    n = jnp.maximum(used_P.sum(), 1)
    place_P = jnp.cumsum(used_P) - 1
    other = update[order_P[(place_P + n // 2) % n]]
    cosines = {
        "": sums_lib.cosine(x, update),
        "shuffled_": sums_lib.cosine(x, other),
        "centred_": sums_lib.cosine(x - mean_x, update - mean_update),
    }
    values = {f"{name}cos": cos_P for name, cos_P in cosines.items()}
    values |= {f"{name}abs_cos": jnp.abs(cos_P) for name, cos_P in cosines.items()}
    values["energy"] = jnp.sum(update * update, -1)
    return {name: used_P.astype(jnp.float32) @ value for name, value in values.items()}


def statistics(total: dict) -> dict[str, float]:
    """{statistic: value} of one module from its totals over all users: those of `oa_jax.nn.angles`,
    of subspaces.py, of tokens.py, and what analysis/README.md has beside them."""
    sums = {k.removeprefix("sums/"): v for k, v in total.items() if k.startswith("sums/")}
    means = total["means"]
    moments = {
        view: {part: subspaces.Moments(total[f"{view}/{part}"], means[view]) for part in USER_PARTS}
        for view in VIEWS
    }
    width = moments["pooled"]["fit"].width
    out = sums_lib.statistics(sums) | {"abs_cos_null": sums_lib.null_abs_cos(width)}
    for form, mean in zip(FORMS, means["forms"], strict=True):
        out |= _form_statistics(total, form, means["pooled"][0], mean, float(sums["tokens"]))
    out |= distribution(total["cos"], width) | subspaces.own_statistics(moments["pooled"])
    for view, suffix in VIEWS.items():
        out |= subspaces.statistics(moments[view], suffix)
    return out | tokens.statistics(total)


def _form_statistics(total, form, mean_x, mean, n):
    start = f"form:{form}/"
    sums = {k.removeprefix(start): float(v) for k, v in total.items() if k.startswith(start)}
    of_form = {name: value / n if n else float("nan") for name, value in sums.items()}
    energy = of_form.pop("energy")
    of_form |= {f"{name}_abs": abs(v) for name, v in of_form.items() if "abs" not in name}
    norms = np.linalg.norm(mean_x) * np.linalg.norm(mean)
    of_form["mean_cos"] = float(mean_x @ mean / norms) if norms else float("nan")
    of_form["mean_share"] = float(mean @ mean / energy) if energy else float("nan")
    return {f"{form}{name}": value for name, value in of_form.items()}


def distribution(counts: np.ndarray, width: int) -> dict[str, float]:
    """Quantiles, their null and the shares of 40 bins, from counts in `N_FINE` bins of [-1, 1]."""
    n, out = counts.sum(), {}
    edges, below = np.linspace(-1, 1, N_FINE + 1), np.append(0, np.cumsum(counts))
    for q in QUANTILES:
        name = f"cos_q{round(100 * q):02d}"
        out[name] = float(np.interp(q * n, below, edges)) if n else float("nan")
        out[f"{name}_null"] = float(null_cos(width).ppf(q)) if width > 1 else float("nan")
    shares = counts.reshape(N_BINS, -1).sum(1) / n if n else np.full(N_BINS, np.nan)
    middles = (np.arange(N_BINS) + 0.5) * 2 / N_BINS - 1
    return out | {f"cos_hist/{m:+.3f}": float(s) for m, s in zip(middles, shares, strict=True)}


def null_cos(width: int):
    """The distribution of the cosine of independent random directions in `width` dimensions."""
    return scipy.stats.beta((width - 1) / 2, (width - 1) / 2, loc=-1, scale=2)
