"""Expert usage: what the policy changes, as a difference to stock on one scale, with the key experts marked.

The colour is as opaque as the difference is large, so 0 is the paper itself, in light and in dark.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from banpick_exp.records import PointRecord
from banpick_exp.report.maps import Maps, most_changed
from banpick_exp.report.page.heat_maps import heat_figure, picture
from banpick_exp.report.page.section import Section, by_run_and_maps
from banpick_exp.report.run import Run
from banpick_exp.report.text import in_words

MORE, LESS = (0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)
"""Blue and vermilion of Okabe and Ito: told apart without red and green, on paper and on black."""
UNIT = "of all tokens"


def usage_html(run: Run, maps: Maps) -> str:
    """A map of differences a domain, all on one scale; stock's own usage folded below."""
    if not maps.stock_usage:
        return "<p>Expert usage: these records hold no counters of stock.</p>"
    stock = _stock(maps)
    changed_LE = {
        domain: maps.policy_usage[domain] - stock_LE
        for domain, stock_LE in maps.stock_usage.items()
        if domain in maps.policy_usage and maps.policy_usage[domain].shape == stock_LE.shape
    }
    if maps.policy is None:
        return f"<p>No policy was run beside stock, so there is no difference to draw.</p>{stock}"
    label = escape(in_words(maps.policy.label))
    if not changed_LE:
        return f"<p>The record of {label} holds no counters, so its usage cannot be drawn.</p>{stock}"
    most = max(float(np.abs(change).max()) for change in changed_LE.values()) or 1.0
    keys = {domain: _key_experts(maps.policy, domain, changed_LE[domain].shape) for domain in changed_LE}
    figures = "".join(_difference(domain, change, most, keys[domain]) for domain, change in changed_LE.items())
    changes = "; ".join(f"{escape(domain)}: {', '.join(most_changed(maps, domain))}" for domain in changed_LE)
    marked = " Framed: its key experts, those that it reinforces." if any(keys.values()) else ""
    text = (
        f"How much more or less often <b>{label}</b> ({escape(maps.why)}) selects an expert than stock does, in shares"
        f" {UNIT}, counted inside the engine while it answered the problems.{marked} Changed most: {changes}."
        " Another policy: <code>report RUN --policy LABEL</code>."
    )
    return f'<p>{text}</p>{_legend(most)}<div class="maps pairs">{figures}</div>{stock}'


SECTION = Section(key="usage", title="Expert usage", html=by_run_and_maps(usage_html))


def _difference(domain: str, change_LE: np.ndarray, most: float, keys: Sequence[tuple[int, int]]) -> str:
    at = divmod(int(np.abs(change_LE).argmax()), change_LE.shape[1])
    largest = f"the largest change: layer {at[0]}, expert {at[1]}"
    if keys:
        largest += f"; key experts: {', '.join(f'layer {layer} expert {expert}' for layer, expert in keys[:24])}"
    image = _diverging(change_LE / most)
    title = f"{domain}: policy less stock"
    return (
        heat_figure(change_LE, image, title, UNIT, (-most, most), largest, marks=_marks(change_LE, keys)) + "</figure>"
    )


def _diverging(share_LE: np.ndarray) -> str:
    """A picture of values from -1 to 1, as transparent as they are near 0."""
    from matplotlib.image import imsave

    rgba = np.zeros((*share_LE.shape, 4), dtype=np.uint8)
    rgba[..., :3] = np.where(share_LE[..., None] > 0, MORE, LESS)
    rgba[..., 3] = np.round(255 * np.clip(np.abs(share_LE), 0, 1))
    buffer: Any = io.BytesIO()
    imsave(buffer, rgba, format="png")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _marks(change_LE: np.ndarray, keys: Sequence[tuple[int, int]]) -> str:
    """A frame around each key expert."""
    if not keys:
        return ""
    height, width = change_LE.shape
    path = "".join(f"M{expert} {layer}h1v1h-1z" for layer, expert in keys)
    return (
        f'<svg class="keys" viewBox="0 0 {width} {height}" preserveAspectRatio="none" aria-hidden="true">'
        f'<path d="{path}"/></svg>'
    )


def _key_experts(policy: PointRecord, domain: str, shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """(layer, expert) of those that were reinforced, that the map has a cell for."""
    by_layer: Mapping[str, Sequence[int]] = policy.engagement.key_experts.get(domain, {})
    named = [(int(layer), expert) for layer, experts in by_layer.items() if layer.isdecimal() for expert in experts]
    return sorted((layer, expert) for layer, expert in named if layer < shape[0] and 0 <= expert < shape[1])


def _legend(most: float) -> str:
    less, more = (f"<span>{sign}{100 * most:.2g} points</span>" for sign in "-+")
    return f'<div class="scale both">{less}<i></i>{more}<span>no colour: as often as stock</span></div>'


def _stock(maps: Maps) -> str:
    """Stock's own usage, on one scale for all domains."""
    top = max(float(usage.max()) for usage in maps.stock_usage.values())
    figures = "".join(
        picture(usage, f"{domain}: stock", "share of tokens", (0.0, top)) for domain, usage in maps.stock_usage.items()
    )
    return (
        f'<details class="more"><summary>Stock\'s own usage</summary><div class="maps pairs">{figures}</div></details>'
    )
