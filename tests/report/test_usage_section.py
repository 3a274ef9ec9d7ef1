"""Expert usage on the page: a difference to stock, one scale for all maps with 0 in the middle, key experts framed."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import image
from synthetic_run import DOMAINS, LAYERS, SyntheticRun, ladder

from banpick_exp.report.maps import NOTHING, maps_of
from banpick_exp.report.page.usage import LESS, MORE, usage_html
from banpick_exp.report.run import Run
from banpick_exp.run_folder import RunFolder

EXPERTS = 32
STOCK = {name: np.random.default_rng(i).integers(200, 300, (LAYERS, EXPERTS)) for i, name in enumerate(DOMAINS)}
CHANGE = {
    name: np.random.default_rng(9 + i).integers(-50 - 30 * i, 50, (LAYERS, EXPERTS)) for i, name in enumerate(DOMAINS)
}
KEYS = {"math": {"0": [3, 31], "3": [7]}, "code": {"1": [0], "99": [1], "odd": [2]}}


def counted(usage: dict[str, np.ndarray]) -> dict[str, Any]:
    return {
        name: {"tokens": [1000] * LAYERS, "kept": [8000] * LAYERS, "usage": each.tolist()}
        for name, each in usage.items()
    }


def a_run(folder: Path, keys: dict[str, Any] = KEYS, *, counts: bool = True) -> Run:
    drawn = ladder(SyntheticRun(problems=30), ks=(4,))
    pick = drawn.add("pick", {"boost": 1}, churn=0.1)
    if counts:
        drawn.change(drawn.records[0], engagement={"counters": counted(STOCK), "stock_counters": counted(STOCK)})
        changed = {name: STOCK[name] + CHANGE[name] for name in DOMAINS}
        drawn.change(pick, engagement={"counters": counted(changed), "key_experts": keys})
    return Run(folder=RunFolder(folder / "pick" / "run"), records=drawn.records, outcomes=drawn.outcomes)


@pytest.fixture
def html(tmp_path: Path) -> str:
    run = a_run(tmp_path)
    return usage_html(run, maps_of(run))


def differences(html: str) -> dict[str, str]:
    return {
        name: html.split(f"<figcaption>{name}: policy less stock</figcaption>")[1].split("</figure>")[0]
        for name in DOMAINS
    }


def test_a_map_holds_policy_less_stock_on_one_scale(html: str) -> None:
    most = max(np.abs(each).max() for each in CHANGE.values()) / 1000
    for name, figure in differences(html).items():
        low, high = map(float, re.findall(r'data-limits="(\S+) (\S+)"', figure)[0])
        assert (low, high) == pytest.approx((-most, most)), "shared by all, 0 in the middle"
        codes = np.frombuffer(base64.b64decode(re.findall('data-values="(.*?)"', figure)[0]), "<u2")
        values = low + codes.reshape(LAYERS, EXPERTS) / 65535 * (high - low)
        assert np.abs(values - CHANGE[name] / 1000).max() < 1e-5
        told = re.findall(r"the largest change: layer (\d+), expert (\d+)", figure)
        assert abs(CHANGE[name][int(told[0][0]), int(told[0][1])]) == np.abs(CHANGE[name]).max()
    assert f"<span>-{100 * most:.2g} points</span><i></i><span>+{100 * most:.2g} points</span>" in html
    assert html.count('class="scale both"') == 1


def test_its_colours_diverge_and_vanish_at_0(html: str) -> None:
    for name, figure in differences(html).items():
        data = base64.b64decode(re.findall('src="data:image/png;base64,(.*?)"', figure)[0])
        pixels = np.round(255 * image.imread(io.BytesIO(data))).astype(int)
        assert pixels.shape == (LAYERS, EXPERTS, 4)
        more, less = CHANGE[name] > 0, CHANGE[name] < 0
        assert (pixels[more][:, :3] == MORE).all() and (pixels[less][:, :3] == LESS).all()
        most = max(np.abs(each).max() for each in CHANGE.values())
        assert np.abs(pixels[..., 3] - 255 * np.abs(CHANGE[name]) / most).max() <= 1


def test_key_experts_are_framed_where_they_are(html: str) -> None:
    found = differences(html)
    assert '<path d="M3 0h1v1h-1zM31 0h1v1h-1zM7 3h1v1h-1z"/>' in found["math"]
    assert "key experts: layer 0 expert 3, layer 0 expert 31, layer 3 expert 7" in found["math"]
    assert '<path d="M0 1h1v1h-1z"/>' in found["code"], "a layer that the map has not is left out"
    assert "<svg" not in found["knowledge"] and "Framed: its key experts" in html


def test_without_key_experts_none_are_spoken_of(tmp_path: Path) -> None:
    run = a_run(tmp_path, {})
    html = usage_html(run, maps_of(run))
    assert "Framed" not in html and '<svg class="keys"' not in html and html.count('class="heat"') == 2 * len(DOMAINS)


def test_stock_alone_is_folded_and_on_one_scale(html: str) -> None:
    folded = html.split('<details class="more">')[1]
    limits = set(re.findall(r'data-limits="(.*?)"', folded))
    assert folded.count('class="heat"') == 3 and len(limits) == 1


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    bare = a_run(tmp_path, counts=False)
    assert "hold no counters of stock" in usage_html(bare, maps_of(bare))
    assert "hold no counters of stock" in usage_html(bare, NOTHING)
    run = a_run(tmp_path)
    without = [
        record if record.is_stock else record.model_copy(update={"engagement": bare.records[-1].engagement})
        for record in run.records
    ]
    run = Run(folder=run.folder, records=without, outcomes=run.outcomes)
    html = usage_html(run, maps_of(run))
    assert "The record of pick boost=1 holds no counters" in html and "math: stock" in html
