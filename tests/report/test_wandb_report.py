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
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from synthetic_run import SyntheticRun, ladder

from banpick_exp.report.files import write_tables
from banpick_exp.report.run import read_run
from banpick_exp.report.sentences import closing
from banpick_exp.report.tracking.config import TrackingConfig
from banpick_exp.report.tracking.found import FoundOut
from banpick_exp.report.tracking.place import SUMMARY, id_of, mirrored_runs
from banpick_exp.report.tracking.wandb import Tracker, entry_of
from banpick_exp.run_folder import RunFolder

pytestmark = pytest.mark.slow

PROJECT = {
    "id": "UHJvamVjdDox", "internalId": "UHJvamVjdEludGVybmFsSWQ6MQ==", "name": "banpick", "entityName": "me",
    "createdAt": "2026-01-01T00:00:00", "isBenchmark": False, "user": None,
}  # fmt: skip
VIEWER = {"id": "1", "username": "me", "entity": "me", "email": "", "flags": "{}", "teams": {"edges": []}}


class StandIn(BaseHTTPRequestHandler):
    """Answers the few questions that saving a report asks, and keeps every request."""

    requests: list[dict[str, Any]]
    summaries: dict[str, dict[str, Any]]
    """Id -> summary of each run that it has."""

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        data: dict[str, Any] = {}
        if self.path.endswith("/graphql") and raw:
            request = json.loads(raw)
            self.requests.append(request)
            data = {"data": self.answer(request["query"], request.get("variables") or {})}
        body = json.dumps(data).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def answer(self, query: str, asked: dict[str, Any]) -> dict[str, Any]:
        if "upsertBucket" in query:
            return {"upsertBucket": {"bucket": {"id": "1", "name": "n"}, "inserted": False}}
        if "run(name:" in query.replace(" ", ""):
            name = asked["name"]
            run = self.run(name) if name in self.summaries else None
            return {"project": {**PROJECT, "run": run}}
        if "upsertView" in query:
            project = {"id": PROJECT["id"], "name": "banpick", "entityName": "me"}
            view = {"id": "VmlldzoxMjM=", "name": "n", "type": "runs", "description": "", "displayName": "d"}
            return {"upsertView": {"view": {**view, "spec": "{}", "user": None, "project": project}, "inserted": True}}
        if "models(" in query:
            page = {"hasNextPage": False, "endCursor": None}
            return {"models": {"pageInfo": page, "edges": [{"node": PROJECT}]}}
        return {"project": PROJECT} if "project(" in query else {"viewer": VIEWER}

    def run(self, name: str) -> dict[str, Any]:
        return {
            "id": name, "tags": [], "name": name, "displayName": name, "sweepName": None, "state": "finished",
            "config": "{}", "group": "g", "jobType": "point", "commit": None, "readOnly": False,
            "createdAt": "2026-01-01T00:00:00", "heartbeatAt": "2026-01-01T00:00:00", "description": "", "notes": "",
            "systemMetrics": "{}", "summaryMetrics": json.dumps(self.summaries[name]), "historyLineCount": 0,
            "user": {"name": "me", "username": "me"}, "historyKeys": {}, "projectId": "1", "fileCount": 0,
        }  # fmt: skip

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    StandIn.requests, StandIn.summaries = [], {}
    with ThreadingHTTPServer(("127.0.0.1", 0), StandIn) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def environment(server: ThreadingHTTPServer | None, home: Path) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB", "NETRC"))}
    clean |= {"HOME": str(home), "PYTHONPATH": os.pathsep.join(sys.path), "WANDB_SILENT": "true"}
    if server is None:
        return clean
    return clean | {"WANDB_API_KEY": "a" * 40, "WANDB_BASE_URL": f"http://127.0.0.1:{server.server_port}"}


def sent_report() -> str:
    (sent,) = [request["variables"] for request in StandIn.requests if "upsertView" in request["query"]]
    assert (sent["entityName"], sent["projectName"]) == ("me", "banpick")
    return json.dumps(json.loads(sent["spec"]))


def test_a_saved_report_holds_all_that_a_reviewer_opens(server: ThreadingHTTPServer, tmp_path: Path) -> None:
    code = (
        "from banpick_exp.report.tracking.online import publish\n"
        "print(publish(entity='me', project='banpick', group='iso/20261125', verdict='No gain: 3 of 3 tie', "
        "facts=['3 points done'], axes=['policy.boost'], tables=['points', 'flips'], figures=['knobs', 'influence'], "
        "summary_run='abc12'))\n"
    )
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, env=environment(server, tmp_path), capture_output=True, text=True, timeout=120)
    assert found.returncode == 0, found.stderr[-2000:]
    assert found.stdout.strip().split("/")[3:5] == ["me", "banpick"]
    spec = sent_report()
    for part in ("No gain: 3 of 3 tie", "3 points done", "iso/20261125", "acc/overall", "perf/speedup", "abc12"):
        assert part in spec
    for part in ("route/mean_kept", "Scatter Plot", "Media Browser", "knobs", "influence", "Parallel Coordinates Plot"):
        assert part in spec
    for part in ("config:policy.value.boost", "summary:difference_points", "All points", "Flips"):
        assert part in spec
    assert spec.count('"viewType": "Weave"') + spec.count('"viewType":"Weave"') == 2 and "pareto" not in spec


