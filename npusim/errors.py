"""The one exception that means "the user's input is at fault"."""


class UserError(Exception):
    """A fault in what the user gave: a file, a field, a value or a combination of them.

    The message stands alone: it names the file, the field, the value given and what is allowed, one line for each
    fault found. The command line prints it without a traceback and exits with code 2.
    """


class BitsDifferError(Exception):
    """Engine and reference differ, where that ends the run. The message is for the user; the exit code is 1."""
