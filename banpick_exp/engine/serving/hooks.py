"""Where a server is told of policies: the places of vLLM 0.32 that are wrapped, each once, and what each is for.

vLLM loads the plugin in every process before it needs it (`vllm_entry`); which of these runs is decided by where vLLM
calls it.

| wrapped | process | for |
|---|---|---|
| `EngineArgs.create_engine_config` | API server | refuse before the model is loaded; how many policies there are |
| `EngineCore._initialize_kv_caches` | engine core | set the policies before the first request (`starting`) |
| `InputProcessor.process_inputs` | API server | every request, by any door: its row, its cache salt |
| `to_sampling_params`, `to_beam_search_params` | API server | `MODEL:POLICY`, and a 400 before a stream begins |
| `OpenAIServingModels.__init__`, `BaseServing._check_model` | API server | `/v1/models` |
| `load_endpoint_plugins` | API server | metrics and the admin call (`endpoints`) |
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

from banpick_exp.engine.serving.choice import POLICY, ROW, Policies, WrongPolicy
from banpick_exp.engine.serving.held import ADMIN_TOKEN, SHORTEST_TOKEN, Held, held, hold
from banpick_exp.engine.serving.served import Served, check_slots, checkpoint_served, served_policies
from banpick_exp.errors import UserError

WORKER = "banpick_exp.engine.serving.worker.ServingWorker"
"""What vLLM mixes into the workers of a server."""

Function = Callable[..., Any]


def install_serving() -> None:
    """Wrap what `create_engine_config` and the engine core need; safe to call again."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.engine.core import EngineCore

    _wrap(EngineArgs, "create_engine_config", _create_engine_config)
    _wrap(EngineCore, "_initialize_kv_caches", _initialize_kv_caches)


def _wrap(owner: Any, name: str, wrapper: Function) -> None:
    """`wrapper` is called with the stock function first, then with what that would have been called with."""
    stock = getattr(owner, name)
    if not getattr(stock, "banpick_wrapped", False):

        @functools.wraps(stock)
        def wrapped(*arguments: Any, **named: Any) -> Any:
            return wrapper(stock, *arguments, **named)

        wrapped.banpick_wrapped = True  # type: ignore[attr-defined]
        setattr(owner, name, wrapped)


# ------------------------------------------------------------ start


def _create_engine_config(stock: Function, arguments: Any, *rest: Any, **named: Any) -> Any:
    extension = arguments.worker_extension_cls
    if extension.startswith("banpick_exp.") and extension != WORKER:
        return stock(arguments, *rest, **named)  # an engine of ours, which sets its policies itself
    if extension not in ("", WORKER):
        raise UserError(
            f"--worker-extension-cls {extension}: vLLM mixes one class into its workers, and policies need theirs."
            " Leave it out, or serve without BANPICK_POLICY."
        )
    _refuse_admin(arguments)
    served = served_policies(os.environ)
    extra = dict(arguments.additional_config or {})
    slots = _refuse(served, arguments, int(extra.get("banpick_extra_slots", 0)))
    arguments.worker_extension_cls = WORKER
    if len(served) > 1:
        arguments.additional_config = {**extra, "banpick_rows": len(served)}
    # What the tests of the server ran. V2, vLLM's own choice on GPUs, is followed too where the operator sets it to 1.
    os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0")
    hold(Held(Policies(served), arguments.model, arguments.revision, slots))
    _install_front()
    return stock(arguments, *rest, **named)


def _refuse_admin(arguments: Any) -> None:
    token = os.environ.get(ADMIN_TOKEN, "")
    if token and len(token) < SHORTEST_TOKEN:
        raise UserError(
            f"{ADMIN_TOKEN} has {len(token)} characters: whoever guesses it may swap policies. Type {SHORTEST_TOKEN} or"
            " more at random, or leave it out and nobody may."
        )
    if token and getattr(arguments, "_api_process_count", 1) > 1:
        raise UserError(
            f"{ADMIN_TOKEN} with several API servers: a swap would be known to one of them alone. Type"
            " --api-server-count 1, or leave the token out."
        )


def _refuse(served: tuple[Served, ...], arguments: Any, extra_slots: int) -> int | None:
    """The slots of a compiled engine, None of an eager one; UserError where a policy is not for this server."""
    slots = None
    for each in served:
        if each.exported is not None:
            checkpoint = checkpoint_served(each, arguments.model, arguments.revision)
            each.exported.check(checkpoint)
            top_k = checkpoint.shape.top_k
            slots = None if arguments.enforce_eager else top_k + extra_slots
            check_slots(each, slots, top_k)
    return slots


