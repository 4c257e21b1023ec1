"""Endings that a user can mend or has asked for: one line, no stack trace."""


class InputError(Exception):
    """Bad input: the message is one line that names the file, key or value and the way out.

    The command line prints the message alone, without a stack trace, and exits with status 1.
    """


class Stopped(Exception):
    """The run was ended by its user, and its state is saved. The command line exits with status 130."""
