"""The contract of a backbone: what the rest of the house asks of it, and nothing else.

A backbone is a folder with `fields.py` (its configuration), `model.py` (a `Backbone`), `task.py`
(a subclass of `nn.task.Task`), `arrays.py` (host arrays) and `parts.py` (a subclass of `Parts`,
which builds both from a configuration), and its name in `known.py`. All are held to
tests/backbones/test_contract.py. One with an official code may have `parity.py` (`oa_jax verify`),
`official_step.py` and `official_torch.py` (`oa_jax bench --official`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from oa_jax.configuration import Config
from oa_jax.nn.known import changed
from oa_jax.ranking.candidates import draw_candidates

if TYPE_CHECKING:
    import jax

    from oa_jax.events.log import InteractionLog
    from oa_jax.events.split import Split
    from oa_jax.nn.task import Task

Params = Any  # a tree of float32 arrays
Rows = Mapping[str, np.ndarray]  # arrays whose first axis is that of the rows


class Backbone(Protocol):
    """A model as pure functions of one seed's parameters; shapes as in the README's legend.

    One with frozen inputs that all seeds share also has them as `tables`, and `on(tables)`, which
    returns the same backbone reading others, which may be traced. One with parameters that no step
    may move has their paths, such as `net/items`, as `frozen`. For
    `train.activation_dtype` it is a dataclass with a field `dtype`: the type of the activations of
    `loss`; parameters and the loss itself stay float32.
    """

    def init(self, key: jax.Array) -> Params: ...

    def loss(
        self, params: Params, batch: Mapping, key: jax.Array | None, hparams: Mapping
    ) -> tuple[jax.Array, dict]:
        """Training loss of a batch of the task -> (scalar, aux of scalars). key None: no draws."""

    def index(self, params: Params) -> Any:
        """What scoring needs of the items, made once for many users."""

    def rows(self, history_BxH: jax.Array, domain_B: jax.Array) -> dict:
        """What `encode` reads of users with these histories, joint ids, oldest first, left-padded
        with 0, whose next item of a domain, 0 or 1, is asked for: as `Task.eval_arrays` has it."""

    def encode(self, params: Params, rows: Mapping) -> Any:
        """What scoring needs of the users of evaluation rows."""

    def score(self, index: Any, encoded: Any, candidates: jax.Array) -> jax.Array:
        """Scores (B, K) of candidates (B, K) of each row, or of a block of items (K,) for all."""

    def probe(self, params: Params, rows: Mapping) -> dict:
        """{"place/domain": Probe} of every fusion over all tokens of the rows; {} without one."""


class Parts:
    """The parts of a backbone, made from a configuration. Subclasses answer what differs."""

    # Fields that need no recompilation, beside those of every backbone.
    hparams: tuple[str, ...] = ()
    skip_short = False  # users with fewer than 3 events are left out, not an error
    merged = "seq"  # the evaluation rows' merged sequence of events
    # Fields that differ in the same model without a fusion, its baseline.
    without_fusion: Mapping[str, Any] = {}
    tie_weight = 0.5  # 0 puts the target first among equal scores, 0.5 in their middle, 1 last

    def __init__(self, config: Config):
        self.config = config

    def tables(self, log: InteractionLog, split: Split) -> Any:
        """Frozen inputs on the host, with `metadata`; None without any. split: the rule's."""
        return None

    def empty_tables(self, log: InteractionLog, split: Split) -> Any:
        """Tables to compile with, of made-up events: zeros of the right shapes where `tables` reads
        files."""
        return self.tables(log, split)

    def task(self, log: InteractionLog, split: Split) -> Task:
        raise NotImplementedError

    def backbone(self, n_items: tuple[int, int], tables: Any) -> Backbone:
        raise NotImplementedError

    @property
    def rankings(self) -> dict[str, str]:
        """{ranking: its name in metrics and files}: the key of an evaluation row's candidates, or
        "full" for all items."""
        return {"candidates": f"uni{self.config.evaluate.n_negatives}", "full": "full"}

    @property
    def packed(self) -> dict[str, str]:
        """{name: grid}: what evaluation rows are given beside their grids, the flat places of the
        tokens of a block of users, where `encode` and `probe` then compute tokens alone."""
        return {}

    @property
    def watched(self) -> str:
        """The ranking of validation users that training selects by."""
        return "candidates"

    def candidates(self, log: InteractionLog, split: str, rows: Rows) -> dict[str, np.ndarray]:
        """{ranking: candidates (R, K)} of evaluation rows, column 0 the target."""
        return {"candidates": self.draw(log, split, rows, rows["seen"])}

    def draw(
        self, log: InteractionLog, name: str, rows: Rows, avoided, pool_b_from_last_a=False
    ) -> np.ndarray:
        """(R, 1 + evaluate.n_negatives): targets and items drawn by (data, name, user)."""
        of_rows, n = (rows["user"], rows["target"], avoided), self.config.evaluate.n_negatives
        return draw_candidates(
            log.fingerprint(), name, *of_rows, log.n_items, n, pool_b_from_last_a
        )

    def groups(self, log: InteractionLog, split: Split, rows: Rows) -> dict[str, np.ndarray]:
        """{name: mask (R,)}: sets of users reported beside the two domains."""
        return {}

    @property
    def label(self) -> str:
        """A short name of the model, with its fusion, the places, and what is not as usual."""
        gca = self.config.gca
        if not gca.positions:
            return self.name
        kind = "GCA" if gca.fusion == "gca" else gca.fusion.rpartition(".")[2]
        places = ",".join(map(str, gca.positions))
        return " ".join([f"{self.name} + {kind}[{places}]", *changed(vars(gca))])

    @property
    def name(self) -> str:
        return self.config.backbone
