"""The one error type for bad input, and how a line ends that was interrupted."""

INTERRUPTED = 130
"""The exit code that a shell reports after Ctrl-C: 128 + SIGINT."""


class UserError(ValueError):
    """What a user typed cannot work. The message names the value, the consequence, the remedy and the text to type.

    `__main__` prints it without a traceback and exits with code 2; it is raised before anything expensive starts.
    """
