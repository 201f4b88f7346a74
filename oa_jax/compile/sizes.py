"""An experiment of which only the sizes matter: rows are made up where that saves time or files."""

import re

import numpy as np

from oa_jax import experiment as experiment_lib
from oa_jax.backbones import known
from oa_jax.configuration import Config
from oa_jax.errors import UserError
from oa_jax.events import split as splits
from oa_jax.events.log import InteractionLog
from oa_jax.experiment import Data, Experiment


def made_up(text: str) -> InteractionLog:
    """Events of the sizes `users:7144,items:11837+16258,events:173548`. All users are alike:
    events / users each, in A and B by turns. Raises UserError for another text."""
    match = re.fullmatch(r"users:([1-9]\d*),items:([1-9]\d*)\+([1-9]\d*),events:(\d+)", text)
    users, n_a, n_b, events = map(int, match.groups()) if match else (1, 1, 1, 0)
    # Eight events: both domains have training targets; half of them are items of one domain.
    if events < 8 * users:
        raise UserError(
            f"--sizes={text}: expected users:U,items:A+B,events:E with at least 8 events a user"
        )
    n_events = events // users + (np.arange(users) < events % users)
    user = np.repeat(np.arange(users, dtype=np.int32), n_events)
    place = np.arange(events) - np.repeat(np.cumsum(n_events) - n_events, n_events)
    turn = user + place // 2
    item = np.where(place % 2, 1 + n_a + turn % n_b, 1 + turn % n_a).astype(np.int32)
    return InteractionLog(user, item, place.astype(np.int64), (n_a, n_b), "these sizes")


def shapes_of(config: Config, log: InteractionLog | None = None) -> Experiment:
    """The experiment of a configuration to compile, not to run: on its data, or on made-up events.
    Its candidates are zeros, and without data so are tables of text. The engine is this machine's,
    whatever `config.mesh` says: that is of the devices to compile for."""
    here = config.replace(mesh="")
    if log is None:
        data = experiment_lib.load(here)
    else:
        # Made-up events have no roles, and all users know both domains.
        here = here.replace(data={"split": "leave_one_out", "users": "all"})
        parts = known.parts(here)
        split = splits.make_split(log, here.data.split, parts.skip_short)
        task = experiment_lib.build_task(here, log, split)
        data = Data(log, split, task, parts.empty_tables(log, split))

    def zeros(log, split, rows):
        """Candidates of the right shapes; those of all users take minutes to draw."""
        first = {name: values[:1] for name, values in rows.items()}
        drawn, n_rows = known.parts(here).candidates(log, split, first), len(rows["target"])
        return {k: np.broadcast_to(v * 0, (n_rows, *v.shape[1:])) for k, v in drawn.items()}

    evaluation = experiment_lib.build_evaluation(here, data, zeros)
    engine = experiment_lib.build_engine(here, data, evaluation)
    return Experiment(config, data, evaluation, engine)
