"""The Pareto front as one interactive page that works offline: hover, a menu of domains, and every point in a table."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import polars as pl

from banpick_exp.plots import REFERENCES, family_name, family_styles, side_by_side
from banpick_exp.records import OVERALL

Verdicts = Mapping[tuple[str, str], Mapping[str, Any]]  # (fingerprint, domain) -> row of analysis.verdicts


def pareto_html(frame: pl.DataFrame, verdicts: pl.DataFrame, path: Path, *, title: str, subtitle: str) -> Path:
    """The same two panels as one offline page: a menu of domains, numbers and command on hover, and a table below.

    Args:
        frame: done rows of every domain with `on_front`; verdicts: as `analysis.verdicts` returns them.
    """
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    titles = ("Accuracy at the measured budget (equal ones side by side)", "Accuracy and speed")
    figure = make_subplots(rows=1, cols=2, shared_yaxes=True, subplot_titles=titles, horizontal_spacing=0.05)
    domains = frame["domain"].unique(maintain_order=True).to_list()
    verdict_of = {(row["fingerprint"], row["domain"]): row for row in verdicts.iter_rows(named=True)}
    shown: list[str] = []
    for domain in domains:
        rows = frame.filter(pl.col("domain") == domain)
        rows = side_by_side(rows)
        ladder = rows.filter(pl.col("policy").is_in(REFERENCES)).sort("mean_kept")
        for column, x in ((1, "x"), (2, "speedup")):
            line = {"color": "#8C8C8C", "width": 1.5}
            common: dict[str, Any] = {"visible": domain == OVERALL}
            values = {"x": ladder[x].to_list(), "y": (ladder["accuracy"] * 100).to_list()}
            figure.add_trace(
                go.Scatter(**values, mode="lines", line=line, hoverinfo="skip", showlegend=False, **common), 1, column
            )
            shown.append(domain)
            for name, (colour, _, symbol, size) in family_styles(rows["policy"].to_list()).items():
                part = rows.filter(pl.col("policy") == name)
                edge = [2 if front else 0.5 for front in part["on_front"]]
                edge_colour = ["black" if front else "white" for front in part["on_front"]]
                axis, key, scale = ("y", "accuracy", 100) if column == 1 else ("x", "speedup", 1)
                middle = part[key]
                bars = {
                    "type": "data", "symmetric": False, "thickness": 1, "width": 0, "color": colour,
                    "array": ((part[f"{key}_hi"] - middle).fill_null(0).clip(0) * scale).to_list(),
                    "arrayminus": ((middle - part[f"{key}_lo"]).fill_null(0).clip(0) * scale).to_list(),
                }  # fmt: skip
                figure.add_trace(
                    go.Scatter(
                        x=part[x].to_list(), y=(part["accuracy"] * 100).to_list(), mode="markers",
                        marker={"color": colour, "symbol": symbol, "size": size * 1.8,
                                "line": {"width": edge, "color": edge_colour}},
                        hovertext=[hover_text(row, verdict_of) for row in part.iter_rows(named=True)], hoverinfo="text",
                        name=family_name(name), legendgroup=name, showlegend=column == 1, **{f"error_{axis}": bars},
                        **common,
                    ), 1, column,
                )  # fmt: skip
                shown.append(domain)
    buttons = [
        {"label": domain, "method": "update", "args": [{"visible": [d == domain for d in shown]}]} for domain in domains
    ]
    figure.update_layout(
        template="plotly_white", height=600, margin={"t": 90, "l": 70, "r": 20, "b": 110}, hovermode="closest",
        legend={"orientation": "h", "y": -0.18},
        updatemenus=[{"buttons": buttons, "x": 1, "xanchor": "right", "y": 1.17, "yanchor": "top"}],
        hoverlabel={"bgcolor": "white", "bordercolor": "#555555", "align": "left", "font": {"size": 12}},
    )  # fmt: skip
    figure.update_xaxes(title_text="measured budget: mean experts kept per token", row=1, col=1)
    figure.update_xaxes(title_text="speed-up over stock (generated tokens/s)", row=1, col=2)
    figure.update_yaxes(title_text="accuracy (%)", row=1, col=1)
    plot = figure.to_html(full_html=False, include_plotlyjs=True, config={"displaylogo": False, "responsive": True})
    path.write_text(_page(title, subtitle, plot, _table(frame, verdict_of)), encoding="utf-8")
    return path


def hover_text(row: Mapping[str, Any], verdict_of: Verdicts) -> str:
    """What a point says: policy, numbers with their intervals, verdict, and the command that runs it again."""
    lines = [f"<b>{escape(row['label'])}</b>"]
    lines += [f"{name}: {value}" for name, value in numbers(row, verdict_of).items()]
    command = escape(row["command"] or "")
    parts = [command[i : i + 90] for i in range(0, len(command), 90)]
    return "<br>".join(
        [*lines, "<br>run it again:", *(f"<span style='font-family:monospace'>{p}</span>" for p in parts)]
    )


def numbers(row: Mapping[str, Any], verdict_of: Verdicts) -> dict[str, str]:
    """A row's numbers as readable text, by name."""

    def span(key: str, form: str, scale: float = 1) -> str:
        if row[key] is None:
            return "-"
        text = format(row[key] * scale, form)
        low, high = row.get(f"{key}_lo"), row.get(f"{key}_hi")
        return text if low is None or high is None else f"{text} [{low * scale:{form}}, {high * scale:{form}}]"

    values = {
        "accuracy (%)": span("accuracy", ".1f", 100),
        "vs stock (points)": span("delta", "+.1f", 100),
        "speed-up": span("speedup", ".2f"),
        "tokens/s": span("tokens_per_second", ",.0f"),
        "mean kept": span("mean_kept", ".2f"),
        "truncated (%)": span("truncated_fraction", ".1f", 100),
        "problems": str(row["n_problems"]),
    }
    verdict = verdict_of.get((row["fingerprint"], row["domain"]))
    if verdict is not None:
        values["at equal budget"] = verdict_text(verdict) + (f" ({verdict['note']})" if verdict["note"] else "")
    return {name: escape(value) for name, value in values.items()}


