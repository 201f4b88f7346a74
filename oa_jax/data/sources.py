"""Where interaction logs come from, by name: published files, or a synthetic world."""

from __future__ import annotations

import os
import pathlib

from oa_jax.data import llmcdsr, published
from oa_jax.data.log import InteractionLog
from oa_jax.data.splits import Split
from oa_jax.errors import UserError

DIRECTORY_VARIABLE = "OA_DATA_DIR"
# Source name -> the name that ABXI's files carry.
ABXI_NAMES = {"beauty_elec": "abe", "food_kitchen": "afk"}
SYNTHETIC = "synthetic"
LLMCDSR = "llmcdsr_food_kitchen"


def load(name: str, directory=None, world=None) -> InteractionLog:
    """Load the log of a source: 'beauty_elec', 'food_kitchen' or 'synthetic'.

    directory: where the published files lie; by default the environment variable OA_DATA_DIR.
        Looked at are `<directory>/abxi/<abe or afk>`, `<directory>/<abe or afk>` and the
        directory itself. Not used by 'synthetic'.
    world: `oa_jax.data.synthetic.World` of the source 'synthetic', None for its default.

    Raises UserError for an unknown name, missing files, and whatever is wrong in a file.
    """
    if name == SYNTHETIC:
        # Imported here: only this source needs the generator.
        from oa_jax.data import synthetic

        return synthetic.generate(synthetic.World() if world is None else world)
    if name not in ABXI_NAMES:
        choices = ", ".join([*ABXI_NAMES, LLMCDSR, SYNTHETIC])
        raise UserError(f"data source: found {name!r}, expected one of {choices}")
    published_name = ABXI_NAMES[name]
    return published.read_abxi(_abxi_directory(name, published_name, directory), published_name)


def load_published_split(directory=None, users: str = "all") -> tuple[InteractionLog, Split]:
    """Log and split of 'llmcdsr_food_kitchen', whose files say who trains and who is evaluated."""
    return llmcdsr.read(llmcdsr_directory(directory), users)


def llmcdsr_directory(directory=None) -> pathlib.Path:
    """The folder `<directory>/llmcdsr_food_kitchen`, or the directory itself."""
    directory = directory or os.environ.get(DIRECTORY_VARIABLE)
    root = pathlib.Path(directory).expanduser() if directory else None
    places = [root / LLMCDSR, root] if root else []
    for place in places:
        if any((place / f"train_overlap.txt{end}").exists() for end in ("", ".gz")):
            return place
    looked = ", ".join(map(str, places)) or "nowhere, as no directory was given"
    raise UserError(
        f"data source {LLMCDSR}: found no train_overlap.txt or train_overlap.txt.gz; looked in: "
        f"{looked}; give the directory with --config.data.dir= or {DIRECTORY_VARIABLE}"
    )


def _abxi_directory(name, published_name, directory):
    """The first place that holds the sequence file; the item map then has to lie beside it."""
    directory = directory or os.environ.get(DIRECTORY_VARIABLE)
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
        f"give the directory with --config.data.dir= or {DIRECTORY_VARIABLE}; "
        "the files are in the folder data of the GitHub repository DiMarzioBian/ABXI"
    )
