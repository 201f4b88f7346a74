"""Exceptions whose text is a single line for people."""


class UserError(Exception):
    """A mistake in a file, a flag or a configuration.

    The message names the file and line or the field, what was found and what was expected.
    The commands print it alone, without a traceback, and exit with status 2.
    """


class Interrupted(Exception):
    """The run was told to leave and is saved: the same command goes on. The message says where.

    by_key: it was Ctrl-C, and no scheduler that will start the command again.
    """

    def __init__(self, message: str, by_key: bool = False):
        super().__init__(message)
        self.by_key = by_key
