"""Worker methods of the plugin: vLLM mixes this class into its worker, `collective_rpc` calls it on every rank.

Arguments and results are strings, numbers and plain lists: functions and tensors do not travel between vLLM's
processes without the insecure serialisation this project never switches on.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from banpick_exp.policy import build_policy
from banpick_exp.probe import SELF_KL_LIMIT, Candidate, Probe
from banpick_exp.vllm_plugin import HookedLayer, find_layers
from banpick_exp.vllm_plugin.compile_cache import cache_keys
from banpick_exp.vllm_plugin.selftest import FAILED, SHORT, Row, router_rows, stock_row
from banpick_exp.vllm_plugin.selftest_experts import device_name, filler_reason, filler_rows, kernel_of, moe_runners
from banpick_kernels.table import RouterTable


class RoutingExtension:
    """Mixed into vLLM's Worker (`worker_extension_cls`). Every public name starts with `banpick_`."""

    model_runner: Any
    rank: int

    def _banpick_layers(self) -> list[HookedLayer]:
        if not hasattr(self, "_banpick_layer_list"):
            self._banpick_layer_list = find_layers(self.model_runner.model)
            self._banpick_calibrations: dict[str, dict[str, Any]] = {}
        return self._banpick_layer_list

    # ------------------------------------------------------------ start-up

    def banpick_describe(self) -> dict[str, Any]:
        """What this rank hooked: names a MoE layer each, kinds once."""
        layers = self._banpick_layers()
        runners = moe_runners(self.model_runner.model)
        config = self.model_runner.vllm_config.compilation_config
        device = layers[0].tokens_P.device if layers else torch.device("cpu")
        return {
            "rank": self.rank,
            "layers": [layer.name for layer in layers],
            "router": sorted({layer.stock.__name__ for layer in layers}),
            "num_experts": sorted({layer.num_experts for layer in layers}),
            "top_k": sorted({layer.top_k for layer in layers}),
            "experts": sorted({type(kernel_of(runner)).__name__ for runner in runners}),
            "quant_method": sorted({type(runner.routed_experts.quant_method).__name__ for runner in runners}),
            "filler": sorted({layer.filler for layer in layers}),
            "filler_reason": sorted({filler_reason(r, layer) for r, layer in zip(runners, layers, strict=True)}),
            "device": str(device) if layers else "none",
            "device_name": device_name(device),
            "compilation": getattr(config.mode, "name", "NONE"),
            "graphs": getattr(config.cudagraph_mode, "name", "NONE"),
        }

    def banpick_self_test(self) -> list[str]:
        """The short form: what is wrong, nothing where all is well."""
        return [finding for _, status, finding in self._banpick_rows(SHORT) if status == FAILED]

    def banpick_full_test(self) -> list[list[str]]:
        """Every check of a rank by itself, each [check, status, finding]."""
        rows = self._banpick_rows(None)
        return [list(row) for row in [*rows, stock_row(self._banpick_layers())]]

    def _banpick_rows(self, labels: Sequence[str] | None) -> list[Row]:
        layers = self._banpick_layers()
        if not layers:
            return []
        return [*router_rows(layers, labels), *filler_rows(layers, moe_runners(self.model_runner.model))]

    def banpick_cache_keys(self) -> dict[str, str | bool]:
        """See `compile_cache.cache_keys`."""
        return cache_keys(self.model_runner.vllm_config, self.model_runner.model)

    # ------------------------------------------------------------ policy and counters

    def banpick_load_calibration(self, key: str, calibration_json: str) -> None:
        self._banpick_layers()
        self._banpick_calibrations[key] = json.loads(calibration_json)

    def banpick_set_policy(self, name: str, params_json: str, calibration_key: str) -> tuple[str, float]:
        """Write a policy into every layer. Returns the digest of what the device now holds and the seconds it took."""
        start = time.perf_counter()
        layers = self._banpick_layers()
        policy = build_policy(
            name,
            json.loads(params_json),
            num_layers=len(layers),
            num_experts=layers[0].num_experts,
            top_k=layers[0].top_k,
            calibration=self._banpick_calibrations[calibration_key] if calibration_key else None,
        )
        for index, layer in enumerate(layers):
            layer.write(policy.table.layer(index), slots=policy.max_kept)
        seconds = time.perf_counter() - start
        return _digest(layers), seconds

    def banpick_counters(self, reset: bool) -> dict[str, list[Any]]:
        """tokens [L], kept [L], usage [L][E] since the last reset (row 0: there is one policy row for now)."""
        layers = self._banpick_layers()
        counters = {
            "tokens": torch.stack([layer.tokens_P[0] for layer in layers]).tolist(),
            "kept": torch.stack([layer.usage_PE[0].sum() for layer in layers]).tolist(),
            "usage": torch.stack([layer.usage_PE[0] for layer in layers]).tolist(),
        }
        if reset:
            for layer in layers:
                for counter in (layer.tokens_P, layer.usage_PE):
                    counter.zero_()
        return counters

    # ------------------------------------------------------------ calibration

    def banpick_probe_start(
        self,
        sequences: list[list[int]],
        prompt_lengths: list[int],
        candidates: list[list[Any]],
        top_vocab: int,
        range_factor: float,
    ) -> None:
        """Arm the probe: the next forward passes over exactly these sequences are rerun once per candidate."""
        layers = self._banpick_layers()
        model = self.model_runner.model
        observed = layers[0]
        assert observed.observed_weights is None, "a probe is armed already"
        self._banpick_before_probe = [(layer.table.clone(), layer.slots) for layer in layers]
        _apply_candidate(layers, None, range_factor)
        for layer in layers:
            layer.counting = False

        def apply(candidate: Candidate | None) -> None:
            _apply_candidate(layers, candidate, range_factor)
            for layer in layers:
                layer.observed_weights = [] if candidate is None else None

        def observe() -> Tensor:
            weights = [w for layer in layers for w in layer.observed_weights or []]
            return torch.cat([_top_three_share(w) for w in weights]) if weights else torch.empty(0)

        self._banpick_probe = Probe(
            compute_logits=model.compute_logits,
            apply=apply,
            observe=observe,
            sequences=sequences,
            prompt_lengths=prompt_lengths,
            candidates=[(str(kind), int(layer), int(value)) for kind, layer, value in candidates],
            top_vocab=top_vocab,
        )
        self._banpick_probe_handle = model.register_forward_hook(self._banpick_probe, with_kwargs=True)

    def banpick_probe_finish(self) -> dict[str, Any]:
        """Disarm, put the policy back. Mean KL per candidate (nats), its self-check, R's range over tokens and layers.

        Raises RuntimeError when a sequence did not arrive whole in one step, or when the unchanged model differs
        from itself: every score would be noise.
        """
        probe = self._banpick_probe
        self._banpick_probe_handle.remove()
        layers = self._banpick_layers()
        for layer, (values, slots) in zip(layers, self._banpick_before_probe, strict=True):
            layer.write(values, slots=slots)
            layer.counting, layer.observed_weights = True, None
        if probe.seen != probe.expected:
            raise RuntimeError(
                f"calibration saw {probe.seen} of {probe.expected} sequences whole: the others were split "
                f"over steps and would be scored wrongly. Raise engine.max_num_batched_tokens."
            )
        self_kl = probe.self_sum / max(probe.count, 1)
        if not abs(self_kl) <= SELF_KL_LIMIT:
            raise RuntimeError(
                f"calibration: KL of the unchanged model against itself is {self_kl:.2e}, not 0: the engine is not "
                f"deterministic, so influences would be noise. Use engine.compile=false."
            )
        return {
            "kl": [total / max(probe.count, 1) for total in probe.sums_C],
            "self_kl": self_kl,
            "positions": probe.count,
            "ratio_range": list(probe.ratio_range),
        }


