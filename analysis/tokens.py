"""Of which tokens: angles by popularity and by position, and where the attention goes.

A part of what `orthogonality` measures, in the same pass over blocks of users. A token asks; its
keys are the tokens of the source that it may use. Names of bins are ranges: 1, 2-3, 4-7, 8-15, ….
Shapes: R users, T tokens of the stream that asks, S of the source, P = R T, N bins.
"""

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
from jax.scipy.special import entr

from oa_jax.backbones import known
from oa_jax.events.log import DOMAINS
from oa_jax.experiment import Experiment
from oa_jax.nn.angles import cosine
from oa_jax.nn.fusion import Probe, kind_of
from oa_jax.sheets import Sheet

from .output import interval, number
from .resampling import mean_interval

LEVELS = 5  # of popularity, each with a fifth of a domain's training events
AGES = 12  # bins of the age of a key, to 4095 events
SHOWN = {"gated_abs_cos": "mean |cos(X, α ⊙ X′)|", "gated_cos": "mean cos(X, α ⊙ X′)"}
SHOWN |= {"abs_cos": "mean |cos(X, X′)|", "cos": "mean cos(X, X′)"}


def ranges(n_bins: int) -> list[str]:
    """Names of the bins of `doublings`."""
    return ["1", *(f"{2**i}-{2 ** (i + 1) - 1}" for i in range(1, n_bins))]


# Which keys there are statistics of. An age is counted in events of the merged sequence from the
# newest key, which has 1.
KEYS = ["same", "other", "itself", *(f"age/{age}" for age in ranges(AGES))]
KEYS += [f"popularity/{level + 1}" for level in range(LEVELS)]


def levels(count_I: np.ndarray) -> np.ndarray:
    """(I,) level 0 (least popular) … LEVELS - 1 of items of one domain with these events.

    Every level has about the same number of events; equally popular items have the same level.
    """
    values, which, n_items = np.unique(count_I, return_inverse=True, return_counts=True)
    events = values * n_items
    middle = np.cumsum(events) - events / 2
    return (LEVELS * middle / max(events.sum(), 1)).astype(int)[which]


