"""Signs of life of an engine's process: a file of the run's folder that counts up, and says which processes it has.

Ray notices a process that has ended, and within seconds a node that has. It does not notice one that hangs or was
stopped, nor that a process *below* the engine (vLLM's core and workers under tensor parallel) has died: the call then
never returns. So each engine process counts in a thread of its own, and the driver watches the count by its own clock:
two machines' clocks and a shared folder's times are not compared.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from banpick_exp.disk import create_folder, opener
from banpick_exp.run_folder import RunFolder

BEAT_SECONDS = 2.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Pulse:
    """What an engine's process says of itself."""

    beat: int
    host: str
    pid: int
    began: float
    """Tells a restarted engine's count from the old one's: seconds since the epoch by its own clock."""
    ended: tuple[str, ...] = ()
    """Processes below it that are gone: name and pid."""
    stopped: tuple[str, ...] = ()
    """Processes below it that are stopped, and so answer nothing."""


@contextlib.contextmanager
def beating(folder: RunFolder, engine: str) -> Iterator[None]:
    """Signs of life of this process under an engine's name, until the block ends."""
    path = folder.pulse_path(engine)
    create_folder(path.parent)
    over = threading.Event()
    thread = threading.Thread(target=_beat, args=(path, over), name="pulse", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        path.unlink(missing_ok=True)


def _beat(path: Path, over: threading.Event) -> None:
    began, seen = time.time(), dict[int, str]()
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    for beat in range(2**60):
        running = _below(os.getpid())
        seen |= {pid: name for pid, (name, _) in running.items()}
        pulse = Pulse(
            beat=beat,
            host=socket.gethostname(),
            pid=os.getpid(),
            began=began,
            ended=tuple(f"{name} ({pid})" for pid, name in seen.items() if pid not in running),
            stopped=tuple(f"{name} ({pid})" for pid, (name, state) in running.items() if state in "Tt"),
        )
        with contextlib.suppress(OSError):  # a full disk is told by what writes results
            with open(temporary, "w", opener=opener) as file:
                file.write(json.dumps(asdict(pulse)))  # not synced: it is worth nothing a second later
            os.replace(temporary, path)
        if over.wait(BEAT_SECONDS):
            return


def read_pulse(folder: RunFolder, engine: str) -> Pulse | None:
    """None where there is none, or one that is being written."""
    try:
        found = json.loads(folder.pulse_path(engine).read_text())
        return Pulse(**{**found, "ended": tuple(found["ended"]), "stopped": tuple(found["stopped"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None


WORKERS = ("VLLM::", "EngineCore", "Worker")
"""How vLLM titles the processes that an engine stands on; helpers that come and go (compilers, git) are none."""


def _below(pid: int) -> dict[int, tuple[str, str]]:
    """vLLM's living processes below `pid`: (name, state as /proc has it) by pid.

    By the kernel's own lists of children: looking through every process of a large node would disturb what is timed.
    """
    found = {}
    for child in descendants(pid):
        stat = _stat(child)
        if stat is not None and stat[1] not in "ZX" and stat[0].startswith(WORKERS):
            found[child] = stat
    return found


def descendants(pid: int) -> list[int]:
    """Every process below `pid` on this machine."""
    found: list[int] = []
    unseen = _children(pid)
    while unseen:
        child = unseen.pop()
        found.append(child)
        unseen += _children(child)
    return found


def _children(pid: int) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError):
                found += map(int, Path(f"/proc/{pid}/task/{thread}/children").read_text().split())
    return found


def _stat(pid: int) -> tuple[str, str] | None:
    """A process's title (its name where it has none) and state; None where it is gone."""
    try:
        head, _, tail = Path(f"/proc/{pid}/stat").read_text().rpartition(")")
        title = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return None
    return title.split(" ")[0] or head.partition("(")[2], tail.split()[0]


class Watch:
    """The driver's side: how long each engine has given no sign of life."""

    def __init__(self, folder: RunFolder, dead_seconds: float) -> None:
        self._folder, self._dead_seconds = folder, dead_seconds
        self._seen: dict[str, tuple[tuple[float, int] | None, float]] = {}
        """By engine: the last count, and when it was new, on the perf_counter clock."""
        self._stopped: dict[str, float] = {}

    def begin(self, engine: str) -> None:
        """An engine is loaded: from now on it is expected to count."""
        self._seen[engine] = None, time.perf_counter()
        self._stopped.pop(engine, None)

    def lost(self, engine: str) -> str | None:
        """Why an engine that `begin` named must be taken for lost; None where all is well."""
        pulse, now = read_pulse(self._folder, engine), time.perf_counter()
        count = None if pulse is None else (pulse.began, pulse.beat)
        last, since = self._seen[engine]
        if count != last and count is not None:
            self._seen[engine] = count, now
        elif now - since > self._dead_seconds:
            return f"no sign of life for cluster.dead_seconds={self._dead_seconds:g}: it is stopped, or its machine is"
        if pulse is None:
            return None
        if pulse.ended:
            return f"processes of it died: {', '.join(pulse.ended)}"
        if not pulse.stopped:
            self._stopped.pop(engine, None)
        elif now - self._stopped.setdefault(engine, now) > self._dead_seconds:
            return f"processes of it are stopped: {', '.join(pulse.stopped)}"
        return None
