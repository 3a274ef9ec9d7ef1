"""Numbers and verdicts as text, alike in print, on the page and in figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Row = Mapping[str, Any]
"""One row of a frame: of `points_frame`, `verdicts`, `guards` or `repeat_spread`."""

STOCK = "none"
"""The policy that changes nothing, as records name it."""
JOINED = {"beats": " ", "loses": " to ", "ties": " with "}
MARKS = {"beats": "▲", "loses": "▼", "ties": "", "unmatched": ""}


def in_words(name: str) -> str:
    """The name or label of a policy as a reader knows it: `stock` for `none`, any other as it is."""
    return "stock" if name == STOCK else name


def span(row: Row, key: str, form: str, scale: float = 1) -> str:
    """`61.2 [59.0, 63.3]`; the value alone without an interval, `-` without a value."""
    if row.get(key) is None:
        return "-"
    text, low, high = format(row[key] * scale, form), row.get(f"{key}_lo"), row.get(f"{key}_hi")
    if low is None or high is None:
        return text
    return f"{text} [{low * scale:{form}}, {high * scale:{form}}]"


def speed_text(row: Row) -> str:
    """The speed-up of a row of `points_frame` as `speed_words` says it; `-` where it was not timed.

    In brackets where it is over the stock of a checkpoint that was made from another: no speed-up over the base's.
    """
    if row["speedup"] is not None:
        return speed_words(row["speedup"], row["speedup_lo"], row["speedup_hi"])
    if row.get("own_speedup") is not None:
        return f"({speed_words(row['own_speedup'], row['own_speedup_lo'], row['own_speedup_hi'])})"
    return "-"


def speed_words(ratio: float, low: float | None, high: float | None) -> str:
    """`1.08 [1.05, 1.11]`, `1.01 [0.98, 1.03] tie` where the interval holds 1; the ratio alone without one."""
    if low is None or high is None or low == high:
        return f"{ratio:.2f}"
    return f"{ratio:.2f} [{low:.2f}, {high:.2f}]{' tie' if low <= 1 <= high else ''}"


def signed_points(value: float | None) -> str:
    """`+1.3`: a difference of accuracies in points, `-` where there is none."""
    return "-" if value is None else f"{100 * value:+z.1f}"


def points(row: Row, *, simultaneous: bool = False) -> str:
    """A paired difference in points with its interval: `-0.3 [-1.2, +0.6]`."""
    end = "_simultaneous" if simultaneous else ""
    low, high = row[f"lo{end}"], row[f"hi{end}"]
    return f"{signed_points(row['difference'])} [{100 * low:+z.1f}, {100 * high:+z.1f}]"


def verdict_text(row: Row) -> str:
    """`ties fixed_k k=4 [-0.5, +0.8]`: the verdict with its simultaneous interval in points."""
    if row["verdict"] == "unmatched":
        return "unmatched"
    low, high = 100 * row["lo_simultaneous"], 100 * row["hi_simultaneous"]
    return f"{row['verdict']} {row['reference_label']} [{low:+z.1f}, {high:+z.1f}]"


def p_text(row: Row) -> str:
    """`p = 0.031`: the exact McNemar p of a comparison, Holm-adjusted over all that were judged with it."""
    return f"p\u00a0=\u00a0{row['p_holm']:.2g}"


def rival(row: Row) -> str:
    """Who a policy was compared with: `stock`, or the label of a fixed_k point."""
    return in_words(str(row["reference_label"]))


def against(row: Row) -> str:
    """`loses to stock`, `ties with fixed_k k=4`, `beats fixed_k k=4`, `unmatched`."""
    if row["verdict"] == "unmatched":
        return "unmatched"
    return f"{row['verdict']}{JOINED[row['verdict']]}{rival(row)}"
