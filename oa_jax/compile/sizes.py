"""An experiment of which only the sizes matter: rows are made up where that saves time or files."""

from __future__ import annotations

import dataclasses
import functools
import re

import numpy as np

from oa_jax import experiment as experiment_lib
from oa_jax.errors import UserError
from oa_jax.events.log import InteractionLog
from oa_jax.experiment import Experiment
from oa_jax.text.tables import Tables

PROFILE_WIDTH = 1536  # of a user's text embedding, official LLM4CDSR


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Of a data set that is not at hand. Its users are all alike: events / users of them each, in
    A and B by turns."""

    users: int
    items_a: int
    items_b: int
    events: int

    @classmethod
    def parse(cls, text: str) -> Sizes:
        """`users:7144,items:11837+16258,events:173548`. Raises UserError."""
        match = re.fullmatch(r"users:(\d+),items:(\d+)\+(\d+),events:(\d+)", text)
        sizes = cls(*map(int, match.groups())) if match else None
        # Eight events: both domains have training targets; half of them are items of one domain.
        if not sizes or not sizes.users or sizes.events < 8 * sizes.users:
            raise UserError(
                f"--sizes={text}: expected users:U,items:A+B,events:E with at least 8 events a user"
            )
        return sizes

    def log(self) -> InteractionLog:
        n_events = np.full(self.users, self.events // self.users)
        n_events[: self.events % self.users] += 1
        user = np.repeat(np.arange(self.users, dtype=np.int32), n_events)
        place = np.arange(self.events) - np.repeat(np.cumsum(n_events) - n_events, n_events)
        of_a = 1 + (user + place // 2) % self.items_a
        of_b = 1 + self.items_a + (user + place // 2) % self.items_b
        item = np.where(place % 2, of_b, of_a).astype(np.int32)
        items = (self.items_a, self.items_b)
        return InteractionLog(user, item, place.astype(np.int64), items, "these sizes")


@dataclasses.dataclass(frozen=True)
class Shapes(Experiment):
    """An experiment to compile, not to run: its candidates are zeros, and without data so are the
    frozen tables. `mesh` is that of the devices to compile for; the engine is this machine's."""

    mesh: str = ""
    made_up: bool = False

    def _rows(self, split):
        """Rows with candidates of the right shape, which take minutes to draw."""
        rows = self.task.eval_arrays(split)
        if len(rows["target"]) == 0:
            raise UserError(f"data.split: no user of {self.log.name} has a target in {split}")
        first = {name: values[:1] for name, values in rows.items()}
        drawn = self.bundle.candidates(self.config, self.log, split, first)
        shape = (len(rows["target"]),)
        return rows | {k: np.broadcast_to(v[:1] * 0, shape + v.shape[1:]) for k, v in drawn.items()}

    @functools.cached_property
    def text_tables(self):
        return self._zero_tables() if self.made_up else super().text_tables

    def _zero_tables(self):
        if self.config["backbone"] != "llm4cdsr":
            return None
        n_a, n_b = self.log.n_items
        width, n_users = self.config["model"]["d_embed"], self.log.n_users
        shapes = {
            "global_table": (n_a + n_b, self.config["data"]["global_width"]),
            "local_a": (n_a, width),
            "local_b": (n_b, width),
            "users": (n_users, PROFILE_WIDTH),
        }
        zeros = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
        return Tables(**zeros, n_history=np.zeros(n_users, np.int32), metadata={})


def shapes_of(config: dict, sizes: Sizes | None) -> Shapes:
    """The experiment of a resolved configuration, on its data or on made-up ones of `sizes`."""
    mesh, config = config["mesh"], config | {"mesh": ""}
    if sizes is None:
        found = experiment_lib.build(config)
        return Shapes(found.config, found.log, mesh)
    # Made-up events have no roles, and all users know both domains.
    config = config | {"data": config["data"] | {"split": "leave_one_out", "users": "all"}}
    experiment_lib.set_compilation(config)
    return Shapes(config, sizes.log(), mesh, made_up=True)
