"""Sixteen policies in one batch: eager, compiled, in chunks and preempted, on two ranks; and each policy alone."""

from __future__ import annotations

import dataclasses
import json
import random
import sys
from pathlib import Path
from typing import Any

from disagreeing import BROKEN
from parity_policies import CALIBRATED, CALIBRATION, POLICIES
from prompts import CHECKPOINT, MAX_TOKENS, NUM_LAYERS, long_prompts, short_prompts

from banpick_exp.engine.config import EngineConfig
from banpick_exp.engine.contrast import Contrast, contrasted_ids
from banpick_exp.engine.engine import Engine, EngineError, PolicyOfRow
from banpick_exp.evaluation.calibration.config import CALIBRATION_WORKER
from banpick_exp.evaluation.demand.record import Replay, record
from banpick_exp.evaluation.demand.sums import Asked
from banpick_exp.models.config import ModelConfig
from banpick_exp.policy import Calibration

KEY = "hand made"
LABELS = [*POLICIES, "fixed_k 7"]
HELD: list[PolicyOfRow] = [
    (name, params, KEY if name in CALIBRATED else "")
    for name, params in [*POLICIES.values(), ("fixed_k", {"k": 7})]
]  # fmt: skip
ADDED = 2
"""Experts that the widest of them keeps beyond top_k."""
SHORT, LONG = 5, 3
"""Prompts that each policy answers."""
CROSSING = 120
"""Tokens of a long prompt: its answer goes over into a second block of the KV cache."""

Tokens = list[list[int]]
Pairs = list[tuple[int, list[int]]]


def start(rows: int, worker: str = CALIBRATION_WORKER, **settings: Any) -> Engine:
    config = EngineConfig(cpus=1, **{"max_model_len": 256, "kv_cache_blocks": 512, **settings})
    model = ModelConfig(name="tiny", dtype="float32")
    engine = Engine(model, CHECKPOINT, config, NUM_LAYERS, rows=rows, worker=worker)
    engine.start()
    engine.verify()
    engine.load_calibration(KEY, Calibration.model_validate(CALIBRATION))
    return engine


def prompts(engine: Engine) -> Tokens:
    return engine.tokenize([*short_prompts(SHORT), *(text[-CROSSING:] for text in long_prompts(LONG))])


def shuffled(sequences: Tokens) -> Pairs:
    """Every prompt under every policy, in an order in which neighbours differ."""
    pairs = [(row, sequence) for sequence in sequences for row in range(len(HELD))]
    random.Random(0).shuffle(pairs)
    return pairs


def alone(engine: Engine, sequences: Tokens) -> list[dict[str, Any]]:
    """What each policy answers and counts by itself."""
    found = []
    for policy in HELD:
        engine.set_policy(*policy)
        found.append(asked(engine, [(0, sequence) for sequence in sequences])[0])
    return found


def asked(engine: Engine, pairs: Pairs, salt: str = "") -> list[dict[str, Any]]:
    """What each row answers, in the order of the prompts, and counts, when all are asked at once."""
    engine.counters(reset=True)
    given: dict[str, Any] = {"max_tokens": MAX_TOKENS, "salt": salt, "ignore_eos": True}
    answers = engine.generate_ids([ids for _, ids in pairs], rows=[row for row, _ in pairs], **given)
    found = []
    for row, counters in enumerate(engine.counters_by_row(reset=True)):
        own = sorted((ids, answer.token_ids) for (of, ids), answer in zip(pairs, answers, strict=True) if of == row)
        found.append({"answers": [list(answer) for _, answer in own], **dataclasses.asdict(counters)})
    return found


