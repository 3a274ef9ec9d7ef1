"""The figure of `bench serve`: throughput over stock routing against the number of clients, one line an arm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from banpick_exp.report.figures.sheet import save
from banpick_exp.report.figures.styles import PAPER, STYLES

NO_POLICY = ("#777777", "s", 5)
"""Colour, marker and its size of vLLM without the plugin."""


def throughput_png(rows: Sequence[Mapping[str, Any]], path: Path) -> Path:
    """Ratios with their 95 % intervals at 300 dpi; a figure that is invalid is hollow.

    Args: rows: of clients, arm, policy, over_stock with its ends, mean_kept and valid, as the benchmark emits.
    """
    import matplotlib

    clients = sorted({row["clients"] for row in rows})
    arms = list(dict.fromkeys(row["arm"] for row in rows if row["over_stock"] is not None))
    with matplotlib.rc_context(PAPER):
        figure = Figure(figsize=(5.0, 3.6), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        axes.axhline(1.0, color="#999999", linewidth=0.8, linestyle=":", zorder=1)
        for index, arm in enumerate(arms):
            found = sorted((row for row in rows if row["arm"] == arm), key=lambda row: row["clients"])
            colour, marker, size = STYLES.get((found[0]["policy"] or "").split(" ")[0], NO_POLICY)
            places = [clients.index(row["clients"]) + 0.08 * (index - (len(arms) - 1) / 2) for row in found]
            ends = [
                [row["over_stock"] - row["over_stock_low"] for row in found],
                [row["over_stock_high"] - row["over_stock"] for row in found],
            ]
            axes.errorbar(
                places, [row["over_stock"] for row in found], yerr=ends, color=colour, marker=marker, markersize=size,
                linewidth=1.2, elinewidth=0.8, capsize=2, label=_legend(arm, found),
                markerfacecolor=colour if all(row["valid"] for row in found) else "white",
            )  # fmt: skip
        axes.set_xticks(range(len(clients)), [str(number) for number in clients])
        axes.set(xlabel="clients at once", ylabel="tokens a second over stock", xlim=(-0.5, len(clients) - 0.5))
        axes.legend(fontsize=8)
        return save(figure, path)


def _legend(arm: str, found: Sequence[Mapping[str, Any]]) -> str:
    """The budget is the measured one."""
    kept = [row["mean_kept"] for row in found if row["mean_kept"] is not None]
    return f"{arm}: {sum(kept) / len(kept):.2f} kept" if kept else arm
