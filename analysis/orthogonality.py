"""`orthogonality`: statistics of X, X' and Y of trained models, with two null controls.

Statistics of specs gca §5, the distribution of cos(X, X') over tokens, and what second moments tell
(analysis/subspaces.py). One seed and one block of users are on the device at a time; sums are added
up in float64 on the host, so memory grows with neither.
"""

from __future__ import annotations

import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
import scipy.stats
from absl import flags

from analysis import restore, subspaces
from analysis.output import write_frame
from analysis.runs import Run
from oa_jax.engine.compilation import use_compilation_cache
from oa_jax.errors import UserError
from oa_jax.experiment import Experiment
from oa_jax.nn import angles as sums_lib

N_FINE, N_BINS = 2000, 40  # bins of the streamed histogram, and of the one in the table
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
# Every fourth user fits the regressions, every fourth chooses their ridge, the others test them.
PARTS = {"fit": (0,), "choose": (1,), "test": (2, 3)}
VIEWS = {"pooled": "", "aligned": "_aligned"}  # of Y -> end of the statistic's name
SCHEMA = {
    "run": pl.String,
    "seed": pl.Int64,
    "parameters": pl.String,
    "split": pl.String,
    "step": pl.Int64,
    "place": pl.Int64,
    "domain": pl.String,
    "statistic": pl.String,
    "value": pl.Float64,
}


def define_flags() -> None:
    restore.define_flags()


def command(runs: list[Run], out, say) -> int:
    """Measure every run with GCA and write orthogonality.parquet and .csv."""
    use_compilation_cache()
    which, split = flags.FLAGS.which, flags.FLAGS.split
    frames, missing = [], []
    for run in runs:
        if not run.places:
            say(f"{run.name}: no GCA: nothing to measure")
            continue
        try:
            frames.append(measure(run, which, split, say, flags.FLAGS.data_dir))
        except UserError as error:
            missing.append(str(error))
            say(f"{run.name}: left out: {error}")
    if missing and not frames:
        raise UserError(missing[0])
    frame = pl.concat(frames) if frames else pl.DataFrame(schema=SCHEMA)
    write_frame(out, "orthogonality", frame)
    say(f"{len(frame)} values in {out / 'orthogonality.parquet'} and .csv")
    return 1 if missing else 0


def measure(
    run: Run, which: str = "best", split: str = "test", say=print, data_dir: str | None = None
) -> pl.DataFrame:
    """A tidy table of the statistics of one run: columns `SCHEMA`.

    which: "best", "last" or "all" (see restore.parameters). `parameters` is best, last, kept or
    init, the untrained parameters of the same seeds at step 0; `step` is the epoch after which the
    seed had these parameters. `abs_cos_null` is the expectation for independent random directions.
    Statistics that are undefined, such as the spectrum of X' = 0, are nan. Empty without GCA.
    Raises UserError when nothing can be restored.
    """
    if not run.places:
        return pl.DataFrame(schema=SCHEMA)
    experiment = restore.experiment_of(run, say, data_dir)
    rows, chosen = parts_of_users(experiment, split), set()
    records = []
    for restored in restore.parameters(run, experiment, which, say):
        chosen |= set(np.flatnonzero(restored.good_S).tolist())
        records += _measured(run, experiment, restored, restored.good_S, rows, split, say)
    start = restore.initial(experiment)
    start_S = np.isin(np.arange(len(experiment.seeds)), list(chosen))
    records += _measured(run, experiment, start, start_S, rows, split, say)
    return pl.DataFrame(records, schema=SCHEMA, orient="row")


def _measured(run, experiment, restored, slots_S, rows, split, say):
    out, block_users = [], experiment.config["evaluate"]["block_users"]
    for slot in np.flatnonzero(slots_S):
        begin, seed = time.perf_counter(), int(experiment.seeds[slot])
        params, tables = restored.of_seed(slot), experiment.tables
        totals = stream(experiment.backbone, params, rows, block_users, tables)
        epoch = int(restored.epoch_S[slot])
        for module, total in totals.items():
            place, domain = module.split("/")
            lead = (run.name, seed, restored.kind, split, epoch, int(place), domain)
            out += [(*lead, name, value) for name, value in statistics(total).items()]
        seconds = time.perf_counter() - begin
        say(f"{run.name}: seed {seed}, {restored.kind} parameters, epoch {epoch}: {seconds:.1f} s")
    return out


def parts_of_users(experiment: Experiment, split: str) -> dict[str, dict[str, np.ndarray]]:
    """Evaluation rows of each of `PARTS`, in whole blocks of users.

    A user's part follows from its place among the users with a target, whatever the block size.
    """
    rows = experiment.task.eval_arrays(split)
    rows = {name: array for name, array in rows.items() if name != "seen"}
    part_R = np.arange(len(rows["user"])) % 4
    if len(part_R) < 4:
        raise UserError(f"--split={split}: {len(part_R)} users have a target: expected at least 4")
    return {
        name: experiment.padded({k: v[np.isin(part_R, numbers)] for k, v in rows.items()})
        for name, numbers in PARTS.items()
    }


