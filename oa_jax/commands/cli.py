"""What the commands share: flags, one-line errors, printing."""

import codecs
import contextlib
import logging as stdlib_logging
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags
from rich import console as rich_console
from rich.live import Live

from oa_jax import files, presets, processes
from oa_jax.backbones import known
from oa_jax.configuration import Config
from oa_jax.data.sources import DIRECTORY_VARIABLE
from oa_jax.engine.compilation import set_switches
from oa_jax.errors import Interrupted, UserError


class Console(rich_console.Console):
    def on_broken_pipe(self) -> None:
        """Who read the output has left, as `head` does: that is no end of a run."""
        talk_no_more()
        print("standard output is closed: going on without it", file=sys.stderr)

    def print(self, *objects, **options) -> None:
        try:
            super().print(*objects, **options)
        except OSError as error:  # a full disk, say
            error.filename = "standard output"
            raise


# A file or a pipe has no width of its own: wide enough for the widest table. None: it is closed.
WIDTH = None if sys.stdout and sys.stdout.isatty() else 160
console = Console(highlight=False, emoji=False, width=WIDTH)

flags.disclaim_key_flags()  # --config belongs to the command, whose --help shows it
TEMPORARY = 75  # EX_TEMPFAIL of sysexits.h
# What stands for a sign that the output's encoding has not.
SIGNS = {"±": "+/-", "−": "-", "–": "-", "…": "...", "×": "x", "·": ".", "≤": "<=", "→": "->"}
A_CONFIG = presets.EXPECTED
# Messages of absl and ml_collections (patterns) -> what they mean to a user.
FLAG_ERRORS = {
    r"invalid literal for int\(\) .*": "expected a whole number",
    r"could not convert string to float.*": "expected a number",
    r"\('Non-boolean argument to boolean flag'.*": "expected true or false",
    r"Error while parsing string.*": "expected numbers such as '(0,1)'",
    r"Unknown command line flag '(config\..*?)'": rf"--\1: expected --config first: {A_CONFIG}",
    r"Found (\S*) in argv before a value.*": rf"\1: expected --config before it: {A_CONFIG}",
    r"Unknown command line flag '(.*?)'(\..*)?": r"--\1: no such flag: --help shows them\2",
}


def say(line: str) -> None:
    """One plain line, at once, of process 0."""
    if not processes.is_first():
        return
    console.print(line, markup=False, soft_wrap=True)
    with contextlib.suppress(BrokenPipeError):  # the next one says so
        console.file.flush()


@contextlib.contextmanager
def working(what: str) -> Iterator[None]:
    """While nothing else is said: a spinner on a terminal, a line on standard error elsewhere."""
    if console.is_terminal:
        with console.status(what):
            yield
        return
    print(what, file=sys.stderr, flush=True)
    yield


@contextlib.contextmanager
def watching(view: Callable, per_second: int) -> Iterator[Callable | None]:
    """What shows `view` of its arguments: one live view on a terminal; None elsewhere."""
    if not console.is_terminal:
        yield None
        return
    with Live(console=console, refresh_per_second=per_second) as live:
        yield lambda *args: live.update(view(*args))


