"""`python -m oa_jax data COMMAND`: prepare data sets, and look at them.

    list                            what is prepared, and what the others are made of
    prepare NAME … --raw_dir=DIR    make a set of the raw or published files below DIR
    describe NAME …                 a table of its figures, and a plot of lengths and popularity
    check NAME …                    fingerprints and the leak rules; exit status 1 on an error
    import FILE … --name=NAME       make a set of your own files, FILE or DOMAIN=FILE each

Sets lie below --data_dir, by default OA_DATA_DIR; --raw_dir is by default the same. With --download
`prepare` first fetches what it can; without it nothing is ever fetched.
"""

import contextlib
import dataclasses
from collections.abc import Iterator

from absl import flags
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from oa_jax import files
from oa_jax.commands import cli
from oa_jax.configuration import choice
from oa_jax.data import catalogue, store
from oa_jax.data.texts import Reading
from oa_jax.errors import UserError, needs
from oa_jax.sheets import Sheet

cli.define_data_dir()
flags.DEFINE_string("raw_dir", None, "Folder at or below which the raw files lie.")
flags.DEFINE_bool("download", False, "prepare: fetch missing files that have a URL into raw_dir.")
flags.DEFINE_enum(
    "duplicates",
    "keep",
    ("keep", "first", "last"),
    "prepare: which of exact copies of an event (same user, item and time) of raw files stay.",
)
flags.DEFINE_string("name", None, "import: name of the new set.")
flags.DEFINE_string("user", None, "import: user column; else a usual name, as user_id.")
flags.DEFINE_string("item", None, "import: item column; else a usual name.")
flags.DEFINE_string("time", None, "import: time column; else a usual name; --time= for none.")
flags.DEFINE_string("rating", None, "import: rating column; else a usual name, for filters.")
flags.DEFINE_string("domain", None, "import: domain column; else a usual name; --domain= for none.")
flags.DEFINE_string("title", None, "import: title column; else a usual name; --title= for none.")
flags.DEFINE_list("columns", [], "import: names of all columns, of text without a header.")
flags.DEFINE_string("delimiter", None, "import: what separates the fields; by default found out.")
flags.DEFINE_list("domains", [], "import: A,B, where the files have more than two domains.")
flags.DEFINE_string("time_unit", None, "import: numeric times are in s, ms, us, ns, or a number.")
flags.DEFINE_string("shared_items", "keep", "import: items in both domains: keep, drop or first.")
flags.DEFINE_string("bad_rows", "refuse", "import: rows that cannot be read: refuse or skip.")
flags.DEFINE_multi_string(
    "filter",
    [],
    "import: a step such as rating>=4, time<2024-01-01, both, core=5,3, core_once=5,3, each=5, "
    "last=50, duplicates=first, repeats=last; given more than once: in that order.",
)
flags.DEFINE_string("png", None, "describe: file of the plot; by default beside the set.")


def main(words: list[str]) -> int:
    """Run a command; its exit status."""
    command, *names = words or [""]
    choice("command", command, COMMANDS)
    if command == "list" and names:
        raise UserError(f"list: argument {names[0]!r}: expected none")
    if command == "list":
        return show_list()
    with needs("data", command):
        if command == "import":
            return import_files(names)
        if not names:
            expected = "expected NAME of python -m oa_jax data list"
            raise UserError(f"{command}: no name given: {expected}")
        if flags.FLAGS.png and len(names) > 1:
            raise UserError(f"--png={flags.FLAGS.png}: {len(names)} sets: expected one set")
        for name in names:
            if command == "prepare" or not store.is_prepared(cli.data_dir(), name):
                own = [] if command == "prepare" else store.names(cli.data_dir())
                choice(f"{command} NAME", name, [*own, *catalogue.SETS])
        return max(COMMANDS[command](name) or 0 for name in names)


def raw_dir() -> str:
    """The folder of raw files, which has to be there."""
    given = flags.FLAGS.raw_dir
    directory = given or cli.data_dir()
    if not store.place(directory).is_dir():
        flag = "raw_dir" if given else "data_dir"
        raise UserError(f"--{flag}={directory}: no such folder: expected that of the raw files")
    return directory


def show_list() -> None:
    """Prepared sets with their sizes; for the others each source and the file that is missing."""
    directory, rows, damaged = cli.data_dir(), [], None
    raw = raw_dir() if flags.FLAGS.raw_dir or store.place(directory).is_dir() else None
    for name in dict.fromkeys((*catalogue.SETS, *store.names(directory))):
        data_set = catalogue.SETS.get(name)
        lines = [_files(source, raw) for source in data_set.sources] if data_set else []
        lead = [name, *((data_set.protocol, " + ".join(data_set.domains)) if data_set else "??")]
        try:
            if store.is_prepared(directory, name):
                lines = [state(directory, name)]
                facts = store.read_metadata(store.folder(directory, name))
                lead[1:] = facts["protocol"], " + ".join(facts["domains"])
        except UserError as error:
            damaged, lines = damaged or error, ["damaged: see the error below"]
        rows += [[*(lead if k == 0 else [""] * 3), line] for k, line in enumerate(lines)]
    Sheet("", ["name", "protocol", "A + B", "state"], rows, words=4).show(cli.console)
    if damaged:
        raise damaged


