"""The figure of `bench engine`: speed-up against batch, a row of panels a dtype, one line a policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from banpick_exp.report.figures.sheet import save
from banpick_exp.report.figures.styles import PAPER, STYLES

Rows = Sequence[Mapping[str, Any]]
WIDTHS = {"decode": 3, "prefill": 1}
UNITS = {"decode": "sequences in the batch", "prefill": "tokens"}


def speedup_png(rows: Rows, path: Path) -> Path:
    """Decode and prefill of each dtype at 300 dpi; bars are the quartiles of the alternating rounds.

    Args: rows: of dtype, native, batch, phase, variant, policy, speedup with its quartiles, mean_kept and aim, as the
        benchmark emits.
    """
    import matplotlib

    dtypes = list(dict.fromkeys(row["dtype"] for row in rows))
    phases = list(dict.fromkeys(row["phase"] for row in rows))  # a run that was stopped has no prefill
    with matplotlib.rc_context(PAPER):
        figure = Figure(figsize=(9.0, 0.4 + 3.8 * len(dtypes)), layout="constrained")
        FigureCanvasAgg(figure)
        widths = [WIDTHS[phase] for phase in phases]
        panels = figure.subplots(len(dtypes), len(phases), sharey=True, squeeze=False, width_ratios=widths)
        for axes_of, dtype in zip(panels, dtypes, strict=True):
            mine = [row for row in rows if row["dtype"] == dtype]
            for axes, phase in zip(axes_of, phases, strict=True):
                _panel(axes, [row for row in mine if row["phase"] == phase], UNITS[phase])
                axes.set_title(phase, loc="left")
            native = ", this machine's own" if mine[0]["native"] else ""
            axes_of[0].set_ylabel("speed-up over stock vLLM")
            axes_of[0].set_title(f"{dtype}{native}: {phases[0]}", loc="left")
            axes_of[0].legend(fontsize=8)
        figure.suptitle("Random-weight engine of Qwen3-30B's layer shape, CPU (bars: quartiles)", fontsize=10)
        return save(figure, path)


def _panel(axes: Axes, rows: Rows, unit: str) -> None:
    batches = sorted({row["batch"] for row in rows})
    labels = list(dict.fromkeys(row["variant"] for row in rows if row["policy"] != "stock"))
    axes.axhline(1.0, color="#999999", linewidth=0.8, linestyle=":", zorder=1)
    for index, label in enumerate(labels):
        found = [row for row in rows if row["variant"] == label]
        colour, marker, size = STYLES[found[0]["policy"]]
        beside = [batches.index(row["batch"]) + 0.05 * (index - (len(labels) - 1) / 2) for row in found]
        low = [row["speedup"] - row["speedup_q1"] for row in found]
        high = [row["speedup_q3"] - row["speedup"] for row in found]
        axes.errorbar(
            beside, [row["speedup"] for row in found], yerr=[low, high], color=colour, marker=marker, markersize=size,
            linestyle="--" if label == "ban at 5" else "-", linewidth=1.2, elinewidth=0.8, capsize=2,
            label=_legend(label, found),
        )  # fmt: skip
    aimed = [row for row in rows if row["aim"]]
    if aimed:
        places, policy = [batches.index(row["batch"]) for row in aimed], aimed[0]["policy"]
        axes.hlines([row["aim"] for row in aimed], [x - 0.3 for x in places], [x + 0.3 for x in places], linewidth=0.8,
                    color=STYLES[policy][0], linestyle=":", label=f"aim for {policy}")  # fmt: skip
    axes.set_xticks(range(len(batches)), [str(batch) for batch in batches])
    axes.set(xlabel=unit, xlim=(-0.6, len(batches) - 0.4))


def _legend(label: str, found: Rows) -> str:
    """The budget is the measured one."""
    kept = [row["mean_kept"] for row in found if row["mean_kept"] is not None]
    return f"{label.split(' at ')[0]}: {sum(kept) / len(kept):.2f} kept" if kept else label
