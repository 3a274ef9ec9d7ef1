"""C4 (Raffel et al. 2020), English: plain text to calibrate on, one document a line (`calibration.text=FILE`). No task.

The first documents of the first training shard that fill a prefill of 2,048 tokens (about 8,192 characters), which is
how the authors' code takes them; white space of a document becomes single spaces.
"""

from __future__ import annotations

from banpick_exp.tasks.benchmarks.source import OurRow, Part, Source, SourceRow

LONG = 8192
DOCUMENTS = 1024


def convert(row: SourceRow, place: int) -> OurRow | None:
    text = " ".join(str(row["text"]).split())
    return {"text": text} if len(text) >= LONG else None


C4 = Source(
    place="allenai/c4",
    revision="1588ec454efa1a09f29cd18ddd04fe05fc8653a2",
    licence="ODC-BY",
    parts=(
        Part(
            domain="general", split="calibration", of="train", rows=None, convert=convert, local="*c4-train*",
            file="en/c4-train.00000-of-01024.json.gz", most=DOCUMENTS,
        ),
    ),
)  # fmt: skip
