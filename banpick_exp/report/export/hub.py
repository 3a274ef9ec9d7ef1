"""What to upload to the Hugging Face Hub and how: text alone, nothing is sent and no key is read."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping

from banpick_exp.records import PointRecord, digest
from banpick_exp.report.export.contents import digest_of_contents


def upload_lines(record: PointRecord, files: Mapping[str, bytes], export: str, out: str) -> list[str]:
    """`export`: the command that writes the folder `out`."""
    lines = ["Nothing was written or sent. These files are the policy:", ""]
    width = max(map(len, files))
    lines += [f"  {name:<{width}}  {len(data):>10,} bytes  sha256 {digest(data)}" for name, data in files.items()]
    lines += ["", f"  all together: {digest_of_contents(dict(files))}", "", "To publish them, type", ""]
    lines += [f"  {export}", f"  python -m banpick_exp inspect {shlex.quote(f'{out}/')}"]
    lines += ["  hf auth login", f"  hf upload YOUR_NAME/{repository(record)} {shlex.quote(out)} . --repo-type model"]
    lines += ["", "README.md becomes the model card. Write into it what you like: nothing is read of it."]
    if paths := sorted({each for word in shlex.split(record.command or "") for each in _paths(word)}):
        lines += [
            "",
            f"policy.json and README.md hold the command that measured the point, with paths of this machine:"
            f" {', '.join(paths)}",
        ]
    return lines


def repository(record: PointRecord) -> str:
    """A name that the Hub takes: `tiny-pick-boost-1-key_experts-4`, at most 96 characters."""
    words = re.sub(r"[^A-Za-z0-9_.]+", "-", f"{record.model.name}-{record.label}")
    return re.sub(r"-{2,}|\.{2,}", "-", words)[:96].strip("-.")


def _paths(word: str) -> list[str]:
    return re.findall(r"(?:(?<=[=\"':,\[])|^)[/~][^\"',\]]+", word)
