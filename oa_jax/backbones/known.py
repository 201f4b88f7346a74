"""What the house needs of each backbone: how its parts are built from a configuration.

The rest of the program knows a backbone by its bundle alone, never by its streams.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable

import numpy as np

from oa_jax.backbones.abxi import model as abxi
from oa_jax.backbones.abxi.task import Task
from oa_jax.backbones.cdsrnp import arrays as cdsrnp_arrays
from oa_jax.backbones.cdsrnp import model as cdsrnp
from oa_jax.backbones.cdsrnp.task import CDSRNPTask
from oa_jax.backbones.llm4cdsr import model as llm4cdsr
from oa_jax.backbones.llm4cdsr.task import LLM4CDSRTask
from oa_jax.data import sources
from oa_jax.errors import UserError
from oa_jax.events import world as synthetic
from oa_jax.events.log import TEST, VALIDATION
from oa_jax.nn.gca import GCAConfig
from oa_jax.ranking.candidates import candidates_digest, draw_candidates
from oa_jax.text import profiles, reduction
from oa_jax.text.tables import Tables, default_folder, history_of, load_tables

LOCAL_TABLES = ("local_a", "local_b")
SHORT_HISTORY, TAIL_ITEM = 12, 13  # official ts_user, ts_item: below is short, tail


@dataclasses.dataclass(frozen=True)
class Bundle:
    """places: of GCA.  hparams: {name: (group, field)}, values that need no recompilation, beside
    those of every backbone.  task: (config, log, split).  tables: (config, log, split) -> frozen
    inputs or None.  backbone: (config, n_items, tables).
    rankings: (config) -> {ranking: its name in metrics and files}, the key of an evaluation row's
    candidates or "full".  watched: (config) -> the ranking that training selects by.
    tie_weight: (config) -> 0 puts the target first among equal scores, 0.5 in their middle.
    candidates: (config, log, split, rows) -> {ranking: candidates of the rows}.
    groups: (log, split, rows) -> {name: mask (R,)} of users reported beside the two domains.
    skip_short: users with fewer than 3 events are left out, not an error.
    label: (config) -> a short name of the model, without GCA.
    """

    places: tuple[int, ...]
    hparams: dict[str, tuple[str, str]]
    task: Callable
    tables: Callable
    backbone: Callable
    rankings: Callable
    watched: Callable
    tie_weight: Callable
    candidates: Callable
    groups: Callable
    skip_short: bool = False
    label: Callable = lambda config: config["backbone"]


def gca_config(config: dict) -> GCAConfig:
    fields = {f.name: config["gca"][f.name] for f in dataclasses.fields(GCAConfig)}
    return GCAConfig(**fields | {"positions": tuple(config["gca"]["positions"])})


def _fields(kind, values: dict) -> dict:
    """Those of `values` that are fields of the dataclass `kind`."""
    return {f.name: values[f.name] for f in dataclasses.fields(kind) if f.name in values}


def abxi_backbone(config, n_items, tables=None) -> abxi.Backbone:
    return abxi.Backbone(
        abxi.ABXIConfig(n_items=n_items, **_fields(abxi.ABXIConfig, config["model"])),
        gca_config(config),
        abxi.ABXIQuirks(**_fields(abxi.ABXIQuirks, config["quirks"])),
        config["train"]["block_positions"],
    )


def abxi_task(config, log, split) -> Task:
    train = config["train"]
    return Task(
        log,
        split,
        config["model"]["length"],
        train["batch_size"],
        train["n_negatives"],
        train["negatives"],
        config["quirks"]["q1_pool_b_from_last_a"],
    )


def abxi_candidates(config, log, split, rows):
    last_a = config["quirks"]["q1_pool_b_from_last_a"]
    return {"candidates": _draw(config, log, split, rows, rows["seen"], last_a)}


def _draw(config, log, split, rows, avoided, pool_b_from_last_a=False):
    return draw_candidates(
        log.fingerprint(),
        split,
        rows["user"],
        rows["target"],
        avoided,
        log.n_items,
        config["evaluate"]["n_negatives"],
        pool_b_from_last_a,
    )


def _uniform(config):
    return {"candidates": f"uni{config['evaluate']['n_negatives']}", "full": "full"}


def llm4cdsr_backbone(config, n_items, tables) -> llm4cdsr.Backbone:
    model = config["model"]
    terms = {"regularise": model["alpha"] > 0, "align_users": model["beta"] > 0}
    return llm4cdsr.Backbone(
        llm4cdsr.LLM4CDSRConfig(
            n_items=n_items, **_fields(llm4cdsr.LLM4CDSRConfig, model), **terms
        ),
        frozen_tables(tables),
        gca_config(config),
        llm4cdsr.LLM4CDSRQuirks(**_fields(llm4cdsr.LLM4CDSRQuirks, config["quirks"])),
    )


def text_tables(config, log, split) -> Tables:
    """The frozen inputs of a data set, as wide as the model: the first principal components."""
    data, q12 = config["data"], config["quirks"]["q12_profile_sees_validation"]
    if data["name"] == sources.SYNTHETIC:
        found = synthetic_tables(synthetic.World(**data["world"]), log, split, q12)
    else:
        root = data["dir"] or os.environ.get(sources.DIRECTORY_VARIABLE)
        folder = data["tables"] or default_folder(root, data["name"])
        found = load_tables(folder, log, split, q12)
    widths = {"global_table": ("data.global_width", data["global_width"])}
    widths |= {local: ("model.d_embed", config["model"]["d_embed"]) for local in LOCAL_TABLES}
    cut = {}
    for table, (field, width) in widths.items():
        most = getattr(found, table).shape[1]
        if width > most:
            raise UserError(
                f"--config.{field}={width}: expected at most {most}, as wide as {table}"
            )
        cut[table] = getattr(found, table)[:, :width]
    return dataclasses.replace(found, **cut)


def synthetic_tables(world: synthetic.World, log, split, sees_validation: bool) -> Tables:
    """Tables of the synthetic world's own embeddings, with all principal components."""
    vectors, n_a = synthetic.embeddings(world), log.n_items[0]
    parts = (vectors, vectors[:n_a], vectors[n_a:])
    reduced = [reduction.pca(part, reduction.widest(part)).rows for part in parts]
    n_history, has_text = history_of(split, sees_validation), np.ones(len(vectors), bool)
    users = profiles.mean_profiles(log, n_history, vectors, has_text)
    return Tables(*reduced, users, n_history, {"encoder": "synthetic", "log": log.fingerprint()})


