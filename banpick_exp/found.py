"""`found.json`: what a run found, for who looks at hundreds of runs. Imports nothing heavy."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Found(BaseModel):
    """What a run found, as its last report left it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    schema_version: int = 1
    headline: str
    """The verdict in a sentence, as the report has it."""
    points: dict[str, int]
    """Status -> records, those of dev and repeats too."""
