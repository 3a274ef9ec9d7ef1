"""The figures of a run, once: the name of a file without `.png` is also its key in W&B."""

from __future__ import annotations

PARETO, USAGE, INFLUENCE, KEPT = FIGURES = ("pareto", "usage", "influence", "kept")
