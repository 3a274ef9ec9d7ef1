"""Measure a calibration on a loaded engine: usage, influence of every expert by every label-free score, sensitivity.

Per domain the model answers the calibration problems greedily (usage is counted over all prefill and decode tokens).
Its own answers then pass once through the unchanged model, which is watched:

    observed_usage      tokens that select an expert, of `observed_tokens`; `marker_usage`, `marker_tokens`: of those
                        that are a marker such as <think> (RICE, arXiv 2505.14681)
    tail_square         mean over tokens of the sum of w_i^2 over the ranks below k_min, w divided by their sum
    similarity          how alike two experts answer the same hidden states (`engine/plugin/observation.py`)

and once per candidate change, which is scored by the KL to the unchanged model:

    removal_kl          KL when the expert's router logit is -inf (arXiv 2509.06346, section 3)
    removal_kl_per_use  removal_kl / (expert's share of tokens); ours: removal KL grows with usage
    insertion_kl        KL when that one expert is inserted by range_replace; ours: sees the under-used experts
    layer_kl            KL when one layer alone keeps k_min experts: Ban's layer sensitivity before scaling
    fisher              2 * layer_kl / tail_square (`fisher_information`)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from banpick_exp.engine.config import EngineConfig
from banpick_exp.engine.engine import Engine, EngineError
from banpick_exp.engine.types import Generation
from banpick_exp.evaluation.calibration import passes
from banpick_exp.evaluation.calibration.arrays import DomainCalibration
from banpick_exp.evaluation.calibration.config import CalibrationConfig
from banpick_exp.evaluation.calibration.kl_probe import Candidate
from banpick_exp.policy import MoeShape
from banpick_exp.tasks.config import TaskConfig
from banpick_exp.tasks.files import CALIBRATION_SPLIT
from banpick_exp.tasks.load import load_problems
from banpick_exp.tasks.problem import Problem

HIDDEN_STATES = 256
"""Tokens a layer on which its experts are compared, evenly spaced over the calibration sequences of a domain."""
RANKS_AGREE = 1e-4
"""Largest difference between the similarities of two ranks: they sum the same partial outputs."""


def calibrate(
    engine: Engine,
    shape: MoeShape,
    task: TaskConfig,
    settings: CalibrationConfig,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    *,
    identity: str | None = None,
) -> dict[str, DomainCalibration]:
    """Measure everything on the loaded engine, opened with `worker=config.CALIBRATION_WORKER`.

    `on_progress(done, total)` counts layers over domains; `identity` is that of the data when it was planned. Policy
    none is on afterwards. Raises UserError for data that changed since.
    """
    problems = load_problems(task, CALIBRATION_SPLIT, settings.samples, identity=identity)
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
    if not any(counters.tokens):
        raise EngineError("no token of the calibration was counted: every share of an expert would be of nothing")
    sequences, prompt_lengths = _sequences(answers)
    k_min = settings.floor(shape)
    seen = _unchanged(engine, shape, sequences, passes.token_ids(engine, settings.markers_of(task)), k_min)
    scores = _influence(engine, shape, settings, sequences, prompt_lengths, on_layer)
    usage_LE, tokens_L = np.array(counters.usage, dtype=np.int64), np.array(counters.tokens, dtype=np.int64)
    share_LE, removal_LE = usage_LE / np.maximum(tokens_L[:, None], 1), scores["removal_kl"]
    per_use_LE = np.divide(removal_LE, share_LE, out=np.zeros_like(removal_LE), where=share_LE > 0)
    return DomainCalibration(
        **seen,
        **scores,
        usage=usage_LE,
        tokens=tokens_L,
        removal_kl_per_use=per_use_LE.astype(np.float32),
        fisher=fisher_information(scores["layer_kl"], seen["tail_square"]),
    )


def _unchanged(
    engine: Engine, shape: MoeShape, sequences: Sequence[Sequence[int]], markers: Sequence[int], k_min: int
) -> dict[str, np.ndarray]:
    """What one pass through the unchanged model shows. Raises EngineError where ranks compare experts differently."""
    seen = passes.observe(engine, sequences, markers=markers, k_min=k_min, hidden_states=HIDDEN_STATES)
    similarity_LEE = np.zeros((shape.num_layers, shape.num_experts, shape.num_experts), dtype=np.float32)
    for layer in range(shape.num_layers):
        similarity_LEE[layer], *others = np.array(passes.similarity(engine, layer), dtype=np.float32)
        for rank, other_EE in enumerate(others, start=1):
            if (worst := np.abs(other_EE - similarity_LEE[layer]).max()) > RANKS_AGREE:
                raise EngineError(f"rank {rank} finds experts of layer {layer} {worst:.1e} more alike than rank 0 does")
    return {
        "observed_usage": np.array(seen.usage, dtype=np.int64),
        "observed_tokens": np.full(shape.num_layers, seen.tokens, dtype=np.int64),
        "marker_usage": np.array(seen.marker_usage, dtype=np.int64),
        "marker_tokens": np.full(shape.num_layers, seen.marker_tokens, dtype=np.int64),
        "tail_square": np.array(seen.tail_square, dtype=np.float32),
        "ratio_range": np.array(seen.ratio_range, dtype=np.float32),
        "similarity": similarity_LEE,
    }


def _influence(
    engine: Engine,
    shape: MoeShape,
    settings: CalibrationConfig,
    sequences: Sequence[Sequence[int]],
    prompt_lengths: Sequence[int],
    on_layer: Callable[[int], None],
) -> dict[str, np.ndarray]:
    """removal_kl and insertion_kl [L,E], layer_kl [L], and the largest self_kl that a probe saw."""
    removal_LE = np.zeros((shape.num_layers, shape.num_experts), dtype=np.float32)
    insertion_LE, layer_kl_L = removal_LE.copy(), np.zeros(shape.num_layers, dtype=np.float32)
    blocks, self_kl = _blocks(sequences, engine.settings), 0.0
    for layer in range(shape.num_layers):
        candidates: list[Candidate] = [
            (kind, layer, expert) for kind in ("remove", "insert") for expert in range(shape.num_experts)
        ]
        candidates.append(("limit", layer, settings.floor(shape)))
        kl_C, positions = np.zeros(len(candidates)), 0
        for block in blocks:
            scores = passes.probe(
                engine,
                [sequences[i] for i in block],
                [prompt_lengths[i] for i in block],
                candidates,
                top_vocab=settings.top_vocab,
                range_factor=settings.range_factor,
            )
            kl_C += np.array(scores.kl) * scores.positions
            positions += scores.positions
            self_kl = max(self_kl, abs(scores.self_kl))
        kl_C /= positions
        removal_LE[layer] = kl_C[: shape.num_experts]
        insertion_LE[layer] = kl_C[shape.num_experts : -1]
        layer_kl_L[layer] = kl_C[-1]
        on_layer(layer + 1)
    return {
        "removal_kl": removal_LE,
        "insertion_kl": insertion_LE,
        "layer_kl": layer_kl_L,
        "self_kl": np.array(self_kl, dtype=np.float32),
    }


def fisher_information(layer_kl_L: np.ndarray, tail_square_L: np.ndarray) -> np.ndarray:
    """H_l = 2 * layer_kl / tail_square, float32 [L], nats; 0 where nothing was dropped.

    AdapMoE (arXiv 2408.10284) weighs a layer by the Fisher information of the loss in the layer's output. Ours, without
    labels and gradients: for a small change d of that output the KL to the unchanged model is 1/2 d^T H d with that
    same H, and this KL is measured when layer l alone drops its tail. The size of d is taken as the dropped weights'
    squares, as in AdapMoE's own threshold: experts' outputs of about one length and at right angles.

    >>> fisher_information(np.array([0.03, 0.0]), np.array([0.02, 0.0])).tolist()
    [3.0, 0.0]
    """
    twice_L = 2 * np.maximum(layer_kl_L, 0)
    return np.divide(twice_L, tail_square_L, out=np.zeros_like(twice_L), where=tail_square_L > 0).astype(np.float32)


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
