"""`python -m oa_jax text --data_dir=… --name=NAME --encoder=…`: text tables."""

from __future__ import annotations

import os
import pathlib

from absl import flags

from oa_jax.commands import cli
from oa_jax.data import prepared
from oa_jax.data.sources import DIRECTORY_VARIABLE
from oa_jax.errors import UserError
from oa_jax.text import build, cache
from oa_jax.text.tables import default_folder

flags.DEFINE_string("data_dir", None, f"Folder of the prepared sets; {DIRECTORY_VARIABLE} if none.")
flags.DEFINE_string("name", None, "Prepared data set whose items are embedded.")
flags.DEFINE_string(
    "encoder",
    None,
    "hashing (no model); A.npy,B.npy or .pkl, vectors in the order of the items; a folder with the "
    "official code's tables; or name or folder of a model of sentence-transformers.",
)
flags.DEFINE_string("out", None, "Folder of the tables; where training looks if none.")
flags.DEFINE_string("profiles", None, "File of user profiles to import, .npy or .pkl.")
flags.DEFINE_integer("global_width", 1024, "Columns of the table of both domains.")
flags.DEFINE_integer("local_width", 128, "Columns of the tables of one domain.")
flags.DEFINE_string("split", None, "Whose targets no profile may know; the set's own if none.")
flags.DEFINE_bool(
    "sees_validation", False, "Profiles hold the validation target, as the official ones (Q12)."
)
flags.DEFINE_integer("chunk", 1024, "Texts that a model encodes between two stores.", lower_bound=1)
flags.DEFINE_string("cache_dir", None, "Folder of encoded chunks; the user's cache if none.")


def main(_):
    given = flags.FLAGS
    for name, meaning in (
        ("name", "a prepared data set"),
        ("encoder", "an encoder, such as hashing"),
    ):
        if not given[name].value:
            raise UserError(f"--{name}: missing: expected {meaning}")
    data_dir = given.data_dir or os.environ.get(DIRECTORY_VARIABLE)
    if not data_dir:
        raise UserError(f"--data_dir: missing: expected it, or {DIRECTORY_VARIABLE}")
    options = build.Options(
        given.encoder,
        pathlib.Path(given.cache_dir).expanduser()
        if given.cache_dir
        else cache.default_directory(),
        given.profiles,
        given.global_width,
        given.local_width,
        given.split,
        given.sees_validation,
        given.chunk,
    )
    out = given.out or default_folder(data_dir, given.name)
    cli.say(f"{given.name}: encoding its texts")
    tables = build.write(prepared.load(data_dir, given.name), options, out, cli.say)
    cli.say(describe(tables, out))


def describe(tables, out) -> str:
    """One line: what was embedded by what, and how much of it the tables keep."""
    of = tables.metadata
    encoder = of["encoder"]
    name = encoder.get("note") or encoder.get("name") or encoder["kind"]
    name += f" {', '.join(encoder['files'])}" if "files" in encoder else ""
    kept = of["explained_variance"]
    shares = " ".join(f"{k} {v:.3f}" for k, v in kept.items()) if kept else "not known"
    empty = int((~tables.users.any(1)).sum())
    return (
        f"{of['name']} by {name}: global {_size(tables.global_table)}, A {_size(tables.local_a)}, "
        f"B {_size(tables.local_b)}, users {_size(tables.users)} ({empty} without history); "
        f"variance kept: {shares}; {of['n_items_without_text']} items without text; in {out}"
    )


def _size(table):
    return "x".join(map(str, table.shape))


def start() -> None:
    cli.run(main)
