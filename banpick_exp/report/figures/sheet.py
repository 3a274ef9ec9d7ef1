"""What a figure is drawn on: a screen's width, or a column or a page of a paper with 7 pt at that size."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from banpick_exp.disk import write_atomically

PAPER_SIZE = 7.0
"""Points of every text in a figure for papers."""
CHARACTER = 0.56
"""Width of a character of DejaVu Sans, in its size, on average."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sheet:
    """Width, type size and whether words stand above: in a paper the caption says what a title would."""

    name: str
    width: float
    """Inches; the file has exactly this."""
    size: float
    """Points of all text."""
    titled: bool
    domains: bool = True
    """Whether a figure of knobs has each domain beside all of them together, where there is room."""
    most_rows: int = 40
    """Comparisons in one forest plot; of more the surest effects and each rule's best are drawn."""

    @property
    def narrow(self) -> bool:
        """Panels stand below each other, and domains are left out."""
        return self.width < 5

    def characters(self, inches: float | None = None) -> int:
        """How many stand in a line of that length, or of the whole sheet."""
        return int(72 * (self.width if inches is None else inches) / (CHARACTER * self.size))


SCREEN = Sheet(name="screen", width=9.0, size=9.0, titled=True)
COLUMN = Sheet(name="column", width=3.3, size=PAPER_SIZE, titled=False, most_rows=24)
PAGE = Sheet(name="page", width=6.75, size=PAPER_SIZE, titled=False)
BESIDE = Sheet(name="beside", width=6.7, size=9.0, titled=False, domains=False, most_rows=16)
"""Half of a wide window, on the page's first screen."""
PHONE = Sheet(name="phone", width=3.4, size=7.6, titled=False, most_rows=16)
FOR_PAPERS = (COLUMN, PAGE)
SUFFIXES = (".pdf", ".svg", ".png")
DATES = {".pdf": {"CreationDate": None}, ".svg": {"Date": None}, ".png": {}}
"""Without one the same run gives the same bytes."""


@contextmanager
def figure_on(sheet: Sheet, height: float) -> Iterator[Any]:
    """A figure of that height in inches, with the sheet's type in everything that is drawn inside the block."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    from banpick_exp.report.figures.picture import Picture

    with matplotlib.rc_context(_settings(sheet)):
        figure = Picture(figsize=(sheet.width, height), layout="constrained")
        FigureCanvasAgg(figure)  # no pyplot: no window, no global state, safe beside Ray's threads
        yield figure


def words(figure: Any, sheet: Sheet, title: str, text: str, note: str = "") -> None:
    """Title and text above, on a titled sheet alone; the note that explains signs below, on every sheet."""
    if sheet.titled:
        lines = [*textwrap.wrap(title, int(0.9 * sheet.characters())), *textwrap.wrap(text, sheet.characters())[:3]]
        figure.suptitle("\n".join(lines), x=0.01, ha="left", fontsize=sheet.size)
    if note:
        wrapped = "\n".join(textwrap.wrap(note, sheet.characters()))
        figure.supxlabel(wrapped, x=0.01, ha="left", fontsize=min(sheet.size, 8.0), color="#444444")


def signed(points: float) -> str:
    """`+1.3`, `−0.4`, `0.0`: a difference in points, with a minus as long as a plus."""
    text = f"{points:+.1f}"
    return "0.0" if float(text) == 0 else text.replace("-", "−")


def save(figure: Any, path: Path) -> Path:
    """Write a figure at 300 dpi, in the format of the file's name, whole or not at all."""
    buffer, suffix = io.BytesIO(), path.suffix.lower() or ".png"
    metadata = DATES.get(suffix)
    figure.savefig(buffer, dpi=300, facecolor="white", format=suffix.removeprefix("."), metadata=metadata)
    write_atomically(path, buffer.getvalue())
    return path


def _settings(sheet: Sheet) -> dict[str, Any]:
    size = sheet.size
    sizes = ("font.size", "axes.titlesize", "axes.labelsize", "xtick.labelsize", "ytick.labelsize", "legend.fontsize",
             "figure.titlesize", "figure.labelsize")  # fmt: skip
    return dict.fromkeys(sizes, size) | {
        "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.07 * size, "axes.grid": True,
        "grid.color": "#E4E4E4", "grid.linewidth": 0.06 * size, "legend.frameon": False, "axes.axisbelow": True,
        "font.family": "DejaVu Sans", "xtick.major.size": 0.3 * size, "ytick.major.size": 0.3 * size,
        "xtick.major.width": 0.07 * size, "ytick.major.width": 0.07 * size, "axes.titlelocation": "left",
        "pdf.fonttype": 42, "svg.hashsalt": "banpick",
    }  # fmt: skip
