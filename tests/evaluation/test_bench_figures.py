"""What the benches make of their times: aims by dtype, the speed-ups that experts alone would give, the picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from matplotlib.image import imread

from banpick_exp.evaluation.bench.engine import aim_of
from banpick_exp.evaluation.bench.profile import ceilings
from banpick_exp.report.figures.bench import speedup_png


@pytest.mark.parametrize(
    ("variant", "policy", "batch", "mean_kept", "wanted"),
    [
        ("ban at 4.8", "ban", 1, 4.8, 1.20),
        ("ban at 4.8", "ban", 8, 4.8, 1.30),
        ("ban at 4.8", "ban", 32, 4.8, 1.25),
        ("ban at 4.8", "ban", 16, 4.8, None),
        ("ban at 6", "ban", 8, 6.0, None),
        ("ban at 5", "ban", 8, 4.8, None),
        ("ban_pick at 4.8", "ban_pick", 8, 4.8, None),
        ("none", "none", 16, 4.8, 0.98),
        ("stock", "stock", 8, 4.8, None),
    ],
)
def test_aims(variant: str, policy: str, batch: int, mean_kept: float, wanted: float | None) -> None:
    assert aim_of({"variant": variant, "policy": policy}, batch, mean_kept) == wanted


def test_what_the_experts_alone_would_give() -> None:
    stock = {"experts": 6.0, "linear layers": 3.0, "python and the rest": 1.0}
    ban = {"experts": 4.5, "linear layers": 3.0, "python and the rest": 1.5}
    found = ceilings(ban, stock, mean_kept=4.0)
    assert found == pytest.approx({"speedup": 10 / 9, "experts_alone": 10 / 8.5, "in_proportion": 10 / 7})


def row(dtype: str, phase: str, batch: int, policy: str, speedup: float) -> dict[str, Any]:
    return {
        "dtype": dtype, "native": dtype == "float32", "phase": phase, "batch": batch, "variant": policy,
        "policy": policy, "speedup": speedup, "speedup_q1": speedup - 0.05, "speedup_q3": speedup + 0.05,
        "mean_kept": None if policy == "stock" else 4.8,
        "aim": 1.2 if (dtype, phase, policy) == ("float32", "decode", "ban") else None,
    }  # fmt: skip


def test_the_picture_has_a_row_a_dtype(tmp_path: Path) -> None:
    rows = [
        row(dtype, phase, batch, policy, speedup)
        for dtype in ("bfloat16", "float32")
        for phase, batch in (("decode", 1), ("decode", 8), ("prefill", 2048))
        for policy, speedup in (("stock", 1.0), ("none", 0.99), ("ban", 1.2))
    ]
    both = imread(speedup_png(rows, tmp_path / "both.png"))
    one = imread(speedup_png([r for r in rows if r["dtype"] == "float32"], tmp_path / "one.png"))
    stopped = imread(speedup_png([r for r in rows if r["phase"] == "decode"], tmp_path / "stopped.png"))
    assert both.shape[1] == one.shape[1] and both.shape[0] > 1.5 * one.shape[0]
    assert stopped.shape == both.shape
