"""Errors that are the user's to mend."""


class InputError(Exception):
    """Bad input: the message is one line that names the file, key or value and the way out.

    The command line prints the message alone, without a stack trace, and exits with status 1.
    """
