"""A section of the page: what its module says of itself, and what sections share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from banpick_exp.report.maps import Maps
from banpick_exp.report.run import Run


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """One section. `sections.SECTIONS` lists those of the page."""

    key: str
    """Id of its element, and what its link in the heading leads to: letters and dashes."""
    title: str
    html: Callable[[Sequence[Run], Sequence[Maps]], str]
    """Its body for one run or for several side by side; the maps are those of the runs, in the same order."""


def by_run(html: Callable[[Run], str]) -> Callable[[Sequence[Run], Sequence[Maps]], str]:
    """The `html` of a section that looks at each run alone: of several runs the bodies follow each other."""
    return by_run_and_maps(lambda run, _: html(run))


def by_run_and_maps(html: Callable[[Run, Maps], str]) -> Callable[[Sequence[Run], Sequence[Maps]], str]:
    """As `by_run`, for a section that draws the run's maps too."""

    def bodies(runs: Sequence[Run], maps: Sequence[Maps]) -> str:
        if len(runs) == 1:
            return html(runs[0], maps[0])
        return "".join(
            f'<div class="run"><h3>{run_letter(runs, run)}: {escape(run.name)}</h3>{html(run, own)}</div>'
            for run, own in zip(runs, maps, strict=True)
        )

    return bodies


def run_letter(runs: Sequence[Run], run: Run) -> str:
    """A, B, C, ...: how tables and legends name one of several runs."""
    index = list(runs).index(run)
    return (chr(ord("A") + index % 26)) + ("" if index < 26 else str(index // 26))
