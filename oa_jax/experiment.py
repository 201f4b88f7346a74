"""From a resolved configuration to the objects of a run: log, split, task, backbone, programs."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from oa_jax.data import sources, splits
from oa_jax.data.log import InteractionLog
from oa_jax.data.synthetic import World
from oa_jax.errors import UserError
from oa_jax.evaluate.candidates import candidates_digest, draw_candidates
from oa_jax.models import abxi
from oa_jax.models.gca import GCAConfig
from oa_jax.tasks.abxi import Task
from oa_jax.train.engine import Engine, resolve_axis
from oa_jax.train.state import Schedule
from oa_jax.train.step import Settings

HPARAMS = {
    "learning_rate": ("train", "learning_rate"),
    "weight_decay": ("train", "weight_decay"),
    "dropout": ("model", "dropout"),
    "temperature": ("model", "temperature"),
    "ortho_weight": ("gca", "ortho_weight"),
}
SPLITS = ("val", "test")


def gca_config(config: dict) -> GCAConfig:
    fields = {f.name: config["gca"][f.name] for f in dataclasses.fields(GCAConfig)}
    return GCAConfig(**fields | {"positions": tuple(config["gca"]["positions"])})


def abxi_backbone(config: dict, n_items: tuple[int, int]) -> abxi.Backbone:
    model = {k: v for k, v in config["model"].items() if k not in ("dropout", "temperature")}
    quirks = {f.name: config["quirks"][f.name] for f in dataclasses.fields(abxi.ABXIQuirks)}
    return abxi.Backbone(
        abxi.ABXIConfig(n_items=n_items, **model),
        gca_config(config),
        abxi.ABXIQuirks(**quirks),
        config["train"]["block_positions"],
    )


BACKBONES = {"abxi": abxi_backbone}
PLACES = {"abxi": abxi.PLACES}


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What a configuration stands for. Heavy parts are made when first asked for."""

    config: dict
    log: InteractionLog

    @property
    def seeds(self) -> np.ndarray:
        return self.config["first_seed"] + np.arange(self.config["seeds"], dtype=np.int32)

    @property
    def tie_weight(self) -> float:
        """0 puts the target first among equal scores (official, Q10), 0.5 in their middle."""
        return 0.0 if self.config["quirks"]["q10_ties_favour_target"] else 0.5

    @property
    def protocol_names(self) -> dict[str, str]:
        """Ranking -> the name it has in metrics and files."""
        return {"candidates": f"uni{self.config['evaluate']['n_negatives']}", "full": "full"}

    @functools.cached_property
    def backbone(self):
        return BACKBONES[self.config["backbone"]](self.config, self.log.n_items)

    @functools.cached_property
    def n_parameters(self) -> int:
        shapes = jax.eval_shape(self.backbone.init, jax.random.key(0))
        return sum(leaf.size for leaf in jax.tree.leaves(shapes))

    @functools.cached_property
    def task(self) -> Task:
        train = self.config["train"]
        return Task(
            self.log,
            splits.make_split(self.log, self.config["data"]["split"]),
            self.config["model"]["length"],
            train["batch_size"],
            train["n_negatives"],
            train["negatives"],
            self.config["quirks"]["q1_pool_b_from_last_a"],
        )

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
        )
        axis = resolve_axis(self.config["seed_axis"], self.config["model"]["d_embed"])
        return Engine(settings, axis)

    def hparams(self) -> dict[str, jax.Array]:
        """Values that need no recompilation, one per seed: leaves (S,)."""
        values = {name: self.config[group][field] for name, (group, field) in HPARAMS.items()}
        return {k: jnp.full(len(self.seeds), v, jnp.float32) for k, v in values.items()}

    @functools.cached_property
    def eval_rows(self) -> dict[str, dict[str, np.ndarray]]:
        """Evaluation rows of "val" and "test" with their candidates, real rows only."""
        return {split: self._rows(split) for split in SPLITS}

    def _rows(self, split):
        rows = self.task.eval_arrays(split)
        if len(rows["target"]) == 0:
            raise UserError(f"data.split: no user of {self.log.name} has a target in {split}")
        rows["candidates"] = draw_candidates(
            self.log.fingerprint(),
            split,
            rows["user"],
            rows["target"],
            rows["seen"],
            self.log.n_items,
            self.config["evaluate"]["n_negatives"],
            self.config["quirks"]["q1_pool_b_from_last_a"],
        )
        return rows

    def padded(self, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Rows in whole blocks of users; `real` marks those that count."""
        n_rows = len(rows["target"])
        fill = -n_rows % self.config["evaluate"]["block_users"]
        out = {k: np.pad(v, [(0, fill)] + [(0, 0)] * (v.ndim - 1)) for k, v in rows.items()}
        return out | {"real": np.arange(n_rows + fill) < n_rows}

    def train_arrays(self):
        """What the training program reads, on the device: train, val, probe."""
        val = self.eval_rows["val"]
        users = self.config["train"]["probe_users"]
        # Evenly spaced users, so that the probe does not depend on the order of the ids' ends.
        chosen = np.unique(np.linspace(0, len(val["target"]) - 1, users).astype(int))
        probe = {k: v[chosen] for k, v in val.items() if k not in ("candidates", "seen")}
        arrays = {
            "train": self.task.train_arrays(),
            "val": {k: v for k, v in self.padded(val).items() if k != "seen"},
            "probe": self.padded(probe),
        }
        return jax.tree.map(jnp.asarray, arrays)

    def identity(self) -> dict[str, str]:
        """Fingerprints of what is trained and evaluated on."""
        rows = self.eval_rows
        digests = {f"candidates_{s}": candidates_digest(rows[s]["candidates"]) for s in SPLITS}
        return {"data": self.log.fingerprint()} | digests


def build(config: dict) -> Experiment:
    """Load the data of a resolved configuration."""
    data = config["data"]
    world = None
    if data["name"] == sources.SYNTHETIC:
        world = World(**data["world"])
    log = sources.load(data["name"], data["dir"], world)
    set_matmul_precision(config)
    return Experiment(config, log)


def set_matmul_precision(config: dict) -> None:
    """What the configuration asks for, for all programs traced from now on."""
    name = config["train"]["matmul_precision"]
    jax.config.update("jax_default_matmul_precision", None if name == "default" else name)
