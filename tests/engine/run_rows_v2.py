"""vLLM's V2 model runner on a CPU, its Triton kernels interpreted: sixteen policies in one batch, in chunks, preempted.

A process of its own. vLLM 0.32 has this runner for CPUs (`v1/worker/cpu/model_runner.py`), for a Triton with a CPU
backend; the interpreter does in its place. The runner, its model state, its request slots, batches and sampler are the
installed ones, and so are the engine and the scheduler around them. What is not there: a device, captured graphs, a
scheduler that is a step ahead.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import triton
import triton.language
import vllm.triton_utils as triton_utils

# vLLM's CPU wheel puts placeholders where Triton has no driver; the interpreter needs none.
triton_utils.triton, triton_utils.tl, triton_utils.HAS_TRITON = triton, triton.language, True

from parity_policies import CALIBRATION  # noqa: E402
from prompts import CHECKPOINT, NUM_LAYERS, long_prompts, short_prompts  # noqa: E402
from run_rows import HELD, KEY, Pairs, Tokens, engine_rows, preempted, refusal, shuffled  # noqa: E402

from banpick_exp.engine.config import EngineConfig  # noqa: E402
from banpick_exp.engine.engine import Engine  # noqa: E402
from banpick_exp.engine.plugin.model_runners import follow, leave, read_all_as_first  # noqa: E402
from banpick_exp.engine.stepping import Stepper  # noqa: E402
from banpick_exp.models.config import ModelConfig  # noqa: E402
from banpick_exp.policy import Calibration  # noqa: E402

LENGTHS = {"short": 4, "long": 6}
"""Tokens of an answer, by the kind of its prompt."""
CROSSING = 126
"""Tokens of a long prompt: its answer goes over into a second block of the KV cache."""
CHUNK, BLOCKS = 96, 7
"""Tokens of a step, fewer than a long prompt has; blocks of the KV cache, fewer than the long requests of a moment."""


def start(rows: int, runner: str, **settings: Any) -> Engine:
    config = EngineConfig(cpus=1, max_model_len=256, **settings).model_copy(update={"model_runner": runner})
    engine = Engine(ModelConfig(name="tiny", dtype="float32"), CHECKPOINT, config, NUM_LAYERS, rows=rows)
    engine.start()
    if runner == "v2":
        engine.verify()
    engine.load_calibration(KEY, Calibration.model_validate(CALIBRATION))
    return engine


def prompts(engine: Engine) -> dict[str, Tokens]:
    return {
        "short": engine.tokenize(short_prompts(1)),
        "long": engine.tokenize([text[-CROSSING:] for text in long_prompts(1)]),
    }


def asked(engine: Engine, pairs: Pairs, kind: str) -> list[dict[str, Any]]:
    """What each row answers and counts when all are asked at once."""
    engine.counters(reset=True)
    ids, rows = [ids for _, ids in pairs], [row for row, _ in pairs]
    answers = engine.generate_ids(ids, rows=rows, max_tokens=LENGTHS[kind], salt="", ignore_eos=True)
    found = []
    for row, counters in enumerate(engine.counters_by_row(reset=True)):
        own = [list(answer.token_ids) for of, answer in zip(rows, answers, strict=True) if of == row]
        found.append({"answers": own, **dataclasses.asdict(counters)})
    return found


def alone() -> dict[str, Any]:
    """The truth: what each policy answers and counts by itself, on an engine that holds one, with the V1 runner."""
    engine = start(1, "v1", kv_cache_blocks=BLOCKS)
    found: dict[str, list[Any]] = {}
    for kind, sequences in prompts(engine).items():
        found[kind] = []
        for policy in HELD:
            engine.set_policy(*policy)
            found[kind] += asked(engine, [(0, sequence) for sequence in sequences], kind)
    engine.close()
    return found


def mixed() -> dict[str, Any]:
    engine = start(len(HELD), "v2", kv_cache_blocks=BLOCKS, max_num_batched_tokens=CHUNK, max_num_seqs=16)
    runner = runner_of(engine)
    found: dict[str, Any] = {"runner": f"{type(runner).__module__}: {type(runner).__base__.__module__}"}
    names = preempted(engine)
    engine.set_policies(HELD)
    for kind, sequences in prompts(engine).items():
        found[kind] = asked(engine, shuffled(sequences), kind)
        found[f"preempted, {kind}"] = len(names)
    with watched(engine) as steps:
        found |= requests_come_and_go(engine)
    found["steps"] = steps
    found["another vLLM"] = another_vllm(engine)
    engine.close()
    return found


def core_of(engine: Engine) -> Any:
    return engine.llm.llm_engine.engine_core.engine_core


def runner_of(engine: Engine) -> Any:
    return core_of(engine).model_executor.driver_worker.worker.model_runner


@contextmanager
def watched(engine: Engine) -> Iterator[list[dict[str, Any]]]:
    """Every step just before its forward pass: what `row_T` holds against what the scheduler knows of the requests.

    Where tokens stand is read from the batch's tensors, as the attention kernels read it.
    """
    runner, steps = runner_of(engine), []
    forward, token_rows, slots = runner.model.forward, engine_rows(engine), runner.model_state.banpick_slots
    last: list[Any] = [None]

    def spied(*arguments: Any, **named: Any) -> Any:
        batch, wanted = last[0], [0] * len(token_rows.row_T)
        known = core_of(engine).scheduler.requests
        real = batch.req_ids[0] in known
        bounds = batch.query_start_loc.tolist()
        for place, name in enumerate(batch.req_ids if real else ()):
            row = (known[name].sampling_params.extra_args or {}).get("routing_row", 0)
            wanted[bounds[place] : bounds[place + 1]] = [row] * (bounds[place + 1] - bounds[place])
        steps.append(
            {
                "real": real,
                "read": token_rows.followed and slots.read_S is slots.named_S,
                "right": token_rows.row_T.tolist() == wanted,
                "present": list(token_rows.present) == sorted({*wanted[: batch.num_tokens]}),
                "tokens": token_rows.tokens == (batch.num_tokens if real else 0),
                "slots": batch.idx_mapping.tolist(),
                "requests": batch.req_ids,
                "lengths": batch.num_scheduled_tokens.tolist(),
                "rows": sorted(set(wanted)),
            }
        )
        return forward(*arguments, **named)

    runner.model.forward = spied
    prepare_attention = runner.model_state.prepare_attn  # given the batch of real and dummy runs, and not ours

    def kept(input_batch: Any, *arguments: Any, **named: Any) -> Any:
        last[0] = input_batch
        return prepare_attention(input_batch, *arguments, **named)

    runner.model_state.prepare_attn = kept
    yield steps
    del runner.model.forward, runner.model_state.prepare_attn


def requests_come_and_go(engine: Engine) -> dict[str, Any]:
    """Requests of all lengths are added, end, are aborted and take each other's slots, with dummy runs in between."""
    stepper, runner, rows = Stepper(engine), runner_of(engine), engine_rows(engine)
    engine.set_policies(HELD)

    def add(*asked: tuple[int, int, int]) -> list[str]:
        """Row, tokens of the prompt, tokens of the answer."""
        return [
            stepper.add([[10 + (7 * length + i) % 80 for i in range(length)]], max_tokens=answer, rows=[row])[0]
            for row, length, answer in asked
        ]

    def step(count: int) -> None:
        for _ in range(count):
            stepper.step()

    first = add((3, 30, 9), (0, 4, 2), (7, 50, 12), (12, 9, 3), (1, 20, 12), (15, 3, 12))
    step(3)
    runner._dummy_run(16)
    found: dict[str, Any] = {"a dummy run": [rows.row_T.unique().tolist(), list(rows.present), rows.tokens]}
    step(1)
    engine.llm.llm_engine.abort_request([first[0], first[4]])
    add((5, 70, 3), (9, 70, 4), (0, 1, 8), (2, 12, 5), (14, 6, 6))
    step(2)
    found["a captured graph's inputs"] = captured(runner, rows)
    leave(runner, rows)
    add((11, 40, 5), (6, 2, 7))  # requests that come while nobody fills the rows are remembered all the same
    step(1)
    follow(runner, rows)
    step(2)
    read_all_as_first(runner, True)
    stepper.step()
    found["all as of row 0"] = [rows.row_T.unique().tolist(), list(rows.present)]
    read_all_as_first(runner, False)
    step(1)
    found["not the tokens that were scheduled"] = other_tokens(runner)
    while engine.llm.llm_engine.has_unfinished_requests():
        stepper.step()
    stepper.step()  # what has finished is taken out in the step after
    found["left"] = runner.model_state.banpick_slots.named_S.tolist()
    return found