def demanded(engine: Engine, sequences: Tokens) -> list[dict[str, Any]]:
    """What each policy demands on the prompts, the second half of each as its answer."""
    asked, found = Asked(windows=(1, 8, 32), caches=(4, 8), batches=(1, 3)), []
    replays = [Replay(tuple(ids), len(ids) // 2) for ids in sequences]
    for policy in HELD:
        engine.set_policy(*policy)
        found.append(record(engine, replays, asked).plain())
    return found


def preempted(engine: Engine) -> list[str]:
    """The requests that are preempted from now on."""
    scheduler = engine.llm.llm_engine.engine_core.engine_core.scheduler
    names, preempt = [], scheduler._preempt_request

    def counted(request: Any, *arguments: Any, **named: Any) -> Any:
        names.append(request.request_id)
        return preempt(request, *arguments, **named)

    scheduler._preempt_request = counted
    return names


def refusal(act: Any) -> str:
    try:
        act()
    except (EngineError, RuntimeError) as error:
        return str(error)
    return ""


def one_policy() -> dict[str, Any]:
    engine = start(1)
    sequences = prompts(engine)
    found: dict[str, Any] = {"alone": alone(engine, sequences), "tokens": sum(map(len, sequences))}
    engine.set_policy(*HELD[0])
    found["plain"] = [list(answer.token_ids) for answer in engine.generate_ids(sequences, max_tokens=MAX_TOKENS)]
    found["fingerprints"] = []
    for policy in HELD:
        engine.set_policy(*policy)
        found["fingerprints"].append(engine.policy_fingerprint)
    found["too_many"] = refusal(lambda: engine.set_policies(HELD[:2]))
    found["demanded"] = demanded(engine, sequences)
    engine.close()
    return found


def eager() -> dict[str, Any]:
    engine = start(len(HELD))
    sequences = prompts(engine)
    pairs = shuffled(sequences)
    found: dict[str, Any] = {"swap_seconds": sorted(engine.set_policies(HELD) for _ in range(5))[2]}
    found["fingerprints"] = engine.policy_fingerprints
    found["contrasted"] = contrasted(engine)
    found["mixed"], found["again"] = asked(engine, pairs), asked(engine, pairs)
    found["turned"] = turned(engine, pairs)
    found["no_such_row"] = refusal(lambda: engine.generate_ids(sequences[:1], max_tokens=2, rows=[len(HELD)]))
    engine.set_policies(HELD)
    engine.policy_fingerprints = ["one salt for all"] * len(HELD)
    long = [[*ids, *ids[:50]] for ids in sequences[-LONG:]]
    found["leak"] = asked(engine, shuffled(long))
    engine.set_policies(HELD)
    found["no_leak"] = asked(engine, shuffled(long))
    found["long_alone"] = alone(engine, long)
    found["row_0"] = alone(engine, sequences)
    runner = engine.llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker.model_runner
    engine.set_policies(HELD)
    asked(engine, pairs[:40], salt="and then a dummy run")
    rows = engine_rows(engine)
    found["rows_of_the_last_step"] = rows.row_T.tolist()
    runner._dummy_run(32)
    found["rows_of_a_dummy_run"] = rows.row_T.tolist()
    found["not_held"] = refusal(lambda: unchecked(engine, sequences[0], len(HELD)))
    engine.close()
    return found


def contrasted(engine: Engine) -> list[list[int]]:
    """Answers by the contrast of the first policy with another, as far from it as makes a difference."""
    weak = LABELS.index("fixed_k 1")
    answers = contrasted_ids(engine, prompts(engine), Contrast(beta=3.0, weak_row=weak), max_tokens=MAX_TOKENS)
    return [list(answer.token_ids) for answer in answers]


def engine_rows(engine: Engine) -> Any:
    """The `TokenRows` of an engine in this process."""
    from banpick_exp.engine.plugin.hook import find_layers

    worker = engine.llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker
    return find_layers(worker.model_runner.model)[0].token_rows


def turned(engine: Engine, pairs: Pairs) -> list[dict[str, Any]]:
    """The same policies in other rows, answers and counters put back in their order."""
    last = len(HELD) - 1
    engine.set_policies(HELD[::-1])
    found = asked(engine, [(last - row, ids) for row, ids in pairs], salt="turned")
    engine.set_policies(HELD)
    return found[::-1]


def unchecked(engine: Engine, ids: list[int], row: int) -> None:
    """A request that names a row past the checks of `Engine`, as a server's client may."""
    from vllm import SamplingParams

    parameters = SamplingParams(temperature=0.0, max_tokens=2, extra_args={"routing_row": row})
    engine.llm.generate([{"prompt_token_ids": ids}], parameters, use_tqdm=False)


def tight() -> dict[str, Any]:
    """Steps of 96 tokens cut prompts in chunks, and blocks for fewer requests than run at once."""
    engine = start(len(HELD), max_num_batched_tokens=96, max_num_seqs=64, kv_cache_blocks=12)
    names = preempted(engine)
    engine.set_policies(HELD)
    sequences = prompts(engine)
    mixed = asked(engine, shuffled(sequences))
    found = {"mixed": mixed, "preemptions": len(names), "demanded": demanded(engine, sequences)}
    engine.close()
    return found


def compiled() -> dict[str, Any]:
    engine = start(len(HELD), compile=True, extra_slots=ADDED, max_num_batched_tokens=2048)
    engine.set_policies(HELD)
    found: dict[str, Any] = {"mode": int(engine.llm.llm_engine.vllm_config.compilation_config.mode)}
    sequences = prompts(engine)
    pairs = shuffled(sequences)
    found |= {"mixed": asked(engine, pairs), "turned": turned(engine, pairs)}
    found["demanded"] = demanded(engine, sequences)
    engine.close()
    return found


def tensor() -> dict[str, Any]:
    parallel = {"tensor_parallel_size": 2, "distributed_executor_backend": "mp"}
    engine = start(len(HELD), worker="disagreeing.Disagreeing", **parallel)
    engine.set_policies(HELD)
    found: dict[str, Any] = {"mixed": asked(engine, shuffled(prompts(engine)))}
    found["by_rank"] = engine.call("banpick_counters_by_row", False)
    found["contrasted"] = contrasted(engine)
    found["demanded"] = demanded(engine, prompts(engine))  # it leaves one policy on
    found["disagreeing"] = refusal(lambda: engine.set_policies([("none", {}), BROKEN]))
    engine.close()
    return found


def main(result: Path) -> None:
    engines = {"one": one_policy, "eager": eager, "tight": tight, "compiled": compiled, "tensor": tensor}
    wanted = sys.argv[2:] or list(engines)
    result.write_text(json.dumps({name: engines[name]() for name in wanted}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
