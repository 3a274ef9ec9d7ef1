"""Engines that were found to be the model: kept in the user's cache, so that a second start measures nothing.

A file a verdict, `<cache>/banpick_exp/parity/<fingerprint of the facts>.json`, whole or absent. Only what passed is
kept: an engine that failed is measured again, for what was wrong with it may have been mended.
"""

from __future__ import annotations

import contextlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import platformdirs

from banpick_exp.config import fingerprint
from banpick_exp.disk import create_folder, write_atomically
from banpick_exp.errors import CannotWrite


def place_of(facts: dict[str, Any]) -> Path:
    return Path(platformdirs.user_cache_dir("banpick_exp")) / "parity" / f"{fingerprint(facts)}.json"


def passed(facts: dict[str, Any]) -> str | None:
    """What was found when an engine of the same facts passed; None where none did, or the file is damaged."""
    try:
        kept = json.loads(place_of(facts).read_text(encoding="utf-8"))
        return str(kept["finding"]) if kept["facts"] == facts else None
    except (OSError, ValueError, TypeError, LookupError, RecursionError):
        return None


def keep(facts: dict[str, Any], finding: str) -> None:
    """Where the cache cannot be written, the next start measures again."""
    path = place_of(facts)
    verdict = {"finding": finding, "facts": facts, "at": datetime.now(UTC).isoformat(timespec="seconds")}
    with contextlib.suppress(OSError, CannotWrite):
        create_folder(path.parent)
        write_atomically(path, (json.dumps(verdict, indent=1) + "\n").encode())
