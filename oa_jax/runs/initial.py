"""Parameters to begin with: `train.init_from`, the folder of an export or the workdir of a run."""

import dataclasses
import functools
import itertools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from oa_jax import fields, files, processes
from oa_jax.engine.mesh import is_table, place
from oa_jax.engine.state import State, name_of
from oa_jax.errors import UserError, needs
from oa_jax.events.log import DOMAINS
from oa_jax.experiment import Experiment
from oa_jax.runs import names as names_lib
from oa_jax.runs.names import Names
from oa_jax.runs.workdir import Workdir

# Files of an export.
MODEL, PARAMETERS = "model.json", "parameters.safetensors"
SCORER, ITEMS = "scorer.safetensors", "items.parquet"
KEPT = "init_from.json"
SHOWN = 3  # parameters that are named in a line
ABOUT = {  # of model.json, what is read here and by `load_export`
    "fingerprint": fields.text("", ""),
    "tables": fields.text(None, ""),
    "seed": fields.whole(0, "", 0),
    "n_users": fields.whole(1, ""),
    "n_items": fields.two(fields.whole(1, ""), 1),
    "items_are_raw": fields.flag(True, ""),
    "domain_names": fields.two(fields.text("A", ""), "B"),
    "domains": fields.field(
        DOMAINS, lambda v: v in (("A",), ("B",), DOMAINS), "A, B or both in order", ""
    ),
}


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """Trained parameters {name: (S, …)}, the items behind rows of tables, and fingerprints of the
    log and of the text tables, None where there are none or an export does not know."""

    params: dict[str, np.ndarray]
    names: Names
    fingerprint: str
    tables: str | None


def flat(tree: Any) -> dict[str, Any]:
    """Leaves of a tree by name."""
    return {name_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def read(path: str) -> Pretrained:
    """Raises UserError where `path` is neither an export nor the workdir of a run."""
    folder = files.local(path, "--config.train.init_from")
    parts = [folder / MODEL, *sorted((folder / "checkpoints").glob("*"))]
    return _read(path, folder, tuple((p.name, p.stat().st_mtime_ns) for p in parts if p.exists()))


@functools.lru_cache(maxsize=1)  # asked for by each seed that comes late into a slot
def _read(path, folder, _as_it_is) -> Pretrained:
    if (folder / MODEL).is_file():
        about, params, names, _ = read_export(folder)
        params = {name: leaf[None] for name, leaf in params.items()}
        return Pretrained(params, names, about["fingerprint"], about.get("tables"))
    if not (folder / "config.json").is_file():
        raise UserError(
            f"--config.train.init_from={path}: no {MODEL} or config.json in it: expected the "
            "folder of an export or the workdir of a run"
        )
    from oa_jax.runs import stored  # which reads runs, and thereby this module

    experiment = stored.experiment_of(folder, candidates=stored.no_candidates)
    params, counters = stored.newest_parameters(folder, experiment)
    good, log = counters["diverged_step"] == 0, experiment.data.log
    if not good.any():
        raise UserError(f"--config.train.init_from={path}: every seed has diverged")
    params = {name: leaf[good] for name, leaf in flat(params).items()}
    identity = experiment.data.identity()
    return Pretrained(params, names_lib.of(log), identity["data"], identity.get("tables"))


def read_export(folder: pathlib.Path) -> tuple[dict, dict[str, np.ndarray], Names, np.ndarray]:
    """(model.json, parameters, names of the items, users who took each (1 + I,)) of an export."""
    with needs("export"):
        import polars as pl
        from safetensors import SafetensorError
        from safetensors.numpy import load_file
    # Not in exports of earlier versions:
    about = {"tables": None, "domain_names": DOMAINS, "domains": DOMAINS}
    about |= files.read_json(folder / MODEL, "the folder of an export")
    for name, of in ABOUT.items():
        about[name] = fields.checked(f"{folder / MODEL}: {name}", about.get(name), of)
    panic = pl.exceptions.PanicException  # of a damaged file; no Exception
    try:
        params, items = load_file(folder / PARAMETERS), _items(folder / ITEMS, about["n_items"])
    except (OSError, SafetensorError, pl.exceptions.PolarsError, panic) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"{folder}: {reason}: expected the folder of an export") from None
    columns = items["raw"].to_list(), items["title"].to_list(), about["n_items"]
    names = Names([], *columns, about["items_are_raw"], about["domain_names"])
    return about, params, names, np.r_[0, items["users"].to_numpy()]


def _items(file, n_items):
    """The rows of items.parquet by id, however they stand there."""
    import polars as pl

    kinds = {"id": pl.Int64, "domain": pl.String, "raw": pl.String, "title": pl.String}
    kinds |= {"users": pl.Int64}
    items = pl.read_parquet(file, glob=False)
    for name, kind in kinds.items():
        if (found := items.schema.get(name)) != kind:
            raise UserError(f"{file}: {name}: found {found}, expected {kind}")
    ids = enumerate(itertools.chain(*map(itertools.repeat, DOMAINS, n_items)), 1)
    items = items.sort("id")
    for found, expected in itertools.zip_longest(items.select("id", "domain").rows(), ids):
        if found != expected:
            raise UserError(f"{file}: id, domain: found {found}, expected {expected}")
    good = pl.struct("domain", "raw").is_unique() & pl.col("raw").is_not_null()
    for found in items.filter(~(good & (pl.col("users").fill_null(-1) >= 0))).rows():
        expected = "a raw id of its own in its domain, and users from 0"
        raise UserError(f"{file}: raw, users: found {found}, expected {expected}")
    return items


