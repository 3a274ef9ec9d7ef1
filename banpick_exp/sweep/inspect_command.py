"""`python -m banpick_exp inspect MODEL`: what a checkpoint is, what it takes, and what to type next. Loads nothing.

Of a folder that `export` wrote it says what that holds (`sweep.inspect_export`).
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from banpick_exp.config import suggestion
from banpick_exp.errors import UserError
from banpick_exp.options import Options
from banpick_exp.policy.exported import load
from banpick_exp.policy.exported_files import is_export
from banpick_exp.sweep.compose import Composer, choices
from banpick_exp.sweep.inspect_export import told_of_export
from banpick_exp.sweep.inspect_next import commands, fetches
from banpick_exp.sweep.inspection import ANSWER_TOKENS, RANKS, SETTINGS, Inspection, inspect
from banpick_exp.sweep.price import duration, hours_text
from banpick_exp.sweep.sensible_rules import EAGER, Sense, rules_for

SCHEMA = 1
"""Of --json; a field that changes its meaning is a new one."""
USUAL_CARD = "h100"
WIDTH = 80
LABEL = 12
DESCRIPTION = """\
Says what a mixture-of-experts checkpoint is before anything is loaded: which
layers have experts, how many, how they are chosen, what the weights take on how
many GPUs, whether the hook takes it, which routing rules make sense, what a
calibration costs, and what to type next.

MODEL is a name of conf/model/ (qwen3_30b_a3b), a folder with a config.json, or
the Hub id of a model in conf/model/. Of a folder its config.json and the index of
its weights are read, and the headers of weight files that are there. Of a Hub id
nothing is fetched: its numbers are those that ship with the project.

MODEL may also be a folder that export wrote: then its digests are checked, and it
says which policy that is, for which model, and what was measured.

"hooked" means that vLLM's code for this family builds its experts where the hook
sits: it was read, not run. What the engine does is asked by
    python -m banpick_exp verify model=MODEL
"""
EPILOG = """\
examples:
  python -m banpick_exp inspect qwen3_30b_a3b
  python -m banpick_exp inspect /models/my-moe
  python -m banpick_exp inspect openai/gpt-oss-120b --hardware h200
  python -m banpick_exp inspect mixtral --json
  python -m banpick_exp inspect OUT/                       (an exported policy)

To look at another checkpoint of the Hub, fetch its config alone:
  hf download ID config.json model.safetensors.index.json --local-dir FOLDER
  python -m banpick_exp inspect FOLDER

