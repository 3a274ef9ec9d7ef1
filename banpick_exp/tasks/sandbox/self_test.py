"""Does a sandbox hold on this machine? A program tries what no answer may do, before any answer is run."""

from __future__ import annotations

import json
import os
import socket
import tempfile
from pathlib import Path

from banpick_exp.tasks.sandbox.interpreter import interpreter
from banpick_exp.tasks.sandbox.limits import Limits
from banpick_exp.tasks.sandbox.sandbox import Sandbox, SandboxFailed

LIMITS = Limits(seconds=20.0)
PROBE = """
import json, os, signal, socket, sys, threading
place, parent, port, wanted = json.loads(sys.stdin.read())
held = []
def tried(what, action):
    try:
        action()
    except Exception:
        held.append(what)
tried("a socket", lambda: socket.create_connection(("127.0.0.1", port), 5))
tried("a socket of any kind", lambda: socket.socket(socket.AF_UNIX))
tried("reading a file outside", lambda: open(place).read())
tried("writing a file outside", lambda: open(place, "a").write("more"))
tried("writing beside it", lambda: open(place + ".new", "w"))
tried("changing its mode", lambda: os.chmod(place, 0o600))
tried("deleting it", lambda: os.unlink(place))
tried("another process", os.fork)
tried("another program", lambda: os.execv(sys.executable, [sys.executable, "-c", ""]))
tried("a signal to who asked", lambda: os.kill(parent, 0))
tried("a signal to all", lambda: os.kill(-1, 0))
tried("reading the environment of who asked", lambda: open(f"/proc/{parent}/environ", "rb").read())
thread = threading.Thread(target=held.append, args=("a thread works",))
thread.start()
thread.join()
for name in wanted:
    __import__(name)
print(json.dumps([held, sorted(os.environ)]))
"""
HELD = {
    *("a socket", "a socket of any kind", "reading a file outside", "writing a file outside", "writing beside it"),
    *("changing its mode", "deleting it", "another process", "another program", "a signal to who asked"),
    *("a signal to all", "reading the environment of who asked", "a thread works"),
}
OWN_NAMES = {
    *("PATH", "LANG", "HOME", "PWD", "TMPDIR", "LC_CTYPE"),
    *("PYTHONHASHSEED", "PYTHONPATH", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"),
}
"""Variables that a program in a sandbox has of its own, whatever who asked has."""
MODULES = ("json", "re", "collections", "decimal", "hashlib", "unittest")


def fault(sandbox: Sandbox) -> str | None:
    """What it does not hold, or why it does not run; None where it does what it must."""
    if (missing := sandbox.missing()) is not None:
        return missing
    with tempfile.TemporaryDirectory() as folder, socket.socket() as listening:
        os.chmod(folder, 0o777)  # open to all, so that the sandbox is what keeps the program out
        place = Path(folder) / "probe"
        place.write_text("content")
        place.chmod(0o666)
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        wanted = [*MODULES, *(["numpy"] if interpreter().packages else [])]
        asked = json.dumps([str(place), os.getpid(), listening.getsockname()[1], wanted]).encode()
        try:
            outcome = sandbox.run({"kind": "script", "code": PROBE}, stdin=asked, limits=LIMITS)
        except SandboxFailed as error:
            return str(error)
        if outcome.status != "passed":
            return f"its own test ended as {outcome.status}: {outcome.tail.strip()[-400:]}"
        held, names = json.loads(outcome.stdout)
        if lacking := sorted(HELD - set(held)):
            return f"it does not hold here: {', '.join(lacking)}"
        if leaked := set(names) & set(os.environ) - OWN_NAMES:
            return f"it does not keep the environment: {', '.join(sorted(leaked))}"
        if sorted(path.name for path in Path(folder).iterdir()) != ["probe"] or place.read_text() != "content":
            return "it does not keep files outside as they were"
    return None
