"""Where interaction logs come from, by name: prepared sets, published text, a synthetic world."""

from __future__ import annotations

import os
import pathlib

from oa_jax.data import catalogue, prepared, published
from oa_jax.errors import UserError
from oa_jax.events.log import InteractionLog

DIRECTORY_VARIABLE = "OA_DATA_DIR"
# Source name -> the name that ABXI's files carry.
ABXI_NAMES = {"beauty_elec": "abe", "food_kitchen": "afk"}
SYNTHETIC = "synthetic"
GIVE_DIRECTORY = f"give the directory with --config.data.dir= or {DIRECTORY_VARIABLE}"


def load(name: str, directory=None, world=None) -> InteractionLog:
    """Load the log of a data set by name: 'synthetic', or any name of `oa_jax.data.catalogue`.

    A set that `python -m oa_jax data prepare` made below the directory comes first; 'beauty_elec'
    and 'food_kitchen' are else read from ABXI's text as published.

    directory: where the data lie; by default the environment variable OA_DATA_DIR. Text is looked
        for in `<directory>/abxi/<abe or afk>`, `<directory>/<abe or afk>` and the directory itself.
        Not used by 'synthetic'.
    world: `oa_jax.events.world.World` of the source 'synthetic', None for its default.

    Raises UserError for an unknown name, missing files, and whatever is wrong in a file.
    """
    if name == SYNTHETIC:
        # Imported here: only this source needs the generator.
        from oa_jax.events import world as synthetic

        return synthetic.generate(synthetic.World() if world is None else world)
    directory = directory or os.environ.get(DIRECTORY_VARIABLE)
    if directory and prepared.is_prepared(directory, name):
        return prepared.load(directory, name).log
    if name not in catalogue.SETS:
        choices = ", ".join([*catalogue.SETS, SYNTHETIC])
        message = f"data source: found {name!r}, expected one of {choices}"
        if directory:
            have = ", ".join(prepared.names(directory)) or "nothing"
            message += f"; prepared below {directory}: {have}"
        raise UserError(message)
    if name in ABXI_NAMES:
        published_name = ABXI_NAMES[name]
        return published.read_abxi(_abxi_directory(name, published_name, directory), published_name)
    if not directory:
        raise UserError(
            f"data source {name}: no directory was given: {GIVE_DIRECTORY}, below which "
            f"python -m oa_jax data prepare {name} has put it"
        )
    return prepared.load(directory, name).log  # not there: says what is


def _abxi_directory(name, published_name, directory):
    """The first place that holds the sequence file; the item map then has to lie beside it."""
    sequences = f"{published_name}_50_preprocessed.txt"
    places = []
    if directory:
        root = pathlib.Path(directory).expanduser()
        places = [root / "abxi" / published_name, root / published_name, root]
    for place in places:
        if any((place / file).exists() for file in (sequences, f"{sequences}.gz")):
            return place
    looked = ", ".join(map(str, places)) or "nowhere, as no directory was given"
    raise UserError(
        f"data source {name}: found no {sequences} or {sequences}.gz; looked in: {looked}; "
        f"{GIVE_DIRECTORY}; or make it with python -m oa_jax data prepare {name}; "
        "the files are in the folder data of the GitHub repository DiMarzioBian/ABXI"
    )
