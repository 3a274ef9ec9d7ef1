"""Answer lengths on the page: the same bins for all, quantiles as NumPy has them, what is cut off in words."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from synthetic_run import DOMAINS, SyntheticRun, ladder

from banpick_exp.report.page.lengths import MOST_BINS, NOTHING, bins_of, lengths_html
from banpick_exp.report.run import Run
from banpick_exp.run_folder import RunFolder

RNG = np.random.default_rng(0)


def a_run(folder: Path, scale: float = 0.0) -> Run:
    """A policy whose answers are longer than stock's and cut off more often; `scale` spreads them over decades."""
    drawn = ladder(SyntheticRun(problems=100), ks=(4,))
    drawn.add("pick", {"boost": 4}, churn=0.1, shift=dict.fromkeys(DOMAINS, -0.3))
    record = drawn.records[-1]
    cut = {"truncated_fraction": 0.25}
    metrics = {
        "overall": record.measured.overall.model_dump() | cut,
        "domains": {name: found.model_dump() | cut for name, found in record.measured.domains.items()},
    }
    record = drawn.change(record, metrics=metrics, task={"max_tokens": 24})
    stock = drawn.change(drawn.records[0], task={"max_tokens": 24})
    outcomes = drawn.outcomes
    for each, more in ((record.fingerprint, 5), (stock.fingerprint, 0)):
        tokens = outcomes[each]["tokens"].to_numpy() + more
        if scale:
            tokens = np.round(10 ** RNG.uniform(0.5, scale, len(tokens))).astype(int)
        outcomes[each] = outcomes[each].with_columns(tokens=pl.Series(tokens, dtype=pl.Int32))
    return Run(folder=RunFolder(folder / "pick" / "run"), records=drawn.records, outcomes=outcomes)


def table(html: str, caption: str) -> list[list[str]]:
    body = html.split(f"<caption>{caption}</caption>")[1].split("</table>")[0].split("<tbody>")[1]
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in body.split("</tr>")[:-1]]


def test_the_table_has_the_quantiles_of_both(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    html = lengths_html(run)
    stock, policy = table(html, "Tokens of an answer, pick/run")
    labels = {record.label: run.outcomes[record.fingerprint] for record in run.records}
    for line, label in ((stock, "none"), (policy, "pick boost=4")):
        tokens = labels[label]["tokens"].to_numpy()
        expected = [f"{value:,.0f}" for value in (*np.quantile(tokens, (0.05, 0.25, 0.5, 0.75, 0.95)), tokens.max())]
        assert line[0] == label.replace("none", "stock") and line[1] == "300" and line[2:8] == expected
        assert (
            line[8] == f"{tokens.mean():.1f}" and line[9] == f"{100 * labels[label]['truncated'].to_numpy().mean():.1f}"
        )
    parts = table(html, "Tokens of an answer, pick/run, by domain")
    assert [line[:3] for line in parts[:3]] == [["stock", name, "100"] for name in DOMAINS] and len(parts) == 6


def test_the_picture_has_both_with_the_same_bins(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    html = lengths_html(run)
    assert html.count('<svg viewBox="0 0 400 190" class="panel"') == 1
    assert 'aria-label="Lengths of answers: stock, median 15 tokens; pick boost=4, median 20"' in html
    (area,), (line,) = (re.findall(rf'<path class="{kind}" d="(.*?)"/>', html) for kind in ("area", "ladder c-0072B2"))
    ends = [[float(x) for x in re.findall(r"H([\d.]+)", path)] for path in (area, line)]
    assert ends[0] == ends[1] and len(ends[0]) == 12, "one bin for each of 12 to 23 tokens"
    heights = [[float(y) for y in re.findall(r"V([\d.]+)H", path)] for path in (area, line)]
    assert max(heights[0][7:]) == heights[0][-1] == 156 and heights[1][:5] == [156] * 5, "none there: the floor"


def test_what_is_cut_off_is_said(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    html = lengths_html(run)
    stock = 100 * next(record for record in run.records if record.is_stock).measured.overall.truncated_fraction
    assert (
        f"Cut off at the limit of 24 tokens, as a share of all answers: stock {stock:.1f} %; pick boost=4 25.0 %"
        in html
    )


def test_lengths_over_decades_have_a_logarithmic_axis(tmp_path: Path) -> None:
    html = lengths_html(a_run(tmp_path, scale=4.5))
    assert "on a logarithmic axis" in html and all(
        f">{each}</text>" in html for each in ("10", "100", "1,000", "10,000")
    )
    (area,) = re.findall(r'<path class="area" d="(.*?)"/>', html)
    assert 15 < area.count("H") <= MOST_BINS


@pytest.mark.parametrize("tokens", [[0], [7, 7, 7], [0, 1, 100_000], list(range(1, 3000)), [1] * 99 + [32_768]])
def test_any_lengths_have_bins_that_hold_all(tokens: list[int]) -> None:
    bins = bins_of(np.array(tokens))
    assert (np.diff(bins.edges) > 0).all() and len(bins.edges) <= MOST_BINS + 2
    assert bins.share(np.array(tokens)).sum() == pytest.approx(1) and all(
        np.isfinite(bins.x(edge)) for edge in bins.edges
    )


def test_without_a_policy_there_is_a_sentence(tmp_path: Path) -> None:
    alone = ladder(SyntheticRun(problems=20), ks=(4,))
    assert lengths_html(Run(folder=RunFolder(tmp_path), records=alone.records, outcomes=alone.outcomes)) == NOTHING
