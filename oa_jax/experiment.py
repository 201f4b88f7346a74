"""From a resolved configuration to the objects of a run: log, split, task, backbone, programs."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax

from oa_jax.backbones.known import BACKBONES, Bundle
from oa_jax.data import sources
from oa_jax.engine.feed import Feed, open_records
from oa_jax.engine.program import Engine, resolve_axis
from oa_jax.engine.state import Schedule
from oa_jax.engine.step import Settings
from oa_jax.engine.streaming import StreamingEngine
from oa_jax.errors import UserError
from oa_jax.events import split as splits
from oa_jax.events.log import InteractionLog
from oa_jax.events.world import World
from oa_jax.ranking.candidates import candidates_digest

# Values that need no recompilation, of every backbone; each has more of its own.
HPARAMS = {
    "learning_rate": ("train", "learning_rate"),
    "weight_decay": ("train", "weight_decay"),
    "dropout": ("model", "dropout"),
    "ortho_weight": ("gca", "ortho_weight"),
}
SPLITS = ("val", "test")
PLACES = {name: bundle.places for name, bundle in BACKBONES.items()}


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What a configuration stands for. Heavy parts are made when first asked for."""

    config: dict
    log: InteractionLog

    @property
    def bundle(self) -> Bundle:
        return BACKBONES[self.config["backbone"]]

    @property
    def seeds(self) -> np.ndarray:
        return self.config["first_seed"] + np.arange(self.config["seeds"], dtype=np.int32)

    @property
    def is_resident(self) -> bool:
        """Whether all arrays live on the device, or come from the files of a prepared set."""
        return self.config["data"]["resident"]

    @property
    def tie_weight(self) -> float:
        """0 puts the target first among equal scores, 0.5 in their middle."""
        return self.bundle.tie_weight(self.config)

    @property
    def protocol_names(self) -> dict[str, str]:
        """Ranking -> the name it has in metrics and files."""
        return self.bundle.rankings(self.config)

    @property
    def watched(self) -> str:
        """The ranking of the validation users that training selects by."""
        return self.bundle.watched(self.config)

    @functools.cached_property
    def split(self) -> splits.Split:
        """The rule's split. `task.split` has fewer training parts where `data.users` says so, and
        fewer targets with `evaluate.users_per_kind`; text tables are made for the rule's."""
        rule = self.config["data"]["split"]
        return splits.make_split(self.log, rule, self.bundle.skip_short)

    @functools.cached_property
    def backbone(self):
        return self.bundle.backbone(self.config, self.log.n_items, self.frozen)

    @functools.cached_property
    def frozen(self):
        """Frozen inputs of the backbone, on the host; None without any."""
        return self.bundle.tables(self.config, self.log, self.split)

    @functools.cached_property
    def tables(self):
        """Frozen tables on the device, shared by all seeds; None for a backbone without any."""
        host = getattr(self.backbone, "tables", None)
        return None if host is None else jax.tree.map(jnp.asarray, host)

    @functools.cached_property
    def n_parameters(self) -> int:
        shapes = jax.eval_shape(self.backbone.init, jax.random.key(0))
        return sum(leaf.size for leaf in jax.tree.leaves(shapes))

    @functools.cached_property
    def task(self):
        split = self.split
        if self.config["data"]["users"] == "overlap":
            split = splits.train_on_both(self.log, split)
        most = self.config["evaluate"]["users_per_kind"]
        split = splits.limit_targets(split, self.log, most)
        return self.bundle.task(self.config, self.log, split)

    @functools.cached_property
    def schedule(self) -> Schedule:
        names = [field.name for field in dataclasses.fields(Schedule)]
        return Schedule(**{name: self.config["train"][name] for name in names})

    @functools.cached_property
    def engine(self) -> Engine:
        settings = Settings(
            self.backbone,
            self.task,
            self.schedule,
            optax.scale_by_adam(),
            self.log.n_items,
            self.tie_weight,
            self.config["evaluate"]["block_users"],
            self.config["evaluate"]["block_items"],
            self.watched,
            self.config["train"]["compute_dtype"],
        )
        axis = resolve_axis(self.config["seed_axis"], self.config["model"]["d_embed"])
        if self.is_resident:
            return Engine(settings, axis, self.config["mesh"])
        data = self.config["data"]
        records = open_records(self.log, data["name"], data["dir"])
        feed = Feed(self.task, records, data["chunk_steps"])
        return StreamingEngine(settings, axis, feed, self.config["mesh"])

    def hparams(self) -> dict[str, jax.Array]:
        """Values that need no recompilation, one per seed: leaves (S,)."""
        fields = HPARAMS | self.bundle.hparams
        values = {name: self.config[group][field] for name, (group, field) in fields.items()}
        return {k: jnp.full(len(self.seeds), v, jnp.float32) for k, v in values.items()}

    @functools.cached_property
    def eval_rows(self) -> dict[str, dict[str, np.ndarray]]:
        """Evaluation rows of "val" and "test" with their candidates, real rows only."""
        return {split: self._rows(split) for split in SPLITS}

    def _rows(self, split):
        rows = self.task.eval_arrays(split)
        if len(rows["target"]) == 0:
            raise UserError(f"data.split: no user of {self.log.name} has a target in {split}")
        return rows | self.bundle.candidates(self.config, self.log, split, rows)

    @functools.cached_property
    def groups(self) -> dict[str, dict[str, np.ndarray]]:
        """Sets of users of each split, {name: mask (R,)}, reported beside the two domains."""
        rows = self.eval_rows
        return {s: self.bundle.groups(self.log, self.task.split, rows[s]) for s in SPLITS}

    def padded(self, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Rows in whole blocks of users; `real` marks those that count."""
        n_rows = len(rows["target"])
        fill = -n_rows % self.config["evaluate"]["block_users"]
        out = {k: np.pad(v, [(0, fill)] + [(0, 0)] * (v.ndim - 1)) for k, v in rows.items()}
        return out | {"real": np.arange(n_rows + fill) < n_rows}

    def train_arrays(self):
        """What the engine reads: train, val, probe, on the device; val and probe on the host
        where the rows of training come from files."""
        val = self.eval_rows["val"]
        users = self.config["train"]["probe_users"]
        # Evenly spaced users, so that the probe does not depend on the order of the ids' ends.
        chosen = np.unique(np.linspace(0, len(val["target"]) - 1, users).astype(int))
        unused = {"seen", *self.protocol_names}
        probe = {k: v[chosen] for k, v in val.items() if k not in unused}
        unused -= {self.watched}
        arrays = {
            "val": {k: v for k, v in self.padded(val).items() if k not in unused},
            "probe": self.padded(probe),
        }
        if self.is_resident:
            arrays["train"] = self.task.train_arrays()
            arrays = jax.tree.map(jnp.asarray, arrays)
        return arrays if self.tables is None else arrays | {"tables": self.tables}

    def identity(self) -> dict[str, str]:
        """Fingerprints of what is trained and evaluated on."""
        rows, kinds = self.eval_rows, [k for k in self.protocol_names if k != "full"]
        out = {"data": self.log.fingerprint()}
        out |= {f"{k}_{s}": candidates_digest(rows[s][k]) for s in SPLITS for k in kinds}
        if self.frozen is not None:
            text = json.dumps(self.frozen.metadata, sort_keys=True)
            out["tables"] = hashlib.sha256(text.encode()).hexdigest()[:16]
        return out


def build(config: dict) -> Experiment:
    """Load the data of a resolved configuration."""
    data = config["data"]
    world = World(**data["world"]) if data["name"] == sources.SYNTHETIC else None
    log = sources.load(data["name"], data["dir"], world)
    set_compilation(config)
    return Experiment(config, log)


def set_compilation(config: dict) -> None:
    """What the configuration asks of all programs traced from now on."""
    train = config["train"]
    precision = None if train["matmul_precision"] == "default" else train["matmul_precision"]
    jax.config.update("jax_default_matmul_precision", precision)
    # For runs that would mostly compile: programs that are ready sooner and run slower.
    jax.config.update("jax_disable_most_optimizations", train["quick_compile"])
