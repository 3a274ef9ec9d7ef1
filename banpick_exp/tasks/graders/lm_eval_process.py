"""A process that judges with lm-eval's own task objects, and that the kernel ends when one answer takes too long.

Run by `lm_eval` as a file of its own (`python -I lm_eval_process.py`). One line of JSON an answer comes in ([YAML,
document, [multiple targets, multiple inputs], requests, responses, filter, seconds]), and one goes out: metric/filter
-> value, or {"error": what went wrong}. lm-eval, datasets and what a task's functions import are loaded here and never
in the engine's process; some of those functions parse mathematics, which can take for ever.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

IDLE_SECONDS = 300
MEMORY_BYTES = 16 * 2**30
"""Of addresses: what lm-eval imports reserves far more than it uses."""
OUT_OF_MEMORY = 3
"""Exit code."""
_tasks: dict[str, Any] = {}


def judge(path: str, document: dict[str, Any], kinds: list[int], requests: Any, responses: Any, only: str) -> Any:
    """What the task says, or what went wrong."""
    from banpick_exp.tasks.harness.rebuilt import rebuilt, results

    if path not in _tasks:
        _tasks[path] = rebuilt(Path(path), document, *kinds)
    return results(_tasks[path], document, requests, responses, only)


def serve(paths: list[str]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for who asks
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    sys.path += [path for path in paths if path not in sys.path]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    logging.disable(logging.CRITICAL)
    import lm_eval.api.task  # noqa: F401 (its time is not that of the first answer)

    signal.alarm(IDLE_SECONDS)
    for line in sys.stdin.buffer:
        signal.alarm(0)
        *question, seconds = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            found = judge(*question)
        except MemoryError:
            os._exit(OUT_OF_MEMORY)
        except Exception as error:  # told to who asks, who ends the point
            found = {"error": f"{type(error).__name__}: {error}"}
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(found), file=answers, flush=True)
        signal.alarm(IDLE_SECONDS)


if __name__ == "__main__":
    serve(json.loads(sys.argv[1]))
