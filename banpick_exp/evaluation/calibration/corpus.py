"""A text file to calibrate on, one document a line, as published recipes use. Light: planning reads it too."""

from __future__ import annotations

from pathlib import Path

from banpick_exp.errors import UserError


def read_corpus(path: Path, samples: int) -> list[str]:
    """The first `samples` lines that say anything. Raises UserError as `corpus`; loads nothing heavy."""
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"calibration.text={path} cannot be read ({error}): there is nothing to calibrate on. Type a UTF-8 file"
            " with one document a line, or leave calibration.text out to use the model's own answers."
        ) from None
    if len(lines) < samples:
        raise UserError(
            f"calibration.text={path} has {len(lines)} documents, calibration.samples={samples} are asked for. Type"
            f" calibration.samples={max(len(lines), 1)}, or a longer file."
        )
    return lines[:samples]
