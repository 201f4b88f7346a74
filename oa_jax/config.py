"""Configuration: the groups that every backbone shares, presets of `protocol`, and checking.

A configuration file (configs/*.py) starts from `base` and fills `model`; the commands call
`resolve`, whose result is plain, complete and stored as config.json.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from typing import Any

import ml_collections
from ml_collections import config_dict

from oa_jax.engine import mesh
from oa_jax.errors import UserError
from oa_jax.events.world import World
from oa_jax.nn.known import CHOICES, GCAConfig

# Quirks of each backbone's official code that change numbers (specs §9): official, corrected.
# `protocol` chooses a column; `--config.quirks.NAME=` overrides one.
QUIRKS = {
    "abxi": {
        "q1_pool_b_from_last_a": (True, False),
        "q3_attend_to_padding": (True, False),
        "q6_positions_from_end": (True, True),  # a choice of design, not an error
        "q10_ties_favour_target": (True, False),
        "q19_mean_over_all_users": (True, False),
    },
    # Not here: Q3, Q14, Q15 are the design (Q3: model.freeze); Q9 changes nothing; Q11, Q18, Q19
    # lie in the official data scripts; Q20, arbitrary places among ties, is their middle in both
    # protocols; Q21, candidates drawn anew at every validation, is never done.
    "llm4cdsr": {
        "q1_no_causal_mask": (True, False),
        "q2_score_two_items_as_one": (True, False),
        "q4_attend_to_padding": (True, False),
        "q5_negative_of_input_domain": (True, False),
        "q6_two_negatives": (True, False),
        "q7_last_item_never_drawn": (True, False),
        "q8_empty_mean_is_nan": (True, False),
        "q10_profile_by_row": (True, False),
        "q12_profile_sees_validation": (True, False),
        "q13_scale_by_table_width": (True, True),  # choices of design, not errors
        "q16_second_pass": (True, True),
        "q17_users_without_input": (True, False),
        "drop_last_of_other": (True, False),  # not numbered: specs §3, evaluation rows
    },
    "cdsrnp": {},  # no official code is public: what is open is a field of `model`
}
PROTOCOLS = ("official", "corrected")

# Defaults of the group `train`: official ABXI.
TRAIN = {
    "batch_size": 256,
    "max_epochs": 500,
    "learning_rate": 1e-4,
    "weight_decay": 2.0,
    "warmup_epochs": 10,
    "plateau_patience": 30,
    "plateau_factor": 0.3162,
    "stop_patience": 61,
    "selection": "mrr_sum",
    "strict": False,
    "n_negatives": 128,
    "negatives": "per_position",
    "block_positions": 256,
    "probe_users": 1024,
    "checkpoint_every": 5,
    "keep_checkpoints": 2,
    "compaction": True,
    "tensorboard": False,
    "matmul_precision": "default",
    "compute_dtype": "float32",
    "quick_compile": False,
}


def base(backbone: str) -> ml_collections.ConfigDict:
    """Defaults of everything that is not the backbone's own."""
    placeholders = {name: config_dict.placeholder(bool) for name in QUIRKS[backbone]}
    return ml_collections.ConfigDict(
        {
            "backbone": backbone,
            "protocol": "official",
            "quirks": placeholders,
            "seeds": 5,
            "first_seed": 0,
            "seed_axis": "auto",
            "mesh": "",
            "data": {
                "name": "synthetic",
                "dir": config_dict.placeholder(str),
                "split": "leave_one_out",
                "resident": True,
                "chunk_steps": 32,
                "users": "all",
                "tables": config_dict.placeholder(str),
                "global_width": 1024,
                "world": {f.name: f.default for f in dataclasses.fields(World)},
            },
            "gca": dataclasses.asdict(GCAConfig()) | {"ortho_weight": 0.0},
            "train": dict(TRAIN),
            "evaluate": {
                "n_negatives": 999,
                "users_per_kind": 0,
                "block_users": 512,
                "block_items": 4096,
            },
        }
    )


def completed(config: dict) -> tuple[dict, list[str]]:
    """`config` with the defaults of fields that a run of an older version lacks, and their names.

    A field is added with the default that keeps what the code did before.
    """
    out, added = copy.deepcopy(config), []
    if str(config.get("backbone")) not in QUIRKS:
        return out, added
    if isinstance(out.get("gca"), dict) and "update" in out["gca"]:
        out["gca"]["part"] = out["gca"].pop("update")  # its name until `gca.fusion` came

    def fill(node, defaults, path):
        for name, default in defaults.items():
            if name not in node:
                node[name] = default
                added.append(f"{path}{name}")
            elif isinstance(default, dict) and isinstance(node[name], dict):
                fill(node[name], default, f"{path}{name}.")

    own = {"model": {"blocks": 2}} if config["backbone"] != "abxi" else {}
    fill(out, base(config["backbone"]).to_dict() | own, "")
    return out, added