def talk_no_more() -> None:
    """Standard output goes nowhere from now on."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def write_any_sign() -> None:
    """Let standard output and error replace what their encoding has not, instead of failing."""

    def replace(error):
        return "".join(SIGNS.get(c, "?") for c in error.object[error.start : error.end]), error.end

    codecs.register_error("oa_jax", replace)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # None: it is closed
            stream.reconfigure(errors="oa_jax")


def define_data_dir() -> None:
    """--data_dir, of a command that looks at prepared sets."""
    meaning = f"Folder of the prepared sets; by default {DIRECTORY_VARIABLE}."
    flags.DEFINE_string("data_dir", None, meaning)


def define_config() -> None:
    """--config=FILE.py[:ARGUMENTS] with overrides --config.a.b=VALUE."""
    meaning = "FILE.py[:a=x,b=y] of the experiment; --config.a.b=VALUE after it changes a field."
    try:
        config_flags.DEFINE_config_file("config", None, meaning)
    except flags.Error as error:  # reads --flagfile at once
        fail(error)
    flags.FLAGS["config"].parser = ConfigFile()


def define_distributed() -> None:
    """--distributed, of a command that several processes can run as one."""
    flags.DEFINE_string("distributed", "auto", f"Processes of this run: {processes.EXPECTED}.")


def given(name: str, expected: str) -> Any:
    """The value of a flag, which has to be there: `expected` says in words what."""
    value = flags.FLAGS[name].value
    if not value:
        raise UserError(f"--{name}: missing: expected {expected}")
    return value


def data_dir() -> str:
    """The folder of prepared sets, of --data_dir or the environment."""
    directory = flags.FLAGS.data_dir or os.environ.get(DIRECTORY_VARIABLE)
    if not directory:
        raise UserError(f"--data_dir: missing: expected a folder, or {DIRECTORY_VARIABLE} set")
    return str(files.local(directory, "--data_dir"))


def config_value() -> Config:
    """The checked configuration that the command line gives."""
    return known.resolve(given("config", A_CONFIG))


class ConfigFile(flags.ArgumentParser):
    """The value of --config: what ml_collections takes, with errors of one line."""

    def parse(self, text):
        config = presets.load(text)
        check_overrides(config, flags.FLAGS.read_flags_from_files(sys.argv[1:], force_gnu=False))
        return config.lock()


def check_overrides(config: ConfigDict, argv: list[str]) -> None:
    """Raise UserError for a --config.a.b that is no field, or is a group of fields."""
    for word in argv:
        if match := re.match(r"--?(?:no)?config\.([^=]*)", word):
            presets.check_field(config, match[1])


def leave_abandoned_reads_unsaid() -> None:
    """Say nothing of what a failed restore leaves behind, as long as this process lives.

    The storage library's reads end in threads of its own, also after the restore has been given
    up, and find their event loop closed; Python tells of each in one of several ways. A command
    has its process for itself, so it may turn these ways off; a library may not.
    """
    report = sys.unraisablehook
    told = ("Event loop is closed", "coroutine ignored GeneratorExit")
    left = ("exception was never retrieved", "Task was destroyed but it is pending!")

    def hook(unraisable):
        if str(unraisable.exc_value) not in told:
            report(unraisable)

    sys.unraisablehook = hook
    stdlib_logging.getLogger("asyncio").addFilter(
        lambda record: not record.getMessage().partition("\n")[0].endswith(left)
    )
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)


def run(main, words: bool = False, resumes: bool = False) -> None:
    """Run `main(arguments)`, turning a user's mistake into one line and exit status 2.

    words: it takes arguments that are not flags.
    resumes: an interrupted command, given again, goes on. Told to leave, it ends with status 75
    (EX_TEMPFAIL), with which a scheduler starts it again.
    """
    # XLA's, Orbax's and absl's notes are no use to a reader of results; --verbosity=0 shows them.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    logging.set_verbosity(logging.FATAL)  # Orbax logs as an error, by the page, what it raises too
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache")
    tell_of_devices()
    write_any_sign()
    leave_abandoned_reads_unsaid()

    def guarded(argv):
        with one_line_errors(resumes):
            if not words and len(argv) > 1:
                raise UserError(f"argument {argv[1]!r}: expected flags only, such as --workdir=DIR")
            if "distributed" in flags.FLAGS:  # SIGTERM ends a process that waits for others at once
                processes.start(flags.FLAGS.distributed)
            if resumes:
                processes.leave_when_told("told to leave; what was saved stays")
            set_switches(say)
            status = main(argv[1:])
            if sys.stdout:
                sys.stdout.flush()
        sys.exit(status or 0)

    app.run(guarded, flags_parser=_parse)


def tell_of_devices() -> None:
    """Let JAX say why a device of this machine is not used, for all that absl hides."""
    handler = stdlib_logging.StreamHandler()
    handler.setFormatter(stdlib_logging.Formatter("warning: %(message)s"))
    for name in ("jax._src.xla_bridge", "jax_plugins"):
        log = stdlib_logging.getLogger(name)
        log.setLevel(stdlib_logging.WARNING)
        log.handlers, log.propagate = [handler], False


def _parse(argv):
    """What absl makes of the command line, with errors of one line."""
    for module, found in flags.FLAGS.flags_by_module_dict().items():
        for flag in found if module.startswith(("oa_jax.commands", "analysis")) else ():
            flags.FLAGS.register_key_flag_for_module(argv[0], flag)  # what --help shows
    try:
        with one_line_errors(resumes=False):
            return flags.FLAGS([argv[0], *map(_as_absl_has_it, argv[1:])])
    except flags.Error as error:
        message = str(error)
        for found, said in FLAG_ERRORS.items():
            message = re.sub(found, said, message)
        fail(message)
    except SystemExit as left:
        sys.exit(left.code if left.code != 1 else 0)  # --help, which absl ends with status 1


def _as_absl_has_it(word):
    """`--dry-run` is --dry_run, `-h` is --help."""
    name, is_value, value = word.partition("=")
    underlined = re.sub(r"(?<=\w)-", "_", name)
    known = underlined.lstrip("-") in flags.FLAGS
    return "--help" if word == "-h" else underlined + is_value + value if known else word


@contextlib.contextmanager
def one_line_errors(resumes: bool) -> Iterator[None]:
    """Turn what goes wrong for a reason outside of the program into a line and an exit status."""
    try:
        yield
    except UserError as error:
        fail(error)
    except BrokenPipeError:  # of `report | head`, say: who reads has what they want
        talk_no_more()
        sys.exit(0)
    except OSError as error:
        fail(f"{error.filename or 'input or output'}: {error.strerror or error}")
    except Interrupted as error:
        if processes.is_first():
            print(f"interrupted: {error}: the same command goes on there", file=sys.stderr)
        leave(130 if error.by_key else TEMPORARY)
    except (MemoryError, *processes.LOST) as error:
        if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
            fail(f"out of memory: {error}")
        if not processes.is_lost(error):
            raise
        reason = " ".join(str(error).split())[:260]
        print(f"interrupted: another process of this run is lost: {reason}", file=sys.stderr)
        sys.stderr.flush()
        os._exit(TEMPORARY)  # without waiting for the others, which would be in vain
    except (RuntimeError, AssertionError) as error:
        if not traceback.extract_tb(error.__traceback__)[-1].filename.endswith("xla_bridge.py"):
            raise
        wanted = os.environ.get("JAX_PLATFORMS", "")
        fail(f"JAX_PLATFORMS={wanted}: {str(error) or 'JAX finds no such devices here'}")
    except KeyboardInterrupt:
        hint = ": the same command goes on after the last epoch that was saved" if resumes else ""
        print(f"interrupted{hint}", file=sys.stderr)
        leave(130)


def leave(status: int) -> None:
    """Exit now. Python's own exit waits for the program that is under way on a device, which may
    be a whole epoch; several processes leave together and do wait."""
    if processes.several():
        sys.exit(status)
    for stream in filter(None, (sys.stdout, sys.stderr)):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


def fail(error) -> None:
    """Print one line to standard error and exit with status 2."""
    print("error: " + re.sub(r"\s*\n\s*", "; ", str(error).strip()), file=sys.stderr)
    sys.exit(2)
