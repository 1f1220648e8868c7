"""The exception that stands for a mistake in what the user gave us, and its mildest kind."""


class UserError(Exception):
    """Bad input: a file, key or flag that cannot be used.

    The message is one line that names the thing, says what was expected and what to do. Commands
    print it without a stack trace and exit with code 2.
    """


class BadItem(UserError):
    """One item of a data set that cannot be used. Training goes on with the next one and counts."""
