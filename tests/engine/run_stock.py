"""Stock vLLM without the plugin: its answers, and what the engine says when the plugin is not named."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from prompts import CHECKPOINT, NUM_LAYERS, answers_with_logprobs, short_prompts

from banpick_exp.engine.config import EngineConfig
from banpick_exp.engine.engine import Engine, EngineError
from banpick_exp.models.config import ModelConfig


class UnnamedPlugin(Engine):
    """An engine whose environment leaves the plugin out, as a stray setting would."""

    def _environment(self) -> dict[str, str]:
        return super()._environment() | {"VLLM_PLUGINS": ""}


def main(result: Path) -> None:
    engine = UnnamedPlugin(ModelConfig(name="tiny"), CHECKPOINT, EngineConfig(cpus=1), NUM_LAYERS)
    os.environ.update(engine._environment())
    from vllm import LLM

    settings = engine.settings
    stock = LLM(
        model=CHECKPOINT,
        dtype="bfloat16",
        enforce_eager=True,
        max_model_len=settings.max_model_len,
        max_num_seqs=settings.max_num_seqs,
        max_num_batched_tokens=settings.max_num_batched_tokens,
        disable_log_stats=True,
    )
    answers = answers_with_logprobs(stock, short_prompts(100), "")
    hooked = "banpick_exp.engine.plugin" in sys.modules
    stock.llm_engine.engine_core.shutdown()
    engine.start()
    refusal = ""
    try:
        engine.verify()
    except EngineError as error:
        refusal = str(error)
    engine.close()
    result.write_text(json.dumps({"answers": answers, "hooked": hooked, "refusal": refusal}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
