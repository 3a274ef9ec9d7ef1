"""A process that searches texts with regular expressions, and that the kernel ends when one search takes too long.

Run by `pattern` as a file of its own (`python -I -S pattern_process.py`), so it imports nothing of the package. One
line of JSON a search comes in ([pattern, text, seconds]) and one goes out: null, or the group of the last match. A
search that spends more than `seconds` of this process's time ends it by SIGPROF: nothing else stops `re` outside a
main thread. It ends by itself when nobody is left to ask, or asks.
"""

from __future__ import annotations

import json
import re
import signal
import sys

IDLE_SECONDS = 300
"""Longer without a question ends it (SIGALRM), should the end of its input be held open by somebody else."""


def serve() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for who asks
    signal.alarm(IDLE_SECONDS)
    for line in sys.stdin.buffer:
        signal.alarm(0)
        pattern, text, seconds = json.loads(line)
        compiled = re.compile(pattern)
        signal.setitimer(signal.ITIMER_PROF, seconds)
        found = None
        for match in compiled.finditer(text):
            found = match
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(None if found is None else found[1] or ""), flush=True)
        signal.alarm(IDLE_SECONDS)


if __name__ == "__main__":
    serve()