def frozen_tables(found: Tables) -> llm4cdsr.Tables:
    """The tables with a row of zeros for padding before the items."""

    def padded(rows):
        return np.pad(rows, [(1, 0), (0, 0)])

    items, local_a, local_b = map(padded, (found.global_table, found.local_a, found.local_b))
    return llm4cdsr.Tables(items, local_a, local_b, found.users)


def llm4cdsr_task(config, log, split) -> LLM4CDSRTask:
    quirks = _fields(LLM4CDSRTask, config["quirks"])
    return LLM4CDSRTask(
        log, split, config["model"]["length"], config["train"]["batch_size"], **quirks
    )


def llm4cdsr_rankings(config):
    """Both protocols' candidates in every run, so that one run shows what Q2 and Q7 are worth."""
    return {"official": f"official{config['evaluate']['n_negatives']}"} | _uniform(config)


def llm4cdsr_candidates(config, log, split, rows):
    """`candidates` (R, K), the same items for both streams; `official` (R, 2, K), drawn apart for
    stream x and for the domain's stream (Q2), a domain's last item never among them (Q7)."""
    last = np.array([log.n_items[0], sum(log.n_items)], np.int32)
    avoided = np.concatenate([rows["seen"], np.tile(last, (len(rows["user"]), 1))], 1)
    pair = [
        _draw(config, log, f"{split}/official/{of}", rows, avoided) for of in ("joint", "local")
    ]
    uniform = _draw(config, log, split, rows, rows["seen"])
    return {"candidates": uniform, "official": np.stack(pair, 1)}


def llm4cdsr_groups(log, split, rows):
    """All users; short and long histories; rare and popular targets, counted in training parts."""
    place = np.arange(len(log.user)) - log.offsets[log.user]
    trained = log.item[place < split.n_train[log.user]]
    popularity = np.bincount(trained, minlength=sum(log.n_items) + 1)[rows["target"]]
    short, tail = rows["n_history"] < SHORT_HISTORY, popularity < TAIL_ITEM
    every = np.ones(len(short), bool)
    return {"all": every, "short": short, "long": ~short, "tail": tail, "popular": ~tail}


def cdsrnp_backbone(config, n_items, tables) -> cdsrnp.Backbone:
    sizes = _fields(cdsrnp.CDSRNPConfig, config["model"])
    sizes["decoder_widths"] = tuple(sizes["decoder_widths"])
    support = None if tables is None else tables.rows
    return cdsrnp.Backbone(
        cdsrnp.CDSRNPConfig(n_items=n_items, **sizes), support, gca_config(config)
    )


def cdsrnp_task(config, log, split) -> CDSRNPTask:
    model = config["model"]
    sizes = _fields(CDSRNPTask, model | {"batch_size": config["train"]["batch_size"]})
    if not model["neural_process"]:
        sizes["support"] = 0
    return CDSRNPTask(log, split, **sizes)


@dataclasses.dataclass(frozen=True)
class Support:
    """The fixed support set of evaluation: rows of training with a negative each."""

    rows: dict[str, np.ndarray]
    metadata: dict