def stream(backbone, params, parts, block_users: int | None = None, tables=None) -> dict:
    """Totals of one seed over blocks of users: {"place/domain": see `statistics`}.

    params: one seed's. parts: {part: rows in whole blocks}. Vectors are shifted by their means over
    the first block before second moments are taken. tables: the backbone's, if it has any.
    """
    blocks = [(name, block) for name, rows in parts.items() for block in _blocks(rows, block_users)]
    params = jax.device_put(params)
    shift = _means(backbone, params, blocks[0][1], tables)
    totals: dict = {}
    for part, block in blocks:
        sums = block_sums(backbone, params, block, shift, tables)
        for module, found in jax.device_get(sums).items():
            total = totals.setdefault(module, {"shift": jax.device_get(shift[module])})
            for name, value in _keyed(part, found).items():
                total[name] = total.get(name, 0) + np.asarray(value, np.float64)
    return totals


@functools.partial(jax.jit, static_argnames="backbone")
def block_sums(backbone, params, rows, shift, tables=None):
    """Sums over the tokens of a block of users, for every GCA module.

    -> {"place/domain": {"sums": of evaluate.orthogonality, "cos": counts of cos(X, X'),
    "pooled", "aligned": Gram matrices (see subspaces.gram) with that Y}}.
    """
    out = {}
    if tables is not None:
        backbone = backbone.on(tables)
    for module, probe in backbone.probe(params, rows).items():
        cos_P = sums_lib.cosine(probe.x, probe.update)
        bin_P = jnp.clip(((cos_P + 1) * (N_FINE / 2)).astype(int), 0, N_FINE - 1)
        counts = jnp.zeros(N_FINE, jnp.int32).at[bin_P].add(probe.has_key_P.astype(jnp.int32))
        has_y = {"pooled": probe.has_key_P, "aligned": probe.has_key_P & probe.has_aligned_P}
        out[module] = {"sums": sums_lib.sums(probe), "cos": counts}
        for view, token_P in has_y.items():
            vectors = (probe.x, probe.update, getattr(probe, f"y_{view}"))
            out[module][view] = subspaces.gram(vectors, token_P, shift[module][view])
    return out


@functools.partial(jax.jit, static_argnames="backbone")
def _probe(backbone, params, rows):
    return backbone.probe(params, rows)


def _means(backbone, params, block, tables):
    """{module: {view: (3, D) means of X, X', Y}} over one block, from its sums about 0."""
    probes = _probe.eval_shape(backbone, params, block)
    widths = {module: probe.x.shape[-1] for module, probe in probes.items()}
    zero = {m: {v: np.zeros((3, w), np.float32) for v in VIEWS} for m, w in widths.items()}
    found = jax.device_get(block_sums(backbone, params, block, zero, tables))

    def mean(gram, width):
        return (gram[0, 1 : 1 + 3 * width] / max(gram[0, 0], 1)).reshape(3, width)

    return {m: {v: mean(found[m][v], w) for v in VIEWS} for m, w in widths.items()}


def _blocks(rows, size):
    size = size or len(rows["real"])
    for start in range(0, len(rows["real"]), size):
        yield {name: array[start : start + size] for name, array in rows.items()}


def _keyed(part, found):
    """Names of the totals: sums and counts of all users, Gram matrices of each part."""
    out = {f"sums/{name}": value for name, value in found["sums"].items()}
    return out | {"cos": found["cos"]} | {f"{view}/{part}": found[view] for view in VIEWS}


def statistics(total: dict) -> dict[str, float]:
    """{statistic: value} of one module from its totals over all users.

    Those of oa_jax.nn.angles, `abs_cos_null`, and:
    cos_q05 … cos_q95: quantiles of cos(X, X') over tokens, to 0.001; cos_q*_null: of random
    directions.  cos_hist/-0.975 …: share of the tokens in each of 40 bins, named by its middle.
    The others: analysis/subspaces.py.
    """
    sums = {k.removeprefix("sums/"): v for k, v in total.items() if k.startswith("sums/")}
    moments = {
        view: {
            part: subspaces.Moments(total[f"{view}/{part}"], np.float64(total["shift"][view]))
            for part in PARTS
        }
        for view in VIEWS
    }
    width = moments["pooled"]["fit"].width
    out = sums_lib.statistics(sums) | {"abs_cos_null": sums_lib.null_abs_cos(width)}
    out |= distribution(total["cos"], width) | subspaces.own_statistics(moments["pooled"])
    for view, suffix in VIEWS.items():
        out |= subspaces.statistics(moments[view], suffix)
    return out


def distribution(counts: np.ndarray, width: int) -> dict[str, float]:
    """Quantiles, their null and the shares of 40 bins, from counts in `N_FINE` bins of [-1, 1]."""
    n, out = counts.sum(), {}
    edges = np.linspace(-1, 1, N_FINE + 1)
    for q in QUANTILES:
        name, below = f"cos_q{round(100 * q):02d}", np.append(0, np.cumsum(counts))
        out[name] = float(np.interp(q * n, below, edges)) if n else float("nan")
        out[f"{name}_null"] = float(null_cos(width).ppf(q)) if width > 1 else float("nan")
    shares = counts.reshape(N_BINS, -1).sum(1) / n if n else np.full(N_BINS, np.nan)
    middles = (np.arange(N_BINS) + 0.5) * 2 / N_BINS - 1
    return out | {f"cos_hist/{m:+.3f}": float(s) for m, s in zip(middles, shares, strict=True)}


def null_cos(width: int):
    """The distribution of the cosine of independent random directions in `width` dimensions."""
    return scipy.stats.beta((width - 1) / 2, (width - 1) / 2, loc=-1, scale=2)
