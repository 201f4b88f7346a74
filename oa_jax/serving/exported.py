"""A run as a folder that others can load, and such a folder as a maker of lists.

parameters.safetensors  of one seed             items.parquet   id, domain, raw, title, users
scorer.safetensors      what else scores need   config.json     the run's configuration
scorer.jaxexport        StableHLO, by jax.export: (tensors, history, domain, items) -> scores
model.json              sizes, seed, fingerprint, metrics       README.md       the model card
"""

from __future__ import annotations

import functools
import os
import pathlib
import tempfile
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

import oa_jax
from oa_jax import fields, files
from oa_jax.engine.state import name_of
from oa_jax.errors import UserError, needs
from oa_jax.events.log import InteractionLog
from oa_jax.ranking.best import Best, best_of_all
from oa_jax.ranking.ranks import AllItems, seen_of
from oa_jax.runs.initial import ITEMS, MODEL, PARAMETERS, SCORER, flat, read_export
from oa_jax.runs.workdir import Workdir
from oa_jax.serving import card
from oa_jax.serving.histories import of_events, polars
from oa_jax.serving.lists import whole
from oa_jax.serving.stored import StoredModel

if TYPE_CHECKING:
    import polars as pl

PROGRAM = "scorer.jaxexport"
PLATFORMS = ("cpu", "cuda", "tpu")
SCORES = 512 * 4096  # that a call holds at a time


def export(
    workdir: str | os.PathLike,
    out: str | os.PathLike,
    seed: int | None = None,
    licence: str = "unknown",
    data_licence: str = "unknown",
    data_dir: str | None = None,
    say: Callable[[str], None] = lambda line: None,
    data: InteractionLog | None = None,
) -> pathlib.Path:
    """Write the best parameters of a seed, by default the first, as a folder `out`, new or empty.

    licence, data_licence: for the model card. data_dir: where the data lie now; data: the events,
    where they are in no prepared set. Raises UserError when there is no such run or seed,
    or something stands in `out`; the folder appears when it is whole.
    """
    out, path = files.local(out, "--out"), files.local(workdir, "--workdir")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out={out}: not empty: expected a new folder")
    pl = polars()
    with needs("export"):
        from safetensors.numpy import save
    model = StoredModel(path, seed, log=data, data_dir=data_dir, say=say)
    params, index = jax.tree.map(lambda a: a[0], model._seeded)
    params, extra, program = scorer(model, params, index)
    about = _about(model, path)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(".tmp", f"{out.name}.", out.parent, True) as name:
        folder = pathlib.Path(name)
        for name, tensors in ((PARAMETERS, params), (SCORER, extra)):
            files.write(folder / name, save({k: np.asarray(v) for k, v in tensors.items()}))
        files.write(folder / PROGRAM, program)
        files.write_json(folder / "config.json", Workdir(path).read_json("config.json"))
        files.write_json(folder / MODEL, about)
        names, title = model.names, pl.Series(model.names.title, dtype=pl.String)
        items = {"id": np.arange(1, 1 + len(names.raw)), "domain": names.domain, "raw": names.raw}
        items |= {"title": title, "users": model.popularity[1:]}
        pl.DataFrame(items).write_parquet(folder / ITEMS)
        files.write(folder / "README.md", card.text(about, licence, data_licence))
        folder.chmod(0o755)
        if out.exists():
            out.rmdir()
        os.replace(folder, out)
    return out


def scorer(model: StoredModel, params, index) -> tuple[dict, dict, bytes]:
    """(parameters by name, what else scores need, the program) of a seed.

    The program takes both in one dictionary, history (b, h), domain (b,) and items (n,), and gives
    scores (b, n), for any b, h and n. What it does not read, as the users' profiles or the support
    set, is not written.
    """
    backbone, tables = model.settings.backbone, model.experiment.tables
    trees = {"index": index, "tables": {} if tables is None else tables}
    own, extra = flat(params), flat(trees)
    # What the index has as it is in the parameters is written once.
    same = {
        name: mine
        for name in extra
        for mine in own
        if (name == "index" or name.endswith(f"/{mine}")) and np.array_equal(extra[name], own[mine])
    }

    def score(tensors, history_BxH, domain_B, items_K):
        def leaf(path, like):
            name = name_of(path)
            name = same.get(name, name)
            return tensors[name] if name in tensors else jnp.zeros_like(like)

        there = jax.tree_util.tree_map_with_path(leaf, params)
        of = jax.tree_util.tree_map_with_path(leaf, trees)
        here = backbone if tables is None else backbone.on(of["tables"])
        encoded = here.encode(there, here.rows(history_BxH, domain_B))
        return here.score(of["index"], encoded, items_K)

    extra = {name: leaf for name, leaf in extra.items() if name not in same}
    # Of free sizes a program keeps every argument; of these only those that it reads.
    kept = _exported(model, score, own | extra, sizes=(1, 1, 1)).module_kept_var_idx
    read = {name for i, name in enumerate(sorted(own | extra)) if i in kept}  # as JAX flattens
    extra = {name: leaf for name, leaf in extra.items() if name in read}
    with needs("export"):
        return own, extra, _exported(model, score, own | extra).serialize()


