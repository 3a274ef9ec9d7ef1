"""Worker methods that calibrate: watch the unchanged model, compare experts, probe single changes to the routing.

A pass is armed, the engine is asked to run the sequences, and the pass is disarmed: meanwhile no policy is on and
nothing is counted, and afterwards the policy from before is on again.
"""

from __future__ import annotations

from typing import Any

import torch

from banpick_exp.engine.plugin.layer import HookedLayer
from banpick_exp.engine.plugin.observation import Observer, expert_similarity
from banpick_exp.engine.verify.experts import moe_runners
from banpick_exp.engine.worker import RoutingExtension
from banpick_exp.evaluation.calibration.kl_probe import SELF_KL_LIMIT, Candidate, Probe, Suffix
from banpick_kernels.insertion import rank_window
from banpick_kernels.table import RouterTable


class CalibrationExtension(RoutingExtension):
    """Mixed into vLLM's worker in place of `RoutingExtension`; `config.CALIBRATION_WORKER` names it."""

    def _banpick_set_aside(self) -> list[HookedLayer]:
        """The layers, with stock routing and no counting until `_banpick_put_back`."""
        layers = self._banpick_layers()
        assert all(layer.counting for layer in layers), "a calibration pass is armed already"
        self._banpick_before = [(layer.table.clone(), layer.slots, layer.edit) for layer in layers]
        _apply_candidate(layers, None, 1.0)
        for layer in layers:
            layer.counting = False
        return layers

    def _banpick_put_back(self) -> None:
        for layer, (values, slots, edit) in zip(self._banpick_layers(), self._banpick_before, strict=True):
            layer.write(values, slots=slots, edit=edit)
            layer.counting = True

    # ------------------------------------------------------------ the unchanged model

    def banpick_observe_start(self, expected: int, markers: list[int], k_min: int, hidden_states: int) -> None:
        """Watch the next `expected` tokens; `markers` are token ids, `hidden_states` of them are kept a layer."""
        layers = self._banpick_set_aside()
        self._banpick_observer = Observer(
            layers, expected=expected, markers=markers, k_min=k_min, hidden_states=hidden_states
        )
        self._banpick_observer_handle = self.model_runner.model.register_forward_pre_hook(
            self._banpick_observer, with_kwargs=True
        )

    def banpick_observe_finish(self) -> dict[str, Any]:
        """The fields of an `Observation`. The hidden states stay here.

        Raises RuntimeError when other tokens passed than were expected, or past a layer.
        """
        observer = self._banpick_observer
        self._banpick_observer_handle.remove()
        observer.stop()
        self._banpick_put_back()
        if observer.tokens != observer.expected:
            raise RuntimeError(
                f"calibration saw {observer.tokens} tokens, {observer.expected} were sent: some were skipped or "
                f"computed twice, so means over tokens would be wrong. Raise engine.kv_cache_gib, or calibrate fewer "
                f"problems at once: calibration.samples."
            )
        if not (observer.usage_LE.sum(-1) == observer.tokens * observer.top_k).all():
            raise RuntimeError(
                "calibration could not watch every layer: a captured graph runs past it. Use engine.compile=false."
            )
        self._banpick_hidden = [torch.cat(parts) for parts in observer.hidden_L]
        return {
            "tokens": observer.tokens,
            "ratio_range": list(observer.ratio_range),
            "tail_square": [total / max(observer.tokens, 1) for total in observer.tail_square_L],
            "usage": observer.usage_LE.tolist(),
            "marker_tokens": observer.marker_tokens,
            "marker_usage": observer.marker_usage_LE.tolist(),
        }

    def banpick_similarity(self, layer: int) -> list[list[float]]:
        """CKA of each two experts of one layer, [E][E], on the hidden states of the last observation."""
        runner, hooked = moe_runners(self.model_runner.model)[layer], self._banpick_layers()[layer]
        with torch.inference_mode():
            return expert_similarity(runner, hooked, self._banpick_hidden[layer]).tolist()

    # ------------------------------------------------------------ single changes

    def banpick_probe_start(
        self,
        sequences: list[list[int]],
        prompt_lengths: list[int],
        candidates: list[list[Any]],
        top_vocab: int,
        range_factor: float,
    ) -> None:
        """Arm the probe: the next forward passes over exactly these sequences are rerun once per candidate."""
        layers = self._banpick_set_aside()
        model = self.model_runner.model
        changes = [(str(kind), int(layer), int(value)) for kind, layer, value in candidates]
        self._banpick_probe = Probe(
            compute_logits=model.compute_logits,
            apply=lambda candidate: _apply_candidate(layers, candidate, range_factor),
            sequences=sequences,
            prompt_lengths=prompt_lengths,
            candidates=changes,
            top_vocab=top_vocab,
            suffix=Suffix(model, layers[min((layer for _, layer, _ in changes), default=0)].name),
        )
        self._banpick_probe_handle = model.register_forward_hook(self._banpick_probe, with_kwargs=True)

    def banpick_probe_finish(self) -> dict[str, Any]:
        """Disarm. The fields of `ChangeScores`.

        Raises RuntimeError when a sequence did not arrive whole in one step, or when the unchanged model differs
        from itself: every score would be noise.
        """
        probe = self._banpick_probe
        self._banpick_probe_handle.remove()
        self._banpick_put_back()
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
        table.insert_window[0] = rank_window(range_factor, layer.top_k, layer.num_experts)
    elif kind == "limit":
        table.keep[0] = value
    else:
        raise ValueError(f"unknown candidate {kind!r}")
    layer.write(table, slots=value if kind == "limit" else layer.top_k)
