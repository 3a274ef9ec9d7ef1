"""The Pareto front, twice: accuracy against speed-up and against the measured budget, a pair of panels a domain."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

import polars as pl

from banpick_exp.records import OVERALL
from banpick_exp.report.figures.styles import (
    REFERENCES,
    SAME_BUDGET,
    family_name,
    family_styles,
    short_label,
    side_by_side,
)
from banpick_exp.report.page.scatter import Mark, Panel, Range, draw, extent, shape_path
from banpick_exp.report.run import Run
from banpick_exp.report.text import against, p_text, points, span

RUN_COLOURS = 7  # .r0 to .r6 in report.css
FIELDS = (
    "accuracy %", "vs stock, points", "at equal budget", "speed-up", "tokens/s", "experts kept", "cut off %",
    "problems",
)  # fmt: skip


def front_html(runs: Sequence[Run]) -> str:
    """Menu, legend, and for each domain the two panels, with a closer view where the ladder falls far below."""
    families = family_styles([name for run in runs for name in run.frame["policy"].to_list()])
    colours = _colours(runs, families)
    domains = list(dict.fromkeys(domain for run in runs for domain in run.domains))
    options = "".join(f'<option value="{escape(d)}">{escape(d)}</option>' for d in domains)
    shapes = "".join(
        f'<path id="{_shape(name)}" d="{shape_path(marker, size * 1.1)}"/>'
        for name, (_, marker, size) in families.items()
    )
    groups = "".join(_domain(runs, domain, families, colours) for domain in domains)
    return (
        f'<svg width="0" height="0" class="defs" aria-hidden="true"><defs>{shapes}'
        '<circle id="ring" r="9.5"/><circle id="dot" r="5.5"/></defs></svg>'
        '<p class="controls"><label>Domain <select id="domain">'
        f'{options}</select></label> <label><input type="checkbox" id="closer"> closer view: only the accuracy range '
        "of stock and the other policies, the ladder's lower end cut off</label></p>"
        f"{_legend(runs, families, colours)}{groups}"
        '<p class="small">Point at a mark (or step to it with Tab and the arrow keys) for its numbers and the command '
        "that runs it again; a click (or Enter) copies the command. Ringed: on the front, no other point is at least "
        "as good in accuracy, speed-up and experts kept and better in one. Bars: on the left the spread of the timed "
        "runs, on the right the 95 % interval of the accuracy. Grey line: the fixed_k ladder.</p>"
    )


def page_data(runs: Sequence[Run]) -> dict[str, Any]:
    """What report.js shows: for every done point its label, command, run, and the FIELDS as text by domain."""
    points = []
    for run, fingerprint in _order(runs):
        rows = list(run.frame.filter(pl.col("fingerprint") == fingerprint).iter_rows(named=True))
        texts = {row["domain"]: numbers(row, run.verdict_of.get((fingerprint, row["domain"]))) for row in rows}
        entry = {"label": rows[0]["label"], "command": rows[0]["command"] or "", "numbers": texts}
        points.append(entry | ({"run": f"{run_letter(runs, run)}: {run.name}"} if len(runs) > 1 else {}))
    return {"fields": fields(runs), "points": points}


def fields(runs: Sequence[Run]) -> list[str]:
    """FIELDS as headings: `avg@4 %` where all runs sampled so."""
    return [f"{_measure(runs)} %", *FIELDS[1:]]


def _measure(runs: Sequence[Run]) -> str:
    found = {run.measure for run in runs}
    return found.pop() if len(found) == 1 else "accuracy"


def point_index(runs: Sequence[Run]) -> dict[tuple[Any, str], int]:
    """(run folder, fingerprint) -> index of that point in `page_data`."""
    return {(run.folder, fingerprint): i for i, (run, fingerprint) in enumerate(_order(runs))}


def numbers(row: dict[str, Any], verdict: dict[str, Any] | None) -> list[str]:
    """FIELDS of one row of `points_frame`, as text."""
    return [
        span(row, "accuracy", ".1f", 100), "-" if row["policy"] == "none" else span(row, "delta", "+.1f", 100),
        _equal_budget(verdict), span(row, "speedup", ".2f"),
        span(row, "tokens_per_second", ",.0f"), span(row, "mean_kept", ".2f"),
        span(row, "truncated_fraction", ".1f", 100), f"{row['n_problems']:,}",
    ]  # fmt: skip


def _equal_budget(verdict: dict[str, Any] | None) -> str:
    if verdict is None:
        return "reference"
    note = f" ({verdict['note']})" if verdict["note"] else ""
    if verdict["difference"] is None:
        return against(verdict) + note
    return f"{against(verdict)} {points(verdict, simultaneous=True)}, {p_text(verdict)}{note}"


def run_letter(runs: Sequence[Run], run: Run) -> str:
    """A, B, C, ...: how tables and legends name one of several runs."""
    index = list(runs).index(run)
    return (chr(ord("A") + index % 26)) + ("" if index < 26 else str(index // 26))


def _order(runs: Sequence[Run]) -> list[tuple[Run, str]]:
    return [(run, record["fingerprint"]) for run in runs for record in run.done]


def _colours(runs: Sequence[Run], families: dict[str, Any]) -> dict[tuple[Any, str], str]:
    """(run folder, family) -> colour class: of one run the families differ in colour, of several the runs do."""
    if len(runs) > 1:
        return {(run.folder, name): f"r{i % RUN_COLOURS}" for i, run in enumerate(runs) for name in families}
    classes = {"none": "ink", "fixed_k": "grey"}
    return {(runs[0].folder, name): classes.get(name, f"c-{colour[1:]}") for name, (colour, *_) in families.items()}


def _shape(name: str) -> str:
    return "m-" + "".join(c if c.isalnum() else "-" for c in name)


def _legend(runs: Sequence[Run], families: dict[str, Any], colours: dict[tuple[Any, str], str]) -> str:
    def swatch(shape: str, colour: str, text: str) -> str:
        mark = f'<svg width="18" height="18" viewBox="-9 -9 18 18" aria-hidden="true"><use href="#{shape}" '
        return f'<li>{mark}class="{colour}"/></svg>{escape(text)}</li>'

    several = len(runs) > 1
    items = [
        swatch(_shape(name), "ink" if several else colours[runs[0].folder, name], family_name(name))
        for name in families
    ]
    if several:
        for run in runs:
            text = f"{run_letter(runs, run)}: {run.name} ({run.models})"
            items.append(swatch("dot", colours[run.folder, next(iter(families))], text))
    ring = (
        '<svg width="22" height="22" viewBox="-11 -11 22 22" aria-hidden="true"><use href="#ring" class="front"/></svg>'
    )
    return f'<ul class="legend">{"".join(items)}<li>{ring}on the front</li></ul>'


def _domain(runs: Sequence[Run], domain: str, families: dict[str, Any], colours: dict[tuple[Any, str], str]) -> str:
    index = point_index(runs)
    by_budget: list[Mark] = []
    by_speed: list[Mark] = []
    ladders: dict[str, list[tuple[str, list[tuple[float, float]]]]] = {"x": [], "speedup": []}
    shades: list[tuple[float, float, str]] = []
    for run in runs:
        rows = run.frame.filter((pl.col("status") == "done") & (pl.col("domain") == domain))
        if rows.height == 0:
            continue
        placed = side_by_side(rows)
        shades += _shades(placed) if len(runs) == 1 else []
        ladder = placed.filter(pl.col("policy").is_in(REFERENCES)).sort("mean_kept")
        for key, lines in ladders.items():
            knots = ladder.drop_nulls(key)
            pairs = zip(knots[key], knots["accuracy"] * 100, strict=True)
            lines.append((colours[run.folder, "fixed_k" if "fixed_k" in families else "none"], list(pairs)))
        for row in placed.iter_rows(named=True):
            common = {
                "y": 100 * row["accuracy"], "shape": _shape(row["policy"]),
                "colour": colours[run.folder, row["policy"]],
                "index": index[run.folder, row["fingerprint"]], "on_front": row["on_front"],
            }  # fmt: skip
            text = short_label(row["policy"], row["label"]) if row["policy"] in REFERENCES and len(runs) == 1 else ""
            by_budget.append(Mark(x=row["x"], bar=_bar(row, "accuracy", 100), text=text, **common))
            if row["speedup"] is not None:
                by_speed.append(Mark(x=row["speedup"], bar=_bar(row, "speedup", 1), text=text, **common))
    speed = Panel(
        title=f"Accuracy against speed-up, {domain}", x_title="speed-up over stock (generated tokens/s)",
        y_title=f"{_measure(runs)} (%)", marks=by_speed, ladders=ladders["speedup"], vertical=False, x_line=1.0,
    )  # fmt: skip
    kept = [mark.x for mark in by_budget]
    whole = range(math.ceil(min(kept)), math.floor(max(kept)) + 1)
    native = max(float(kept) for run in runs for kept in run.frame["mean_kept"].drop_nulls())
    budget = Panel(
        title=f"Accuracy against the measured budget, {domain}", y_title=f"{_measure(runs)} (%)", marks=by_budget,
        x_title="measured budget: mean experts kept per token", ladders=ladders["x"], shades=shades,
        x_ticks=[k for k in whole if k <= native + 0.1] if 1 < len(whole) <= 20 else None,
    )  # fmt: skip
    full, closer = _y_ranges(runs, domain)
    views = ((full, ""), (closer, " closer"))
    parts = []
    for y_range, extra in views:
        names = [f"t-{_shape(domain)}-{key}{extra.strip()}" for key in ("s", "b")]
        panels = [
            f"<figure><figcaption>{title}</figcaption>{draw(panel, y_range, name)}</figure>"
            for panel, name, title in (
                (speed, names[0], "Accuracy against speed-up"),
                (budget, names[1], "Accuracy against measured budget"),
            )
            if panel.marks
        ]
        shown = domain == OVERALL and not extra
        parts.append(f'<div class="pair{extra}" data-domain="{escape(domain)}"{"" if shown else " hidden"}>')
        parts.append(f"{''.join(panels)}</div>")
    return "".join(parts)


def _y_ranges(runs: Sequence[Run], domain: str) -> tuple[Range, Range]:
    """In percent: of everything with its intervals, and of stock and the policies alone."""
    rows = pl.concat([run.frame.filter((pl.col("status") == "done") & (pl.col("domain") == domain)) for run in runs])
    near = rows.filter(pl.col("policy") != "fixed_k") if (rows["policy"] != "fixed_k").any() else rows

    def limits(part: pl.DataFrame) -> Range:
        low, high = part["accuracy_lo"].fill_null(part["accuracy"]), part["accuracy_hi"].fill_null(part["accuracy"])
        bottom, top = extent([*(low * 100), *(high * 100)], 0.04)
        return max(bottom, -2.0), min(top, 102.0)

    return limits(rows), limits(near)


def _bar(row: dict[str, Any], key: str, scale: float) -> Range | None:
    low, high = row[f"{key}_lo"], row[f"{key}_hi"]
    return None if low is None or high is None else (low * scale, high * scale)


def _shades(placed: pl.DataFrame) -> list[tuple[float, float, str]]:
    groups = placed.filter(pl.col("beside") >= 3).group_by((pl.col("mean_kept") / SAME_BUDGET).round())
    shades = []
    for _, group in groups:
        x, kept = group["x"].to_list(), group["mean_kept"].to_list()
        shades.append((min(x) - 0.06, max(x) + 0.06, f"keep {sum(kept) / len(kept):.2f}"))
    return sorted(shades)
