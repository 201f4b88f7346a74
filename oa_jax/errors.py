"""Exceptions whose text is a single line for people."""

import contextlib
from collections.abc import Iterator


class UserError(Exception):
    """A mistake in a file, a flag or a configuration.

    The message names the file and line or the field, what was found and what was expected.
    The commands print it alone, without a traceback, and exit with status 2.
    """


class Interrupted(Exception):
    """The run was told to stop and is saved: the same command resumes it. The message says where.

    by_key: it was Ctrl-C, and no scheduler that will start the command again.
    """

    def __init__(self, message: str, by_key: bool = False):
        super().__init__(message)
        self.by_key = by_key


@contextlib.contextmanager
def needs(extra: str, lead: str = "") -> Iterator[None]:
    """What is imported in this block comes with an extra: UserError where a package is missing.

    lead: what needs it, such as a flag.
    """
    try:
        yield
    except ImportError as error:
        expected = f"expected the extra `{extra}` (pip install 'oa-jax[{extra}]')"
        where = f"{lead}: " if lead else ""
        raise UserError(f"{where}{error.name or error} is not installed: {expected}") from None
