"""Heat maps of influence and of experts kept: a small picture of the colours, and the numbers behind each cell.

`usage` draws its own with `heat_figure`.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

from banpick_exp.report.maps import Maps
from banpick_exp.report.page.section import Section, by_run_and_maps
from banpick_exp.report.run import Run

STEPS = 65535  # a value is kept as 16 bits of its range: 12,000 cells in 32 kB


def heat_maps_html(run: Run, maps: Maps) -> str:
    """Influence, domain by domain; then experts kept per layer."""
    return _influence(maps) + _kept(maps)


SECTION = Section(key="maps", title="Influence, kept experts", html=by_run_and_maps(heat_maps_html))


def _influence(maps: Maps) -> str:
    if not maps.influence:
        return (
            "<h3>Influence</h3><p>This run followed no calibration that lies in it or beside it: there is nothing to"
            " draw.</p>"
        )
    figures = "".join(picture(v, domain, "nats", (0.0, float(v.max()))) for domain, v in maps.influence.items())
    text = (
        f"From the calibration artifact, score {escape(maps.score)}: how far the next-token distribution moves when "
        "that one expert is changed. Each domain has its own scale."
    )
    return f'<h3>Influence</h3><p>{text}</p><div class="maps">{figures}</div>'


def _kept(maps: Maps) -> str:
    several = "policies keep" if maps.even > 1 else "policy keeps"
    left_out = " and are left out" if maps.even > 1 else " and is left out"
    same = f"{maps.even} {several} the same number in every layer{left_out}. " if maps.even else ""
    if not len(maps.kept):
        text = "Every policy of this run keeps the same number of experts in every layer (see Budgets)."
        return f"<h3>Experts kept per layer</h3><p>{text}</p>"
    limits = (float(maps.kept.min()), float(maps.kept.max()))
    figure = picture(maps.kept, "all domains", "mean experts kept", limits, rows=maps.kept_labels, column="layer")
    return f'<h3>Experts kept per layer</h3><p>{same}Fewest kept first.</p><div class="maps wide">{figure}</div>'


def picture(
    values: np.ndarray,
    title: str,
    unit: str,
    limits: tuple[float, float],
    *,
    rows: Sequence[str] | None = None,
    column: str = "expert",
) -> str:
    """A heat map of [rows, columns] as a `<figure>`, with its scale; report.js tells the number under the pointer."""
    low, high = limits
    high = high if high > low else low + 1
    peak = divmod(int(values.argmax()), values.shape[1])
    where = f"{rows[peak[0]]}" if rows is not None else f"layer {peak[0]}"
    largest = f"the largest: {where}, {column} {peak[1]}"
    image = _png(np.clip((values - low) / (high - low), 0, 1))
    figure = heat_figure(values, image, title, unit, (low, high), largest, rows=rows, column=column)
    return (
        f'{figure}<div class="scale"><span>{low:.3g}</span><i></i><span>{high:.3g} {escape(unit)}</span></div></figure>'
    )


def heat_figure(
    values: np.ndarray,
    image: str,
    title: str,
    unit: str,
    limits: tuple[float, float],
    largest: str,
    *,
    rows: Sequence[str] | None = None,
    column: str = "expert",
    marks: str = "",
) -> str:
    """The figure without its end, for a scale to follow. `image`: address of its picture; `marks`: SVG over it."""
    low, high = limits
    share = np.clip((values - low) / (high - low), 0, 1)
    codes = base64.b64encode(np.round(share * STEPS).astype("<u2").tobytes()).decode()
    height, width = values.shape
    pixels = max(4, min(18, 900 // height))
    names = escape("\n".join(rows)) if rows is not None else ""
    alt = f"{title}: {height} x {width} values, {values.min():.3g} to {values.max():.3g} {unit}; {largest}"
    side = (
        "".join(f"<span>{escape(name)}</span>" for name in rows)
        if rows is not None
        else f"<span>layer 0</span><span>{height - 1}</span>"
    )
    return (
        f'<figure class="heat"><figcaption>{escape(title)}</figcaption><div class="grid"><div class="side'
        f'{" each" if rows is not None else ""}" style="height:{height * pixels}px">{side}</div><div class="over">'
        f'<img src="{image}" alt="{escape(alt)}" style="height:{height * pixels}px" '
        f'data-values="{codes}" data-size="{height} {width}" data-limits="{low!r} {high!r}" data-unit="{escape(unit)}" '
        f'data-column="{column}" data-rows="{names}">{marks}</div>'
        f'<div class="under"><span>{column} 0</span><span>{width - 1}</span></div></div>'
    )


def _png(share: np.ndarray) -> str:
    from matplotlib.image import imsave

    buffer: Any = io.BytesIO()
    imsave(buffer, share, cmap="cividis", vmin=0, vmax=1, format="png")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
