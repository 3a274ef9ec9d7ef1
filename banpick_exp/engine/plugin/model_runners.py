"""How each of vLLM's model runners tells which request a token belongs to, and where it is asked before a forward pass.

| of vLLM 0.32 | asked at | dummy runs | rows are remembered |
|---|---|---|---|
| V1, `v1/worker/gpu_model_runner.py`, the CPU's too | the runner's `_prepare_inputs` | `_dummy_run` | by request |
| V2, `v1/worker/gpu/model_runner.py` | `prepare_inputs` of its model state | the same | by slot of the request |

Read of V2, and held to the installed source by `tests/engine/test_rows_v2.py`:
- The runner asks one object of the model's own class (`init_model_state`: a class that the model names, or that of
  hybrid, encoder or all other models). So the methods of that object are wrapped, and it stays what it is.
- `execute_model` calls, on every rank: `remove_request` for what is finished or preempted (a preempted request comes
  again as a new one), `add_request` with vLLM's `NewRequestData` of each new one, then for real and dummy runs alike
  `prepare_inputs`, and only then the model, or the replay of a captured graph (`run_fullgraph`).
- A request has one slot from `add_request` to `remove_request`, however the batch is ordered; `idx_mapping_np` names
  the slots of a step in the order of its tokens. A dummy run makes up requests that the runner does not know, and takes
  slots from 0 on, which real requests may hold.
- While a graph is captured `prepare_dummy_inputs` is called in place of `prepare_inputs`, outside the graph.
- What lays out tokens otherwise on the device than on the host is refused by `token_rows.refuse`: adaptive verification
  of drafts, and prefill context parallelism.
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
from typing import Any

import numpy as np

from banpick_exp.engine.plugin.token_rows import Ints, TokenRows, named_row

SECOND = "vllm.v1.worker.gpu.model_runner"
CALLED = {
    "add_request": ["req_index", "new_req_data"],
    "remove_request": ["req_id"],
    "prepare_inputs": ["input_batch", "req_states"],
    "prepare_dummy_inputs": ["num_reqs", "num_tokens"],
}
"""Methods of V2's model state that are wrapped, and the parameters that vLLM 0.32 gives them."""
READ = {"InputBatch": {"req_ids", "idx_mapping_np", "num_scheduled_tokens", "num_tokens"}}
"""What is read of V2's own classes, imported where its runner is defined."""
HELD = ("model_state", "req_states", "max_num_reqs")
"""The same of the runner."""
ASKED = ("prepare_inputs", "prepare_dummy_inputs")


def follow(runner: Any, token_rows: TokenRows) -> None:
    """Have the model runner of this worker fill `token_rows` before every forward pass. Safe to call again.

    Raises RuntimeError where the runner is neither of vLLM's, or not the one that this was written for.
    """
    if token_rows.followed:
        return
    if is_second(runner):
        _follow_second(runner, token_rows)
    else:
        _follow_first(runner, token_rows)
    token_rows.followed = True


def leave(runner: Any, token_rows: TokenRows) -> None:
    """Undo `follow`. V2 goes on to remember rows: what it knows of a request comes once."""
    owner = runner.model_state if is_second(runner) else runner
    for name in ASKED if is_second(runner) else ("_prepare_inputs", "_dummy_run"):
        vars(owner).pop(name, None)  # those of the class come back
    token_rows.clear()
    token_rows.followed = False


def read_all_as_first(runner: Any, on: bool) -> None:
    """Take every running request for one of row 0 (`on`), or for one of the row that it names."""
    if is_second(runner):
        slots = runner.model_state.banpick_slots
        slots.read_S = np.zeros_like(slots.named_S) if on else slots.named_S
        return
    for request in runner.requests.values():
        request.banpick_row = 0 if on else named_row(request.sampling_params)


def is_second(runner: Any) -> bool:
    """Whether this is vLLM's V2 runner. Nothing is imported: on a CPU its module wants what a V1 engine has not."""
    module = sys.modules.get(SECOND)
    return module is not None and isinstance(runner, module.GPUModelRunner)


# ------------------------------------------------------------ V1


