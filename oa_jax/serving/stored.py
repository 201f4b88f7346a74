"""A stored run as a maker of lists: one of its seeds, or the mean of the ranks of all."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from oa_jax import processes
from oa_jax.errors import UserError
from oa_jax.events.log import DOMAINS, InteractionLog
from oa_jax.nn.shards import on_batch
from oa_jax.ranking.best import Best, best_of_all, best_on_average, ranks_of_all
from oa_jax.ranking.ranks import AllItems, seen_of
from oa_jax.runs import names
from oa_jax.runs.stored import experiment_of, newest_parameters, no_candidates

BLOCKS = 16  # of users that are on the device at a time


class StoredModel:
    """See `lists.Model`. seed: its number, by default the first that has not diverged; ensemble:
    the mean of all their ranks instead.

    log, data_dir, mesh: as of `runs.stored.experiment_of`. Raises UserError when there is no such
    run or seed.
    """

    def __init__(
        self,
        path: pathlib.Path,
        seed: int | None = None,
        ensemble: bool = False,
        log: InteractionLog | None = None,
        data_dir: str | None = None,
        say: Callable[[str], None] = lambda line: None,
        mesh: str = "",
    ):
        if ensemble and seed is not None:
            raise UserError("--seed, --ensemble: expected one of them")
        self.experiment = of = experiment_of(path, log, data_dir, no_candidates, mesh)
        if of.config.gca.positions and of.config.gca.source == "shuffled":
            raise UserError(
                f"{path}: gca.source=shuffled: expected another: whom its lists are made with "
                "would depend on who else is asked for"
            )
        params, counters = newest_parameters(path, of, say=say)
        slots = _slots(of.seeds, counters["diverged_step"], seed)
        slots = slots if ensemble else slots[:1]
        self.seeds = of.seeds[slots].tolist()
        self.by = "mean_rank" if ensemble else "score"
        self.of = f"mean of {len(slots)} seeds" if ensemble else f"seed {self.seeds[0]}"
        ranked = np.concatenate([rows["domain"] for rows in of.evaluation.rows.values()])
        self.domains = [DOMAINS[d] for d in np.unique(ranked)]
        self.names = names.of(of.data.log)
        self.popularity = names.popularity(of.data.log, of.data.split)
        self.n_users = of.data.log.n_users
        self.vectors = getattr(of.data.tables, "global_table", None)
        self.params = jax.tree.map(lambda a: a[slots], params)
        self.settings, self._ensemble = of.engine.settings, ensemble

    @functools.cached_property
    def _seeded(self):
        """(parameters, what scoring needs of the items) of the seeds, on the device."""

        def index(params, tables):
            return self.settings.on(tables).backbone.index(params)

        of = self.experiment
        return self.params, of.engine.over_seeds("index", index, (self.params,), of.tables)

    def room(self, n_users: int) -> int:
        block, few = self.settings.block_users, 1 << (n_users - 1).bit_length()
        if self._ensemble:  # ranks of all items: as many users as scores of a block hold
            room = block * self.settings.block_items // (len(self.seeds) * sum(self.names.n_items))
            return max(1, min(few, room, block))
        n_blocks = 1 << (-(-n_users // block) - 1).bit_length()
        return min(block, few) if n_blocks == 1 else min(n_blocks, BLOCKS) * block

    def best(self, history_BxH, seen_BxH, domain_B, k: int) -> Best:
        rows = {"history": history_BxH, "seen": seen_BxH, "domain": domain_B}
        if not self._ensemble:
            found = self._apply(("lists", k), lambda *of: best_of_all(_items(*of), k), rows)
            return jax.tree.map(lambda a: a[0], processes.fetch(found))
        weight = self.settings.tie_weight
        ranks, finite = self._apply("ranks", lambda *of: ranks_of_all(_items(*of), weight), rows)
        found = jax.jit(best_on_average, static_argnums=1)(ranks, k)
        return Best(*processes.fetch(found), processes.fetch(finite).all(0))

    def check_explains(self) -> None:
        gca = self.experiment.config.gca
        if not gca.positions or gca.source != "merged" or self._ensemble:
            found = "no GCA" if not gca.positions else f"gca.source={gca.source}, {self.of}"
            raise UserError(f"--explain: {found}: expected a seed of a run with GCA on stream x")

    def explain(self, history_BxH, domain_B, items_BxK) -> tuple[np.ndarray, dict]:
        rows = {"history": history_BxH, "domain": domain_B, "items": items_BxK}
        found = self._apply("explain", _explained, rows)
        return jax.tree.map(lambda a: a[0], processes.fetch(found))

    def _apply(self, name, of_block, rows):
        """`of_block(settings, params, index, rows)` of every seed, users in blocks."""

        def one(seeded, shared):
            rows, tables = shared
            settings, n_rows = self.settings.on(tables), len(rows["domain"])
            block = settings.block_users if n_rows % settings.block_users == 0 else n_rows
            blocks = jax.tree.map(lambda a: a.reshape(-1, block, *a.shape[1:]), rows)
            found = jax.lax.map(lambda rows: of_block(settings, *seeded, on_batch(rows)), blocks)
            return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), found)

        tables = self.experiment.tables
        return self.experiment.engine.over_seeds(name, one, (self._seeded,), (rows, tables))


def _slots(seeds, diverged_S, seed):
    """Places of the seeds that have not diverged, or of the one that is asked for."""
    good = np.flatnonzero(diverged_S == 0)
    if seed is None:
        if not len(good):
            raise UserError("every seed of the run has diverged: expected one that has not")
        return good
    if seed not in seeds[good]:
        known = ", ".join(map(str, seeds[good]))
        expected = f"expected one of {known}" if known else "every seed of the run has diverged"
        raise UserError(f"--seed={seed}: {expected}")
    return np.flatnonzero(seeds == seed)


def _items(settings, params, index, rows) -> AllItems:
    backbone = settings.backbone
    encoded = backbone.encode(params, backbone.rows(rows["history"], rows["domain"]))

    def score(ids):
        return backbone.score(index, encoded, ids)

    return AllItems(
        score, rows["domain"], seen_of(rows["seen"]), settings.n_items, settings.block_items
    )


def _explained(settings, params, index, rows):
    """(scores with X' less scores without (B, K), {place: weights of the last token (B, S)})."""
    backbone, domain_B = settings.backbone, rows["domain"]
    made = backbone.rows(rows["history"], domain_B)
    nothing = dataclasses.replace(backbone.gca, part=lambda update, *_: 0 * update, part_of="gated")
    without = dataclasses.replace(backbone, gca=nothing)
    scores, lacking = (
        one.score(index, one.encode(params, made), rows["items"]) for one in (backbone, without)
    )
    last = {}
    for name, probe in backbone.probe(params, made).items():
        weights = probe.weights_PxS
        last[name] = weights.reshape(len(domain_B), -1, weights.shape[-1])[:, -1]
    places = dict.fromkeys(name.split("/")[0] for name in last)
    in_a = (domain_B == 0)[:, None]
    looked = {place: jnp.where(in_a, last[f"{place}/A"], last[f"{place}/B"]) for place in places}
    return jnp.where(rows["items"] > 0, scores - lacking, 0.0), looked
