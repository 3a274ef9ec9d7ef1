"""Measure a calibration on a loaded engine: usage, influence of every expert by every label-free score, sensitivity.

Per domain the model answers the calibration problems greedily (usage is counted over all prefill and decode tokens),
then the probe reruns its own answers once per candidate change and measures the KL to the unchanged model.

    removal_kl          KL when the expert's router logit is -inf (arXiv 2509.06346, section 3)
    removal_kl_per_use  removal_kl / (expert's share of tokens); ours: removal KL grows with usage
    insertion_kl        KL when that one expert is inserted by range_replace; ours: sees the under-used experts
    layer_kl            KL when one layer alone keeps k_min experts: Ban's layer sensitivity before scaling
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from banpick_exp.answers import Generation
from banpick_exp.calibration import DomainCalibration
from banpick_exp.config import CalibrationConfig, EngineConfig, TaskConfig
from banpick_exp.engine import Engine
from banpick_exp.policy import MoeShape
from banpick_exp.tasks import Problem, load_problems


def calibrate(
    engine: Engine,
    shape: MoeShape,
    task: TaskConfig,
    settings: CalibrationConfig,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, DomainCalibration]:
    """Measure everything on the loaded engine. `on_progress(done, total)` counts layers over domains."""
    problems = load_problems(task, "calibration", settings.samples)
    total = len(problems) * (shape.num_layers + 1)
    result: dict[str, DomainCalibration] = {}
    for index, (domain, items) in enumerate(problems.items()):

        def step(layer: int, start: int = index * (shape.num_layers + 1)) -> None:
            on_progress(start + layer, total)

        result[domain] = _calibrate_domain(engine, shape, task, settings, items, step)
    engine.set_policy("none", {})
    return result


def _calibrate_domain(
    engine: Engine,
    shape: MoeShape,
    task: TaskConfig,
    settings: CalibrationConfig,
    problems: Sequence[Problem],
    on_layer: Callable[[int], None],
) -> DomainCalibration:
    engine.set_policy("none", {})
    engine.counters(reset=True)
    prompts = [p.prompt for p in problems]
    answers = engine.generate(prompts, max_tokens=settings.max_tokens, chat=task.chat_template)
    counters = engine.counters(reset=True)
    sequences, prompt_lengths = _sequences(answers)
    usage_LE = np.array(counters.usage, dtype=np.int64)
    removal_LE = np.zeros((shape.num_layers, shape.num_experts), dtype=np.float32)
    insertion_LE, layer_kl_L = removal_LE.copy(), np.zeros(shape.num_layers, dtype=np.float32)
    k_min = min(settings.k_min, shape.top_k)
    low, high, self_kl = np.inf, -np.inf, 0.0
    for layer in range(shape.num_layers):
        candidates = [(kind, layer, e) for kind in ("remove", "insert") for e in range(shape.num_experts)]
        candidates.append(("limit", layer, k_min))
        kl = np.zeros(len(candidates))
        weight = 0
        for block in _blocks(sequences, engine.settings):
            answer = engine.probe(
                [sequences[i] for i in block],
                [prompt_lengths[i] for i in block],
                candidates,
                top_vocab=settings.top_vocab,
                range_factor=settings.range_factor,
            )
            kl += np.array(answer["kl"]) * answer["positions"]
            weight += answer["positions"]
            low, high = min(low, answer["ratio_range"][0]), max(high, answer["ratio_range"][1])
            self_kl = max(self_kl, abs(answer["self_kl"]))
        kl /= weight
        removal_LE[layer] = kl[: shape.num_experts]
        insertion_LE[layer] = kl[shape.num_experts : -1]
        layer_kl_L[layer] = kl[-1]
        on_layer(layer + 1)
    share_LE = usage_LE / np.maximum(np.array(counters.tokens)[:, None], 1)
    per_use_LE = np.divide(removal_LE, share_LE, out=np.zeros_like(removal_LE), where=share_LE > 0)
    return {
        "usage": usage_LE,
        "tokens": np.array(counters.tokens, dtype=np.int64),
        "removal_kl": removal_LE,
        "removal_kl_per_use": per_use_LE.astype(np.float32),
        "insertion_kl": insertion_LE,
        "layer_kl": layer_kl_L,
        "ratio_range": np.array([low, high], dtype=np.float32),
        "self_kl": np.array(self_kl, dtype=np.float32),
    }


def _sequences(answers: Sequence[Generation]) -> tuple[list[list[int]], list[int]]:
    """Prompt and own answer, without the final eos (its prediction is scored at the last kept token); distinct."""
    unique: dict[tuple[int, ...], int] = {}
    for answer in answers:
        ids = answer.token_ids if answer.truncated else answer.token_ids[:-1]
        unique.setdefault((*answer.prompt_token_ids, *ids), len(answer.prompt_token_ids))
    return [list(s) for s in unique], list(unique.values())


def _blocks(sequences: Sequence[Sequence[int]], engine: EngineConfig) -> list[list[int]]:
    """Indices in groups that fit one engine step: no sequence may be split."""
    blocks: list[list[int]] = [[]]
    size = 0
    for index, sequence in enumerate(sequences):
        if blocks[-1] and (
            size + len(sequence) > engine.max_num_batched_tokens or len(blocks[-1]) == engine.max_num_seqs
        ):
            blocks.append([])
            size = 0
        blocks[-1].append(index)
        size += len(sequence)
    return blocks