def cdsrnp_support(config, log, split) -> Support | None:
    """All training rows of overlapped users, or `model.eval_support` of them, drawn by the data."""
    model = config["model"]
    if not model["neural_process"]:
        return None
    task = cdsrnp_task(config, log, split)
    fingerprint, pool = log.fingerprint(), task.pool
    if 0 < model["eval_support"] < len(pool):
        draw = np.random.default_rng([int(fingerprint, 16), 0])
        pool = np.sort(draw.choice(pool, model["eval_support"], replace=False))
    rows, user = task.arrays_of_rows(pool), task.rows.user[pool]
    own = cdsrnp_arrays.own_ids(rows, log.n_items[0])
    drawn = draw_candidates(fingerprint, "support", user, rows["target"], own, log.n_items, 1)
    rows = {name: rows[name] for name in (*cdsrnp_arrays.STREAMS, "target", "domain")}
    rows |= {"negative": drawn[:, 1], "real": np.ones(len(pool), bool)}
    return Support(rows, {"support": candidates_digest(drawn)})


def cdsrnp_rankings(config):
    names = _uniform(config)
    if config["evaluate"]["test_items"]:
        names = {"test_items": f"test{config['evaluate']['n_negatives']}"} | names
    return names


def cdsrnp_candidates(config, log, split, rows):
    """`test_items`: negatives among the items of the sequences that are tested, as AMID draws."""
    out = {"candidates": _draw(config, log, split, rows, rows["seen"])}
    if config["evaluate"]["test_items"]:
        out["test_items"] = _draw_among(config, log, split, rows, _items_with_target(log, split))
    return out


def _items_with_target(log, split):
    """Items of the sequences that the source gives a target in `split`, ascending."""
    if log.role is None:
        return np.unique(log.item)
    kind = {"val": VALIDATION, "test": TEST}[split]
    return np.unique(log.item[np.isin(log.user, log.user[log.role == kind])])


def _draw_among(config, log, split, rows, items):
    """Candidates among `items` only: drawn by their places in the list, and looked up there."""
    place = np.zeros(sum(log.n_items) + 1, np.int32)
    place[items] = 1 + np.arange(len(items))
    n_a = int(np.searchsorted(items, log.n_items[0], side="right"))
    drawn = draw_candidates(
        log.fingerprint(),
        f"{split}/test_items",
        rows["user"],
        place[rows["target"]],
        place[rows["seen"]],
        (n_a, len(items) - n_a),
        config["evaluate"]["n_negatives"],
    )
    return items[drawn - 1].astype(np.int32)


def cdsrnp_groups(log, split, rows):
    """All users; those with a history in both domains and in one, by the target's domain."""
    overlap = cdsrnp_arrays.is_overlapped(rows)
    groups = {"all": np.ones(len(overlap), bool), "overlap": overlap, "single": ~overlap}
    for d, name in enumerate("AB"):
        of_domain = rows["domain"] == d
        groups |= {f"overlap_{name}": overlap & of_domain, f"single_{name}": ~overlap & of_domain}
    return groups


BACKBONES = {
    "abxi": Bundle(
        places=abxi.PLACES,
        hparams={"temperature": ("model", "temperature")},
        task=abxi_task,
        tables=lambda config, log, split: None,
        backbone=abxi_backbone,
        rankings=_uniform,
        watched=lambda config: "candidates",
        tie_weight=lambda config: 0.5 * (not config["quirks"]["q10_ties_favour_target"]),
        candidates=abxi_candidates,
        groups=lambda log, split, rows: {},
    ),
    "llm4cdsr": Bundle(
        places=llm4cdsr.PLACES,
        hparams={name: ("model", name) for name in ("alpha", "beta", "tau", "tau_reg")},
        task=llm4cdsr_task,
        tables=text_tables,
        backbone=llm4cdsr_backbone,
        rankings=llm4cdsr_rankings,
        watched=lambda config: (
            "official" if config["quirks"]["q2_score_two_items_as_one"] else "candidates"
        ),
        tie_weight=lambda config: 0.5,  # Q20: the official places among ties are arbitrary
        candidates=llm4cdsr_candidates,
        groups=llm4cdsr_groups,
        skip_short=True,
    ),
    "cdsrnp": Bundle(
        places=cdsrnp.PLACES,
        hparams={"kl_weight": ("model", "kl_weight")},
        task=cdsrnp_task,
        tables=cdsrnp_support,
        backbone=cdsrnp_backbone,
        rankings=cdsrnp_rankings,
        watched=lambda config: "test_items" if config["evaluate"]["test_items"] else "candidates",
        tie_weight=lambda config: 1.0,  # against the target (specs cdsrnp §12)
        candidates=cdsrnp_candidates,
        groups=cdsrnp_groups,
        skip_short=True,
        label=lambda config: "cdsrnp" + " without NP" * (not config["model"]["neural_process"]),
    ),
}
