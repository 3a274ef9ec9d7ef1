"""The figure of `bench engine`: speed-up against batch, one line a policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from banpick_exp.report.figures.styles import PAPER, STYLES


def speedup_png(rows: Sequence[Mapping[str, Any]], path: Path) -> Path:
    """Two panels at 300 dpi, decode and prefill; bars are the quartiles of the alternating rounds.

    Args: rows: of batch, phase, variant, policy, speedup, speedup_q1, speedup_q3 and mean_kept, as the benchmark emits.
    """
    import matplotlib

    with matplotlib.rc_context(PAPER):
        figure = Figure(figsize=(9.0, 4.2), layout="constrained")
        FigureCanvasAgg(figure)
        decode, prefill = figure.subplots(1, 2, sharey=True, width_ratios=(3, 1))
        batches = sorted({row["batch"] for row in rows if row["phase"] == "decode"})
        labels = list(dict.fromkeys(row["variant"] for row in rows if row["policy"] != "stock"))
        for axes, phase in ((decode, "decode"), (prefill, "prefill")):
            axes.axhline(1.0, color="#999999", linewidth=0.8, linestyle=":", zorder=1)
            for index, label in enumerate(labels):
                found = [row for row in rows if row["phase"] == phase and row["variant"] == label]
                if not found:  # a run that was stopped before the prefill
                    continue
                colour, marker, size = STYLES[found[0]["policy"]]
                place = [batches.index(row["batch"]) if phase == "decode" else 0 for row in found]
                beside = [x + 0.05 * (index - (len(labels) - 1) / 2) for x in place]
                low = [row["speedup"] - row["speedup_q1"] for row in found]
                high = [row["speedup_q3"] - row["speedup"] for row in found]
                middle = [row["speedup"] for row in found]
                line = "--" if label == "ban at 5" else "-"
                axes.errorbar(
                    beside, middle, yerr=[low, high], color=colour, marker=marker, markersize=size, linestyle=line,
                    linewidth=1.2, elinewidth=0.8, capsize=2, label=_legend(label, found),
                )  # fmt: skip
        decode.set_xticks(range(len(batches)), [str(batch) for batch in batches])
        decode.set(xlabel="decode: sequences in the batch", ylabel="speed-up over stock vLLM (time ratio)")
        prefill.set_xticks([0], [f"{next((r['batch'] for r in rows if r['phase'] == 'prefill'), '')} tokens"])
        prefill.set(xlabel="prefill", xlim=(-0.6, 0.6))
        decode.legend(fontsize=8)
        decode.set_title("Random-weight engine of Qwen3-30B's layer shape, CPU (bars: quartiles)", loc="left")
        figure.savefig(path, dpi=300)
    return path


def _legend(label: str, found: Sequence[Mapping[str, Any]]) -> str:
    """The budget is the measured one."""
    kept = [row["mean_kept"] for row in found if row["mean_kept"] is not None]
    return f"{label.split(' at ')[0]}: {sum(kept) / len(kept):.2f} kept" if kept else label
