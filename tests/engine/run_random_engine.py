"""An engine of random weights in each dtype of `bench`, one after the other in one process, in miniature."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from banpick_exp.engine.engine import Engine
from banpick_exp.evaluation.bench import rows
from banpick_exp.evaluation.bench.engine import BenchStepper, measure, variants_of
from banpick_exp.evaluation.bench.layer import DTYPES, MEAN_KEPT, BenchDtype
from banpick_exp.evaluation.bench.random_engine import config, open_engine

LAYERS = 2
SMALL = {
    "hidden_size": 128, "moe_intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 32, "num_experts": 32, "num_local_experts": 32,
}  # fmt: skip
ROUNDS, BATCH = 2, 16


def counted(engine: Engine, stepper: BenchStepper) -> dict[str, list[int]]:
    """The tokens that each variant of `bench rows` counts in a step, by row; all rows of an engine that holds one."""
    found = {}
    for each in rows.variants():
        engine.call("banpick_rows", each.follows)
        engine.set_policies(each.policies)
        engine.counters(reset=True)
        stepper.step()
        found[each.label] = [counters.tokens[0] for counters in engine.counters_by_row(reset=True)]
    engine.call("banpick_rows", "own")
    return found


def measured(dtype: BenchDtype) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        engine = open_engine(Path(folder), config(LAYERS) | SMALL, dtype, 1, 64, rows.ROWS)
        stepper = BenchStepper(engine)
        variants = variants_of(stepper, MEAN_KEPT)
        with stepper.decoding_batch(BATCH, (ROUNDS + 1) * len(variants)):
            timed = measure(stepper, variants, ROUNDS, stepper.step)
        stepper.set(("none", "none", {}))  # after stock, whose hook is off and counts nothing
        engine.counters(reset=True)
        engine.generate_ids(stepper.prompts(BATCH, 16), max_tokens=16, ignore_eos=True)
        usage = engine.counters(reset=True).usage
        answers = engine.generate_ids(stepper.prompts(4, 8), max_tokens=16, ignore_eos=True)
        computed = str(engine.llm.llm_engine.vllm_config.model_config.dtype)
        engine.set_policies([rows.POLICIES["none"]] * rows.ROWS)
        own = [number % rows.ROWS for number in range(BATCH)]
        with stepper.decoding_batch(BATCH, (ROUNDS + 2) * len(rows.variants()), rows=own):
            held = rows.measure(stepper, ROUNDS)
            spread = counted(engine, stepper)
        engine.close()
    found = {"held": held, "spread": spread}
    return found | {
        "rows": timed,
        "usage": usage,
        "computed": computed,
        "answers": [list(a.token_ids) for a in answers],
    }


def main(result: Path) -> None:
    result.write_text(json.dumps({dtype: measured(dtype) for dtype in DTYPES}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