Exit code: 0 it can be tried, 1 the hook refuses it, 2 it cannot be read.
"""


def run(arguments: list[str]) -> int:
    """Returns 0, or 1 for a checkpoint that the hook refuses. Raises UserError for what cannot be read."""
    typed = _options().parse_args(arguments)
    folder = Path(typed.model).expanduser()
    if is_export(folder):
        if typed.hardware is not None:
            raise UserError(f"--hardware {typed.hardware} means nothing to {folder}, a policy: leave it out.")
        exported = load(folder)
        print(exported.header.content().decode() if typed.json else "\n".join(told_of_export(exported)))
        return 0
    typed.hardware = typed.hardware or USUAL_CARD
    if typed.hardware not in (cards := choices("hardware")):
        raise UserError(
            f"--hardware {typed.hardware} is unknown: nothing could be priced."
            f" {suggestion(typed.hardware, cards, '--hardware ')}Choices: {', '.join(cards)}."
        )
    run_config, _ = Composer().run_config({"hardware": typed.hardware}, {})
    found = inspect(typed.model, run_config.hardware)
    print(json.dumps(plain(found), allow_nan=False) if typed.json else "\n".join(told(found)))
    return 1 if found.hook == "refused" else 0


def help_page() -> str:
    return _options().format_help()


def _options() -> Options:
    parser = Options(prog="python -m banpick_exp inspect", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument(
        "model", metavar="MODEL", help="a name of conf/model/, a folder, a Hub id known there, or a policy"
    )
    parser.add_argument("--hardware", metavar="NAME", help="the card: h100 (the default), h200, a100_80gb")
    parser.add_argument("--json", action="store_true", help="one JSON object, described in docs/models.md")
    return parser


# ------------------------------------------------------------ in words


def told(found: Inspection) -> list[str]:
    """Lines of at most 80 characters; commands are never broken."""
    lines = [f"{found.name}: {found.described.label}", *_field("read", found.source)]
    if found.missing is not None:
        lines += _field("missing", found.missing)
    for note in found.notes:
        lines += _field("note", note)
    lines += ["", *_experts(found), "", *_memory(found), "", *_hook(found)]
    if found.hook == "refused":
        return lines
    return [*lines, "", *_rules(found), "", *_costs(found), "", *_next(found)]


def _field(label: str, text: str) -> list[str]:
    return _wrapped(text, f"{label:<{LABEL}}", " " * LABEL)


def _wrapped(text: str, first: str, then: str) -> list[str]:
    wrapper = textwrap.TextWrapper(WIDTH, first, then, break_long_words=False, break_on_hyphens=False)
    return wrapper.wrap(text)


def _experts(found: Inspection) -> list[str]:
    routing, shape, sizes = found.described.routing, found.shape, found.sizes
    total = found.described.total
    of = f" of {total}" if total and total != shape.num_layers else ""
    which = f": {spans(found.described.layers)}" if found.described.num_layers == shape.num_layers else ""
    lines = _field("MoE layers", f"{shape.num_layers}{of}{which}")
    dense = spans(found.dense) if found.dense and found.described.num_layers == shape.num_layers else "none"
    lines += _field("dense", f"{len(found.dense)} ({dense})" if found.dense else "none")
    shared = f"{routing.shared_experts} always on beside them" if routing.shared_experts else "none shared"
    each = f"{_amount(sizes.expert_bytes)}B each as stored" if sizes.known else "size not said"
    lines += _field("experts", f"{shape.num_experts} a layer (E), {shape.top_k} a token (K), {shared}; {each}")
    scored = routing.scoring or "scores that its config does not name"
    lines += _field("router", f"{routing.kind}, {scored}; weights {_weighed(found)}")
    if not sizes.known:
        return [*lines, *_field("parameters", "unknown: its config does not say how large its layers are")]
    counted = f"{_amount(sizes.parameters)}, of which a token is multiplied with {_amount(sizes.active_parameters)}"
    return [*lines, *_field("parameters", counted)]


def _amount(number: float) -> str:
    """`30.5 G`, `9.4 M`, `24.6 k`."""
    unit, word = next((pair for pair in ((1e9, "G"), (1e6, "M")) if number >= pair[0]), (1e3, "k"))
    return f"{number / unit:,.1f} {word}"


def _weighed(found: Inspection) -> str:
    routing = found.described.routing
    words = {True: "renormalised", False: "not renormalised", None: "renormalised or not: the engine knows"}
    scaled = f", then multiplied by {routing.scaling:g}" if routing.scaling != 1 else ""
    return f"{words[routing.renormalises]}{scaled}"


def spans(numbers: Iterable[int]) -> str:
    """`0, 2-5`.

    >>> spans([0, 2, 3, 4, 5])
    '0, 2-5'
    """
    found: list[list[int]] = []
    for number in sorted(numbers):
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in found)


def _memory(found: Inspection) -> list[str]:
    card = found.hardware
    if not found.sizes.known and not found.weighed:
        return _field("memory", "unknown: its config does not say how large its layers are")
    named = f"weights a GPU in GB, by tensor parallel size (TP), of {card.memory_gb:g} GB ({card.name})"
    undivided = "" if all(map(found.divides, RANKS)) else f"; a dash: {found.heads} attention heads do not divide"
    lines = _field("memory", f"{named}{undivided}; a question mark: were it stored so")
    lines.append(" " * LABEL + f"{'':<16}{'all':>8}" + "".join(f"{f'TP {n}':>8}" for n in RANKS))
    for number, (name, size) in enumerate(found.memory().items()):
        row = f"{name if number == 0 else f'{name}?':<16}{_gb(size):>8}"
        for ranks in RANKS:
            row += f"{_gb(size / ranks) if found.divides(ranks) else '-':>8}"
        lines.append(f"{'as stored' if number == 0 else '':<{LABEL}}{row}")
    least = found.smallest_ranks(found.sizes.weight_bytes)
    fits = (
        f"TP {least} is the smallest that holds it as stored, with room for a cache"
        if least
        else f"no tensor parallel size up to {RANKS[-1]} holds it with room for a cache"
    )
    chosen = found.engine
    stages = f" x PP {chosen.pipeline_parallel_size}" if chosen.pipeline_parallel_size > 1 else ""
    uses = f"TP {chosen.tensor_parallel_size}{stages}" if chosen.gpus else "CPU cores"
    how = found.engine_typed or found.typed
    return [*lines, *_field("fits", f"{fits}. {how} runs it on {uses}.")]


def _gb(size: float) -> str:
    gigabytes = size / 1e9
    return f"{gigabytes:,.0f}" if gigabytes >= 100 else f"{gigabytes:.1f}" if gigabytes >= 0.1 else f"{gigabytes:.3f}"


def _hook(found: Inspection) -> list[str]:
    return _field("hook", f"{found.hook.upper()}: {found.why}")


def _rules(found: Inspection) -> list[str]:
    rules = rules_for(found.shape, found.described.routing, gpu=found.engine.gpus > 0)
    groups: dict[str, list[Sense]] = {}
    for sense in rules:
        groups.setdefault("idle here" if sense.state == "idle" else f"need {sense.needs}", []).append(sense)
    lines: list[str] = []
    for heading in ("need nothing", "need a calibration", "need data of your own", "idle here"):
        if heading in groups:
            lines += _field("" if lines else "rules", f"{heading}: {', '.join(each.rule for each in groups[heading])}")
    if eager := [sense.rule for sense in rules if sense.eager]:
        lines += _field("", f"need {EAGER}: {', '.join(eager)}")
    for sense in rules:
        lines += _item(f"{sense.rule}: {sense.remark}") if sense.remark else []
    return lines


def _item(text: str) -> list[str]:
    indent = " " * LABEL
    return _wrapped(text, f"{indent}- ", f"{indent}  ")


def _costs(found: Inspection) -> list[str]:
    if found.no_costs is not None:
        return _field("calibration", f"none to price: {found.no_costs}")
    on = f"{found.engine.gpus} {found.hardware.name}" if found.engine.gpus else "one core"
    unit = "GPU-hours" if found.engine.gpus else "core-hours"
    lines = _field(
        "calibration",
        f"one domain, {SETTINGS.samples} samples ({SETTINGS.gain_samples} right answers for gain) of {ANSWER_TOKENS}"
        f" tokens, prefill alone, on {on}; rough, a factor of 3 either way",
    )
    lines.append(" " * LABEL + f"{'':<32}{'tokens':>10}{'clock':>10}{unit:>12}")
    for cost in found.costs:
        tokens = f"{cost.tokens / 1e6:,.0f}M"
        row = f"{cost.way:<32}{tokens:>10}{duration(cost.seconds):>10}{hours_text(cost.hours):>12}"
        lines.append(" " * LABEL + row)
    return lines


def _next(found: Inspection) -> list[str]:
    """What to type; a line each, never broken, so that it can be copied."""
    return ["next", *(f"  {command}" for command in (*fetches(found), *commands(found)))]


# ------------------------------------------------------------ as JSON


def plain(found: Inspection) -> dict[str, Any]:
    """The same as plain values."""
    described, routing, sizes, shape = found.described, found.described.routing, found.sizes, found.shape
    quantised = described.quantisation
    return {
        "schema": SCHEMA,
        "name": found.name,
        "typed": found.typed,
        "location": found.location,
        "read": found.source,
        "missing": found.missing,
        "notes": list(found.notes),
        "architectures": list(described.architectures),
        "family": described.family.name,
        "layers": described.total,
        "moe_layers": list(described.layers),
        "num_moe_layers": shape.num_layers,
        "dense_layers": list(found.dense),
        "num_experts": shape.num_experts,
        "top_k": shape.top_k,
        "usual_k_min": shape.usual_k_min,
        "shared_experts": routing.shared_experts,
        "router": {
            "scoring": routing.scoring,
            "renormalises": routing.renormalises,
            "groups": routing.groups,
            "groups_seen": routing.groups_seen,
            "correction_bias": routing.corrected,
            "scaling": routing.scaling,
        },
        "quantisation": None
        if quantised is None
        else {"method": quantised.method, "format": quantised.format, "kernel": quantised.kernel},
        "stored_as": found.stored_as,
        "parameters": sizes.parameters if sizes.known else None,
        "active_parameters": sizes.active_parameters if sizes.known else None,
        "expert_bytes": sizes.expert_bytes if sizes.known else None,
        "hardware": {"name": found.hardware.name, "memory_gb": found.hardware.memory_gb},
        "memory": [
            {
                "format": name,
                "bytes": size,
                "bytes_a_gpu": {str(n): size / n for n in RANKS if found.divides(n)},
                "smallest_tensor_parallel_size": found.smallest_ranks(size),
            }
            for name, size in found.memory().items()
        ],
        "engine": {
            "typed": found.engine_typed,
            "gpus": found.engine.gpus,
            "tensor_parallel_size": found.engine.tensor_parallel_size,
            "pipeline_parallel_size": found.engine.pipeline_parallel_size,
        },
        "hook": {"verdict": found.hook, "why": found.why},
        "rules": [
            {
                "rule": sense.rule,
                "state": sense.state,
                "needs": sense.needs,
                "eager": sense.eager,
                "remark": sense.remark,
            }
            for sense in rules_for(shape, routing, gpu=found.engine.gpus > 0)
        ],
        "calibration": [
            {"way": cost.way, "tokens": cost.tokens, "seconds": cost.seconds, "hours": cost.hours}
            for cost in found.costs
        ],
        "no_calibration": found.no_costs,
        "next": [] if found.hook == "refused" else [*fetches(found), *commands(found)],
    }