def positions(text: str) -> tuple[int, ...]:
    """Places from `none`, `early`, `stack` or numbers such as `0-1`."""
    named = {"none": (), "early": (0,), "stack": (0, 1)}
    if text in named:
        return named[text]
    parts = text.split("-")
    if not all(part.isdecimal() for part in parts):
        raise UserError(f"gca={text}: expected none, early, stack or places such as 0-1")
    return tuple(int(part) for part in parts)


def arguments(text: str | None, defaults: dict[str, str]) -> dict[str, str]:
    """`a=x,b=y,flag` of `--config=file.py:…` over `defaults`; a bare word is a flag, "true"."""
    out = dict(defaults)
    for part in filter(None, (text or "").split(",")):
        name, _, value = part.partition("=")
        if name not in defaults:
            raise UserError(f"--config: argument {name!r}: expected one of {', '.join(defaults)}")
        out[name] = value or "true"
    return out


@dataclasses.dataclass(frozen=True)
class _Rule:
    field: str
    holds: Any
    expected: str


def _whole(field, least, most=math.inf):
    expected = f"a whole number of at least {least}"
    if most < math.inf:
        expected = f"a whole number from {least} to {most}"
    return _Rule(field, lambda v: _is_int(v) and least <= v <= most, expected)


def _real(field, low, high=math.inf, open_low=False):
    expected = f"a number {'above' if open_low else 'from'} {low}"
    expected += f" to {high}" if high < math.inf else ("" if open_low else " up")

    def holds(value):
        return _is_real(value) and low <= value <= high and not (open_low and value == low)

    return _Rule(field, holds, expected)


def _one_of(field, choices):
    return _Rule(field, lambda v: v in choices, "one of " + ", ".join(map(str, choices)))


def _flag(field):
    return _Rule(field, lambda v: isinstance(v, bool), "True or False")


def _is_int(value):
    return isinstance(value, int) and not isinstance(value, bool)