def _exported(model, score, tensors, sizes=None):
    b, h, n = sizes or jax.export.symbolic_shape("b, h, n")
    like = {name: jax.ShapeDtypeStruct(a.shape, a.dtype) for name, a in tensors.items()}
    numbers = [jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((b, h), (b,), (n,))]
    with model.settings.precision():
        return jax.export.export(jax.jit(score), platforms=PLATFORMS)(like, *numbers)


def _about(model, path):
    """model.json: what the card and a reader need to know."""
    of, log = model.experiment, model.experiment.data.log
    about = {
        "oa-jax": oa_jax.__version__,
        "label": of.label,
        "protocol": of.config.protocol,
        "n_parameters": of.engine.n_parameters,
        "seed": model.seeds[0],
        "data": log.name,
        "fingerprint": log.fingerprint(),
        "tables": of.data.identity().get("tables"),
        "n_users": log.n_users,
        "n_items": log.n_items,
        "n_events": len(log.user),
        "domains": model.domains,
        "domain_names": model.names.domains,
        "items_are_raw": model.names.are_raw,
        "example": [model.names.raw[0], model.names.raw[log.n_items[0]]],
    }
    if (path / "summary.json").exists():
        seeds = files.read_json(path / "summary.json")["per_seed"]
        mine = [entry for entry in seeds if entry["seed"] == model.seeds[0]]
        about["metrics"] = mine[0] if mine else {}
    return about


def load_export(folder: str | os.PathLike) -> ExportedModel:
    """The model in a folder that `python -m oa_jax export` made; `recommend` gives its lists.

    Raises UserError where `folder` is none.
    """
    return ExportedModel(files.local(folder, "FOLDER"))


class ExportedModel:
    """See `lists.Model`. about: model.json.  params: {name: array} of the parameters."""

    vectors, by = None, "score"

    def __init__(self, path: pathlib.Path):
        self.path = path
        self.about, self.params, self.names, self.popularity = read_export(path)
        self.n_users, self.of = self.about["n_users"], f"seed {self.about['seed']}"
        self.domains = self.about["domains"]

    @functools.cached_property
    def _program(self):
        from safetensors.numpy import load_file

        file = self.path / PROGRAM
        try:
            exported = jax.export.deserialize(bytearray(file.read_bytes()))
            file = self.path / SCORER
            scorer = load_file(file)
        except Exception as error:  # flatbuffers checks nothing: damaged bytes raise of any kind
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:160]
            raise UserError(f"{file}: {reason}: expected an export") from None
        return exported, jax.device_put(self.params | scorer)

    def room(self, n_users: int) -> int:
        few = 1 << (n_users - 1).bit_length()
        return max(1, min(few, SCORES // (1 + sum(self.names.n_items))))

    def best(self, history_BxH, seen_BxH, domain_B, k: int) -> Best:
        exported, tensors = self._program
        rows = history_BxH, seen_BxH, domain_B
        found = _best(exported.call, self.names.n_items, k, tensors, *rows)
        return jax.tree.map(np.asarray, found)

    def recommend(
        self,
        histories: Any,
        k: int = 10,
        domain: str = "both",
        keep_seen: bool = False,
        time_unit: str | None = None,
    ) -> pl.DataFrame:
        """Lists of histories, as `Run.recommend` makes them: events with raw ids."""
        k = fields.checked("--k", k, fields.whole(10, ""))
        asked = of_events(histories, self.names, time_unit)
        return whole(self, asked, k, domain, keep_seen)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _best(call, n_items, k, tensors, history_BxH, seen_BxH, domain_B):
    def score(ids):
        return call(tensors, history_BxH, domain_B, ids)

    every = 1 + sum(n_items)  # one block: each would encode the histories anew
    return best_of_all(AllItems(score, domain_B, seen_of(seen_BxH), n_items, every), k)