def _apply_candidate(layers: list[HookedLayer], candidate: Candidate | None, range_factor: float) -> None:
    """Put every layer back to neutral, then change the one layer the candidate names."""
    for layer in layers:
        neutral = RouterTable.neutral(1, layer.num_experts, layer.top_k, device=layer.tokens_P.device)
        layer.write(neutral.layer(0), slots=layer.top_k)
    if candidate is None:
        return
    kind, index, value = candidate
    layer = layers[index]
    table = RouterTable.neutral(1, layer.num_experts, layer.top_k, device=layer.tokens_P.device).layer(0)
    if kind == "remove":
        table.logit_bias_PE[0, value] = float("-inf")
    elif kind == "insert":
        table.key_PE[0, value] = True
        table.insert_replaces[0] = True
        table.insert_window[0] = min(layer.num_experts, math.floor(range_factor * layer.top_k + 1e-9))  # as in Pick
    elif kind == "limit":
        table.keep[0] = value
    else:
        raise ValueError(f"unknown candidate {kind!r}")
    layer.write(table, slots=value if kind == "limit" else layer.top_k)


def _top_three_share(weights_TK: Tensor) -> Tensor:
    """R = (w1 + w2 + w3) / (w1 + ... + wK) per token: what Ban reads."""
    top = weights_TK.sort(-1, descending=True).values
    return top[:, :3].sum(-1) / top.sum(-1)


def _digest(layers: list[HookedLayer]) -> str:
    digest = hashlib.sha256()
    for layer in layers:
        for field in dataclasses.fields(layer.table):
            digest.update(getattr(layer.table, field.name).cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