def captured(runner: Any, rows: Any) -> list[Any]:
    runner.model_state.prepare_dummy_inputs(2, 8)
    return [rows.row_T.unique().tolist(), list(rows.present), rows.tokens]


def other_tokens(runner: Any) -> str:
    """What is said of a batch that lost a token on its way."""
    from vllm.v1.worker.gpu.input_batch import InputBatch

    name, slot = next(iter(runner.req_states.req_id_to_index.items()))
    made = InputBatch.make_dummy(1, 4, runner.input_buffers)
    made.req_ids, made.idx_mapping_np[0], made.num_tokens = [name], slot, 3
    return refusal(lambda: runner.model_state.prepare_inputs(made, runner.req_states))


def another_vllm(engine: Engine) -> dict[str, str]:
    """What is said where the runner has changed."""
    runner, rows = runner_of(engine), engine_rows(engine)
    state, found = runner.model_state, {}
    leave(runner, rows)
    state.prepare_inputs = lambda batch: {}
    found["other parameters"] = refusal(lambda: follow(runner, rows))
    del state.prepare_inputs
    del runner.req_states.req_id_to_index
    found["no names"] = refusal(lambda: follow(runner, rows))
    return found


def main(result: Path) -> None:
    result.write_text(json.dumps({"alone": alone(), "mixed": mixed()}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
