"""LLM4CDSR's task, tables and model from a configuration."""

import dataclasses
import os

import numpy as np

from oa_jax.backbones import base
from oa_jax.backbones.llm4cdsr import model
from oa_jax.backbones.llm4cdsr.task import LLM4CDSRTask
from oa_jax.configuration import value_of
from oa_jax.data import sources
from oa_jax.errors import UserError
from oa_jax.events.world import World
from oa_jax.nn.streams import packed
from oa_jax.text.align import world_vectors
from oa_jax.text.tables import Tables, default_folder, history_of, load_tables
from oa_jax.text.vectors import mean_profiles, pca, widest

# Tables, and the fields that say how many of their columns are used.
WIDTHS = {"global_table": "data.global_width"}
WIDTHS |= dict.fromkeys(("local_a", "local_b"), "model.d_embed")
PROFILE_WIDTH = 1536  # of a user's text embedding in the official code
SHORT_HISTORY, TAIL_ITEM = 12, 13  # official ts_user, ts_item: below is short, tail


class Parts(base.Parts):
    skip_short = True
    # Q20: the official places among ties are arbitrary; here the target is in their middle.

    @property
    def hparams(self):
        """The weights of losses among them where there are such losses: without, there is no user
        adapter either, and the program is another one."""
        weights = [name for name in ("alpha", "beta") if getattr(self.config.model, name) > 0]
        return tuple(f"model.{name}" for name in (*weights, "tau", "tau_reg"))

    def task(self, log, split) -> LLM4CDSRTask:
        length, batch_size = self.config.model.length, self.config.train.batch_size
        return LLM4CDSRTask(log, split, length, batch_size, self.config.quirks)

    def backbone(self, n_items, tables) -> model.Backbone:
        of, arrays = self.config, (tables.global_table, tables.local_a, tables.local_b)
        with_padding = (np.pad(rows, [(1, 0), (0, 0)]) for rows in arrays)  # before the items
        frozen = model.Tables(*with_padding, tables.users)
        return model.Backbone(n_items, of.model, frozen, of.gca, of.quirks)

    def tables(self, log, split) -> Tables:
        """The frozen inputs of a data set, as wide as the model: the first principal components."""
        data, q12 = self.config.data, self.config.quirks.q12_profile_sees_validation
        if data.name == sources.SYNTHETIC:
            found = synthetic_tables(data.world, log, split, q12)
        else:
            root = data.dir or os.environ.get(sources.DIRECTORY_VARIABLE)
            found = load_tables(data.tables or default_folder(root, data.name), log, split, q12)
        cut = {}
        for table, field in WIDTHS.items():
            width, most = value_of(self.config, field), getattr(found, table).shape[1]
            if width > most:
                raise UserError(
                    f"--config.{field}={width}: expected at most {most}, as wide as {table}"
                )
            cut[table] = getattr(found, table)[:, :width]
        return dataclasses.replace(found, **cut)

    def empty_tables(self, log, split) -> Tables:
        rows = sum(log.n_items), *log.n_items, log.n_users
        widths = *(value_of(self.config, field) for field in WIDTHS.values()), PROFILE_WIDTH
        zeros = (np.zeros(shape, np.float32) for shape in zip(rows, widths, strict=True))
        return Tables(*zeros, n_history=np.zeros(log.n_users, np.int32), metadata={})

    @property
    def packed(self):
        model = self.config.model
        return packed(model, model.length, self.config.gca)

    @property
    def rankings(self):
        """Both protocols' candidates in every run, which shows what Q2 and Q7 are worth."""
        return {"official": f"official{self.config.evaluate.n_negatives}"} | super().rankings

    @property
    def watched(self) -> str:
        return "official" if self.config.quirks.q2_score_two_items_as_one else "candidates"

    def candidates(self, log, split, rows):
        """`candidates` (R, K), the same items for both streams; `official` (R, 2, K), drawn apart
        for stream x and for the domain's stream (Q2), a domain's last item never among them (Q7).
        """
        last = np.array([log.n_items[0], sum(log.n_items)], np.int32)
        avoided = [np.append(seen, last) for seen in rows["seen"]]
        pair = [
            self.draw(log, f"{split}/official/{of}", rows, avoided) for of in ("joint", "local")
        ]
        return super().candidates(log, split, rows) | {"official": np.stack(pair, 1)}

    def groups(self, log, split, rows):
        """All users; short and long histories; rare and popular targets, counted in training."""
        trained = log.item[split.in_training(log)]
        popularity = np.bincount(trained, minlength=sum(log.n_items) + 1)[rows["target"]]
        short, tail = rows["n_history"] < SHORT_HISTORY, popularity < TAIL_ITEM
        every = np.ones(len(short), bool)
        return {"all": every, "short": short, "long": ~short, "tail": tail, "popular": ~tail}


def synthetic_tables(world: World, log, split, sees_validation: bool) -> Tables:
    """Tables of the synthetic world's own embeddings, with all principal components."""
    vectors, n_a = world_vectors(world, log, history_of(split)), log.n_items[0]
    parts = (vectors, vectors[:n_a], vectors[n_a:])
    reduced = [pca(part, widest(part))[0] for part in parts]
    n_history, has_text = history_of(split, sees_validation), np.ones(len(vectors), bool)
    users = mean_profiles(log, n_history, vectors, has_text)
    metadata = {"encoder": "synthetic", "log": log.fingerprint()}
    for name in ("views", "aligned", "rotation", "gap"):
        value = getattr(world, name)
        if value != getattr(World, name):  # what earlier versions had not stays unnamed
            metadata[name] = value
    return Tables(*reduced, users, n_history, metadata)
