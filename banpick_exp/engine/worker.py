"""Worker methods of the plugin: vLLM mixes this class into its worker, `collective_rpc` calls it on every rank.

Arguments and results are strings, numbers and plain lists: functions and tensors do not travel between vLLM's
processes without the insecure serialisation this project never switches on.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from vllm.distributed import get_pp_group

from banpick_exp.engine.plugin import contrast, token_rows
from banpick_exp.engine.plugin.compile_cache import cache_keys
from banpick_exp.engine.plugin.hook import find_layers
from banpick_exp.engine.plugin.layer import HookedLayer
from banpick_exp.engine.plugin.model_runners import follow, is_second
from banpick_exp.engine.types import Check, RankReport
from banpick_exp.engine.verify.experts import device_name, filler_checks, filler_reason, kernel_of, moe_runners
from banpick_exp.engine.verify.router import SHORT, router_checks, stock_check
from banpick_exp.policy import Calibration, build_policy
from banpick_exp.records import Counters


class RoutingExtension:
    """Mixed into vLLM's Worker (`worker_extension_cls`). Every public name starts with `banpick_`."""

    model_runner: Any
    rank: int

    def _banpick_layers(self) -> list[HookedLayer]:
        if not hasattr(self, "_banpick_layer_list"):
            self._banpick_layer_list = find_layers(self.model_runner.model)
            for rows in {id(rows): rows for layer in self._banpick_layer_list if (rows := layer.token_rows)}.values():
                follow(self.model_runner, rows)
            self._banpick_calibrations: dict[str, Calibration] = {}
            self._banpick_first, self._banpick_total = 0, len(self._banpick_layer_list)
        return self._banpick_layer_list

    # ------------------------------------------------------------ start-up

    def banpick_describe(self) -> dict[str, Any]:
        """The fields of a `RankReport`."""
        layers = self._banpick_layers()
        runners = moe_runners(self.model_runner.model)
        vllm_config = self.model_runner.vllm_config
        config = vllm_config.compilation_config
        device = layers[0].tokens_P.device if layers else torch.device("cpu")
        report = RankReport(
            rank=self.rank,
            stage=get_pp_group().rank_in_group,
            layers=tuple(layer.name for layer in layers),
            router=_kinds(layer.stock.__name__ for layer in layers),
            num_experts=_kinds(layer.num_experts for layer in layers),
            top_k=_kinds(layer.top_k for layer in layers),
            experts=_kinds(type(kernel_of(runner)).__name__ for runner in runners),
            quant_method=_kinds(type(runner.routed_experts.quant_method).__name__ for runner in runners),
            filler=_kinds(layer.filler for layer in layers),
            filler_reason=_kinds(filler_reason(r, layer) for r, layer in zip(runners, layers, strict=True)),
            device=str(device) if layers else "none",
            device_name=device_name(device),
            dtype=str(vllm_config.model_config.dtype).removeprefix("torch."),
            compilation=getattr(config.mode, "name", "NONE"),
            graphs=getattr(config.cudagraph_mode, "name", "NONE"),
            model_runner="v2" if is_second(self.model_runner) else "v1",
        )
        return {name: list(v) if isinstance(v, tuple) else v for name, v in dataclasses.asdict(report).items()}

    def banpick_self_test(self) -> list[str]:
        """The short form: what is wrong, nothing where all is well."""
        return [check.finding for check in self._banpick_checks(SHORT) if check.failed]

    def banpick_full_test(self) -> list[list[str]]:
        """Every check of a rank by itself, as `Check.wire` sends it."""
        checks = self._banpick_checks(None)
        if checks:
            checks.append(stock_check(self._banpick_layers()))
        return [check.wire() for check in checks]

    def _banpick_checks(self, labels: Sequence[str] | None) -> list[Check]:
        layers = self._banpick_layers()
        if not layers:
            return []
        return [*router_checks(layers, labels), *filler_checks(layers, moe_runners(self.model_runner.model))]

    def banpick_cache_keys(self) -> dict[str, str | bool]:
        """The fields of a `CacheKeys`."""
        return dataclasses.asdict(cache_keys(self.model_runner.vllm_config, self.model_runner.model))

    # ------------------------------------------------------------ contrast

    def banpick_contrast_room(self) -> list[int]:
        """Blocks of the KV cache, then the tokens in a block of each group of layers that has blocks of its own.

        Raises RuntimeError where this worker cannot contrast pairs.
        """
        contrast.follow(self.model_runner)
        cache = self.model_runner.kv_cache_config
        # One block is vLLM's own, the null block.
        return [cache.num_blocks - 1, *(group.kv_cache_spec.block_size for group in cache.kv_cache_groups)]

    def banpick_contrast(self, on: bool) -> list[list[Any]]:
        """Contrast pairs from now on, or no longer. What was done since the last call: [pair, steps] of each pair, and
        what was out of step."""
        steps = contrast.follow(self.model_runner)
        done, faults = steps.take()
        steps.active = on
        return [done, faults]

    # ------------------------------------------------------------ policy and counters

    def banpick_place(self, layers_of_stages: list[int]) -> None:
        """Under pipeline parallel: how many MoE layers each stage holds, so where the model's this rank's begin."""
        self._banpick_layers()
        self._banpick_total = sum(layers_of_stages)
        self._banpick_first = sum(layers_of_stages[: get_pp_group().rank_in_group])
        self._banpick_receive()

    def _banpick_receive(self) -> None:
        """Give a later stage the buffer that takes what the stage before it sends.

        What fails without it: vLLM 0.32 makes the buffer in its first dummy run (v1/worker/gpu_model_runner.py,
        `_dummy_run`), and its CPU worker makes none for an eager engine: the first request ends in an AssertionError.
        The buffer is the same, made by the same call; where there is one, it stays.
        """
        runner = self.model_runner
        if not get_pp_group().is_first_rank and runner.intermediate_tensors is None:
            runner.intermediate_tensors = runner.model.make_empty_intermediate_tensors(
                batch_size=runner.max_num_tokens, dtype=runner.model_config.dtype, device=runner.device
            )

    def banpick_load_calibration(self, key: str, calibration_json: str) -> None:
        self._banpick_layers()
        self._banpick_calibrations[key] = Calibration.from_json(calibration_json)

    def banpick_set_policy(self, name: str, params_json: str, calibration_key: str) -> tuple[str, float]:
        """Write a policy into every layer. Returns the digest of what the device now holds and the seconds it took."""
        digests, seconds = self.banpick_set_policies([[name, params_json, calibration_key]])
        return digests[0], seconds

    def banpick_set_policies(self, policies: list[list[str]]) -> tuple[list[str], float]:
        """Write policies (name, params as JSON, calibration key) into the rows of every layer, from row 0 on.

        Returns the digest of what the device now holds, row by row, and the seconds it took. Requests may name these
        rows from then on, and no others. Raises RuntimeError, with nothing changed, where one cannot be held.
        """
        start = time.perf_counter()
        layers, first = self._banpick_layers(), self._banpick_first
        if not layers:  # a stage of dense layers
            return [_digest(layers, row) for row in range(len(policies))], 0.0
        if len(policies) > len(layers[0].rows):
            raise RuntimeError(
                f"{len(policies)} policies do not fit: this engine was started for {len(layers[0].rows)} at once"
            )
        built = [
            build_policy(
                name,
                json.loads(params_json),
                num_layers=self._banpick_total,
                num_experts=layers[0].num_experts,
                top_k=layers[0].top_k,
                calibration=self._banpick_calibrations[calibration_key] if calibration_key else None,
            )
            for name, params_json, calibration_key in policies
        ]
        edits_P = [(policy.edits or (None,) * self._banpick_total)[first : first + len(layers)] for policy in built]
        for policy, edits in zip(built, edits_P, strict=True):
            for layer, edit in zip(layers, edits, strict=True):
                layer.check(slots=policy.max_kept, edit=edit)
        for row, (policy, edits) in enumerate(zip(built, edits_P, strict=True)):
            for index, (layer, edit) in enumerate(zip(layers, edits, strict=True)):
                layer.write(policy.table.layer(first + index), slots=policy.max_kept, edit=edit, row=row)
        if (rows := layers[0].token_rows) is not None:
            rows.named = len(policies)
        seconds = time.perf_counter() - start
        return [_digest(layers, row) for row in range(len(policies))], seconds

    def banpick_counters(self, reset: bool) -> dict[str, list[Any]]:
        """The fields of `Counters`, of this rank's layers and all rows together, since the last reset."""
        layers = self._banpick_layers()
        tokens_L = [layer.tokens_P.sum() for layer in layers]
        return self._banpick_counted(tokens_L, [layer.usage_PE.sum(dim=0) for layer in layers], reset)

    def banpick_counters_by_row(self, reset: bool) -> list[dict[str, list[Any]]]:
        """The same of each row by itself."""
        layers = self._banpick_layers()
        rows = range(token_rows.held_by(self.model_runner.vllm_config))
        counted = [
            self._banpick_counted([at.tokens_P[row] for at in layers], [at.usage_PE[row] for at in layers], False)
            for row in rows
        ]
        if reset:
            self._banpick_counted([], [], True)
        return counted

    def _banpick_counted(self, tokens_L: list[Tensor], usage_LE: list[Tensor], reset: bool) -> dict[str, list[Any]]:
        if tokens_L:
            counters = Counters(
                tokens=torch.stack(tokens_L).tolist(),
                kept=torch.stack([usage_E.sum() for usage_E in usage_LE]).tolist(),
                usage=torch.stack(usage_LE).tolist(),
            )
        else:
            counters = Counters(tokens=[], kept=[], usage=[])
        if reset:
            for layer in self._banpick_layers():
                for counter in (layer.tokens_P, layer.usage_PE):
                    counter.zero_()
        return dataclasses.asdict(counters)


KindT = TypeVar("KindT", str, int)


def _kinds(values: Iterable[KindT]) -> tuple[KindT, ...]:
    return tuple(sorted(set(values)))


def _digest(layers: list[HookedLayer], row: int) -> str:
    digest = hashlib.sha256()
    for of_row in (layer.rows[row] for layer in layers):
        for field in dataclasses.fields(of_row.table):
            digest.update(getattr(of_row.table, field.name).cpu().contiguous().numpy().tobytes())
        if of_row.edit is not None:
            digest.update(of_row.edit.digest().encode())
    return digest.hexdigest()[:16]
