"""Names as W&B takes them: at most so many characters, of the kinds it knows, and two names stay two.

W&B refuses a longer name, and with it the run, the artifact or the tag; a label of many knobs, or a domain that
somebody named, is soon longer. What is changed here ends in a digest of what it was.
"""

from __future__ import annotations

import hashlib
import re

MOST = 128
"""Characters of the name of a run, an artifact or a metric, and of a group."""
MOST_OF_TAG = 64
DIGEST = 8
_CONTROL = re.compile(r"[\x00-\x1f\x7f]+")
_NOT_IN_ARTIFACT = re.compile(r"[^A-Za-z0-9_.-]+")
_NOT_IN_METRIC = re.compile(r"[^A-Za-z0-9_/-]+")
"""A dot would make W&B look for an entry inside an entry."""


def run_name(label: str) -> str:
    """Of a run or a group: any characters that can be printed."""
    return _fitted(label, _CONTROL.sub(" ", label), MOST)


def tag(word: str) -> str:
    """Of a run."""
    return _fitted(word, _CONTROL.sub(" ", word), MOST_OF_TAG) or "-"


def artifact_name(*parts: str) -> str:
    """`pick_strength-20261122-points` of its parts, in letters, digits, `_`, `.` and `-`."""
    whole = "-".join(parts)
    return _fitted("/".join(parts), _NOT_IN_ARTIFACT.sub("_", whole), MOST, same=whole)


def metric_key(key: str) -> str:
    """`acc/overall`: letters, digits, `_`, `-` and the slash that makes a section of W&B's page."""
    replaced = _NOT_IN_METRIC.sub("_", key)
    return _fitted(key, replaced if replaced[:1].isalpha() else f"_{replaced}", MOST)


def _fitted(original: str, replaced: str, most: int, *, same: str | None = None) -> str:
    if replaced == (original if same is None else same) and len(replaced) <= most:
        return replaced
    digest = hashlib.sha256(original.encode(errors="replace")).hexdigest()[:DIGEST]
    return f"{replaced[: most - DIGEST - 1]}-{digest}"