def begin(
    experiment: Experiment, places: Sequence[int], states: State
) -> tuple[State, dict[str, Any]]:
    """Fresh states with what `train.init_from` has for them -> (states, what was taken). Without
    the field they stay as they are, and nothing is.

    places: of the states' seeds in their run.

    Parameters of the same name and shape are taken whole, tables of items row by row: those of
    items with the same domain and raw id (see `matched`), all of them on the same data. The rest
    stays fresh. Raises UserError where a domain is the source's other one.
    Seed i begins from the source's seed i, in turn where it has fewer; of these only those count
    that have not diverged.
    """
    path = experiment.config.train.init_from
    if not path:
        return states, {}
    source, log, identity = read(path), experiment.data.log, experiment.data.identity()
    own = names_lib.of(log)
    for theirs, other in zip(source.names.domains, own.domains[::-1], strict=True):
        if theirs == other:  # the parameters of A would become B's
            found = f"{theirs} is its other domain"
            here = " and ".join(own.domains)
            raise UserError(f"--config.train.init_from={path}: {found}: expected {here} in order")
    same = source.fingerprint == identity["data"]
    match = np.arange(1 + sum(log.n_items)) if same else matched(source.names, own)
    told: dict[str, Any] = {"from": str(path), "rows": {}, "whole": [], "fresh": {}}
    if (tables := identity.get("tables")) and tables != source.tables:
        told["other_tables"] = True
    known = [np.sum(of > 0) for of in np.split(match[1:], log.n_items[:1])]
    told["items"] = {d: [int(k), n] for d, k, n in zip(DOMAINS, known, log.n_items, strict=True)}

    def one(path, fresh):
        name = name_of(path)
        if name not in source.params:
            told["fresh"][name] = "not there"
            return fresh
        there = source.params[name]
        there = there[np.asarray(places) % len(there)]
        if is_table(path):
            rows, theirs = _rows_of(name, match, log.n_items, source.names.n_items)
            if there.shape[2:] != fresh.shape[2:]:
                told["fresh"][name] = f"width {there.shape[2:]}, not {fresh.shape[2:]}"
                return fresh
            told["rows"][name] = len(rows)
            fresh = fresh.copy()
            fresh[:, rows] = there[:, theirs]
            return fresh
        if there.shape != fresh.shape:
            told["fresh"][name] = f"shape {there.shape[1:]}, not {fresh.shape[1:]}"
            return fresh
        told["whole"].append(name)
        return there

    taken = jax.tree_util.tree_map_with_path(one, processes.fetch(states.params))
    params = place(taken, jax.tree.map(lambda a: a.sharding, states.params))
    best = jax.tree.map(jnp.copy, params)  # the buffers of the others are given up
    return states.replace(params=params, best_params=best), told


def keep(told: dict[str, Any], workdir: Workdir, say: Callable[[str], None]) -> None:
    """Say what was taken, and what was not, and keep it in init_from.json."""
    if not told:
        return
    items = ", ".join(f"{known} of {n} of {d}" for d, (known, n) in told["items"].items())
    rows = f", the rows of known items ({items}) of {', '.join(told['rows'])}"
    whole = f"begins from {told['from']}: {len(told['whole'])} parameters whole"
    say(whole + rows if told["rows"] else whole)
    if told.get("other_tables"):
        say(
            "its text tables are others than these: what reads their columns is copied, and has to "
            "learn what they mean here"
        )
    if fresh := told["fresh"]:
        shown = ", ".join(f"{name} ({why})" for name, why in list(fresh.items())[:SHOWN])
        more = f" and {len(fresh) - SHOWN} more" if len(fresh) > SHOWN else ""
        say(f"fresh: {shown}{more}; see {KEPT}")
    workdir.write_json(KEPT, told)


def matched(theirs: Names, own: Names) -> np.ndarray:
    """(1 + I,) for every own item the number of the same item there, 0 where it is unknown: that
    of the same raw id in the same domain; where the sets share a domain's name, that of one name.
    """
    match = np.zeros(1 + len(own.raw), np.int64)
    if theirs.are_raw and own.are_raw:  # numbers say nothing of another set's items
        by_name = not set(theirs.domains).isdisjoint(own.domains)
        number = {key: n for n, key in enumerate(theirs.keys(by_name), 1)}
        match[1:] = [number.get(key, 0) for key in own.keys(by_name)]
    return match


def _rows_of(name, match, n_items, n_theirs):
    """(own rows, their rows) of a table: of both domains, or of one alone by ids of its own."""
    last, first_own, first_theirs = name.split("/")[-1], 0, 0
    own = np.flatnonzero(match)
    if last == "local_A":
        own = own[own <= n_items[0]]
    if last == "local_B":
        first_own, first_theirs = n_items[0], n_theirs[0]
        own = own[own > first_own]
    # Row 0 is that of padding.
    return np.r_[0, own - first_own], np.r_[0, match[own] - first_theirs]
