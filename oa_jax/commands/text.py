"""`python -m oa_jax text [align] --data_dir=… --name=NAME --encoder=…`: text tables.

`align` makes them of vectors that are changed first, as --how says: `aligned`, those of both
domains mapped so that items which one user took come near (InfoNCE); `rotated`, B's turned by a
random orthogonal matrix; `shifted`, B's shifted along one direction.
"""

import pathlib

from absl import flags
from rich.progress import track

from oa_jax.commands import cli
from oa_jax.data import store
from oa_jax.errors import UserError
from oa_jax.text import align, build, encoders
from oa_jax.text.tables import Tables, default_folder

ENCODER = (
    "hashing (no model); minilm (shipped by a package); A.npy,B.npy or .pkl, vectors in the order "
    "of the items; a folder with the official code's tables; or name or folder of a model of "
    "sentence-transformers."
)
cli.define_data_dir()
flags.DEFINE_string("name", None, "Prepared data set whose items are embedded.")
flags.DEFINE_string("encoder", None, ENCODER)
flags.DEFINE_string("out", None, "Folder of the tables; where training looks if none.")
flags.DEFINE_string("profiles", None, "File of user profiles to import, .npy or .pkl.")
flags.DEFINE_integer("global_width", 1024, "Columns of the table of both domains.")
flags.DEFINE_integer("local_width", 128, "Columns of the tables of one domain.")
flags.DEFINE_string("split", "own", "Whose targets no profile may know; by default the set's own.")
flags.DEFINE_bool("sees_validation", False, "Profiles hold the validation target (LLM4CDSR Q12).")
flags.DEFINE_integer("chunk", 1024, "Texts that a model encodes between two stores.", lower_bound=1)
flags.DEFINE_enum("how", "aligned", align.KINDS[1:], "align: what is done to the vectors.")
flags.DEFINE_float("amount", 1.0, "align: rotation, 0 to 1, or shift in lengths of a vector.")
flags.DEFINE_integer("steps", 1000, "align: steps of InfoNCE.", lower_bound=1)
flags.DEFINE_integer("seed", 0, "align: decides all draws.", lower_bound=0)
flags.DEFINE_string("cache_dir", None, "Folder of encoded chunks; the user's cache if none.")


def main(words: list[str]) -> None:
    """Make the tables and say what they are."""
    if words not in ([], ["align"]):
        raise UserError(f"argument {words[0]!r}: expected align, or nothing")
    for flag in ("how", "amount", "steps", "seed"):
        if flags.FLAGS[flag].present and not words:
            raise UserError(f"--{flag}: without align: expected python -m oa_jax text align …")
    name = cli.given("name", "a prepared data set")
    encoder = cli.given("encoder", "an encoder, such as hashing")
    given, data_dir = flags.FLAGS, cli.data_dir()
    own = ("profiles", "global_width", "local_width", "split", "sees_validation", "chunk")
    bar = {"console": cli.console, "disable": not cli.console.is_terminal}
    how = align.Alignment()
    if words:
        how = align.Alignment(given.how, given.amount, given.steps, given.seed)
    options = build.Options(
        encoder,
        store.place(given.cache_dir) if given.cache_dir else encoders.default_directory(),
        alignment=how,
        track=lambda chunks: track(chunks, "encoding", **bar),
        **{name: given[name].value for name in own},
    )
    out = given.out or default_folder(data_dir, f"{name}-{how.kind}" if words else name)
    cli.say(describe(build.write(store.load(data_dir, name), options, out, cli.say), out))


def describe(tables: Tables, out: str | pathlib.Path) -> str:
    """One line: what was embedded by what, and how much of it the tables keep."""
    of = tables.metadata
    encoder, kept = of["encoder"], of["explained_variance"]
    name = encoder.get("note") or encoder.get("name") or encoder["kind"]
    name += f" {', '.join(encoder['files'])}" if "files" in encoder else ""
    changed = of["inputs"].get("alignment")
    name += f", {changed['kind']}" if changed else ""
    shares = " ".join(f"{k} {v:.3f}" for k, v in kept.items()) if kept else "not known"
    arrays = tables.global_table, tables.local_a, tables.local_b, tables.users
    both, a, b, users = ("x".join(map(str, array.shape)) for array in arrays)
    return (
        f"{of['name']} by {name}: global {both}, A {a}, B {b}, users {users} "
        f"({(~tables.users.any(1)).sum()} without a text in their history); "
        f"variance kept: {shares}; {of['n_items_without_text']} items without text; in {out}"
    )
