"""One command line: `python -m banpick_exp` and `banpick` run a command by its name, or a sweep by its settings."""

from __future__ import annotations

import os
from collections.abc import Sequence

from banpick_exp.cli.commands import SWEEP, command_of, table
from banpick_exp.cli.completion import COMPLETING, INSTALL, complete, install
from banpick_exp.cli.console import answered
from banpick_exp.keys import check_no_keys
from banpick_exp.versions import VERSION


def run(typed: Sequence[str]) -> int:
    """The exit code of one line: 0, 1 where something went wrong, 2 for what cannot be understood, 130 after Ctrl-C."""
    if COMPLETING in os.environ:
        return complete()
    os.umask(os.umask(0o077) | 0o002)  # whatever the umask, nothing that a run makes can be written by everybody
    return answered(lambda: _run(list(typed)))


def _run(words: list[str]) -> int:
    if words[:1] == [INSTALL]:
        return install(words[1:])
    if words[:1] in (["--version"], ["-V"]):
        print(f"banpick_exp {VERSION}")
        return 0
    check_no_keys(words, os.environ)
    command, arguments = command_of(words)
    if {"-h", "--help"} & set(arguments):
        page = command.load().help_page()
        print(f"{page}\nCommands: python -m banpick_exp NAME --help\n{table()}" if command is SWEEP else page)
        return 0
    return command.load().run(arguments)