def state(directory: str, name: str) -> str:
    """What is prepared, in a line."""
    facts = store.read_metadata(store.folder(directory, name))
    return (
        "prepared: {n_users:,} sequences, {n_items[0]:,} + {n_items[1]:,} items, "
        "{n_events:,} events, fingerprint {fingerprint}"
    ).format(**facts)


def _files(source, raw):
    """What a source needs: found, or each missing file with its size and page."""
    missing = catalogue.missing(source, raw)
    if not missing:
        return f"files found: {source.kind}"
    sizes = [f"{file.name} ({file.size or 'size not known'})" for file in missing]
    return f"missing for {source.kind}: {', '.join(sizes)}; see {missing[0].page}"


@contextlib.contextmanager
def reading_with_bars() -> Iterator[Reading]:
    """A `Reading` with a bar for each file on a terminal."""
    tasks = {}
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    options = {"transient": True, "disable": not cli.console.is_terminal}
    with Progress(*columns, TimeRemainingColumn(), console=cli.console, **options) as bar:

        def on_bytes(path, n_bytes):
            if path not in tasks:
                total = None if path.suffix == ".part" else path.stat().st_size
                tasks[path] = bar.add_task(path.name, total=total)
            bar.update(tasks[path], completed=n_bytes)

        yield Reading(on_bytes)


def prepare(name: str) -> None:
    """Make a set of the public files."""
    from oa_jax.data.prepare import prepare as make

    directory, raw = cli.data_dir(), raw_dir()
    with reading_with_bars() as reading:
        if flags.FLAGS.download and not store.is_prepared(directory, name):
            catalogue.complete(catalogue.SETS[name], raw, reading)
        try:
            made = make(name, raw, directory, reading, cli.say, flags.FLAGS.duplicates)
        finally:  # they may be why too little is left
            for file, bad in reading.malformed.items():
                lines = f"{bad['lines']} malformed lines, the first is {bad['first']}"
                cli.say(f"{file}: left out {lines}")
    cli.say(f"{name}: {'' if made else 'already '}{state(directory, name)}")


def import_files(given: list[str]) -> None:
    """Make a set of a user's files."""
    from oa_jax.data import own
    from oa_jax.data.prepare import prepare_own

    name, values = cli.given("name", "a name for the new set"), flags.FLAGS
    fields = {f.name: getattr(values, f.name, None) for f in dataclasses.fields(own.Options)}
    copies = values.duplicates
    steps = ([] if copies == "keep" else [f"duplicates={copies}"]) + values.filter
    lists = {"columns": values.columns, "domains": values.domains, "filters": steps}
    options = own.Options(**fields | {k: tuple(map(str.strip, v)) for k, v in lists.items()})
    with reading_with_bars() as reading:
        made = prepare_own(name, given, options, cli.data_dir(), reading, cli.say)
    cli.say(f"{name}: {'' if made else 'already '}{state(cli.data_dir(), name)}")


def describe(name: str) -> None:
    """Write the plot of a set and print its table."""
    from oa_jax.data import describe as figures

    data = store.load(cli.data_dir(), name)
    path = files.local(flags.FLAGS.png or data.directory.parent / f"{name}.png", "--png")
    files.check_writable(path, "--png")
    figures.plot(data, path)
    facts = data.metadata
    a, b = facts["domains"]
    cli.say(f"{name}: {facts['protocol']} protocol, from {facts['source']}")
    cli.say(f"A {a}, B {b}; split: {facts['split']}; times: {facts['times']}")
    for entry in facts.get("left_out", ()):
        cli.say("left out: {rows:,} rows: {reason}; the first is {first}".format(**entry))
    for quirk, on in facts["quirks"].items():
        cli.say(f"quirk {quirk}: {'yes' if on else 'no'}")
    Sheet("", ["", "A", "B", "both"], figures.describe(data)).show(cli.console)
    cli.say(f"plot: {path}")


def check(name: str) -> int:
    """Print what was looked at; 1 if something is an error."""
    from oa_jax.data import check as checks

    lines = checks.check(cli.data_dir(), name)
    for level, line in lines:
        cli.say(f"{name}: {level}: {line}")
    return int(any(level == checks.ERROR for level, _ in lines))


COMMANDS = {"list": show_list, "prepare": prepare, "describe": describe, "check": check}
COMMANDS["import"] = import_files
