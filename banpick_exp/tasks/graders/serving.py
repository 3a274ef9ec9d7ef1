"""The loop of a process that judges for one who asks (`bounded`) with a library that may hang or take all memory.

One line of JSON a question comes in, its last item the seconds of processor time it may take, and one line goes out. A
question that takes more ends the process by SIGPROF, one that takes all memory by an exit code; it ends by itself when
nobody is left to ask, or asks.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import sys
from collections.abc import Callable
from typing import Any

IDLE_SECONDS = 300
"""Longer without a question ends it (SIGALRM), should the end of its input be held open by somebody else."""
OUT_OF_MEMORY = 3
"""Exit code."""
ENDS = (-signal.SIGPROF, -signal.SIGKILL, -signal.SIGSEGV, OUT_OF_MEMORY)
"""Time, the wall limit or the machine's own memory, depth, memory: the question's doing."""


def serve(
    judge: Callable[..., Any], prepare: Callable[[], None], *, memory_bytes: int, largest_kib: int | None = None
) -> None:
    """Answer what comes on stdin until it ends.

    `prepare` imports what `judge` needs, so that its time is not that of the first answer. `memory_bytes`: of
    addresses. `largest_kib`: a process that has grown larger ends after its answer, so that none is judged with
    another's memory.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for who asks
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    prepare()
    logging.disable(logging.CRITICAL)
    signal.alarm(IDLE_SECONDS)
    for line in sys.stdin.buffer:
        signal.alarm(0)
        *question, seconds = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            found = judge(*question)
        except MemoryError:
            os._exit(OUT_OF_MEMORY)
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(found), file=answers, flush=True)
        if largest_kib is not None and _most_kib() > largest_kib:
            return
        signal.alarm(IDLE_SECONDS)


def _most_kib() -> int:
    """The most memory this process held at a time.

    By the kernel's own account of this program: `getrusage` counts what the process held that started it, and an
    engine's is larger than any bound of ours, so that every single answer would cost a start.
    """
    with open("/proc/self/status", encoding="ascii", errors="replace") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))
