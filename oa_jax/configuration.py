"""Configurations: typed groups, each field with its default, its check and its meaning. No JAX.

`Config` holds what every backbone shares; each backbone's `fields.py` adds its own groups in a
subclass. `backbones.known.resolve` turns values from any source (a file of configs/, a notebook,
config.json) into a checked `Config`; anything that is not a field is refused.
"""

import dataclasses
import difflib
import functools
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from oa_jax.errors import UserError
from oa_jax.events.world import World
from oa_jax.fields import checked, field, flag, is_int, one_of, real, text, whole
from oa_jax.nn.known import GCAConfig

FORMS = ("auto", "gather", "products", "counts")  # of the sampled softmax
WRITERS = ("tensorboard", "mlflow", "wandb")
PROTOCOLS = ("official", "corrected")
MESH_AXES = ("seed", "data", "table")
MESH_EXPECTED = "sizes of the axes seed, data and table such as seed:2,data:2, or nothing"


def mesh_sizes(text: str) -> tuple[int, int, int] | None:
    """Sizes (seed, data, table) of `seed:2,data:2`; an axis that is not named is 1. None of "".

    Raises ValueError for anything else.
    """
    sizes = dict(re.findall(r"(seed|data|table):([1-9]\d{0,5})", text))
    if ",".join(f"{axis}:{size}" for axis, size in sizes.items()) != text:
        raise ValueError(text)
    return tuple(int(sizes.get(axis, 1)) for axis in MESH_AXES) if text else None


def _is_mesh(value):
    try:
        return bool(mesh_sizes(value) or value == "")
    except (ValueError, TypeError):
        return False


@dataclasses.dataclass(frozen=True)
class Data:
    name: str = text("synthetic", "a prepared set, beauty_elec, food_kitchen, or synthetic")
    dir: str | None = text(None, "folder of the data; by default OA_DATA_DIR", free=True)
    split: str = one_of(
        "own",
        "who is held out; own: as the data came, else leave_one_out",
        *("own", "leave_one_out", "global_time", "published"),
    )
    resident: bool = flag(True, "all rows on the device; False reads them from files in chunks")
    chunk_steps: int = whole(32, "batches of a chunk, with resident=False", free=True)
    users: str = one_of("all", "train on all users, or on those of both domains", "all", "overlap")
    tables: str | None = text(None, "folder of text tables; by default beside the set", free=True)
    global_width: int = whole(1024, "columns used of the text table of both domains", 2)
    world: World = dataclasses.field(default_factory=World)


@dataclasses.dataclass(frozen=True)
class Train:
    """Defaults are those of official ABXI."""

    init_from: str | None = text(None, "an export or a workdir whose parameters it begins with")
    batch_size: int = whole(256, "users in a batch")
    max_epochs: int = whole(500, "epochs at most; may grow with --extend")
    learning_rate: float = real(1e-4, "learning rate of Adam", above=True)
    weight_decay: float = real(2.0, "decoupled weight decay (AdamW) of every parameter")
    warmup_epochs: int = whole(10, "first epochs: the rate grows, no epoch is selected", 0)
    plateau_patience: int = whole(30, "epochs without improvement before the rate is cut", 0)
    plateau_factor: float = real(0.3162, "factor by which the rate is cut", 0, 1, above=True)
    stop_patience: int = whole(61, "epochs without improvement before a seed stops", 0)
    selection: str = one_of("mrr_sum", "picks the best epoch", "mrr_sum", "ndcg@10", "ndcg@10_sum")
    strict: bool = flag(False, "an equal score counts as no improvement")
    n_negatives: int = whole(128, "sampled negatives in each domain")
    negatives: str = one_of("per_position", "shared by whom", "per_position", "per_sequence")
    block_positions: int = whole(256, "positions per block of the softmax", free=True)
    softmax: str = one_of("auto", "how the sampled softmax is computed", *FORMS)
    probe_users: int = whole(1024, "validation users whose angles are measured")
    checkpoint_every: int = whole(5, "epochs between checkpoints", free=True)
    keep_checkpoints: int = whole(2, "checkpoints kept", free=True)
    compaction: bool = flag(False, "a smaller program once half the seeds have stopped", free=True)
    writers: tuple[str, ...] = field(
        (),
        lambda v: isinstance(v, tuple) and set(v) <= set(WRITERS),
        f"some of {', '.join(WRITERS)}",
        "loggers beside metrics.jsonl",
        free=True,
    )
    matmul_precision: str = one_of("default", "JAX matmul precision", "default", "high", "highest")
    compute_dtype: str = one_of("float32", "of matrix products", "float32", "bfloat16")
    activation_dtype: str = one_of("float32", "of training activations", "float32", "bfloat16")
    quick_compile: bool = flag(False, "compile faster, run slower", free=True)

    @property
    def softmax_form(self) -> str:
        """`softmax`; gather where full precision makes products slow."""
        exact = self.softmax == "auto" and self.matmul_precision == "highest"
        return "gather" if exact else self.softmax


