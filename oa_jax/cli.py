"""What the commands share: flags, one-line errors, printing."""

from __future__ import annotations

import os
import re
import sys

from absl import app, flags, logging
from ml_collections import config_flags
from rich.console import Console

from oa_jax.errors import UserError

# A file or a pipe has no width of its own: wide enough for the widest table.
console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)


def say(line: str) -> None:
    """One plain line, at once."""
    console.print(line, markup=False, soft_wrap=True)
    sys.stdout.flush()


def define_config() -> None:
    """--config=FILE.py[:ARGUMENTS] with overrides --config.a.b=VALUE."""
    config_flags.DEFINE_config_file("config", None, "FILE.py[:a=x,b=y] of the experiment")


def config_value(flag="config"):
    """The configuration given on the command line."""
    value = flags.FLAGS[flag].value
    if value is None:
        raise UserError("--config: missing: expected a file such as configs/abxi.py:gca=early")
    return value


def run(main, positional: str | None = None) -> None:
    """Run `main(arguments)`, turning a user's mistake into one line and exit status 2.

    positional: what the arguments that are not flags are; None refuses them.
    """
    # XLA's, Orbax's and absl's notes are no use to a reader of results; --verbosity=0 shows them.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    logging.set_verbosity(logging.WARNING)

    def guarded(argv):
        try:
            if positional is None and len(argv) > 1:
                raise UserError(f"argument {argv[1]!r}: expected flags only, such as --workdir=DIR")
            status = main(argv[1:])
        except UserError as error:
            fail(error)
        except KeyboardInterrupt:
            print("interrupted: the same command goes on where it stopped", file=sys.stderr)
            sys.exit(130)
        sys.exit(status or 0)

    def parse(argv):
        try:
            return flags.FLAGS(argv, known_only=False)
        except UserError as error:
            fail(error)
        except flags.Error as error:
            fail(str(error))
        except (KeyError, AttributeError, TypeError, ValueError) as error:
            fail(f"--config: {error.args[0] if error.args else error}")
        except OSError as error:
            fail(f"--config: {error.filename or error}: {error.strerror}")

    app.run(guarded, flags_parser=parse)


def fail(error) -> None:
    """Print one line to standard error and exit with status 2."""
    print("error: " + re.sub(r"\s*\n\s*", "; ", str(error).strip()), file=sys.stderr)
    sys.exit(2)
