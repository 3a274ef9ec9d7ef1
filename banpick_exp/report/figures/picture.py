"""A figure that a notebook shows by itself."""

from __future__ import annotations

import io

from matplotlib.figure import Figure

NOTEBOOK_DPI = 110


class Picture(Figure):
    """Made without pyplot, which keeps figures of its own: a notebook asks the figure for its picture."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, dpi=NOTEBOOK_DPI, facecolor="white", format="png")
        return buffer.getvalue()
