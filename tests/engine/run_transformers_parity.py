"""Engines of miniatures held against Transformers at their start: right ones, and DeepSeek under vLLM's kernel."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

from miniatures import MINIATURES, build

from banpick_exp.cluster.actor import EngineActor
from banpick_exp.engine.config import EngineConfig
from banpick_exp.engine.engine import Engine, EngineError
from banpick_exp.engine.types import RankReport
from banpick_exp.engine.verify import transformers_parity, verdicts
from banpick_exp.engine.verify.checks import check_engine
from banpick_exp.models.config import ModelConfig
from banpick_exp.models.inspect import EMBEDDED_CHECKPOINT
from banpick_exp.sweep.plan import plan_sweep

# The attention that vLLM prefers for MLA on CPUs with AMX takes bfloat16 only.
MLA: dict[str, Any] = {"attention_backend": "CPU_MLA"}
AS_VLLM_HAS_IT: dict[str, Any] = {"compilation_config": {"custom_ops": ["all"]}}
ENGINES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "cured": ("deepseek_v2", "float32", MLA),
    "wrong": ("deepseek_v2", "float32", MLA | AS_VLLM_HAS_IT),
    "wrong in bfloat16": ("deepseek_v2", "bfloat16", AS_VLLM_HAS_IT),
    "qwen3_moe": ("qwen3_moe", "bfloat16", {}),
}
"""Family, format, arguments of vLLM over those of the settings."""


def started(engine: Engine, rank: RankReport) -> dict[str, Any]:
    """The line of a start, what it raised, how often the engine was scored, and whether a verdict is kept."""
    line, error, score = "", "", engine.score
    with mock.patch.object(engine, "score", side_effect=score) as counted:
        try:
            line = transformers_parity.check_at_start(engine, rank)
        except EngineError as refused:
            error = str(refused)
    kept = verdicts.place_of(transformers_parity.facts_of(engine, rank.dtype)).is_file()
    return {"line": line, "error": error, "scored": counted.call_count, "kept": kept}


def as_in_a_sweep(engine: Engine, path: Path) -> str:
    """What the process around an engine refuses it with; it is loaded then."""
    words = ["model=local", f"model.path={path}", "model.dtype=float32", "task=tiny", "engine=tiny", "policy=none"]
    (point,) = plan_sweep([*words, "tracking=none", f"output_dir={path.parent}"]).points
    try:
        EngineActor(point, str(path.parent / "run"), engine).start()
    except EngineError as error:
        return str(error)
    return ""


def main(result: Path) -> None:
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = str(Path(folder) / "cache")
        for name, (family, dtype, options) in ENGINES.items():
            small, path = MINIATURES[family], Path(folder) / family
            if not path.exists():
                build(small, path)
                for file in ("tokenizer.json", "tokenizer_config.json"):
                    (path / file).write_bytes((EMBEDDED_CHECKPOINT / file).read_bytes())
            model = ModelConfig(name="local", path=str(path), dtype=dtype)  # type: ignore[arg-type]
            settings = EngineConfig(max_model_len=128, cpus=1)
            engine = Engine(model, str(path), settings, len(small.layers), options)
            refused = ""
            if name == "wrong":
                refused = as_in_a_sweep(engine, path)
            else:
                engine.start()
            rank = engine.verify()
            found[name] = {"first": started(engine, rank), "second": started(engine, rank)}
            if name == "wrong":
                found[name]["refused"] = refused
                found[name]["rows"] = {check.name: [check.status, check.finding] for check in check_engine(engine)}
            if name == "qwen3_moe":
                engine.settings = settings.model_copy(update={"parity_check": False})
                found["switched off"] = {"first": started(engine, rank)}
            engine.close()
    result.write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