@dataclasses.dataclass(frozen=True)
class SteadyTrain(Train):
    """Adam at one rate, without decay: what backbones but ABXI begin with."""

    learning_rate: float = real(1e-3, "learning rate of Adam, constant", above=True)
    weight_decay: float = real(0.0, "decoupled weight decay (AdamW) of every parameter")
    warmup_epochs: int = whole(0, "first epochs: the rate grows, no epoch is selected", 0)
    plateau_factor: float = real(1.0, "factor by which the rate is cut", 0, 1, above=True)
    strict: bool = flag(True, "an equal score counts as no improvement")
    negatives: str = one_of("per_position", "shared by whom", "per_position")


@dataclasses.dataclass(frozen=True)
class Evaluate:
    n_negatives: int = whole(999, "random candidates beside the target")
    users_per_kind: int = whole(0, "most users evaluated of each kind of history; 0: all", 0)
    block_users: int = whole(512, "users ranked at a time", free=True)
    block_items: int = whole(4096, "items scored at a time", free=True)


@dataclasses.dataclass(frozen=True)
class Model:
    """Sizes of a backbone: what all of them have."""

    d_embed: int = whole(128, "width D")
    heads: int = whole(1, "attention heads, a divisor of d_embed")
    length: int = whole(50, "most recent events kept of a stream")
    dropout: float = real(0.5, "dropout rate", 0, 0.999)
    blocks: int = whole(2, "SASRec blocks of each stream")
    attention: str = one_of("auto", "over padded rows, or packed chunks", "auto", "rows", "chunks")

    @property
    def places(self) -> tuple[int, ...]:
        """Where a fusion may stand: after the embedding (0) and after each block."""
        return tuple(range(self.blocks + 1))


@dataclasses.dataclass(frozen=True)
class Quirks:
    """No quirks; a backbone's subclass has a field for each."""

    @classmethod
    def of(cls, protocol: str) -> "Quirks":
        """All switches as a protocol has them."""
        column = PROTOCOLS.index(protocol)
        return cls(**{one.name: one.metadata["presets"][column] for one in dataclasses.fields(cls)})


