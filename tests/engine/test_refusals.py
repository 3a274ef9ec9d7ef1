"""Fail closed: what the hook cannot control, it refuses, and says what to do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from banpick_exp.engine.engine import Engine

pytestmark = pytest.mark.engine


@pytest.fixture
def model(tiny_engine: Engine) -> Any:
    return tiny_engine.llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker.model_runner.model


@pytest.fixture
def runner(model: Any) -> Any:
    """The MoE runner of the third layer."""
    from vllm.model_executor.layers.fused_moe.runner.moe_runner_interface import MoERunnerInterface

    return [module for module in model.modules() if isinstance(module, MoERunnerInterface)][2]


def refused(model: Any, match: str) -> None:
    from banpick_exp.engine.plugin.hook import find_layers

    with pytest.raises(RuntimeError, match=match):
        find_layers(model)


def test_all_layers_of_the_running_engine_are_accepted(model: Any) -> None:
    from banpick_exp.engine.plugin.hook import find_layers

    assert [layer.name for layer in find_layers(model)] == [f"model.layers.{i}.mlp.experts" for i in range(4)]


def test_a_runner_that_is_not_hooked(model: Any, runner: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(runner.router, "_banpick_layer")
    monkeypatch.setattr(runner.router, "__class__", type(runner.router).__bases__[0])
    refused(model, r"model\.layers\.2\.mlp\.experts: a \w+ that the plugin did not hook.*OTHER_RUNNERS")


def test_a_monolithic_kernel(model: Any, runner: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = type(runner.routed_experts.quant_method)
    monkeypatch.setattr(kind, "is_monolithic", property(lambda self: True))
    refused(model, r"monolithic and routes by itself.*engine\.moe_backend=triton")


def test_an_unknown_router(model: Any, runner: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner.router._banpick_layer, "stock", type("ZeroExpertRouter", (), {}))
    refused(model, r"layers\.2.*router ZeroExpertRouter cannot be hooked.*CPURouter")


def test_a_router_that_is_none_of_vllms(model: Any, runner: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "router", object())
    refused(model, r"layers\.2.*router object cannot be hooked")


def test_a_custom_routing_function(model: Any, runner: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner.router, "custom_routing_function", lambda **_: None)
    refused(model, r"layers\.2.*custom function cannot be reproduced")


def test_an_unknown_scoring(model: Any, runner: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner.router, "scoring_func", "sqrtsoftplus")
    refused(model, r"routing by 'sqrtsoftplus'.*Supported scoring: sigmoid, softmax")


def test_a_router_that_changed_after_it_was_hooked(model: Any, runner: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner.router, "renormalize", not runner.router.renormalize)
    refused(model, r"layers\.2.*when it was hooked and is .*renormalize=False.* now")


@pytest.fixture
def other_layer_count(tiny_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(tiny_engine, "num_layers", 5)
    yield


def test_verify_refuses_a_model_with_unhooked_layers(tiny_engine: Engine, other_layer_count: None) -> None:
    from banpick_exp.engine.engine import EngineError

    with pytest.raises(
        EngineError,
        match=r"4 of 5 MoE layers are hooked\. .*wrong.*would ignore every policy.*type model\.num_layers=4",
    ):
        tiny_engine.verify()


def test_verify_refuses_a_router_unlike_its_reference(
    tiny_engine: Engine, runner: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from banpick_exp.engine.engine import EngineError

    monkeypatch.setattr(runner.router._banpick_layer.stock, "_compute_routing", _renormalising_router)
    with pytest.raises(EngineError, match=r"self-test failed: model\.layers\.\d.*(weights differ|other experts)"):
        tiny_engine.verify()


def _renormalising_router(self: Any, hidden: Any, logits: Any, indices_type: Any, *, input_ids: Any = None) -> Any:
    """A future router that ranks backwards."""
    weights, ids = logits.softmax(-1).topk(self.top_k, largest=False)
    return weights, ids.int()


def test_verify_refuses_when_tokens_are_not_counted(
    tiny_engine: Engine, runner: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from banpick_exp.engine.engine import EngineError

    monkeypatch.setattr(runner.router._banpick_layer, "counting", False)
    with pytest.raises(EngineError, match=r"a probe of 5 tokens was counted as \[5, 5, 0, 5\] per layer"):
        tiny_engine.verify()


def test_the_engine_still_verifies_after_these_tests(tiny_engine: Engine) -> None:
    assert len(tiny_engine.verify().layers) == 4


def test_work_before_start_is_refused() -> None:
    from banpick_exp.engine.config import EngineConfig
    from banpick_exp.engine.engine import Engine, EngineError
    from banpick_exp.models.config import ModelConfig

    engine = Engine(ModelConfig(name="tiny"), "nowhere", EngineConfig(cpus=1), 4)
    with pytest.raises(EngineError, match=r"not started: call start\(\)"):
        engine.set_policy("none", {})
    engine.close()


def test_a_bad_policy_changes_nothing(tiny_engine: Engine) -> None:
    from banpick_exp.errors import UserError

    tiny_engine.set_policy("fixed_k", {"k": 3})
    before = tiny_engine.policy_fingerprint
    for name, params in (("fixed_k", {"k": 33}), ("pick", {"mode": "range_add", "experts": {7: [1]}}), ("banana", {})):
        with pytest.raises(UserError):
            tiny_engine.set_policy(name, params)
    assert tiny_engine.policy_fingerprint == before
    tiny_engine.counters(reset=True)
    tiny_engine.generate_ids([[10, 11, 12]], max_tokens=1, salt="bad policy")
    assert tiny_engine.counters(reset=True).mean_kept == 3
