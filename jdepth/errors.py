"""The exception that stands for a mistake in what the user gave us, its mildest kind, and a run's early end."""


class UserError(Exception):
    """Bad input: a file, key or flag that cannot be used.

    The message is one line that names the thing, says what was expected and what to do. Commands
    print it without a stack trace and exit with code 2.
    """


class BadItem(UserError):
    """One item of a data set that cannot be used. Training goes on with the next one and counts."""


class Stopped(Exception):
    """The run was asked to end (SIGTERM, Ctrl-C), has saved its state and can be started again.

    Commands exit with `CODE`, "try again later" (EX_TEMPFAIL), by which launchers know to do so.
    """

    CODE = 75