@dataclasses.dataclass(frozen=True)
class Config:
    """One experiment. Groups are dataclasses: `config.train.batch_size`."""

    backbone: str
    protocol: str = one_of("official", "as the public code, or without its errors", *PROTOCOLS)
    quirks: Quirks = dataclasses.field(default_factory=Quirks)
    seeds: int = whole(5, "models trained side by side; may grow with --extend", 1, 10_000)
    first_seed: int = whole(0, "the first seed; the others follow it", 0, 2**31 - 10_001)
    seed_axis: str = one_of(
        "auto", "seeds side by side (vmap) or in turn (map)", "auto", "vmap", "map", free=True
    )
    mesh: str = field("", _is_mesh, MESH_EXPECTED, "devices on each axis; '': chosen", free=True)
    data: Data = dataclasses.field(default_factory=Data)
    gca: GCAConfig = dataclasses.field(default_factory=GCAConfig)
    model: Model = dataclasses.field(default_factory=Model)
    train: Train = dataclasses.field(default_factory=Train)
    evaluate: Evaluate = dataclasses.field(default_factory=Evaluate)

    def to_dict(self) -> dict:
        """Plain dictionaries and lists, as config.json holds them."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    def replace(self, **changes: Any) -> "Config":
        """A checked copy: `config.replace(seeds=1, train={"max_epochs": 3})`, or dotted names
        in a dictionary: `config.replace(**{"train.max_epochs": 3})`."""
        values = self.to_dict()
        if "protocol" in changes:  # which decides the quirks anew, but for those set by hand
            for name, value in vars(type(self.quirks).of(self.protocol)).items():
                if values["quirks"][name] == value:
                    values["quirks"][name] = None
        return build(type(self), merged(values, changes))


def merged(values: dict, changes: Mapping[str, Any]) -> dict:
    """`values` with `changes`, whose names may be dotted and whose values may be groups."""
    out = dict(values)
    for name, value in changes.items():
        head, dot, rest = name.partition(".")
        if dot:
            value = {rest: value}
        inside = isinstance(value, Mapping) and isinstance(out.get(head), Mapping)
        out[head] = merged(out[head], value) if inside else value
    return out


def build(kind: type[Config], values: Mapping) -> Config:
    """`values` as a checked configuration of that class, every quirk decided by the protocol.

    What is left out has its default: a field is added with the default that keeps what the code
    did before, so that runs of older versions can be read.

    Raises UserError naming the field, what was found and what was expected.
    """
    config = _build(kind, upgraded(values), "")
    presets = vars(type(config.quirks).of(config.protocol))
    undecided = {name: v for name, v in presets.items() if getattr(config.quirks, name) is None}
    config = dataclasses.replace(config, quirks=dataclasses.replace(config.quirks, **undecided))
    _check_together(config)
    return config


def upgraded(values: Mapping) -> dict:
    """Values of an older version under the names of today."""
    values = dict(values)
    if isinstance(values.get("gca"), Mapping):
        values["gca"] = gca = dict(values["gca"])
        for old, new in (("update", "part"), ("kv", "source")):
            if old in gca and new not in gca:
                gca[new] = gca.pop(old)
    train = values.get("train")
    if isinstance(train, Mapping) and "tensorboard" in train:
        values["train"] = train = dict(train)
        wanted = train.pop("tensorboard")
        train.setdefault("writers", ["tensorboard"] if wanted else [])
    return values


def _build(group: type, values: Mapping, path: str):
    """A group of `values`, every field checked. path: of the group, with a dot at its end."""
    known, out = {f.name: f for f in dataclasses.fields(group)}, {}
    for name, value in values.items():
        if name not in known:
            above = f"--config.{path}".rstrip(".")
            raise UserError(unknown_field(f"{path}{name}", name, above, list(known)))
        one, field_ = known[name], f"--config.{path}{name}"
        inner = _group_of(one)
        if inner and not isinstance(value, Mapping):
            raise UserError(f"{field_}={value}: a group: expected its fields")
        if inner:
            value = _build(inner, value, f"{path}{name}.")
        elif one.metadata:
            value = checked(field_, value, one)
        out[name] = value
    try:
        return group(**out)
    except UserError as error:  # World checks itself
        raise UserError(f"--config.{path.rstrip('.')}: {error}") from None


def _group_of(one: dataclasses.Field) -> type | None:
    """The class of a group, None for a single value."""
    made = one.default_factory
    return made if isinstance(made, type) and dataclasses.is_dataclass(made) else None


def _shown(value):
    return list(value) if isinstance(value, tuple) else value


def unknown_field(name: str, part: str, group: str, known: list[str]) -> str:
    """What to say of the field `name`, whose `part` is none of the `known` of a group."""
    near = difflib.get_close_matches(part, known, 1)
    hint = f"did you mean {near[0]}? " if near else ""
    return f"--config.{name}: no such field: {hint}{group} has {', '.join(sorted(known))}"


def _check_together(config: Config) -> None:
    """Rules of more than one field."""
    gca, model, train = config.gca, config.model, config.train

    def check(holds, field, expected):
        if not holds:
            found = _shown(value_of(config, field))
            raise UserError(f"--config.{field}={found}: expected {expected}")

    found, places = gca.positions, model.places
    known = all(is_int(place) and place in places for place in found)
    among = f"different places in ascending order among {', '.join(map(str, places))}"
    expected = among if places else "[], as model.stream has no other stream to look at"
    check(known and sorted(set(found)) == list(found), "gca.positions", expected)
    for group in ("model", "gca"):
        heads = getattr(config, group).heads
        divides = not heads or model.d_embed % heads == 0
        check(divides, f"{group}.heads", f"a divisor of model.d_embed={model.d_embed}")
    why = "update with gca.source=other, which in training has no Y at a token's own time"
    check((gca.gate_input, gca.source) != ("source", "other"), "gca.gate_input", why)
    unit = gca.heads or model.heads
    fits = gca.fusion == "gca" or gca.width % unit == 0
    check(fits, "gca.width", f"a multiple of the {unit} heads")
    why = f"less than max_epochs={train.max_epochs}, as no epoch is selected in the warm-up"
    check(train.warmup_epochs < train.max_epochs, "train.warmup_epochs", why)
    why = "gca, as gca.positions=[] leaves no place for another module; gca=early has one"
    check(found or gca.fusion == "gca", "gca.fusion", why)


def fields_of(group: type, path: str = "") -> Iterator[tuple[str, dataclasses.Field]]:
    """(dotted name, field) of every single value of a configuration class."""
    for one in dataclasses.fields(group):
        inner = _group_of(one)
        if inner:
            yield from fields_of(inner, f"{path}{one.name}.")
        else:
            yield f"{path}{one.name}", one


def defaults_taken(kind: type[Config], values: Mapping) -> list[str]:
    """Dotted names of the fields that stored `values` do not have, as their version had none."""
    values, out = upgraded(values), []
    for name, _ in fields_of(kind):
        *groups, last = name.split(".")
        if last not in functools.reduce(lambda node, group: node.get(group, {}), groups, values):
            out.append(name)
    return out


def first_difference(old: Config, new: Config) -> str | None:
    """`field: there …, asked for …` of the first difference that a run that goes on must not
    have, None if there is none. Fields marked `free` may differ."""
    for name, one in fields_of(type(new)):  # the backbone, which decides the fields, comes first
        there, asked = value_of(old, name), value_of(new, name)
        if there != asked and not one.metadata.get("free"):
            return f"{name}: there {_shown(there)}, asked for {_shown(asked)}"
    return None


def value_of(config: Any, name: str) -> Any:
    """The value of a dotted field."""
    return functools.reduce(getattr, name.split("."), config)


def choice(name: str, value: Any, choices: Any) -> Any:
    """`value` if it is one of `choices`, otherwise a UserError naming them."""
    return checked(name, value, one_of("", "", *choices))
