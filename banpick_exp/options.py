"""Options with dashes, for the commands that take a few: argparse whose complaints are `UserError`s."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from banpick_exp.errors import UserError


class Options(argparse.ArgumentParser):
    """argparse for `run`: its complaints are UserErrors too, and its help leaves texts as they are written."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}: nothing was done. Type {self.prog} --help.")
