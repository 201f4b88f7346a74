"""Loads an interaction log by name: a prepared set, published text, or a synthetic world."""

import os

from oa_jax.data import catalogue, published, store
from oa_jax.data.store import Place
from oa_jax.errors import UserError
from oa_jax.events.log import InteractionLog
from oa_jax.events.world import World, generate

DIRECTORY_VARIABLE = "OA_DATA_DIR"
SYNTHETIC = "synthetic"


def check_own_name(name: str, field: str) -> None:
    """Raise UserError if the name may not be used for a data set of your own."""
    if name in (*catalogue.SETS, SYNTHETIC):
        raise UserError(f"{field}={name}: the name of a public set: expected another")


def load(name: str, directory: Place | None = None, world: World | None = None) -> InteractionLog:
    """The log of a data set by name: 'synthetic', a public set, or one that `data import` made.

    A set prepared below the directory comes first. Otherwise the sets of ABXI are read from its
    published text, in a folder at most three levels below.

    directory: the folder of the data; None takes the environment variable OA_DATA_DIR.
    world: for 'synthetic'; None takes the default world.

    Raises UserError for an unknown name, missing files, and mistakes in a file.
    """
    if not isinstance(world, World | None):
        raise UserError(f"world: found {type(world).__name__}, expected a World")
    if name == SYNTHETIC:
        return generate(World() if world is None else world)
    directory = directory or os.environ.get(DIRECTORY_VARIABLE)
    if directory and store.is_prepared(directory, name):
        return store.load(directory, name).log
    if name not in catalogue.SETS:
        there = f"no --config.data.dir= or {DIRECTORY_VARIABLE}, where sets of your own would be"
        if directory:
            there = f"prepared below {directory}: {', '.join(store.names(directory)) or 'nothing'}"
        choices = ", ".join([*catalogue.SETS, SYNTHETIC])
        raise UserError(
            f"data source: found {name!r}; {there}; expected one of these, {choices}; events "
            "that are in no set are given in Python, as `data`: oa.open(workdir, data)"
        )
    data_set = catalogue.SETS[name]
    if data_set.protocol == "ABXI" and directory:
        if paths := catalogue.find(data_set.sources[0], directory):
            return published.read_abxi(paths, name)
    elif directory:
        return store.load(directory, name).log  # not there: says what is
    raise UserError(
        f"data source {name}: {catalogue.what_is_missing(data_set, directory)}; make it with "
        f"python -m oa_jax data prepare {name} [--download], or give its folder by "
        f"--config.data.dir= or {DIRECTORY_VARIABLE}"
    )
