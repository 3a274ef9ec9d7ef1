"""The figure that answers the sweep's question, inside the page: SVG by the code of the figures, in the page's colours.

Two drawings, of which the style sheet shows one: for a wide window and for a phone, where type must still be legible.
Colours become the variables of report.css, so that dark paper has light ink. Type is drawn as outlines: it is the same
wherever the page is opened.
"""

from __future__ import annotations

import io
import re
from html import escape
from typing import Any

from banpick_exp.report.drawn import answers, asked_in_words
from banpick_exp.report.run import Run

COLOURS = {
    "#000000": "ink", "#111111": "ink", "#333333": "ink", "#444444": "soft", "#595959": "grey", "#8c8c8c": "grey",
    "#999999": "grey", "#cccccc": "rule", "#d9d9d9": "rule", "#e4e4e4": "rule", "#ffffff": "paper", "#0072b2": "blue",
    "#d55e00": "red", "#cc79a7": "pink", "#009e73": "green", "#e69f00": "amber", "#56b4e9": "sky",
}  # fmt: skip
"""Of the figures -> variable of report.css."""
FIGURE = "the figure of the first screen"
NOT_NEEDED = (r"<!--.*?-->", r"<metadata>.*?</metadata>", r' xmlns(:\w+)?="[^"]*"', r"(?<=>)\s+(?=<)")


def answer_html(run: Run) -> str:
    """A figure with its caption. Drawn once a run, however many points the page tells."""
    if FIGURE not in run.pictures:
        run.pictures[FIGURE] = _drawn(run)
    return run.pictures[FIGURE]


def _drawn(run: Run) -> str:
    from banpick_exp.report.figures.sheet import BESIDE, PHONE

    draw, title = next(iter(answers(run).values())), asked_in_words(run)
    alt = f"{title}. {run.headline} The tables have its numbers."
    both = "".join(inlined(draw(sheet), sheet.name, alt) for sheet in (BESIDE, PHONE))
    return f'<figure class="answer"><figcaption>{escape(title)}</figcaption>{both}</figure>'


def inlined(figure: Any, name: str, alt: str) -> str:
    """A figure as one `<svg>` of class `name`, with ids of its own."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "path", "svg.hashsalt": "banpick"}):
        figure.savefig(buffer, format="svg", dpi=200, facecolor="none", metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    for each in NOT_NEEDED:
        text = re.sub(each, "", text, flags=re.DOTALL)
    text = text.replace("xlink:href", "href")
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    text = re.sub('#[0-9a-f]{6}(?=[;"])', lambda found: _variable(found.group()), text)
    box = re.search(r'viewBox="[^"]*"', text)
    assert box is not None
    head = f'<svg class="{name}" {box.group()} role="img" aria-label="{escape(alt)}">'
    return head + text[text.index(">") + 1 :].strip()


def _variable(colour: str) -> str:
    return f"var(--{COLOURS[colour]})" if colour in COLOURS else colour
