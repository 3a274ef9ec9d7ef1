"""Options with dashes, for the commands that take a few: argparse whose complaints are `UserError`s."""

from __future__ import annotations

import argparse
import difflib
import re
from typing import Any, NoReturn

from banpick_exp.errors import UserError


class Options(argparse.ArgumentParser):
    """argparse for `run`: its complaints are UserErrors too, and its help leaves texts as they are written."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}: nothing was done. {self._meant(message)}Type {self.prog} --help.")

    def _meant(self, message: str) -> str:
        """`Did you mean --write? ` where an option or a choice that argparse complains of is near one that there is."""
        if wrong := re.search(r"invalid choice: '(.*)' \(choose from (.*)\)$", message):
            word, known = wrong[1], re.split(r", ", wrong[2].replace("'", ""))
        else:
            options = [each for each in message.split() if each.startswith("--")]
            word, known = (options or [""])[0].partition("=")[0].rstrip(":"), list(self._option_string_actions)
        near = difflib.get_close_matches(word, known, n=1)
        return f"Did you mean {near[0]}? " if near and near[0] != word else ""
