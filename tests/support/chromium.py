"""A headless Chromium that opens a file, moves the mouse and tells what it shows, over its DevTools protocol."""

from __future__ import annotations

import base64
import itertools
import json
import os
import shutil
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-extensions",
    "--disable-background-networking", "--disable-component-update", "--hide-scrollbars", "--window-size=1300,1400",
    "--remote-debugging-port=0",
)  # fmt: skip
START_SECONDS = 60


def find() -> str | None:
    """The browser to use: $CHROMIUM, or the first of NAMES on the path."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


class Tab:
    """One open page. Problems that its scripts raise are kept in `errors`, its requests in `requested`."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket, self._numbers = socket, itertools.count(1)
        self.errors: list[str] = []
        self.requested: list[str] = []
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv(timeout=30))
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]
            self._note(message)

    def _note(self, message: dict[str, Any]) -> None:
        event, body = message.get("method"), message.get("params", {})
        if event == "Runtime.exceptionThrown":
            self.errors.append(str(body["exceptionDetails"]))
        elif event == "Log.entryAdded" and body["entry"]["level"] == "error":
            self.errors.append(str(body["entry"]))
        elif event == "Network.requestWillBeSent":
            self.requested.append(body["request"]["url"])

    def open(self, path: Path) -> None:
        self.call("Page.navigate", url=path.resolve().as_uri())
        deadline = time.monotonic() + START_SECONDS
        while self.evaluate("document.readyState") != "complete":
            assert time.monotonic() < deadline, f"{path} did not load"
            time.sleep(0.05)

    def evaluate(self, script: str) -> Any:
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def centre(self, selector: str) -> tuple[float, float]:
        """Where the first visible element of a selector is, in pixels of the window; scrolls to it first."""
        script = (
            f"(() => {{ const e = [...document.querySelectorAll({json.dumps(selector)})].find((e) => e.getClientRects()"
            ".length); e.scrollIntoView({block: 'center'}); const b = e.getBoundingClientRect(); "
            "return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        x, y = self.evaluate(script)
        return x, y

    def mouse(self, kind: str, x: float, y: float) -> None:
        """`mouseMoved`, `mousePressed` or `mouseReleased` at a place, as a hand would do it."""
        button = {} if kind == "mouseMoved" else {"button": "left", "clickCount": 1}
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **button)

    def screenshot(self, path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))
        return path


@contextmanager
def browser(program: str) -> Iterator[Tab]:
    """Start Chromium with a profile of its own, and end it with everything it started."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [program, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            try:
                port = _port(process, Path(profile) / "DevToolsActivePort")
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=30) as answer:
                    address = next(p["webSocketDebuggerUrl"] for p in json.load(answer) if p["type"] == "page")
                with connect(address, max_size=None, proxy=None) as socket:
                    yield Tab(socket)
            finally:
                process.terminate()
                try:
                    process.wait(20)
                except subprocess.TimeoutExpired:
                    process.kill()


def _port(process: subprocess.Popen[bytes], file: Path) -> str:
    deadline = time.monotonic() + START_SECONDS
    while not file.is_file() or not file.read_text().strip():
        assert process.poll() is None, f"Chromium ended with {process.returncode} before it listened"
        assert time.monotonic() < deadline, "Chromium does not listen"
        time.sleep(0.1)
    return file.read_text().split()[0]
