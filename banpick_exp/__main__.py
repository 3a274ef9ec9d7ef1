"""`python -m banpick_exp`, and `banpick`: a command by its name, or the settings of a sweep."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from banpick_exp.cli.console import restart_in_utf8
from banpick_exp.cli.main import run


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one line (`argv` without the program's name, default the process's own) and returns its exit code:
    0 done, 1 something went wrong, 2 nothing was started because of what was typed."""
    if argv is None:
        restart_in_utf8()
    return run(sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    sys.exit(main())
