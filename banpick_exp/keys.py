"""Keys that a line would give away: the whole line is kept in the manifest, the records, the report and W&B."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from banpick_exp.errors import UserError

NAMES = re.compile(r"(^|_)(API_?KEY|KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)$")
"""Variables that hold a key; not TOKENIZERS_PARALLELISM, nor RAY_AUTH_TOKEN_PATH."""
SHORTEST = 12
"""Characters: what is shorter is a switch or a word, and would be found in any line."""
IN_A_URL = re.compile(r"://[^/\s@]*:[^/\s@]+@")
"""`https://user:key@host`."""


def check_no_keys(words: Iterable[str], environment: Mapping[str, str]) -> None:
    """UserError where a word of the line holds the value of a variable that is named like a key, or one in a URL.

    Prints no key: of the word, what stands before its value.
    """
    keys = {name: value for name, value in environment.items() if NAMES.search(name) and _is_key(value)}
    for word in words:
        setting = word.partition("=")[0] if "=" in word.partition("://")[0] else "the line"
        if IN_A_URL.search(word):
            raise UserError(
                f"{setting} holds an address with a key in it (USER:KEY@HOST): the line is kept in every record, the"
                " report and W&B, for all who read them. Type the address without it; what downloads finds its key in"
                " the environment (HF_TOKEN) or in the netrc file."
            )
        if name := next((name for name, value in keys.items() if value in word), None):
            raise UserError(
                f"{setting} holds the value of {name}: the line is kept in every record, the report and W&B, for all"
                f" who read them. Type it without; what needs {name} finds it in the environment."
            )


def _is_key(value: str) -> bool:
    return len(value) >= SHORTEST and not value.startswith(("/", "~", "."))
