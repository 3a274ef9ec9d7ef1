"""DeepSeek in miniature, in an `Engine` of ours as settings make it, scored beside Transformers."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from miniatures import MINIATURES, build, expected_scores

from banpick_exp.engine.config import EngineConfig
from banpick_exp.engine.engine import Engine
from banpick_exp.engine.latent_attention import cpu_options
from banpick_exp.models.config import ModelConfig
from banpick_exp.models.inspect import EMBEDDED_CHECKPOINT

NAMES = ("deepseek_v2", "deepseek_v3")


def main(result: Path) -> None:
    import torch

    generator = torch.Generator().manual_seed(1)
    sequences = torch.randint(3, 128, (8, 24), generator=generator).tolist()
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in NAMES:
            small, path = MINIATURES[name], Path(folder) / name
            expected = expected_scores(build(small, path), sequences)
            for file in ("tokenizer.json", "tokenizer_config.json"):
                (path / file).write_bytes((EMBEDDED_CHECKPOINT / file).read_bytes())
            model = ModelConfig(name="local", path=str(path), dtype="float32")
            # The attention that vLLM prefers for MLA on CPUs with AMX takes bfloat16 only.
            options = {"attention_backend": "CPU_MLA"}
            engine = Engine(model, str(path), EngineConfig(max_model_len=128), len(small.layers), options)
            engine.start()
            engine.verify()
            found[name] = {"scores": engine.score(sequences), "expected": expected}
            engine.close()
    embedded = ModelConfig(name="tiny")
    result.write_text(json.dumps({"found": found, "embedded": cpu_options(embedded, str(EMBEDDED_CHECKPOINT))}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
