"""Worker methods that calibrate: watch the unchanged model, compare experts, probe single changes to the routing.
And one that records which experts a policy demands: all engines of a process have one worker class.

A pass is armed, the engine is asked to run the sequences, and the pass is disarmed: meanwhile no policy is on and
nothing is counted, and afterwards the policy from before is on again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from banpick_exp.engine.plugin.layer import HookedLayer
from banpick_exp.engine.plugin.observation import Observer
from banpick_exp.engine.plugin.outputs import expert_outputs
from banpick_exp.engine.plugin.recording import Recorder
from banpick_exp.engine.verify.experts import moe_runners
from banpick_exp.engine.worker import RoutingExtension
from banpick_exp.evaluation.calibration.probe import SELF_LIMIT, Candidate, Judging, Probe, Scored
from banpick_exp.evaluation.calibration.reach import Reach
from banpick_exp.evaluation.calibration.suffix import Suffix
from banpick_exp.evaluation.demand.sums import Asked, Sums, layer_sums
from banpick_kernels.insertion import rank_window
from banpick_kernels.layer_hooks import LayerEdit
from banpick_kernels.table import LayerTable, RouterTable


class CalibrationExtension(RoutingExtension):
    """Mixed into vLLM's worker in place of `RoutingExtension`; `config.CALIBRATION_WORKER` names it."""

    def _banpick_set_aside(self) -> list[HookedLayer]:
        """The layers, with stock routing and no counting until `_banpick_put_back`."""
        layers = self._banpick_layers()
        assert all(layer.counting for layer in layers), "a calibration pass is armed already"
        self._banpick_before = [(layer.table.clone(), layer.slots, layer.edit) for layer in layers]
        for layer in layers:
            layer.write(_neutral(layer), slots=layer.top_k)
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
        model = self.model_runner.model
        self._banpick_observer = Observer(
            model, layers, expected=expected, markers=markers, k_min=k_min, hidden_states=hidden_states
        )

    def banpick_observe_finish(self) -> dict[str, Any]:
        """The fields of an `Observation`. What was kept for `banpick_expert_outputs` stays here.

        Raises RuntimeError when other tokens passed than were expected, or past a layer.
        """
        observer = self._banpick_observer
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
        self._banpick_kept = observer.kept()
        return {
            "tokens": observer.tokens,
            "ratio_range": list(observer.ratio_range),
            "ratio_median": observer.ratio_median(),
            "tail_square": [total / max(observer.tokens, 1) for total in observer.tail_square_L],
            "usage": observer.usage_LE.tolist(),
            "marker_tokens": observer.marker_tokens,
            "marker_usage": observer.marker_usage_LE.tolist(),
        }

    def banpick_expert_outputs(self, layer: int, k_min: int) -> dict[str, Any]:
        """The fields of an `ExpertOutputs` of one layer, as this rank finds them, on what the last observation kept."""
        runner, layers = moe_runners(self.model_runner.model)[layer], self._banpick_set_aside()
        try:
            with torch.inference_mode():
                return expert_outputs(runner, layers[layer], self._banpick_kept[layer], k_min=k_min)
        finally:
            self._banpick_put_back()

    # ------------------------------------------------------------ single changes

    def banpick_probe_start(
        self, sequences: list[list[Any]], candidates: list[list[Any]], judging: dict[str, Any]
    ) -> None:
        """Arm the probe: the next forward passes over exactly these sequences are rerun once per candidate."""
        layers = self._banpick_set_aside()
        model = self.model_runner.model
        changes = [Candidate(str(change), int(layer), int(value)) for change, layer, value in candidates]
        asked = Judging(**judging)
        changed = sorted({change.layer for change in changes})
        begins = {layer: layers[layer].name for layer in changed if asked.shortcuts != "none"}
        self._banpick_probe = Probe(
            compute_logits=model.compute_logits,
            apply=_Changes(layers, asked),
            sequences=[Scored(*sequence) for sequence in sequences],
            candidates=changes,
            judging=asked,
            layers=len(layers),
            suffix=Suffix(model, begins),
            reach=Reach(layers, changed if asked.shortcuts == "all" else [], asked),
        )
        self._banpick_probe_handle = model.register_forward_hook(self._banpick_probe, with_kwargs=True)

    def banpick_probe_finish(self) -> dict[str, Any]:
        """Disarm. The fields of `Changed`.

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
        itself = probe.self_sum / max(sum(probe.positions_S), 1)
        if not itself <= SELF_LIMIT:
            raise RuntimeError(
                f"calibration: the unchanged model is {itself:.2e} nats from itself, not 0: the engine is not "
                f"deterministic, so influences would be noise. Use engine.compile=false."
            )
        return {
            "values": probe.sums_CS,
            "positions": probe.positions_S,
            "itself": itself,
            "layer_tokens": probe.layer_tokens,
            "out_of_reach": probe.out_of_reach,
        }

    # ------------------------------------------------------------ demand

    def banpick_demand_start(self) -> None:
        """Record the routing of what comes, under the policy that is on; counters go on counting."""
        self._banpick_recorder = Recorder(self.model_runner.model, self._banpick_layers())

    def banpick_demand_finish(self, lengths: list[int], begins: list[int], asked: dict[str, Any]) -> dict[str, Any]:
        """`sums` (the fields of `Sums`) over the layers of this rank, and `usage` [L][E] to hold against the counters.

        `lengths`, `begins`: of the sequences that came, in their order. Empty on ranks that do not record, and on a
        stage without layers. Raises RuntimeError where other tokens passed a layer than were sent.
        """
        recorder, layers = self._banpick_recorder, self._banpick_layers()
        recorder.stop()
        if not recorder.records or not layers:
            return {}
        passed = set(recorder.tokens())
        if passed != {sum(lengths)}:
            raise RuntimeError(
                f"{sum(lengths)} tokens were sent and {sorted(passed)} were recorded by layer: a captured graph runs"
                " past the recorder. Use engine.compile=false."
            )
        wanted = Asked(**{name: tuple(values) for name, values in asked.items()})
        total: Sums | None = None
        usage = []
        for index in range(len(layers)):
            kept_TE = recorder.kept(index)
            usage.append(kept_TE.sum(axis=0).tolist())
            own = layer_sums(kept_TE, lengths, begins, wanted)
            total = own if total is None else total + own
        assert total is not None
        return {"sums": total.plain(), "usage": usage}


def _neutral(layer: HookedLayer) -> LayerTable:
    return RouterTable.neutral(1, layer.num_experts, layer.top_k, device=layer.tokens_P.device).layer(0)


class _Changes:
    """Puts candidates on, one at a time; every other layer is neutral."""

    def __init__(self, layers: list[HookedLayer], judging: Judging) -> None:
        self._layers, self._judging = layers, judging
        self._changed: HookedLayer | None = None

    def __call__(self, candidate: Candidate | None) -> None:
        if self._changed is not None:
            self._changed.write(_neutral(self._changed), slots=self._changed.top_k)
            self._changed = None
        if candidate is not None:
            self._changed = self._layers[candidate.layer]
            table, slots = self._table(self._changed, candidate)
            self._changed.write(table, slots=slots, edit=_NoExperts() if candidate.change == "skip" else None)

    def _table(self, layer: HookedLayer, candidate: Candidate) -> tuple[LayerTable, int]:
        """The values of a changed layer, and the most experts that a token keeps in it."""
        table, value, slots = _neutral(layer), candidate.value, layer.top_k
        match candidate.change:
            case "remove":
                table.logit_bias_PE[0, value] = float("-inf")
            case "boost":
                table.logit_bias_PE[0, value] = self._judging.boost
            case "add" | "replace":
                table.key_PE[0, value] = True
                table.insert_replaces[0] = candidate.change == "replace"
                table.insert_window[0] = rank_window(self._judging.range_factor, layer.top_k, layer.num_experts)
                slots += candidate.change == "add"
            case "limit":
                table.keep[0] = slots = value
            case "skip":
                pass
            case other:
                raise ValueError(f"unknown change {other!r}")
        return table, slots


@dataclass(frozen=True, kw_only=True, eq=False)
class _NoExperts(LayerEdit):
    """The routed experts of a layer weigh nothing."""

    @property
    def weights_last(self) -> bool:
        return True

    def weights(self, weights_TS: Tensor, ids_TS: Tensor) -> Tensor:
        return torch.zeros_like(weights_TS)
