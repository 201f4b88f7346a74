"""An experiment of which only the sizes matter: rows are made up where that saves time or files."""

from __future__ import annotations

import dataclasses
import functools
import re

import numpy as np

from oa_jax import experiment as experiment_lib
from oa_jax.backbones import known
from oa_jax.config import Config
from oa_jax.errors import UserError
from oa_jax.events import split as splits
from oa_jax.events.log import InteractionLog
from oa_jax.experiment import Experiment


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


def shapes_of(config: Config, sizes: Sizes | None) -> Experiment:
    """The experiment of a configuration to compile, not to run: on its data, or on made-up ones of
    `sizes`. Its candidates are zeros, and without data so are the frozen tables. The engine is
    this machine's, whatever `config.mesh` says: that is of the devices to compile for."""
    here = config.replace(mesh="")
    if sizes is None:
        data = experiment_lib.load(here)
    else:
        # Made-up events have no roles, and all users know both domains.
        here = here.replace(data={"split": "leave_one_out", "users": "all"})
        parts, log = known.parts(here), sizes.log()
        split = splits.make_split(log, here.data.split, parts.skip_short)
        task = experiment_lib.task(here, log, split)
        data = experiment_lib.Data(log, split, task, parts.empty_tables(log))
    evaluation = experiment_lib.evaluate(here, data, functools.partial(_zeros, here))
    engine = experiment_lib.engine(here, data, evaluation)
    return Experiment(config, data, evaluation, engine)


def _zeros(config, log, split, rows):
    """Candidates of the right shapes; those of all users take minutes to draw."""
    first = {name: values[:1] for name, values in rows.items()}
    drawn = known.parts(config).candidates(log, split, first)
    shape = (len(rows["target"]),)
    return {k: np.broadcast_to(v[:1] * 0, shape + v.shape[1:]) for k, v in drawn.items()}
