"""From a configuration to what a run is made of: data, evaluation, compiled programs."""

import dataclasses
import functools
import hashlib
import json
import math
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from oa_jax.backbones import known
from oa_jax.backbones.base import Backbone
from oa_jax.configuration import Config, fields_of, value_of
from oa_jax.data import sources, store
from oa_jax.engine.compilation import check_switches
from oa_jax.engine.feed import Feed, open_records
from oa_jax.engine.program import Engine, resolve_axis
from oa_jax.engine.state import Schedule
from oa_jax.engine.step import Settings
from oa_jax.engine.streaming import StreamingEngine
from oa_jax.errors import UserError
from oa_jax.evaluation import SPLITS, Evaluation
from oa_jax.events import split as splits
from oa_jax.events.log import InteractionLog
from oa_jax.fields import is_int
from oa_jax.nn.fusion import fields_for
from oa_jax.nn.task import Task
from oa_jax.ranking.candidates import donors

# Fields that need no recompilation, of every backbone; each has more of its own.
HPARAMS = ("train.learning_rate", "train.weight_decay", "train.max_epochs", "train.stop_patience")
HPARAMS += ("train.plateau_patience", "train.plateau_factor", "model.dropout", "gca.ortho_weight")


@dataclasses.dataclass(frozen=True)
class Data:
    """What is trained on.

    split: the configuration's; `task.split` has fewer training parts where `data.users` says so,
    and fewer targets with `evaluate.users_per_kind`.  tables: frozen inputs of the backbone with
    `metadata`, on the host, made for `split`; None without any.
    """

    log: InteractionLog
    split: splits.Split
    task: Task
    tables: Any

    def identity(self) -> dict[str, str]:
        """Fingerprints of the events and of the tables."""
        out = {"data": self.log.fingerprint()}
        if self.tables is not None:
            text = json.dumps(self.tables.metadata, sort_keys=True)
            out["tables"] = hashlib.sha256(text.encode()).hexdigest()[:16]
        return out


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What a configuration stands for."""

    config: Config
    data: Data
    evaluation: Evaluation
    engine: Engine

    @property
    def seeds(self) -> np.ndarray:
        return self.config.first_seed + np.arange(self.config.seeds, dtype=np.int32)

    @property
    def label(self) -> str:
        return known.parts(self.config).label

    @functools.cached_property
    def tables(self) -> Any:
        """Frozen tables on the device, shared by all seeds; None for a backbone without any."""
        host = getattr(self.engine.settings.backbone, "tables", None)
        return None if host is None else jax.tree.map(jnp.asarray, host)

    def hparams(self) -> dict[str, jax.Array]:
        """Values that need no recompilation, one per seed: leaves (S,)."""
        fields = traced_fields(self.config)
        values = {name: value_of(self.config, field) for name, field in fields.items()}
        return {k: jnp.full(len(self.seeds), v, jnp.float32) for k, v in values.items()}

    def train_arrays(self) -> dict[str, Any]:
        """What the engine reads: train, val, probe, on the device; val and probe on the host
        where the rows of training come from files."""
        arrays = self.evaluation.arrays(self.config.train.probe_users)
        if self.config.data.resident:
            arrays["train"] = self.data.task.train_arrays()
            arrays = jax.tree.map(jnp.asarray, arrays)
        return arrays if self.tables is None else arrays | {"tables": self.tables}

    def identity(self) -> dict[str, str]:
        """Fingerprints of what is trained and evaluated on."""
        return self.data.identity() | self.evaluation.identity()


def traced_fields(config: Config) -> dict[str, str]:
    """{name: dotted field} of the values that need no recompilation."""
    return {field.split(".")[1]: field for field in (*HPARAMS, *known.parts(config).hparams)}


def build(
    config: Config, log: InteractionLog | None = None, candidates: Callable | None = None
) -> Experiment:
    """The experiment of a configuration. log: events to use instead of `config.data`'s.
    candidates: see `build_evaluation`. Raises UserError when the data are missing or do not fit the
    configuration, or a size that it asks for fits no memory here."""
    check_switches()
    needs, world = {"model.length": _bytes_of_user(config)}, config.data.world
    if log is None and config.data.name == sources.SYNTHETIC:  # item, user, time and gap of events
        n_users = world.n_users + sum(world.single)
        needs["data.world.n_users"] = n_users * world.max_length * 4 * 8
    check_room(config, needs)
    data = load(config, log)
    check_room(config, bytes_of_model(config, data))
    config = config.replace(data={"split": splits.rule_of(data.log, config.data.split)})
    evaluation = build_evaluation(config, data, candidates)
    return Experiment(config, data, evaluation, build_engine(config, data, evaluation))


def check_room(config: Config, needs: dict[str, int]) -> None:
    """Raise UserError where a field alone needs more bytes than this machine has. needs: {field:
    bytes}, what it takes at least and at a time; `inspect` predicts the whole more closely."""
    devices = [one for one in jax.local_devices() if one.platform != "cpu"]
    have = sum((one.memory_stats() or {}).get("bytes_limit", 0) for one in devices)
    have = max(have, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    have *= jax.process_count()
    for field, need in needs.items():
        if need > have:
            value = value_of(config, field)
            raise UserError(
                f"--config.{field}={value}: needs at least {need / 2**30:,.0f} GiB of memory: "
                f"expected what fits into the {have / 2**30:,.0f} GiB here"
            )


def _bytes_of_user(config):
    """Of one user's stream: its embedding, or the weights of its attention."""
    model = config.model
    return 4 * model.length * max(model.d_embed, model.heads * model.length)