def _follow_first(runner: Any, token_rows: TokenRows) -> None:
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    if not isinstance(runner, GPUModelRunner):
        raise RuntimeError(
            f"several policies in one engine need one of vLLM's own model runners, this is {type(runner).__module__}:"
            f" requests would all be answered under the first policy. Start the engine with one policy"
        )
    prepare, dummy, known = runner._prepare_inputs, runner._dummy_run, runner.requests

    def _prepare_inputs(scheduler_output: Any, *arguments: Any, **named: Any) -> Any:
        prepared = prepare(scheduler_output, *arguments, **named)
        requests = runner.input_batch.req_ids
        try:
            row_R = [known[request].banpick_row for request in requests]
        except AttributeError:  # a new one
            row_R = [_remembered(known[request]) for request in requests]
        token_rows.fill(row_R, runner.req_indices.np[: scheduler_output.total_num_scheduled_tokens])
        return prepared

    def _dummy_run(*arguments: Any, **named: Any) -> Any:
        token_rows.clear()
        return dummy(*arguments, **named)

    runner._prepare_inputs, runner._dummy_run = _prepare_inputs, _dummy_run


def _remembered(request: Any) -> int:
    """The row that a request names, from now on in vLLM's own state of it."""
    if not hasattr(request, "banpick_row"):
        request.banpick_row = named_row(request.sampling_params)
    return int(request.banpick_row)


# ------------------------------------------------------------ V2


class SlotRows:
    """The row of the request in each of the runner's slots S; 0 where there is none."""

    def __init__(self, slots: int) -> None:
        self.named_S: Ints = np.zeros(slots, dtype=np.int64)
        self.read_S = self.named_S
        """What a step is told; another array where a benchmark pretends."""


def _follow_second(runner: Any, token_rows: TokenRows) -> None:
    _check_second(runner)
    state = runner.model_state
    if not hasattr(state, "banpick_slots"):
        state.banpick_slots = _remember(runner)
    slots: SlotRows = state.banpick_slots
    prepare, prepare_dummy = state.prepare_inputs, state.prepare_dummy_inputs

    def prepare_inputs(input_batch: Any, req_states: Any) -> Any:
        if input_batch.req_ids[0] in req_states.req_id_to_index:
            row_R = slots.read_S[input_batch.idx_mapping_np].tolist()
            request_T = np.repeat(np.arange(len(row_R)), input_batch.num_scheduled_tokens)
            if len(request_T) != input_batch.num_tokens:
                raise RuntimeError(
                    f"vLLM prepared {input_batch.num_tokens} tokens of {len(request_T)} that were scheduled: which"
                    f" policies are theirs cannot be known. Start the engine with one policy"
                )
            token_rows.fill(row_R, request_T)
        else:
            token_rows.clear()
        return prepare(input_batch, req_states)

    def prepare_dummy_inputs(num_reqs: int, num_tokens: int) -> Any:
        token_rows.clear()
        return prepare_dummy(num_reqs, num_tokens)

    state.prepare_inputs, state.prepare_dummy_inputs = prepare_inputs, prepare_dummy_inputs


def _remember(runner: Any) -> SlotRows:
    """Have the model state note the row of each request from now on."""
    state, slots, of_request = runner.model_state, SlotRows(runner.max_num_reqs), runner.req_states.req_id_to_index
    if of_request:
        raise RuntimeError(
            f"{len(of_request)} requests run already, and V2 keeps nothing of the policies that they name: start the"
            f" engine again"
        )
    add, remove = state.add_request, state.remove_request

    def add_request(req_index: int, new_req_data: Any) -> None:
        slots.named_S[req_index] = named_row(new_req_data.sampling_params)
        add(req_index, new_req_data)

    def remove_request(req_id: str) -> None:
        if (slot := of_request.get(req_id)) is not None:  # vLLM asks for requests that it never saw, too
            slots.named_S[slot] = 0
        remove(req_id)

    state.add_request, state.remove_request = add_request, remove_request
    return slots


def _check_second(runner: Any) -> None:
    """Raise RuntimeError where V2 is not as it was in the vLLM that this was written for."""
    other = [f"its runner has no {name}" for name in HELD if not hasattr(runner, name)]
    state, module = getattr(runner, "model_state", None), sys.modules[SECOND]
    for method, wanted in CALLED.items():
        found = getattr(state, method, None)
        takes = [] if found is None else list(inspect.signature(found).parameters)
        if takes != wanted:
            other.append(f"{type(state).__name__}.{method} takes {', '.join(takes) or 'nothing'}")
    for name, wanted_fields in READ.items():
        fields = {field.name for field in dataclasses.fields(getattr(module, name))}
        other += [f"its {name} has no {field}" for field in sorted(wanted_fields - fields)]
    if not hasattr(getattr(runner, "req_states", None), "req_id_to_index"):
        other.append("its req_states have no req_id_to_index")
    if other:
        raise RuntimeError(
            f"vLLM's V2 model runner is another one than this was written for ({'; '.join(other)}): requests could be"
            f" answered under policies that they did not name. Type engine.model_runner=v1"
        )
