"""What a server offers beside vLLM's own doors: figures by policy in `/metrics`, and the swap of a policy.

A worker's own Prometheus counters would show nothing (it is another process), so whoever asks for `/metrics` has the
workers asked first. The swap is off unless BANPICK_ADMIN_TOKEN is set; vLLM's `--api-key` guards `/v1` alone, so this
door has a lock of its own.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import os
from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse

from banpick_exp.engine.serving.audit import audit
from banpick_exp.engine.serving.figures import Figures
from banpick_exp.engine.serving.held import ADMIN_TOKEN as TOKEN
from banpick_exp.engine.serving.swap import NotSwapped, Swap

logger = logging.getLogger("vllm.banpick")

PLACE = "/banpick/policy"
SCRAPE_SECONDS = 5.0
"""How long `/metrics` waits for the workers before it gives the figures of the last time."""


class PolicyEndpoints:
    """An endpoint plugin of vLLM's (`plugins/endpoint_plugins/interface.py`), one for each server."""

    name = "banpick"
    required_tasks = None

    def __init__(self) -> None:
        self.figures = Figures()
        self._engine: Any = None
        self._swap: Swap | None = None

    def attach_router(self, app: Any) -> None:
        """Called before the engine is known."""
        app.add_middleware(_FreshFigures, refresh=self._refresh)
        self.figures.register()
        if os.environ.get(TOKEN):
            app.add_route(PLACE, self._show, methods=["GET"])
            app.add_route(PLACE, self._replace, methods=["POST"])

    async def init_state(self, engine_client: Any, state: Any, args: Namespace) -> None:
        """Called before the first request."""
        if engine_client is None:
            return
        self._engine = engine_client
        await self.figures.learn(engine_client.collective_rpc)
        self._swap = Swap(engine_client, self.figures)

    async def _refresh(self) -> None:
        if self._engine is not None:
            try:
                await asyncio.wait_for(self.figures.read(self._engine.collective_rpc), SCRAPE_SECONDS)
            except Exception as error:
                logger.warning("the figures of the policies are those of the last time: %r", error)

    # ------------------------------------------------------------ the admin call

    async def _show(self, request: Request) -> JSONResponse:
        """GET: what each name stands for now."""
        if not _may(request):
            return _refused(request)
        return JSONResponse({"policies": self.figures.policies()})

    async def _replace(self, request: Request) -> JSONResponse:
        """POST {"name": ..., "folder": ...}: another policy under a name, once what is running has ended."""
        if not _may(request):
            return _refused(request)
        client = _client(request)
        try:
            body = await request.json()
        except ValueError:
            body = None
        if not isinstance(body, Mapping) or set(body) != {"name", "folder"}:
            return _answer(400, 'the body must be {"name": NAME, "folder": FOLDER}, and nothing else')
        if not all(isinstance(value, str) for value in body.values()):
            return _answer(400, "name and folder are texts")
        if self._swap is None:
            return _answer(503, "the engine is not ready")
        name, folder = body["name"], body["folder"]
        try:
            former, now = await self._swap.replace(name, folder)
        except NotSwapped as error:
            audit(client, f"asked for {folder!r} under the name {name!r}: refused: {error}")
            return _answer(400, str(error))
        except Exception as error:
            audit(client, f"asked for {folder!r} under the name {name!r}: failed: {error!r}")
            raise
        was, is_now = (f"{each.label} ({each.fingerprint})" for each in (former, now))
        audit(client, f"put {folder!r} under the name {name!r}: {is_now} in place of {was}")
        return JSONResponse({"name": name, "policy": now.label, "fingerprint": now.fingerprint})


def _may(request: Request) -> bool:
    """Whether the request has the token, compared in constant time."""
    given = request.headers.get("authorization", "").encode()
    return hmac.compare_digest(given, f"Bearer {os.environ[TOKEN]}".encode())


def _refused(request: Request) -> JSONResponse:
    audit(_client(request), f"asked for {request.method} {PLACE} without the token: refused")
    return _answer(401, f"this call wants the token of {TOKEN}: Authorization: Bearer TOKEN")


def _client(request: Request) -> str:
    return "an unknown client" if request.client is None else request.client.host


def _answer(status: int, message: str) -> JSONResponse:
    return JSONResponse({"error": {"message": message, "code": status}}, status_code=status)


class _FreshFigures:
    """ASGI: before `/metrics` is answered, the workers are asked."""

    def __init__(self, app: Any, refresh: Any) -> None:
        self.app, self.refresh = app, refresh

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["path"].rstrip("/").endswith("/metrics"):
            await self.refresh()
        await self.app(scope, receive, send)