def verdict_text(row: Mapping[str, Any]) -> str:
    """`ties fixed_k k=4 [-0.5, +0.8]`: the verdict with its simultaneous interval in points."""
    if row["verdict"] == "unmatched":
        return "unmatched"
    low, high = 100 * row["lo_simultaneous"], 100 * row["hi_simultaneous"]
    return f"{row['verdict']} {row['reference_label']} [{low:+.1f}, {high:+.1f}]"


def _table(frame: pl.DataFrame, verdict_of: Verdicts) -> str:
    rows = frame.filter(pl.col("domain") == OVERALL).sort("accuracy", descending=True)
    lines: list[str] = []
    for row in rows.iter_rows(named=True):
        cells = numbers(row, verdict_of)
        mark = "&#9679;" if row["on_front"] else ""
        if not lines:
            names = ["front", "policy", *cells, "at equal budget", "run it again"]
            lines.append("<tr>" + "".join(f"<th>{name}</th>" for name in dict.fromkeys(names)) + "</tr>")
        equal = cells.pop("at equal budget", "")
        values = [mark, escape(row["label"]), *cells.values(), equal]
        command = f"<td><code>{escape(row['command'] or '')}</code></td>"
        lines.append("<tr>" + "".join(f"<td>{value}</td>" for value in values) + command + "</tr>")
    return f"<div class='scroll'><table>{''.join(lines)}</table></div>"


def _page(title: str, subtitle: str, plot: str, table: str) -> str:
    style = (
        "body{font-family:system-ui,sans-serif;margin:24px auto;max-width:1280px;padding:0 16px;color:#222}"
        "h1{font-size:22px;margin:0 0 4px}p{margin:4px 0 12px;color:#444}.scroll{overflow-x:auto}"
        "table{border-collapse:collapse;font-size:13px}td,th{padding:4px 10px;text-align:left;white-space:nowrap;"
        "border-bottom:1px solid #e2e2e2}th{border-bottom:2px solid #888}code{font-size:12px}"
    )
    note = (
        "Front: no other point is at least as good in accuracy, speed-up and experts kept and better in one. "
        "At equal budget: against fixed_k at the nearest measured budget on the same problems, with the interval that "
        "holds for all policies of the sweep at once."
    )
    return (
        f"<!DOCTYPE html><html lang='en'><head><meta charset='utf-8'><title>{escape(title)}</title>"
        f"<style>{style}</style></head><body><h1>{escape(title)}</h1><p>{escape(subtitle)}</p>{plot}"
        f"<h2 style='font-size:17px'>Every point, all domains together</h2><p>{note}</p>{table}</body></html>\n"
    )
