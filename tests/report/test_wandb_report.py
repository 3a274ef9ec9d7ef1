"""The W&B report through W&B's own client, up to the request that a server would store. The server is a stand-in here.

No account can be reached from a test machine: what is proved is that the blocks compile, and what is sent.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest

PROJECT = {
    "id": "UHJvamVjdDox", "internalId": "UHJvamVjdEludGVybmFsSWQ6MQ==", "name": "banpick", "entityName": "me",
    "createdAt": "2026-01-01T00:00:00", "isBenchmark": False, "user": None,
}  # fmt: skip
VIEWER = {"id": "1", "username": "me", "entity": "me", "email": "", "flags": "{}", "teams": {"edges": []}}


class StandIn(BaseHTTPRequestHandler):
    """Answers the few questions that saving a report asks, and keeps every request."""

    requests: list[dict[str, Any]]

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        data: dict[str, Any] = {}
        if self.path.endswith("/graphql") and raw:
            request = json.loads(raw)
            self.requests.append(request)
            data = {"data": self.answer(request["query"])}
        body = json.dumps(data).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def answer(self, query: str) -> dict[str, Any]:
        if "upsertView" in query:
            project = {"id": PROJECT["id"], "name": "banpick", "entityName": "me"}
            view = {"id": "VmlldzoxMjM=", "name": "n", "type": "runs", "description": "", "displayName": "d"}
            return {"upsertView": {"view": {**view, "spec": "{}", "user": None, "project": project}, "inserted": True}}
        if "models(" in query:
            page = {"hasNextPage": False, "endCursor": None}
            return {"models": {"pageInfo": page, "edges": [{"node": PROJECT}]}}
        return {"project": PROJECT} if "project(" in query else {"viewer": VIEWER}

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    StandIn.requests = []
    with ThreadingHTTPServer(("127.0.0.1", 0), StandIn) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_a_saved_report_holds_the_verdict_the_front_and_the_figures(server: ThreadingHTTPServer) -> None:
    code = (
        "from banpick_exp.report.tracking.wandb_report import publish\n"
        "print(publish(entity='me', project='banpick', group='iso/20261125', headline='No gain: 3 of 3 tie', "
        "facts=['3 points done']))\n"
    )
    environment = {**os.environ, "WANDB_API_KEY": "a" * 40, "WANDB_SILENT": "true"}
    environment["WANDB_BASE_URL"] = f"http://127.0.0.1:{server.server_port}"
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert found.returncode == 0, found.stderr[-2000:]
    assert found.stdout.strip().split("/")[3:5] == ["me", "banpick"]
    (sent,) = [request["variables"] for request in StandIn.requests if "upsertView" in request["query"]]
    assert (sent["entityName"], sent["projectName"]) == ("me", "banpick")
    spec = json.dumps(json.loads(sent["spec"]))
    for part in ("No gain: 3 of 3 tie", "3 points done", "iso/20261125", "acc/overall", "perf/speedup"):
        assert part in spec
    for part in ("route/mean_kept", "Scatter Plot", "Media Browser", "pareto", "influence"):
        assert part in spec