def bytes_of_model(config: Config, data: Data) -> dict[str, int]:
    """Of a seed's state (parameters, best ones, two moments), under the name of the field that is
    farthest above its default; of a batch; of the users and items that are ranked together."""
    backbone = known.parts(config).backbone(data.log.n_items, data.tables)
    shapes = jax.tree.leaves(jax.eval_shape(backbone.init, jax.random.key(0)))
    ratio = {
        name: value_of(config, name) / (one.default or 1)
        for name, one in fields_of(type(config))
        if name.startswith(("model.", "gca.")) and is_int(one.default)
    }
    evaluate, user = config.evaluate, _bytes_of_user(config)
    return {
        max(ratio, key=ratio.get): 4 * 4 * sum(math.prod(leaf.shape) for leaf in shapes),
        "train.batch_size": config.train.batch_size * user,
        "evaluate.block_users": evaluate.block_users * user,
        "evaluate.n_negatives": evaluate.block_users * evaluate.n_negatives * 4,
        "evaluate.block_items": evaluate.block_users * evaluate.block_items * 4,
    }


def load(config: Config, log: InteractionLog | None = None) -> Data:
    """The data of a configuration, or `log` split and limited as it says."""
    parts, data = known.parts(config), config.data
    if log is None:
        log = sources.load(data.name, data.dir, data.world)
    store.check_times(log, data.split, "--config.data.split")
    split = splits.make_split(log, data.split, parts.skip_short)
    return Data(log, split, build_task(config, log, split), parts.tables(log, split))


def build_task(config: Config, log: InteractionLog, split: splits.Split) -> Task:
    """The backbone's task on the users and targets that the configuration leaves of a split."""
    if config.data.users == "overlap":
        split = splits.train_on_both(log, split)
    split = splits.limit_targets(split, log, config.evaluate.users_per_kind)
    return known.parts(config).task(log, split)


def build_evaluation(config: Config, data: Data, candidates: Callable | None = None) -> Evaluation:
    """Rows of both splits with their candidates.

    candidates: (log, split, rows) -> {ranking: candidates}, by default the backbone's, whose
    draws take a while.
    """
    parts, rows = known.parts(config), {}
    for split in SPLITS:
        found = data.task.eval_arrays(split)
        if len(found["target"]) == 0:
            raise UserError(f"data.split: no user of {data.log.name} has a target in {split}")
        rows[split] = found | (candidates or parts.candidates)(data.log, split, found)
        if config.gca.positions and config.gca.source == "shuffled":
            order = donors(data.log.fingerprint(), split, len(found["target"]))
            rows[split]["donor"] = found[parts.merged][order]
    groups = {s: parts.groups(data.log, data.task.split, rows[s]) for s in SPLITS}
    size = config.evaluate.block_users
    how = parts.rankings, parts.watched, parts.tie_weight, size, parts.packed
    return Evaluation(rows, groups, *how)


def build_engine(
    config: Config, data: Data, evaluation: Evaluation, backbone: Backbone | None = None
) -> Engine:
    """The compiled programs of a configuration. backbone: another than the configuration's."""
    train, log = config.train, data.log
    settings = Settings(
        backbone=backbone or known.parts(config).backbone(log.n_items, data.tables),
        task=data.task,
        schedule=Schedule(**fields_for(Schedule, train)),
        optimizer=optax.scale_by_adam(),
        n_items=log.n_items,
        tie_weight=evaluation.tie_weight,
        watched=evaluation.watched,
        **fields_for(Settings, config.evaluate),
        **fields_for(Settings, train),
    )
    axis = resolve_axis(config.seed_axis)
    if config.data.resident:
        return Engine(settings, axis, config.mesh)
    records = open_records(log, config.data.name, config.data.dir)
    feed = Feed(data.task, records, config.data.chunk_steps)
    return StreamingEngine(settings, axis, feed, config.mesh)
