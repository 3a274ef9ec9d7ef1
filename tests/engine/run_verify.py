"""`python -m banpick_exp verify` on this machine, then on an engine that is broken in one way after the other."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prompts import CHECKPOINT, NUM_LAYERS

from banpick_exp.cli.main import run
from banpick_exp.engine.config import EngineConfig
from banpick_exp.engine.engine import Engine, EngineError
from banpick_exp.engine.verify.checks import check_engine
from banpick_exp.evaluation.calibration.config import CALIBRATION_WORKER
from banpick_exp.models.config import ModelConfig

BROKEN = 2
"""The layer that each mutation breaks."""


def hooked(engine: Engine) -> tuple[list[Any], list[Any]]:
    """Layers and vLLM's runners of an engine in this process."""
    from banpick_exp.engine.plugin.hook import find_layers
    from banpick_exp.engine.verify.experts import moe_runners

    core: Any = engine.llm.llm_engine.engine_core
    model = core.engine_core.model_executor.driver_worker.worker.model_runner.model
    return find_layers(model), moe_runners(model)


def written_wrongly(engine: Engine, patch: pytest.MonkeyPatch) -> None:
    """Ban's lambda arrives halved on one layer."""
    layer = hooked(engine)[0][BROKEN]

    def write(values: Any, **named: Any) -> None:
        type(layer).write(layer, values, **named)
        layer.table.ban_lambda.mul_(0.5)

    patch.setattr(layer, "write", write)


def flipped_later(engine: Engine, patch: pytest.MonkeyPatch) -> None:
    """After every swap somebody lets one layer keep two experts."""
    layer, set_policy = hooked(engine)[0][BROKEN], engine.set_policy

    def swap_and_flip(*arguments: Any) -> float:
        seconds = set_policy(*arguments)
        layer.table.keep.fill_(2)
        layer.set_shortcuts(slots=2)
        return seconds

    patch.setattr(engine, "set_policy", swap_and_flip)


def not_counting(engine: Engine, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(hooked(engine)[0][BROKEN], "counting", False)


def usage_lost(engine: Engine, patch: pytest.MonkeyPatch) -> None:
    """One layer counts its tokens, and its experts nowhere."""
    layer = hooked(engine)[0][BROKEN]
    patch.setattr(layer, "count", lambda ids, *_: layer.tokens_P.add_(len(ids) if layer.counts else 0))


def wrong_sum(engine: Engine, patch: pytest.MonkeyPatch) -> None:
    """The experts that leave out banned slots add a tenth too much."""
    kernel = type(hooked(engine)[1][BROKEN].routed_experts.quant_method.moe_kernel.fused_experts)
    apply = kernel.apply

    def too_much(self: Any, output: Any, *arguments: Any, **named: Any) -> None:
        apply(self, output, *arguments, **named)
        output.mul_(1.1)

    patch.setattr(kernel, "apply", too_much)


def filler_weighs(engine: Engine, patch: pytest.MonkeyPatch) -> None:
    """Banned slots of one layer keep a weight."""
    layer = hooked(engine)[0][BROKEN]

    def edited_routing(*arguments: Any) -> Any:
        weights, ids, kept = type(layer).edited_routing(layer, *arguments)
        return weights + 0.01 * ~kept, ids, kept

    patch.setattr(layer, "edited_routing", edited_routing)


def frozen(engine: Engine, patch: pytest.MonkeyPatch) -> None:
    """No swap reaches any layer."""
    for layer in hooked(engine)[0]:
        patch.setattr(layer, "write", lambda values, **named: None)


def sticky(engine: Engine, patch: pytest.MonkeyPatch) -> None:
    """A policy is never taken off one layer again."""
    layer = hooked(engine)[0][BROKEN]

    def write(values: Any, **named: Any) -> None:
        if bool(values.key_PE.any()):
            type(layer).write(layer, values, **named)

    patch.setattr(layer, "write", write)


def layer_missing(engine: Engine, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(engine, "num_layers", NUM_LAYERS + 1)


def a_rank_that_raises(engine: Engine, patch: pytest.MonkeyPatch) -> None:
    """Routing raises: the report must still be made."""

    def route(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no routing today")

    patch.setattr(hooked(engine)[0][BROKEN], "route", route)
    patch.setattr(engine, "score", route)
    patch.setattr(engine, "generate_ids", route)


MUTATIONS: dict[str, Callable[[Engine, pytest.MonkeyPatch], None]] = {
    function.__name__: function
    for function in (
        written_wrongly, flipped_later, not_counting, usage_lost, wrong_sum, filler_weighs, frozen, sticky,
        layer_missing, a_rank_that_raises,
    )
}  # fmt: skip


def broken(engine: Engine, mutation: Callable[[Engine, pytest.MonkeyPatch], None] | None) -> dict[str, Any]:
    """The report's checks by name, and what the short form refuses with."""
    with pytest.MonkeyPatch.context() as patch:
        if mutation is not None:
            mutation(engine, patch)
        checks = {check.name: [check.status, check.finding] for check in check_engine(engine)}
        refusal = ""
        try:
            engine.verify()
        except (EngineError, RuntimeError) as error:
            refusal = f"{type(error).__name__}: {error}"
    engine.set_policy("none", {})
    return {"checks": checks, "refusal": refusal}


def main(result: Path) -> None:
    out, report = io.StringIO(), result.parent / "report.txt"
    with contextlib.redirect_stdout(out):
        code = run(["verify", "--output", str(report)])
    found: dict[str, Any] = {"code": code, "printed": out.getvalue(), "written": report.read_text(encoding="utf-8")}

    # As the command did in this process, or vLLM refuses the second engine.
    engine = Engine(ModelConfig(name="tiny"), CHECKPOINT, EngineConfig(cpus=1), NUM_LAYERS, worker=CALIBRATION_WORKER)
    engine.start()
    found["mutations"] = {name: broken(engine, mutation) for name, mutation in MUTATIONS.items()}
    found["intact"] = broken(engine, None)
    engine.close()
    result.write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
