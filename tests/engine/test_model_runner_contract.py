"""What `plugin.model_runners` relies on, read in the source of the installed vLLM; nothing of it is imported or run."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from banpick_exp.engine.plugin.model_runners import CALLED, READ

SECOND = "v1/worker/gpu/model_runner.py"
STATES = ("v1/worker/gpu/model_states", "models", "model_executor/models")
"""Folders in which vLLM keeps classes of model states."""


def root() -> Path:
    spec = find_spec("vllm")
    assert spec is not None and spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0])


@functools.cache
def module(file: str) -> ast.Module:
    return ast.parse((root() / file).read_text(encoding="utf-8"))


def function(file: str, *path: str) -> ast.FunctionDef:
    """`path`: the names from the outermost class or function inwards."""
    found: ast.AST = module(file)
    for name in path:
        (found,) = [
            node
            for node in ast.walk(found)
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name and node is not found
        ]
    assert isinstance(found, ast.FunctionDef)
    return found


def calls(within: ast.AST) -> list[str]:
    """What is called, as it is written, in the order of the source."""
    found = [node for node in ast.walk(within) if isinstance(node, ast.Call)]
    found.sort(key=lambda node: (node.func.end_lineno or 0, node.func.end_col_offset or 0))
    return [ast.unparse(node.func) for node in found]


def in_order(within: ast.AST, *wanted: str) -> bool:
    """Whether all are called, the first call of each after the first of the one before."""
    found = calls(within)
    places = [found.index(name) for name in wanted]
    return places == sorted(places)


def call_of(within: ast.AST, name: str) -> ast.Call:
    (found,) = [node for node in ast.walk(within) if isinstance(node, ast.Call) and ast.unparse(node.func) == name]
    return found


def conditions(within: ast.AST, of: ast.AST) -> list[str]:
    """The tests of all `if`s that `of` stands under."""
    tests = (node for node in ast.walk(within) if isinstance(node, ast.If))
    return [
        ast.unparse(node.test)
        for node in tests
        if any(inner is of for part in node.body + node.orelse for inner in ast.walk(part))
    ]


EXECUTE = ("GPUModelRunner", "execute_model")


def test_rows_are_asked_for_before_every_forward_and_every_replay() -> None:
    execute = function(SECOND, *EXECUTE)
    begin = ("self.finish_requests", "self.add_requests", "self.prepare_inputs", "self.model_state.prepare_inputs")
    for forward in ("self.cudagraph_manager.run_fullgraph", "self.cudagraph_manager.run_pw_graph", "self.model"):
        assert in_order(execute, *begin, forward), forward


def test_dummy_runs_ask_as_real_ones_do() -> None:
    execute = function(SECOND, *EXECUTE)
    asked = call_of(execute, "self.model_state.prepare_inputs")
    assert conditions(execute, asked) == [], "only some runs ask"
    assert ast.unparse(asked) == "self.model_state.prepare_inputs(input_batch, self.req_states)"
    assert conditions(execute, call_of(execute, "InputBatch.make_dummy")) == ["not dummy_run"]
    assert "self.execute_model" in calls(function(SECOND, "GPUModelRunner", "_dummy_run"))
    made_up = ast.unparse(function("v1/worker/gpu/input_batch.py", "InputBatch", "make_dummy"))
    assert "req_ids = [f'req_{i}_{random_uuid()}' for i in range(num_reqs)]" in made_up, "requests that may be real"


def test_a_new_request_comes_with_its_parameters_after_the_old_of_its_name_is_gone() -> None:
    add = function(SECOND, "GPUModelRunner", "add_requests")
    assert in_order(add, "self._remove_request", "self.req_states.add_request", "self.model_state.add_request")
    asked = call_of(add, "self.model_state.add_request")
    assert ast.unparse(asked) == "self.model_state.add_request(req_index, new_req_data)"
    assert conditions(add, asked) == []
    (loop,) = [node for node in add.body if isinstance(node, ast.For)]
    assert ast.unparse(loop.iter) == "scheduler_output.scheduled_new_reqs"
    fields = fields_of("v1/core/sched/output.py", "NewRequestData")
    assert "sampling_params" in fields
    (scheduled,) = [
        node
        for node in ast.walk(module("v1/core/sched/output.py"))
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "scheduled_new_reqs"
    ]
    assert ast.unparse(scheduled.annotation) == "list[NewRequestData]"


def test_what_is_finished_or_preempted_is_taken_out_while_its_slot_is_known() -> None:
    remove = function(SECOND, "GPUModelRunner", "_remove_request")
    assert in_order(remove, "self.model_state.remove_request", "self.req_states.remove_request")
    finish = ast.unparse(function(SECOND, "GPUModelRunner", "finish_requests"))
    assert "finished_req_ids.union(preempted_req_ids)" in finish and "self._remove_request(req_id)" in finish


def test_a_capture_asks_outside_the_graph() -> None:
    """`CudaGraphManager.capture` makes the forward before it opens the graph, and there the inputs are prepared."""
    file = "v1/worker/gpu/cudagraph_utils.py"
    made = function(file, "ModelCudaGraphManager", "capture", "create_forward_fn")
    inner = function(file, "ModelCudaGraphManager", "capture", "create_forward_fn", "forward_fn")
    assert "model_state.prepare_dummy_inputs" in calls(made) and "model_state.prepare_dummy_inputs" not in calls(inner)
    assert in_order(function(file, "CudaGraphManager", "capture"), "create_forward_fn", "torch.cuda.graph")


def test_slots_of_a_step_stand_in_the_order_of_its_tokens() -> None:
    gathered = ast.unparse(function(SECOND, "GPUModelRunner", "gather_batch_req_state"))
    assert "map(self.req_states.req_id_to_index.__getitem__, req_ids)" in gathered
    assert "map(num_tokens_per_req.__getitem__, req_ids)" in gathered
    prepared = ast.unparse(function(SECOND, "GPUModelRunner", "prepare_inputs"))
    assert "np.cumsum(num_scheduled_tokens_np, out=query_start_loc_np[1:num_reqs + 1])" in prepared
    assert READ["InputBatch"] <= fields_of("v1/worker/gpu/input_batch.py", "InputBatch")


def test_a_request_keeps_its_slot() -> None:
    """Slots are given in one place and taken back in one."""
    text = (root() / "v1/worker/gpu/states.py").read_text(encoding="utf-8")
    assert text.count("self.req_id_to_index[") == 1 and text.count("self.req_id_to_index.pop(") == 1
    for path in (root() / "v1/worker/gpu").rglob("*.py"):
        assert "req_id_to_index[req_id] =" not in path.read_text(encoding="utf-8") or path.name == "states.py", path


def test_the_model_state_is_made_once() -> None:
    text = (root() / SECOND).read_text(encoding="utf-8")
    assert text.count("self.model_state = ") == 1
    load = function(SECOND, "GPUModelRunner", "load_model")
    assert in_order(load, "model_loader.load_model", "init_model_state")


def fields_of(file: str, name: str) -> set[str]:
    (found,) = [node for node in module(file).body if isinstance(node, ast.ClassDef) and node.name == name]
    return {ast.unparse(node.target) for node in found.body if isinstance(node, ast.AnnAssign)}


def states() -> Iterator[tuple[str, ast.ClassDef]]:
    """Every class of model states in the installed vLLM."""
    for folder in STATES:
        for path in sorted((root() / folder).rglob("*.py")):
            text = path.read_text(encoding="utf-8")
            if "ModelState" not in text:
                continue
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.ClassDef) and any("ModelState" in ast.unparse(base) for base in node.bases):
                    yield f"{path.name}: {node.name}", node


def test_every_model_state_takes_what_is_wrapped() -> None:
    found = [node for _, node in states()]
    assert {"DefaultModelState", "MambaHybridModelState", "EncoderDecoderModelState"} <= {node.name for node in found}
    for name, node in [*states(), ("interface", _interface())]:
        for method in node.body:
            if isinstance(method, ast.FunctionDef) and method.name in CALLED:
                takes = [argument.arg for argument in method.args.args][1:]
                assert takes == CALLED[method.name], f"{name}.{method.name}"
        slots = [ast.unparse(part) for part in node.body if isinstance(part, ast.Assign)]
        assert not any(text.startswith("__slots__") for text in slots), f"{name} has no room for a wrapped method"


def test_the_interface_has_all_that_is_wrapped() -> None:
    assert set(CALLED) <= {part.name for part in _interface().body if isinstance(part, ast.FunctionDef)}


def _interface() -> ast.ClassDef:
    file = module("v1/worker/gpu/model_states/interface.py")
    (found,) = [node for node in file.body if isinstance(node, ast.ClassDef) and node.name == "ModelState"]
    return found


def test_copies_to_the_device_leave_from_memory_of_their_own() -> None:
    """Or a step that is prepared ahead would overwrite what the device has not read yet."""
    copy = function("utils/torch_utils.py", "async_tensor_h2d")
    text = ast.unparse(copy)
    assert "if is_pin_memory_available() and (not t.is_pinned()):" in text
    assert "pin_memory=True).copy_(t)" in text and "out.copy_(t, non_blocking=True)" in text


def test_the_variable_that_an_engine_sets_decides() -> None:
    decide = ast.unparse(function("config/vllm.py", "VllmConfig", "use_v2_model_runner"))
    assert "use_v2_model_runner = envs.VLLM_USE_V2_MODEL_RUNNER" in decide
    assert "if use_v2_model_runner is not None:\n        return use_v2_model_runner" in decide