def _is_real(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_widths(value):
    return isinstance(value, list) and len(value) > 0 and all(_is_int(v) and v > 0 for v in value)


def _is_mesh(value):
    try:
        mesh.parse(value)
    except (ValueError, AttributeError):
        return False
    return True


RULES = (
    _one_of("protocol", PROTOCOLS),
    _whole("seeds", 1, 10_000),
    _whole("first_seed", 0, 2**31 - 10_001),
    _one_of("seed_axis", ("auto", "vmap", "map")),
    _Rule("mesh", _is_mesh, mesh.EXPECTED),
    _one_of("data.split", ("leave_one_out", "global_time", "published")),
    _one_of("data.users", ("all", "overlap")),
    _whole("data.global_width", 2),
    *(_one_of(f"gca.{field}", words) for field, words in CHOICES.items()),
    _whole("gca.gate_hidden", 1),
    _whole("gca.heads", 0),
    _real("gca.ortho_weight", 0),
    *map(_flag, ("gca.layer_norm", "gca.key_mask", "gca.causal")),
    *map(_flag, ("train.tensorboard", "train.compaction", "train.strict", "train.quick_compile")),
    _flag("data.resident"),
    _whole("data.chunk_steps", 1),
    _one_of("train.selection", ("mrr_sum", "ndcg@10", "ndcg@10_sum")),
    _whole("train.batch_size", 1),
    _whole("train.max_epochs", 1),
    _real("train.learning_rate", 0, open_low=True),
    _real("train.weight_decay", 0),
    _whole("train.warmup_epochs", 0),
    _whole("train.plateau_patience", 0),
    _real("train.plateau_factor", 0, 1, open_low=True),
    _whole("train.stop_patience", 0),
    _whole("train.n_negatives", 1),
    _one_of("train.negatives", ("per_position", "per_sequence")),
    _whole("train.block_positions", 1),
    _whole("train.probe_users", 1),
    _whole("train.checkpoint_every", 1),
    _whole("train.keep_checkpoints", 1),
    _one_of("train.matmul_precision", ("default", "high", "highest")),
    _one_of("train.compute_dtype", ("float32", "bfloat16")),
    _whole("evaluate.n_negatives", 1),
    _whole("evaluate.users_per_kind", 0),
    _whole("evaluate.block_users", 1),
    _whole("evaluate.block_items", 1),
    _whole("model.d_embed", 1),
    _whole("model.heads", 1),
    _whole("model.length", 1),
    _real("model.dropout", 0, 0.999),
)
# Of each backbone: the fields that are its own, and what it can do of the shared ones.
OWN_RULES = {
    "abxi": (
        _whole("model.d_ffn", 1),
        _whole("model.rank_domain", 1),
        _whole("model.rank_invariant", 1),
        _real("model.temperature", 0, open_low=True),
    ),
    "llm4cdsr": (
        _whole("model.d_embed", 2),
        _whole("model.blocks", 1),
        _one_of("train.n_negatives", (1,)),
        _one_of("train.negatives", ("per_position",)),
        _real("model.alpha", 0),
        _real("model.beta", 0),
        _real("model.tau", 0, open_low=True),
        _real("model.tau_reg", 0, open_low=True),
        *map(_flag, ("model.global_llm", "model.local_llm", "model.freeze")),
    ),
    "cdsrnp": (
        _one_of("protocol", ("corrected",)),
        _one_of("train.n_negatives", (1,)),
        _one_of("train.negatives", ("per_position",)),
        _whole("model.merged_length", 1),
        _whole("model.blocks", 1),
        _whole("model.d_latent", 0),
        _whole("model.support", 1),
        _whole("model.eval_support", 0),
        _whole("model.kl_warmup", 0),
        _real("model.kl_weight", 0),
        _one_of("model.targets", ("each_domain", "last", "every")),
        _one_of("model.latents", ("per_direction", "shared")),
        _one_of("model.score_state", ("last", "mean")),
        _one_of("model.np_state", ("last", "mean")),
        _one_of("model.interest", ("film", "attention", "none")),
        _one_of("model.eval_latent", ("mean", "draw")),
        _Rule("model.decoder_widths", _is_widths, "a list of whole numbers of at least 1"),
        *map(_flag, ("model.neural_process", "model.pair_negative", "model.exclude_query")),
        *map(_flag, ("model.film_from_one", "evaluate.test_items")),
    ),
}


def resolve(config: ml_collections.ConfigDict, places) -> dict:
    """Check a configuration and return it as a plain dict with every quirk decided.

    places: the backbone's GCA places, or a function of its `model` that gives them.
    Raises UserError naming the field, found and expected.
    """
    try:
        plain = json.loads(json.dumps(config.to_dict()))  # tuples become lists, as when read back
    except TypeError as error:
        raise UserError(f"--config: {error}: expected numbers, text, lists, None") from None
    for rule in (*RULES, *OWN_RULES[plain["backbone"]]):
        value = _value(plain, rule.field)
        if not rule.holds(value):
            raise UserError(f"--config.{rule.field}={value}: expected {rule.expected}")
    _check_gca(plain, places(plain["model"]) if callable(places) else places)
    if plain["train"]["warmup_epochs"] >= plain["train"]["max_epochs"]:
        raise UserError(
            f"--config.train.warmup_epochs={plain['train']['warmup_epochs']}: expected less than "
            f"max_epochs={plain['train']['max_epochs']}, as no epoch is selected in the warm-up"
        )
    column = PROTOCOLS.index(plain["protocol"])
    for name, presets in QUIRKS[plain["backbone"]].items():
        if plain["quirks"][name] is None:
            plain["quirks"][name] = presets[column]
    return plain


def _value(plain, field):
    node = plain
    for part in field.split("."):
        if not isinstance(node, dict) or part not in node:
            raise UserError(f"--config.{field}: missing: expected the field in every configuration")
        node = node[part]
    return node


def _check_gca(plain, places):
    found = _value(plain, "gca.positions")
    known = isinstance(found, list) and all(_is_int(p) and p in places for p in found)
    if not known or sorted(set(found)) != found:
        raise UserError(
            f"--config.gca.positions={found}: expected different places in ascending order "
            f"among {', '.join(map(str, places))}"
        )
    width = plain["model"]["d_embed"]
    for field in ("model", "gca"):
        heads = plain[field]["heads"]
        if heads and width % heads:
            raise UserError(
                f"--config.{field}.heads={heads}: expected a divisor of model.d_embed={width}"
            )


def first_difference(old: dict, new: dict, path="") -> str | None:
    """`field: old value, new value` of the first difference, None if there is none.

    `data.dir` and `data.tables` may differ: the data are known by their fingerprints. So may
    `mesh`: a run goes on on other devices.
    """
    if not isinstance(old, dict):
        return f"config.json holds {json.dumps(old)[:40]}, expected an object"
    for key in sorted({**old, **new}):
        field = f"{path}{key}"
        if field in ("data.dir", "data.tables", "mesh") or (
            key in old and key in new and old[key] == new[key]
        ):
            continue
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            difference = first_difference(a, b, f"{field}.")
            if difference:
                return difference
            continue
        return f"{field}: there {a}, asked for {b}"
    return None


def choice(name: str, value: str, choices) -> str:
    """`value` if it is one of `choices`, otherwise a UserError naming them."""
    if value not in choices:
        raise UserError(f"{name}={value}: expected one of {', '.join(choices)}")
    return value
