"""Layer x expert pictures of numbers."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from banpick_exp.report.figures.sheet import save
from banpick_exp.report.figures.styles import PAPER


def heat_map(matrix: Any, path: Path, title: str, colorbar_label: str) -> Path:
    """A layer x expert picture of [L, E] numbers (any nested list or array; NaN is left grey), 300 dpi.

    Raises: ValueError unless the matrix has two dimensions and a finite value.
    """
    import matplotlib

    values = np.asarray(matrix, dtype=float)
    if values.ndim != 2 or not np.isfinite(values).any():
        raise ValueError(f"a heat map needs a layer x expert matrix with a finite value, not shape {values.shape}")
    layers, experts = values.shape
    with matplotlib.rc_context(PAPER | {"axes.grid": False}):
        width = min(12.0, max(5.5, 2.0 + 0.12 * experts))
        figure = Figure(figsize=(width, min(9.0, max(2.4, 1.3 + 0.22 * layers))), layout="constrained")
        axes = figure.subplots()
        axes.set_facecolor("#BBBBBB")
        image = axes.imshow(values, aspect="auto", cmap="cividis", interpolation="nearest")
        axes.set(xlabel="expert", ylabel="MoE layer")
        axes.set_title(title, loc="left")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(integer=True))
        for spine in axes.spines.values():
            spine.set_visible(False)
        figure.colorbar(image, ax=axes, pad=0.02, fraction=0.04).set_label(colorbar_label)
        return save(figure, path)


def heat_grid(
    cells: Sequence[Sequence[tuple[str, Any, str]]], path: Path, *, title: str, y_label: str = "MoE layer",
    x_label: str = "expert", rows: Sequence[str] | None = None, shared: bool = False,
) -> Path:  # fmt: skip
    """A grid of heat maps, 300 dpi, each (title, matrix, unit) with its own colour bar.

    Args:
        rows: names of the matrix rows where they are no numbers.
        shared: the maps of a line have one scale, to be compared.
    """
    import matplotlib

    height, width = np.shape(cells[0][0][1])
    names = 0.07 * max((len(name) for name in rows), default=0) if rows else 0.0
    across = max(3.4, 1.2 + 0.05 * width) + names
    with matplotlib.rc_context(PAPER | {"axes.grid": False}):
        size = (min(16.0, len(cells[0]) * across), len(cells) * min(6.0, 1.2 + 0.16 * height) + 0.4)
        figure = Figure(figsize=size, layout="constrained")
        figure.suptitle("\n".join(textwrap.wrap(title, int(size[0] * 13))), x=0.01, ha="left", fontsize=10)
        for line, axes_line in zip(cells, figure.subplots(len(cells), len(cells[0]), squeeze=False), strict=True):
            every = np.concatenate([np.ravel(matrix) for _, matrix, _ in line])
            limits = {"vmin": every.min(), "vmax": every.max()} if shared else {}
            for (name, matrix, unit), axes in zip(line, axes_line, strict=True):
                image = axes.imshow(
                    np.asarray(matrix, float), aspect="auto", cmap="cividis", interpolation="nearest", **limits
                )
                axes.set_title(name, loc="left", fontsize=9)
                axes.set(xlabel=x_label, ylabel=y_label)
                axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=9))
                axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
                if rows is not None:
                    axes.set_yticks(range(len(rows)), rows, fontsize=7)
                for spine in axes.spines.values():
                    spine.set_visible(False)
                figure.colorbar(image, ax=axes, pad=0.02, fraction=0.05, aspect=30).set_label(unit, fontsize=8)
        return save(figure, path)
