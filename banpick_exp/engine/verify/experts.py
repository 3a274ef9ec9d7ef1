"""Do the expert kernels of this device add nothing for a banned slot? Run through the real weights, on every rank.

Shapes: T tokens, K experts a token, S slots, H hidden size.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.layers.fused_moe.experts.cpu_moe import CPUUnquantizedExperts
from vllm.model_executor.layers.fused_moe.runner.moe_runner_interface import MoERunnerInterface

from banpick_exp.engine.plugin.layer import HookedLayer
from banpick_exp.engine.plugin.skipping import experts_difference, id_type
from banpick_exp.engine.types import FAILED, NOT_APPLICABLE, OK, Check
from banpick_exp.engine.verify.router import TOKENS, routed, trial_logits, trial_policies, under
from banpick_kernels.cpu_dispatch import run_kept

CLAIMS = (
    "a repeated id with weight 0 adds nothing",
    "kept pairs alone give the same sum",
    "id -1 agrees with a repeated id",
)
Difference = Callable[[Any, HookedLayer], float]
"""(vLLM's runner, its layer) -> largest error, in units of the largest output."""


def moe_runners(model: torch.nn.Module) -> list[Any]:
    """vLLM's MoE runners in the order of `find_layers`."""
    return [module for module in model.modules() if isinstance(module, MoERunnerInterface)]


def kernel_of(runner: Any) -> Any:
    """The object that multiplies, or the quantisation method where that does it by itself."""
    method = runner.routed_experts.quant_method
    kernel = getattr(method, "moe_kernel", None)
    return method if kernel is None else kernel.fused_experts


def device_name(device: torch.device) -> str:
    """The model of the processor as its maker calls it."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    capability = torch.backends.cpu.get_cpu_capability()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {capability}, {torch.get_num_threads()} threads"


def filler_reason(runner: Any, layer: HookedLayer) -> str:
    """What a banned slot of this layer costs and why, in one sentence."""
    if layer.tokens_P.device.type == "cpu":
        if _stock_cpu_class(kernel_of(runner)) is not None:
            return "kept pairs alone are computed where copying them pays; a banned slot repeats the first id, weight 0"
        return "these experts compute every slot: a banned one repeats the first id with weight 0"
    return layer.filler_reason.removeprefix(f"{layer.name}: ")  # what `choose_filler` found when the engine started


def _stock_cpu_class(kernel: Any) -> Any:
    """vLLM's class below the one that `experts.keep_pairs_only` made; None where it made none."""
    kind = type(kernel)
    return kind.__base__ if isinstance(kernel, CPUUnquantizedExperts) and kind.__name__.startswith("Kept") else None


def _difference(found: Tensor, wanted: Tensor) -> float:
    """Largest error in units of the largest output; infinite for NaN or where all is zero."""
    error = float((found.float() - wanted.float()).abs().max() / wanted.float().abs().max())
    return error if error < float("inf") else float("inf")


def _hidden(runner: Any, layer: HookedLayer) -> Tensor:
    config = runner.moe_config
    hidden_TH = torch.randn(TOKENS, config.hidden_dim, generator=torch.Generator().manual_seed(1))
    return hidden_TH.to(layer.tokens_P.device, config.in_dtype)


def _dup_difference(runner: Any, layer: HookedLayer) -> float:
    """The first half of the slots kept, the others filled with the first id and weight 0, against that half alone."""
    hidden_TH, half = _hidden(runner, layer), max(1, layer.top_k // 2)
    with under(layer, trial_policies(layer.num_experts, layer.top_k)["none"]):
        weights_TK, ids_TK = routed(layer, trial_logits(layer.num_experts))
        weights_TK, ids_TK = weights_TK.float().clone(), ids_TK.to(id_type(runner)).clone()
        weights_TK[:, half:], ids_TK[:, half:] = 0, ids_TK[:, :1]
        apply = runner.routed_experts.forward_modular
        alone = apply(hidden_TH.clone(), weights_TK[:, :half].contiguous(), ids_TK[:, :half].contiguous())
        return _difference(apply(hidden_TH.clone(), weights_TK, ids_TK), alone)


def _kept_difference(runner: Any, layer: HookedLayer) -> float:
    """The experts as the engine calls them, and with pairs forced, against vLLM's class on the whole rectangle."""
    kernel, experts = kernel_of(runner), runner.routed_experts
    hidden_TH, worst = _hidden(runner, layer), 0.0
    with under(layer, trial_policies(layer.num_experts, layer.top_k)["ban"]):
        weights_TS, ids_TS = routed(layer, trial_logits(layer.num_experts))
    weights_TS, ids_TS = weights_TS.float(), ids_TS.to(id_type(runner))

    def stock(output: Tensor, hidden: Tensor, weights: Tensor, ids: Tensor) -> None:
        stock_class = _stock_cpu_class(kernel)
        where = (experts.activation, experts.global_num_experts, experts.expert_map)
        empty = output.new_empty(0)
        w1, w2 = experts.w13_weight, experts.w2_weight
        stock_class.apply(kernel, output, hidden, w1, w2, weights, ids, *where, None, None, empty, empty, None, False)

    wanted_TH, pairs_TH = torch.empty_like(hidden_TH), torch.full_like(hidden_TH, float("nan"))
    stock(wanted_TH, hidden_TH.clone(), weights_TS, ids_TS)
    run_kept(pairs_TH, hidden_TH.clone(), weights_TS, ids_TS, stock, expert_numbers=1 << 40)
    with under(layer, trial_policies(layer.num_experts, layer.top_k)["ban"]):
        called_TH = experts.forward_modular(hidden_TH.clone(), weights_TS, ids_TS)
    for found_TH in (pairs_TH, called_TH):
        worst = max(worst, _difference(found_TH, wanted_TH))
    return worst


def _skip_difference(runner: Any, layer: HookedLayer) -> float:
    return experts_difference(runner, slots=layer.slots)


def filler_checks(layers: Sequence[HookedLayer], runners: Sequence[Any]) -> list[Check]:
    """Does a banned slot add nothing, through the real weights: as a filler, and as what the kernels skip?"""
    pairs = list(zip(layers, runners, strict=True))
    several = [pair for pair in pairs if pair[0].top_k > 1]
    repeated, alone, skipped = (f"filler: {claim}" for claim in CLAIMS)
    checks = [_filler_check(repeated, _dup_difference, several, "one expert a token: no slot to fill")]
    if layers[0].tokens_P.device.type == "cpu":
        skipping = [(layer, runner) for layer, runner in pairs if _stock_cpu_class(kernel_of(runner)) is not None]
        checks.append(_filler_check(alone, _kept_difference, skipping, "these experts compute every slot"))
        return [*checks, Check(skipped, NOT_APPLICABLE, "not on this device: GPU kernels only")]
    skipping = [(layer, runner) for layer, runner in pairs if layer.filler == "skip"]
    reason = f"no layer skips: {filler_reason(runners[0], layers[0])}"
    checks.append(Check(alone, NOT_APPLICABLE, "not on this device: CPU kernels only"))
    return [*checks, _filler_check(skipped, _skip_difference, skipping, reason)]


def _filler_check(name: str, difference: Difference, pairs: Sequence[tuple[HookedLayer, Any]], otherwise: str) -> Check:
    if not pairs:
        return Check(name, NOT_APPLICABLE, otherwise)
    allowed = 4 * torch.finfo(pairs[0][1].moe_config.in_dtype).eps
    with torch.no_grad():
        found = {layer.name: difference(runner, layer) for layer, runner in pairs}
    problems = [
        f"{layer}: outputs differ by {value:.1e} of the largest"
        for layer, value in found.items()
        if not value <= allowed
    ]
    if problems:
        return Check(name, FAILED, f"{'; '.join(problems)}; {allowed:.1e} is allowed")
    worst = max(found.values())
    finding = f"{len(found)} layers, real weights: within {worst:.1e} of the largest output ({allowed:.1e} is allowed)"
    return Check(name, OK, finding)