def described(experiment: Experiment, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What there is to know of the tokens of evaluation rows: int32, -1 at padding.

    token_A, token_B: (R, T, 2) of the stream that asks: the item's level of popularity, and the
    column of the merged sequence, -1 for older tokens than that shows. key_A, key_B: (R, S, 3) of
    its source: these and the domain; only where the fusion chooses where it looks.
    """
    log, source = experiment.data.log, experiment.config.gca.source
    n_a, trained = log.n_items[0], log.item[experiment.data.split.in_training(log)]
    count_I = np.bincount(trained, minlength=1 + sum(log.n_items))
    level_I = np.concatenate([[-1], levels(count_I[1 : n_a + 1]), levels(count_I[n_a + 1 :])])
    merged = rows[known.parts(experiment.config).merged]
    ids, columns = {"x": merged}, {"x": np.where(merged > 0, np.arange(merged.shape[1]), -1)}
    for d, domain in enumerate(DOMAINS):
        # Streams are without gaps; ABXI's end where the merged sequence does.
        own = np.where((merged > n_a) == (d == 1), columns["x"], -1)
        columns[domain] = rows.get(f"time_{domain}", np.sort(own, 1))
        there = np.take_along_axis(merged, np.maximum(columns[domain], 0), 1)
        # A stream of a domain's own ids does not reach further back than the merged sequence.
        stream = rows[f"seq_{domain}" if f"seq_{domain}" in rows else f"seq_{domain.lower()}"]
        ids[domain] = np.where(columns[domain] >= 0, there, stream)
    if source == "shuffled":
        ids["x"] = rows["donor"]
        columns["x"] = np.where(ids["x"] > 0, np.arange(merged.shape[1]), -1)
    out = {}
    for domain, other in zip(DOMAINS, reversed(DOMAINS), strict=True):
        # No key of another user is the token itself.
        column = columns[domain] if source != "shuffled" else np.full_like(columns[domain], -1)
        out[f"token_{domain}"] = np.stack([level_I[ids[domain]], column], -1)
        if kind_of(experiment.config.gca.fusion).attends:
            name = {"other": other, "self": domain}.get(source, "x")
            of = np.where(ids[name] > 0, ids[name] > n_a, -1)
            out[f"key_{domain}"] = np.stack([level_I[ids[name]], columns[name], of], -1)
    return {name: array.astype(np.int32) for name, array in out.items()}


def sums(probe: Probe, rows: dict, domain: str) -> dict[str, jax.Array]:
    """Sums over the tokens of a block of users, on the device; {} where nothing is `described`.

    tokens/popularity, tokens/position: (N, 5), how many tokens, and the sums of what `SHOWN` has
    of them. tokens/attention: (N, 2), the weights on each of `KEYS`, and what they would be if all
    keys had the same; the last row is the effective number of keys.
    """
    token_RxTx2, key_RxSx3 = rows.get(f"token_{domain}"), rows.get(f"key_{domain}")
    if token_RxTx2 is None:
        return {}
    n_rows, length, _ = token_RxTx2.shape
    used_Px1 = probe.has_key_P.astype(jnp.float32)[:, None]
    cos = {"gated_": cosine(probe.x, probe.gate * probe.update)}
    cos |= {"": cosine(probe.x, probe.update)}
    values = [value for of_form in cos.values() for value in (jnp.abs(of_form), of_form)]
    values_PxC = used_Px1 * jnp.stack([jnp.ones_like(values[0]), *values], -1)
    from_end_P = jnp.tile(length - jnp.arange(length), n_rows)
    bins = {"popularity": jax.nn.one_hot(token_RxTx2[..., 0].ravel(), LEVELS)}
    bins["position"] = jax.nn.one_hot(doublings(from_end_P), length.bit_length())
    exactly = {"precision": jax.lax.Precision.HIGHEST}
    out = {f"tokens/{by}": jnp.matmul(of.T, values_PxC, **exactly) for by, of in bins.items()}
    if key_RxSx3 is not None:
        out["tokens/attention"] = _attention(probe, used_Px1, token_RxTx2, key_RxSx3, domain)
    return out


def _attention(probe, used_Px1, token_RxTx2, key_RxSx3, domain):
    allowed_PxS = probe.allowed_PxS * used_Px1
    uniform_PxS = allowed_PxS / jnp.maximum(allowed_PxS.sum(-1, keepdims=True), 1)
    both_2xPxS = jnp.stack([probe.weights_PxS * used_Px1, uniform_PxS])
    items_2 = (jnp.exp(entr(both_2xPxS).sum(-1)) * used_Px1[:, 0]).sum(-1)
    shape = *token_RxTx2.shape[:2], key_RxSx3.shape[1]
    level, column, of = (key_RxSx3[:, None, :, i] for i in range(3))
    newest_RxTx1 = jnp.where(allowed_PxS.reshape(shape) > 0, column, -1).max(-1, keepdims=True)
    age = jnp.where(column >= 0, doublings(newest_RxTx1 - column + 1), -1)
    own, itself = DOMAINS.index(domain), (column == token_RxTx2[..., 1:]) & (column >= 0)
    chosen = [of == own, of == 1 - own, itself, *(age == i for i in range(AGES))]
    chosen += [level == i for i in range(LEVELS)]
    both = both_2xPxS.reshape(2, *shape)
    return jnp.stack([*(jnp.where(keys, both, 0).sum((1, 2, 3)) for keys in chosen), items_2])


def doublings(n: jax.Array) -> jax.Array:
    """How often 1 is doubled without exceeding n: 0 for 1, 1 for 2 and 3, 2 for 4 to 7."""
    return 31 - jax.lax.clz(n.astype(jnp.int32))


def statistics(total: dict) -> dict[str, float]:
    """{statistic: value} of one module from the added-up `sums`, by the names of
    analysis/README.md; nan for a bin without tokens."""
    out = {}
    for by in ("popularity", "position"):
        found = total.get(f"tokens/{by}", ())
        names = ranges(len(found)) if by == "position" else range(1, len(found) + 1)
        for name, (n, *values) in zip(names, found, strict=False):
            means = np.array(values) / (n or np.nan)
            of_bin = dict(zip(("tokens", *SHOWN), (n, *means), strict=True))
            out |= {f"{by}/{name}/{statistic}": float(v) for statistic, v in of_bin.items()}
    found, n = total.get("tokens/attention", ()), float(total["sums/tokens"]) or np.nan
    for name, (weight, null) in zip([*KEYS, "items"], found, strict=False):
        out |= {f"attention/{name}": float(weight / n), f"attention/{name}_null": float(null / n)}
    return out


def sheets(frame: pl.DataFrame) -> list[Sheet]:
    """Tables for people of the frame of `orthogonality`: means over seeds of the trained models,
    with 95 % intervals where there are several seeds; no table where there is nothing."""
    keys = ["run", "place", "domain"]
    trained = frame.filter(pl.col("parameters").is_in(["best", "last"])).drop_nans("value")
    seeds = trained.group_by([*keys, "statistic"], maintain_order=True).agg("value")
    angles, looks = [], []
    for key, part in seeds.group_by(keys, maintain_order=True):
        values = dict(part.select("statistic", "value").iter_rows())
        for name in (n for n in values if n.endswith("/tokens")):
            by, of, _ = name.split("/")
            cells = [_cell(values.get(f"{by}/{of}/{statistic}")) for statistic in SHOWN]
            angles.append([*map(str, key), by, of, number(np.mean(values[name]), 0), *cells])
        for name in (n for n in values if f"{n}_null" in values and n.startswith("attention/")):
            mean, null = np.mean(values[name]), np.mean(values[f"{name}_null"])
            if null > 0:  # there are such keys
                cells = [_cell(values[name]), number(null), number(mean / null, 2)]
                looks.append([*map(str, key), name.removeprefix("attention/"), *cells])
    title = "Angles by popularity of the item (5: most) and by position (1: newest)"
    found = [Sheet(title, [*keys, "by", "bin", "tokens", *SHOWN.values()], angles, words=5)]
    title = "Where tokens look: attention on keys, beside equal attention on all"
    found.append(Sheet(title, [*keys, "keys", "attention", "equal", "times"], looks, words=4))
    return [sheet for sheet in found if sheet.rows]


def _cell(values) -> str:
    mean, low, high = mean_interval(values or [])
    return f"{number(mean)} {interval(low, high)}".strip()
