"""Which policy each token of the running step is routed by: filled before the forward pass, read by every layer.

Either of vLLM's model runners fills them (`model_runners`). A request names its row in `SamplingParams.extra_args`
(`vllm_xargs` of a server's requests); without a name it is row 0, like all that pads a step, and dummy runs. The
tensors stay where they are: a captured graph reads what they hold when it is replayed.

What fails without a check, and where it is refused (`refuse`, `check_tokens`): a layer that is handed other tokens than
this rank prepared, or in another order, would route them by rows that are not theirs.

Shapes: T tokens, R requests of a step, P policy rows.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

ROW = "routing_row"
"""What a request calls its row in `extra_args`."""
ROWS = "banpick_rows"
"""How an engine is told at its start how many policies it can hold (`additional_config`)."""

Ints = NDArray[np.int64]


class TokenRows:
    """The rows of a running step, one object a model. Between steps, and in dummy runs, every token is of row 0."""

    def __init__(self, rows: int, max_tokens: int, max_requests: int, device: torch.device) -> None:
        self.rows = rows
        """P, which the tables of all layers have."""
        self.named = 1
        """Rows that hold a policy: a request of another one is refused."""
        self.row_T = torch.zeros(max_tokens, dtype=torch.int64, device=device)
        self._row_R = np.zeros(max_requests, dtype=np.int64)
        self.present: tuple[int, ...] = (0,)
        """The rows of the step, ascending."""
        self.tokens = 0
        """Of the step, padding left out; 0 between steps."""
        self.followed = False
        """Whether a model runner fills this."""
        on_host = self.row_T if device.type == "cpu" else torch.zeros(max_tokens, dtype=torch.int64)
        self.host_T: Ints = on_host.numpy()
        """`row_T` on the CPU."""
        self._places: dict[bytes, list[Tensor]] = {}

    def fill(self, row_R: Sequence[int], request_T: Ints) -> None:
        """Take over a step: the rows of its requests, and each token's request. Raises RuntimeError for a row that
        holds no policy."""
        present = tuple(sorted(set(row_R)))
        if present[0] < 0 or present[-1] >= self.named:
            wrong = next(row for row in present if not 0 <= row < self.named)
            raise RuntimeError(
                f"a request names {ROW}={wrong}, and this engine holds {self.named} policies: which one should answer"
                f" cannot be known. Name one of 0..{self.named - 1}"
            )
        tokens = len(request_T)
        self._row_R[: len(row_R)] = row_R
        written = max(tokens, self.tokens)
        np.take(self._row_R, request_T, out=self.host_T[:tokens])
        self.host_T[tokens:written] = 0
        self._take_over(written)
        self.present, self.tokens = present, tokens

    def clear(self) -> None:
        """Every token is of row 0."""
        if self.tokens:
            self.host_T[: self.tokens] = 0
            self._take_over(self.tokens)
        self.present, self.tokens = (0,), 0

    def _take_over(self, tokens: int) -> None:
        self._places.clear()
        if self.row_T.device.type != "cpu":
            self._to_device(self.host_T[:tokens], self.row_T[:tokens])

    def _to_device(self, values: Ints, out: Tensor | None = None) -> Tensor:
        """A copy that the host does not wait for, in the order of the stream: after the step that runs, before the
        graph that is replayed next.

        vLLM 0.32 copies into pinned memory of its own first (`async_tensor_h2d`), which torch gives to nobody else
        before the device has read it. So `host_T` may be written again at once, though with asynchronous scheduling
        (the default on a GPU) the host is a step ahead of the device.
        """
        from vllm.utils import torch_utils

        copied: Tensor = torch_utils.async_tensor_h2d(values, device=self.row_T.device, out=out)
        return copied

    def check_tokens(self, name: str, tokens: int) -> None:
        """Raise RuntimeError where the layer `name` is handed fewer tokens than the model runner prepared."""
        if tokens < self.tokens:
            raise RuntimeError(
                f"{name} is handed {tokens} of the {self.tokens} tokens of a step: which policies are theirs"
                f" cannot be known. Start the engine with one policy"
            )

    def places(self, group_P: Ints, tokens: int) -> list[Tensor]:
        """Where the tokens of each group stand, int64 [n] each, on the device; `group_P`: the group of each row, 0 to
        the last.

        Kept for the step: layers that group alike look once.
        """
        key = group_P.tobytes()
        if key not in self._places:
            group_T = group_P[self.host_T[:tokens]]
            found = (np.flatnonzero(group_T == group) for group in range(int(group_P.max()) + 1))
            on_cpu = self.row_T.device.type == "cpu"
            self._places[key] = [torch.from_numpy(at) if on_cpu else self._to_device(at) for at in found]
        return self._places[key]


_LATEST: list[tuple[weakref.ref[Any], weakref.ref[TokenRows]]] = []
"""The model being built, or the last one, which its own layers keep alive: its configuration and its rows."""


def held_by(config: Any) -> int:
    """How many policies an engine of vLLM's configuration can hold at once."""
    return int((config.additional_config or {}).get(ROWS, 1))


def of_model(config: Any, device: torch.device) -> TokenRows | None:
    """The rows that all layers of the model being built share; None where the engine holds one policy.

    `config`: vLLM's, of that model.
    """
    rows = held_by(config)
    if rows == 1:
        return None
    for known, of_known in _LATEST:
        if known() is config and (token_rows := of_known()) is not None:
            return token_rows
    scheduler = config.scheduler_config
    token_rows = TokenRows(rows, scheduler.max_num_batched_tokens, scheduler.max_num_seqs, device)
    _LATEST[:] = [(weakref.ref(config), weakref.ref(token_rows))]
    return token_rows


def refuse(name: str, config: Any, moe_config: Any) -> None:
    """Raise RuntimeError where tokens reach the layer `name` without their rows."""
    parallel, speculative = config.parallel_config, config.speculative_config
    reasons = {
        "data parallelism dispatches tokens of other replicas": moe_config.dp_size > 1,
        "sequence parallelism gives each rank a part of the tokens": moe_config.is_sequence_parallel,
        "prefill context parallelism gathers tokens of other ranks": moe_config.pcp_size > 1,
        "two micro-batches route parts of a step by themselves": parallel.use_ubatching,
        "speculative decoding routes drafted tokens in a model of its own": speculative is not None,
        "kv_sharing_fast_prefill drops tokens half-way through the model": config.cache_config.kv_sharing_fast_prefill,
    }
    for reason, holds in reasons.items():
        if holds:
            raise RuntimeError(
                f"{name}: {reason}, without the policy that their request named: they would be routed by another"
                f" one. Start the engine with one policy, or without that setting"
            )


def named_row(sampling_params: Any) -> int:
    """The row that a request names in vLLM's parameters of it; None where it samples nothing."""
    return int((getattr(sampling_params, "extra_args", None) or {}).get(ROW, 0))