@pytest.fixture(scope="module")
def mirrored(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run with its end behind it, mirrored offline."""
    run = ladder(SyntheticRun(problems=40), ks=(4,))
    for boost in (0.5, 1.0, 2.0):
        run.add("pick", {"boost": boost}, kept=4.0, churn=0.3)
    folder = RunFolder(run.write(tmp_path_factory.mktemp("outputs") / "pick_strength" / "first"))
    found = read_run(folder)
    write_tables(found)
    tracker = Tracker(TrackingConfig())
    tracker.start(folder, {})
    assert tracker.finish({"headline": "No gain"}, found=FoundOut(found)) == []
    assert tracker.to_publish()[1:] == [
        f"  wandb sync {folder.mirror}/offline-run-*",
        f"  python -m banpick_exp report {folder.path} --wandb",
    ]
    return folder


def report(folder: RunFolder, env: dict[str, str], *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "banpick_exp", "report", str(folder.path), *more, "--wandb"]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=180)


def test_an_uploaded_run_is_published_by_a_command(
    mirrored: RunFolder, server: ThreadingHTTPServer, tmp_path: Path
) -> None:
    """The server has the summary and two of the points, one of them with an older verdict."""
    runs = mirrored_runs(mirrored)
    labels = {record.label: entry_of(record) for record in read_run(mirrored).records}
    old, same = (id_of(runs[labels[label]]) for label in ("pick boost=0.5", "none"))
    stock = {"status": "done", "verdict": "reference", "guards": "none raised"}
    front = read_run(mirrored).done_rows().filter(label="none")["on_front"][0]
    StandIn.summaries = {
        id_of(runs[SUMMARY]): {}, old: {"verdict": "beats", "wins": 99}, same: {**stock, "on_front": front},
    }  # fmt: skip
    found = report(mirrored, environment(server, tmp_path))
    assert found.returncode == 0, found.stderr[-3000:]
    printed = found.stdout.splitlines()
    *_, address, left = printed[: printed.index("")]  # the verdict stands below
    assert address.startswith("W&B report: http") and "/me/banpick/reports/" in address
    assert (
        left == f"W&B has not got 3 of its points; to upload them too, type wandb sync {mirrored.mirror}/offline-run-*"
    )
    told = [request["variables"] for request in StandIn.requests if "upsertBucket" in request["query"]]
    assert [each["name"] if "name" in each else each["id"] for each in told] == [old], "what is true stays as it is"
    summary = json.loads(told[0]["summaryMetrics"])
    row = read_run(mirrored).verdict_of[labels["pick boost=0.5"].partition("@")[0], "overall"]
    assert (summary["verdict"], summary["wins"]) == (row["verdict"], row["wins"])
    spec, verdict = sent_report(), closing(read_run(mirrored))
    for part in (verdict, "pick_strength/first", id_of(runs[SUMMARY]), "policy.value.boost", "Flips", "knobs"):
        assert part in spec


def test_what_cannot_be_published_is_refused_before_anything_is_drawn(
    mirrored: RunFolder, server: ThreadingHTTPServer, tmp_path: Path
) -> None:
    page = mirrored.report
    page.unlink(missing_ok=True)
    StandIn.summaries = {}
    unsynced = report(mirrored, environment(server, tmp_path))
    keyless = report(mirrored, environment(None, tmp_path))
    several = report(mirrored, environment(None, tmp_path), str(tmp_path))
    other = RunFolder(ladder(SyntheticRun(problems=12), ks=(4,)).write(tmp_path / "pick" / "run"))
    unmirrored = report(other, environment(server, tmp_path))
    for refused in (unsynced, keyless, several, unmirrored):
        assert refused.returncode == 2 and refused.stdout == "" and "Traceback" not in refused.stderr
    assert "W&B has no run" in unsynced.stderr and f"wandb sync {mirrored.mirror}/offline-run-*" in unsynced.stderr
    assert "me/banpick" in unsynced.stderr and unsynced.stderr.rstrip().endswith("--wandb")
    assert "needs a W&B key" in keyless.stderr and "wandb login" in keyless.stderr
    assert "--wandb makes the report of one run, and 2 are typed" in several.stderr
    assert "is not mirrored to W&B" in unmirrored.stderr and "tracking=wandb" in unmirrored.stderr
    assert not page.exists() and not other.report.exists()


def test_a_server_that_refuses_says_so_in_a_line(mirrored: RunFolder, tmp_path: Path) -> None:
    env = environment(None, tmp_path) | {"WANDB_API_KEY": "a" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9"}
    place = mirrored.mirror_place.read_text()
    try:
        mirrored.mirror_place.write_text(place.replace("30.0", "6.0"))
        refused = report(mirrored, env)
    finally:
        mirrored.mirror_place.write_text(place)
    assert refused.returncode == 2 and "W&B did not make the report" in refused.stderr
    assert "Traceback" not in refused.stderr and refused.stderr.rstrip().endswith("when W&B answers.")
