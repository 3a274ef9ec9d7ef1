"""A domain's pair of panels, accuracy against speed-up and against the measured budget, whole and in a closer view."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Literal

import polars as pl

from banpick_exp.analysis.pairing import REFERENCE_POLICIES
from banpick_exp.records import OVERALL
from banpick_exp.report.figures.styles import Style
from banpick_exp.report.page.points import measure_of, point_index
from banpick_exp.report.page.scatter import Hollow, Knots, Mark, Panel, Range, draw, extent
from banpick_exp.report.published import Published
from banpick_exp.report.run import Run
from banpick_exp.report.text import Row, in_words

MOST_TICKS = 20
"""Whole budgets that are all marked on the axis."""
Place = tuple[float, float]
"""Measured budget, accuracy in percent."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """How marks are told apart."""

    families: Mapping[str, Style]
    """Policy -> colour, marker and size, in the order of the legend."""
    colours: Mapping[tuple[Path, str], str]
    """(run folder, policy) -> colour class: of one run the policies differ in colour, of several the runs do."""

    def ladder(self, run: Run) -> str:
        """Colour class of the line of references."""
        reference = next((name for name in ("fixed_k", *REFERENCE_POLICIES) if name in self.families), "")
        return self.colours.get((run.folder.path, reference), "grey")


def shape_id(name: str) -> str:
    """Id of the shape of a policy, made of what an id may hold."""
    return "m-" + "".join(c if c.isalnum() else "-" for c in name)


def domain_panels(runs: Sequence[Run], domain: str, look: Look, published: Sequence[Published] = ()) -> str:
    """Both panels of a domain, twice: of everything, and as a closer view, where the ladder falls far below."""
    placed = [(run, rows) for run in runs if (rows := run.shown_rows(domain)).height]
    others = [(run, rows) for run in runs if (rows := run.other_rows(domain)).height]
    if not placed:
        return ""
    drawing = _Drawing(runs=runs, domain=domain, look=look, placed=placed, others=others, published=published)
    panels = [(panel, key) for panel, key in ((drawing.speed(), "s"), (drawing.budget(), "b")) if panel.marks]
    whole, closer = _y_ranges([rows for _, rows in placed], published)
    return _pair(panels, domain, whole) + _pair(panels, domain, closer, "closer")


def budget_figure(runs: Sequence[Run], look: Look) -> str:
    """The budget panel over all domains alone, whole."""
    placed = [(run, rows) for run in runs if (rows := run.shown_rows()).height]
    others = [(run, rows) for run in runs if (rows := run.other_rows()).height]
    panel = _Drawing(runs=runs, domain=OVERALL, look=look, placed=placed, others=others).budget()
    whole, _ = _y_ranges([rows for _, rows in placed], ())
    return f"<figure><figcaption>{panel.caption}</figcaption>{draw(panel, whole, 't-first')}</figure>"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Drawing:
    runs: Sequence[Run]
    domain: str
    look: Look
    placed: Sequence[tuple[Run, pl.DataFrame]]
    """The points of each run that are shown, where they were measured."""
    others: Sequence[tuple[Run, pl.DataFrame]] = ()
    """The points of each run that are only dots."""
    published: Sequence[Published] = ()

    def speed(self) -> Panel:
        return Panel(
            title=f"Accuracy against speed-up, {self.domain}",
            caption="Accuracy against speed-up",
            x_title="speed-up over stock (generated tokens/s)",
            y_title=f"{measure_of(self.runs)} (%)",
            marks=self._marks("speedup", "speedup", 1),
            ladders=self._ladders("speedup"),
            dots=self._dots("speedup"),
            hollows=self._hollows("speedup"),
            vertical=False,
            x_line=1.0,
        )

    def budget(self) -> Panel:
        return Panel(
            title=f"Accuracy against the measured budget, {self.domain}",
            caption="Accuracy against measured budget",
            x_title="measured budget: mean experts kept per token",
            y_title=f"{measure_of(self.runs)} (%)",
            marks=self._marks("mean_kept", "accuracy", 100, self._names()),
            ladders=self._ladders("mean_kept"),
            dots=self._dots("mean_kept"),
            hollows=self._hollows("mean_kept"),
            x_ticks=self._whole_budgets(),
        )

    def _marks(self, x: str, errors: str, scale: float, names: Mapping[Place, str] | None = None) -> list[Mark]:
        """The points at the column `x`, with the interval of `errors`, and what is named there."""
        index = point_index(self.runs)
        return [
            Mark(
                x=row[x],
                y=100 * row["accuracy"],
                bar=_bar(row, errors, scale),
                shape=shape_id(row["policy"]),
                colour=self.look.colours[run.folder.path, row["policy"]],
                index=index[run.folder.path, row["fingerprint"]],
                ringed=row["fingerprint"] in run.ringed,
                text=(names or {}).get((row[x], 100 * row["accuracy"]), ""),
            )
            for run, rows in self.placed
            for row in rows.iter_rows(named=True)
            if row[x] is not None
        ]

    def _names(self) -> dict[Place, str]:
        """What the figures name on the budget panel: stock, the ladder, gains, a few rules. Of several runs nothing."""
        from banpick_exp.report.figures.panels import to_name  # loads Matplotlib

        if len(self.runs) > 1:
            return {}
        run, rows = self.placed[0]
        return {(name.x, name.y): name.text for name in reversed(to_name(rows, run.ringed))}

    def _ladders(self, x: str) -> list[tuple[str, Knots]]:
        lines: list[tuple[str, Knots]] = []
        for run, rows in self.placed:
            knots = rows.filter(pl.col("policy").is_in(REFERENCE_POLICIES)).sort("mean_kept").drop_nulls(x)
            lines.append((self.look.ladder(run), list(zip(knots[x], knots["accuracy"] * 100, strict=True))))
        return lines

    def _dots(self, x: str) -> list[tuple[str, Knots]]:
        """Colour class and places of what is not shown one by one."""
        places: dict[str, list[tuple[float, float]]] = {}
        for run, rows in self.others:
            for policy, at, accuracy in rows.drop_nulls(x).select("policy", x, "accuracy").iter_rows():
                places.setdefault(self.look.colours[run.folder.path, policy], []).append((at, 100 * accuracy))
        return list(places.items())

    def _hollows(self, x: Literal["speedup", "mean_kept"]) -> list[Hollow]:
        """What is published, where the source says how much it keeps, or how fast it is."""
        own = len(self.runs) == 1
        return [
            Hollow(
                x=at,
                y=100 * each.accuracy,
                shape=shape_id(each.policy),
                colour=self.look.colours[self.runs[0].folder.path, each.policy] if own else "ink",
                text=f"published, {each.source}: {in_words(each.label)} {100 * each.accuracy:.2f} %",
            )
            for each in self.published
            if (at := getattr(each, x)) is not None
        ]

    def _whole_budgets(self) -> list[int] | None:
        """None where they are too many, or one."""
        kept = pl.concat([rows["mean_kept"] for _, rows in self.placed])
        whole = range(math.ceil(kept.min() - 0.01), math.floor(kept.max() + 0.01) + 1)  # type: ignore[operator]
        return list(whole) if 1 < len(whole) <= MOST_TICKS else None


def _pair(panels: Sequence[tuple[Panel, str]], domain: str, y_range: Range, view: str = "") -> str:
    figures = "".join(
        f"<figure><figcaption>{panel.caption}</figcaption>"
        f"{draw(panel, y_range, f't-{shape_id(domain)}-{key}{view}')}</figure>"
        for panel, key in panels
    )
    hidden = "" if domain == OVERALL and not view else " hidden"
    kind = f"pair {view}".strip()
    return f'<div class="{kind}" data-domain="{escape(domain)}"{hidden}>{figures}</div>'


def _y_ranges(placed: Sequence[pl.DataFrame], published: Sequence[Published]) -> tuple[Range, Range]:
    """In percent: of everything with its intervals, and of stock and the policies alone."""
    rows = pl.concat(placed)
    near = rows.filter(pl.col("policy") != "fixed_k") if (rows["policy"] != "fixed_k").any() else rows

    def limits(part: pl.DataFrame, beside: Sequence[Published]) -> Range:
        low, high = part["accuracy_lo"].fill_null(part["accuracy"]), part["accuracy_hi"].fill_null(part["accuracy"])
        bottom, top = extent([*(low * 100), *(high * 100), *(100 * each.accuracy for each in beside)], 0.04)
        return max(bottom, -2.0), min(top, 102.0)

    return limits(rows, published), limits(near, [each for each in published if each.policy != "fixed_k"])


def _bar(row: Row, key: str, scale: float) -> Range | None:
    low, high = row[f"{key}_lo"], row[f"{key}_hi"]
    if low is None or high is None or low == high:  # a single timed run has no spread
        return None
    return low * scale, high * scale