def _initialize_kv_caches(stock: Function, core: Any, vllm_config: Any) -> Any:
    if vllm_config.parallel_config.worker_extension_cls != WORKER:
        return stock(core, vllm_config)
    from banpick_exp.engine.serving.starting import set_at_start

    set_at_start(core.collective_rpc, served_policies(os.environ))
    initialised = stock(core, vllm_config)
    core.collective_rpc("banpick_counters", args=(True,))  # what vLLM tried out is no work
    return initialised


# ------------------------------------------------------------ requests


def _install_front() -> None:
    import vllm.plugins
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest
    from vllm.entrypoints.openai.models.serving import OpenAIServingModels
    from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
    from vllm.entrypoints.serve.engine.serving import BaseServing
    from vllm.v1.engine.input_processor import InputProcessor

    _wrap(InputProcessor, "process_inputs", _process_inputs)
    for request in (ChatCompletionRequest, CompletionRequest, ResponsesRequest):
        _wrap(request, "to_sampling_params", _to_sampling_params)
        if hasattr(request, "to_beam_search_params"):
            _wrap(request, "to_beam_search_params", _to_beam_search_params)
    _wrap(OpenAIServingModels, "__init__", _serving_models)
    _wrap(BaseServing, "_check_model", _check_model)
    _wrap(vllm.plugins, "load_endpoint_plugins", _load_endpoint_plugins)


def _answered_400(error: WrongPolicy, parameter: str = POLICY) -> Exception:
    from vllm.exceptions import VLLMValidationError

    return VLLMValidationError(str(error), parameter=parameter)


def _process_inputs(
    stock: Function, processor: Any, request_id: str, prompt: Any, params: Any, *rest: Any, **named: Any
) -> Any:
    try:
        row = held().policies.asked(getattr(params, "extra_args", None))
    except WrongPolicy as error:
        raise _answered_400(error) from None
    request = stock(processor, request_id, prompt, params, *rest, **named)
    sampling = request.sampling_params
    if sampling is not None and (row or (sampling.extra_args and ROW in sampling.extra_args)):
        sampling.extra_args = {**(sampling.extra_args or {}), ROW: row}
    request.cache_salt = held().policies.salt(row, request.cache_salt)
    return request


def _named(request: Any) -> str | None:
    try:
        return held().policies.named_in(request.model, held().model_names, request.vllm_xargs)
    except WrongPolicy as error:
        raise _answered_400(error) from None


def _to_sampling_params(stock: Function, request: Any, *rest: Any, **named: Any) -> Any:
    name = _named(request)
    params = stock(request, *rest, **named)
    if name is not None:
        params.extra_args = {**(params.extra_args or {}), POLICY: name}
    return params


def _to_beam_search_params(stock: Function, request: Any, *rest: Any, **named: Any) -> Any:
    name = _named(request)
    if name is not None and held().policies.row(name) != 0:
        # vLLM asks for each beam anew, with parameters of its own that carry no name.
        wrong = WrongPolicy(
            f"beam search is answered under {held().policies.names[0]} alone, not {name}. Leave one out."
        )
        raise _answered_400(wrong)
    return stock(request, *rest, **named)


# ------------------------------------------------------------ /v1/models


def _serving_models(stock: Function, models: Any, engine_client: Any, base_model_paths: Any, **named: Any) -> None:
    from vllm.entrypoints.openai.models.protocol import BaseModelPath

    if not held().model_names:
        held().model_names = tuple(path.name for path in base_model_paths)
    base_model_paths = [path for path in base_model_paths if path.name in held().model_names]
    with_policy = [
        BaseModelPath(name=f"{path.name}:{name}", model_path=path.model_path)
        for path in base_model_paths
        for name in held().policies.names
    ]
    stock(models, engine_client, [*base_model_paths, *with_policy], **named)


async def _check_model(stock: Function, serving: Any, request: Any) -> Any:
    """A door that reads no policy from the model's name must not answer under another one than was named."""
    reads = getattr(getattr(type(request), "to_sampling_params", None), "banpick_wrapped", False)
    answers_nothing = "Tokenize" in type(request).__name__
    if held().policies.of_model_name(request.model, held().model_names) and not (reads or answers_nothing):
        return serving.create_error_response(
            f"{request.model}: this request cannot name a policy by its model. Leave `:` and what follows out; chat,"
            f" completions and responses take it.",
            param="model",
        )
    return await stock(serving, request)


def _load_endpoint_plugins(stock: Function, supported_tasks: Any = None) -> list[Any]:
    from banpick_exp.engine.serving.endpoints import PolicyEndpoints

    return [*stock(supported_tasks), PolicyEndpoints()]
