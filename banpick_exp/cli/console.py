"""What every command shares: --help, and bad input answered in words with exit code 2."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from banpick_exp.errors import UserError

BAD_INPUT = 2
INTERRUPTED = 130
"""What a shell reports after Ctrl-C: 128 + SIGINT."""


def run(
    command: Callable[[list[str]], int],
    help_page: str | Callable[[], str],
    argv: Sequence[str] | None = None,
    *,
    on_interrupt: str = "interrupted",
) -> int:
    """Runs one command and returns its exit code.

    Args:
        command: takes the arguments without the program's name (by default the process's own); what it raises as
            UserError is printed, without a stack trace.
        help_page: printed for -h and --help; called where it is a function, since some pages are dear to make.
        on_interrupt: what to say after Ctrl-C.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if {"-h", "--help"} & set(arguments):
            print(help_page if isinstance(help_page, str) else help_page())
            return 0
        return command(arguments)
    except UserError as error:
        print(f"banpick: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print(f"banpick: {on_interrupt}", file=sys.stderr)
        return INTERRUPTED
