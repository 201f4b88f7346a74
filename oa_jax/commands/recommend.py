"""`python -m oa_jax recommend --workdir=DIR --out=recs.parquet`: the best items of every user.

For users of the set (`--users=all`, or a file with a raw id a line), or for histories that the
model has never seen (`--histories=FILE`: events with raw ids and times). Raw ids and names come
out, with ranks and scores. What the lists are like beside being right is shown, and of all users
kept in the workdir for `python -m oa_jax report`.
"""

from absl import flags

from oa_jax import files
from oa_jax.commands import cli, report
from oa_jax.configuration import MESH_EXPECTED
from oa_jax.data import texts
from oa_jax.engine.compilation import use_compilation_cache
from oa_jax.engine.mesh import Layout
from oa_jax.errors import UserError
from oa_jax.serving import histories as asked
from oa_jax.serving import lists
from oa_jax.serving.stored import StoredModel

flags.DEFINE_string("workdir", None, "Folder of a run with a checkpoint.")
flags.DEFINE_string("users", "all", "all, or a file with a raw user id a line.")
flags.DEFINE_string("histories", None, "New users, instead: a file of their events.")
flags.DEFINE_string("time_unit", None, "Of numbers in it: s, ms, us, ns or number.")
flags.DEFINE_enum("domain", "both", ["A", "B", "both"], "Whose items.")
flags.DEFINE_integer("k", 10, "Items of a list.", lower_bound=1)
flags.DEFINE_integer("seed", None, "Whose scores; by default the first that did not diverge.")
flags.DEFINE_bool("ensemble", False, "Order by the mean of all seeds' ranks.")
flags.DEFINE_bool("keep_seen", False, "Items of the history may come again.")
flags.DEFINE_bool("explain", False, "Also what GCA looked at, and each score less that without X'.")
flags.DEFINE_string("out", None, f"A file that ends in {', '.join(lists.FORMS)}.")
flags.DEFINE_string("mesh", "", f"The devices of here: {MESH_EXPECTED}.")
cli.define_data_dir()


def main(_):
    values = flags.FLAGS
    path = files.local(cli.given("workdir", "the folder of a run"), "--workdir")
    expected = f"a file that ends in {', '.join(lists.FORMS)}"
    out = files.local(cli.given("out", expected), "--out")
    files.check_writable(out, "--out")
    if out.suffix not in lists.FORMS:
        raise UserError(f"--out={out}: expected {expected}")
    Layout.of(values.mesh, flag="--mesh")
    if values.histories and values.users != "all":
        raise UserError("--users, --histories: expected one of them")
    use_compilation_cache(cli.say)
    lists.kept(path)  # refused before the work is done
    whose = {"seed": values.seed, "ensemble": values.ensemble}
    model = StoredModel(path, **whose, data_dir=values.data_dir, say=cli.say, mesh=values.mesh)
    users = None if values.users == "all" else _users(values.users)
    if values.histories:
        histories = asked.of_events(values.histories, model.names, values.time_unit)
    else:
        histories = asked.of_set(model.experiment.data.log, model.names, users)
    for line in histories.notes:
        cli.say(line)
    beyond = lists.beyond_of(model)
    options = values.k, values.domain, values.keep_seen, values.explain, beyond, cli.say
    with cli.working(f"lists of {len(histories)} users by {model.of}"):
        n_rows = lists.write(lists.lists(model, histories, *options), out)
    cli.say(f"{n_rows} items of {len(histories)} users in {out}")
    figures = {domain: of.figures() for domain, of in beyond.items()}
    found = {"of": model.of, "k": values.k, "users": len(histories), "figures": figures}
    if users is None and not values.histories and values.domain == "both" and not values.keep_seen:
        lists.keep(path, found)
    cli.console.print()
    report.lists_sheet([{"run": path.resolve().name, "lists": [found]}]).show(cli.console)


def _users(path):
    lines = texts.text(files.local(path, "--users")).split("\n")
    return [line.strip() for line in lines if line.strip()]
