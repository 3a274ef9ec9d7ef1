"""A process that judges with lm-eval's own task objects, and that the kernel ends when one answer takes too long.

Run by `lm_eval` as a file of its own (`python -I lm_eval_process.py PATHS`); the loop is `serving`. A question is
[YAML, document, [multiple targets, multiple inputs], requests, responses, filter], an answer metric/filter -> value,
or {"error": what went wrong}. lm-eval, datasets and what a task's functions import are loaded here and never in the
engine's process; some of those functions parse mathematics, which can take for ever.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

MEMORY_BYTES = 16 * 2**30
"""Of addresses: what lm-eval imports reserves far more than it uses."""
_tasks: dict[str, Any] = {}


def judge(path: str, document: dict[str, Any], kinds: list[int], requests: Any, responses: Any, only: str) -> Any:
    """What the task says, or what went wrong: who asks is told, and ends the point."""
    from banpick_exp.tasks.harness.rebuilt import rebuilt, results

    try:
        if path not in _tasks:
            _tasks[path] = rebuilt(Path(path), document, *kinds)
        return results(_tasks[path], document, requests, responses, only)
    except MemoryError:
        raise
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


def prepare() -> None:
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    import lm_eval.api.task  # noqa: F401


if __name__ == "__main__":
    sys.path += [path for path in json.loads(sys.argv[1]) if path not in sys.path]
    from banpick_exp.tasks.graders.serving import serve

    serve(judge, prepare, memory_bytes=MEMORY_BYTES)
