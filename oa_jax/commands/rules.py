"""`python -m oa_jax rules --config=FILE.py:ARGS`: how well simple baselines rank.

The targets of a configuration are ranked against the same candidates as its model's, under every
ranking of its backbone and with its convention for ties, and shown in the same table. `--out`
writes what `python -m oa_jax report` takes beside the folders of runs.

    random                     every user has an order of items of its own
    popularity                 events in the training parts
    last-item popularity       users whose training part ends with the item
    popularity of larger ids   the items with an id above the user's largest one in the domain come
                               first, by popularity, then the others: what a file rewards whose
                               sequences are in the order of ids, as some published ones are
    ItemKNN                    the sum of the similarities to the user's items: cosine of
                               co-occurrence in the training parts, of the --neighbours nearest
    EASE                       the linear model of all items in closed form, ridge --ridge

The last two learn from both domains, and need V² numbers for V items, which a line says; they are
left out where that is more than --gigabytes. Their flags are not tuned: compare on the split val.
A candidate that is scored as two items (LLM4CDSR quirk Q2) gets the sum of their scores. Where
ties favour the target (ABXI quirk Q10), they do so here, and items of equal counts are many.
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from oa_jax import experiment as experiment_lib
from oa_jax import files
from oa_jax.commands import cli, report
from oa_jax.configuration import Config
from oa_jax.engine.compilation import use_compilation_cache
from oa_jax.engine.step import Settings, all_ranks
from oa_jax.evaluation import SPLITS
from oa_jax.events.log import InteractionLog
from oa_jax.events.split import Split
from oa_jax.ranking import similar


@dataclasses.dataclass(frozen=True)
class Rule:
    """A backbone as far as ranking needs one: `params` are a number for every item, (V + 1,).

    score_items: (params, rows, ids (B or 1, N)) -> scores of the ids (B or 1, N).
    """

    score_items: Callable

    def index(self, params: jax.Array) -> jax.Array:
        return params

    def encode(self, params: jax.Array, rows: dict) -> dict:
        return rows

    def score(self, params: jax.Array, rows: dict, ids: jax.Array) -> jax.Array:
        """ids: (K,), (B, K) or (B, 2, K) -> (B, K)."""
        ids = ids[None] if ids.ndim == 1 else ids
        scores = self.score_items(params, rows, ids.reshape(len(ids), -1))
        scores = jnp.broadcast_to(scores, (len(rows["target"]), scores.shape[1]))
        return scores if ids.ndim == 2 else scores.reshape(-1, *ids.shape[1:]).sum(1)


def by_number(params: jax.Array, rows: dict, ids: jax.Array) -> jax.Array:
    return params[ids]


def by_chance(params: jax.Array, rows: dict, ids: jax.Array) -> jax.Array:
    """24 bits mixed from user and item."""
    bits = _mixed(rows["user"][:, None].astype(jnp.uint32)) + ids.astype(jnp.uint32)
    return (_mixed(bits) >> 8).astype(jnp.float32)


def larger_ids_first(params: jax.Array, rows: dict, ids: jax.Array) -> jax.Array:
    return params[ids] + (1 + params.max()) * (ids > rows["largest"][:, None])


def by_user(params: jax.Array, rows: dict, ids: jax.Array) -> jax.Array:
    ids = jnp.broadcast_to(ids, (len(rows["scores"]), ids.shape[1]))
    # Blocks end above the last item.
    return jnp.take_along_axis(rows["scores"], ids, 1, mode="clip")


@dataclasses.dataclass(frozen=True)
class Similar(Rule):
    """`params` are weights (V + 1, V + 1) of `ranking.similar`."""

    score_items: Callable = by_user

    def encode(self, params: jax.Array, rows: dict) -> dict:
        """The rows with `scores` (B, V + 1) of all items."""
        row, item = rows["seen_row"], rows["seen_item"]

        def add(i, scores):
            return scores.at[row[i]].add(params[item[i]], mode="drop")

        nothing = jnp.zeros((len(rows["target"]), params.shape[1]), params.dtype)
        return rows | {"scores": jax.lax.fori_loop(0, len(row), add, nothing)}


def _mixed(bits):
    """A bijection of 32-bit numbers that leaves no order in them (the finalizer of MurmurHash3)."""
    bits = (bits ^ (bits >> 16)) * jnp.uint32(0x85EBCA6B)
    bits = (bits ^ (bits >> 13)) * jnp.uint32(0xC2B2AE35)
    return bits ^ (bits >> 16)


def rules(log: InteractionLog, split: Split) -> dict[str, tuple[Rule, np.ndarray]]:
    """{name: (rule, its number for every item)}, counted in the training parts of the split."""
    place, n_train = log.position, split.n_train[log.user]

    def count(event):
        return np.bincount(log.item[event], minlength=sum(log.n_items) + 1).astype(np.float32)

    # A training part of one event has nothing to predict.
    popularity, last = count(place < n_train), count((place == n_train - 1) & (n_train > 1))
    return {
        "random": (Rule(by_chance), popularity),
        "popularity": (Rule(by_number), popularity),
        "last-item popularity": (Rule(by_number), last),
        "popularity of larger ids": (Rule(larger_ids_first), popularity),
    }


def similar_rules(
    log: InteractionLog,
    split: Split,
    neighbours: int,
    ridge: float,
    gigabytes: float,
    say: Callable,
) -> dict[str, tuple[Rule, Callable]]:
    """As `rules`, but for functions that make the weights when their turn comes; {} where the
    memory is too small, which is said."""
    needed = similar.memory(sum(log.n_items)) / 1e9
    line = f"ItemKNN, EASE: up to {needed:.1f} GB for {sum(log.n_items):,} items"
    if needed > gigabytes:
        say(f"{line}: left out: expected --gigabytes={math.ceil(needed)} or more")
        return {}
    say(line)
    counts = similar.counts(log, split.in_training(log))
    return {
        "ItemKNN": (Similar(), functools.partial(similar.item_knn, counts, neighbours)),
        "EASE": (Similar(), functools.partial(similar.ease, counts, ridge)),
    }


def largest_seen(rows: dict, n_a: int) -> np.ndarray:
    """(R,) largest id of the target's domain in the user's history; 0 without any."""
    row, item = rows["seen"].row, rows["seen"].values
    in_domain, out = (item > n_a) == (rows["target"] > n_a)[row], np.zeros_like(rows["target"])
    np.maximum.at(out, row[in_domain], item[in_domain])
    return out


def evaluate(config: Config, *more: Callable) -> list[dict]:
    """A summary for each rule, as `summary.json` has them of a run with one seed. more: further
    functions such as `rules`."""
    data = experiment_lib.load(config)
    evaluation = experiment_lib.build_evaluation(config, data)
    found, kinds, arrays = {}, tuple(evaluation.rankings), {}
    for make in (rules, *more):
        found |= make(data.log, data.task.split)
    sizes = config.evaluate.block_users, config.evaluate.block_items
    for split in SPLITS:
        rows = evaluation.rows[split]
        used = {k: rows[k] for k in ("user", "target", "seen", *kinds) if k in rows}
        used["largest"] = largest_seen(rows, data.log.n_items[0])
        arrays[split] = evaluation.padded(used)

    def of_rule(rule, numbers):
        numbers = jnp.asarray(numbers() if callable(numbers) else numbers)
        settings = Settings(rule, None, None, None, data.log.n_items, 0.0, *sizes)
        program = jax.jit(lambda numbers, arrays: all_ranks(settings, numbers, arrays, kinds))
        return jax.device_get({split: program(numbers, arrays[split]) for split in SPLITS})

    ranks = jax.tree.map(lambda *of: np.stack(of), *(of_rule(*one) for one in found.values()))
    stored = evaluation.stored(np.arange(len(found)), ranks)  # a rule stands where a seed does
    summaries, fingerprint = [], data.log.fingerprint()
    about = {"run": "rules", "protocol": config.protocol, "fingerprint": fingerprint}
    about |= {"data": f"{config.data.name} {fingerprint[:6]}", "n_parameters": 0, "n_seeds": 1}
    for slot, label in enumerate(found):
        mean = evaluation.of_seed(stored, slot)
        seed = {"seed": 0, "epochs": 0, "diverged_step": 0} | mean
        summaries.append({"label": label} | about | {"mean": mean, "sd": {}, "per_seed": [seed]})
    return summaries


def main(_):
    out = flags.FLAGS.out
    if out:
        files.check_writable(out, "--out")
    named = {name: getattr(flags.FLAGS, name) for name in ("neighbours", "ridge", "gigabytes")}
    config, compared = cli.config_value(), functools.partial(similar_rules, **named, say=cli.say)
    use_compilation_cache(cli.say)
    with cli.working("drawing candidates and ranking them by each rule: up to minutes"):
        summaries = evaluate(config, compared)
    if out:
        files.write_json(out, summaries)
    report.output(summaries)


def define_flags() -> None:
    report.define_flags(tables=False)
    flags.DEFINE_string("out", None, "A file for the summaries: `oa_jax report` reads it.")
    flags.DEFINE_integer("neighbours", 100, "Similar items of each item, for ItemKNN.", 1)
    flags.DEFINE_float("ridge", 100.0, "λ of EASE.", 1e-3)
    flags.DEFINE_float(
        "gigabytes", 16.0, "Memory for ItemKNN and EASE; with less they are left out."
    )
    cli.define_config()
