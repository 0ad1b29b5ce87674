"""The one exception of the models package that a user is meant to read."""


class ModelError(Exception):
    """A user error in data, checkpoint or request: one line naming file, field, value and what is allowed.

    The command line prints the message without a traceback and exits with code 2.
    """
