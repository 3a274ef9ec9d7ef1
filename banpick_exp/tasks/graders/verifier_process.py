"""A process that judges with reasoning-gym's own verifiers, and that the kernel ends when one answer takes too long.

Run by `reasoning_gym` as a file of its own (`python -I verifier_process.py PATHS`); the loop is `serving`. A question
is [dataset, entry, answer], an answer the verifier's score, 0 to 1. Several verifiers evaluate what they are given:
here that is arithmetic or an error (`evaluated`).
"""

from __future__ import annotations

import json
import sys
from typing import Any

MEMORY_BYTES = 8 * 2**30
"""Of addresses: what the package imports reserves far more than it uses."""
PACKAGE = "reasoning_gym"


def judge(dataset: str, entry: dict[str, Any], answer: str) -> float:
    """The verifier's score; an error of its own on a given answer is a wrong answer, as verifiers parse it."""
    from reasoning_gym.factory import get_score_answer_fn

    verifier = get_score_answer_fn(dataset)
    guard()  # also what was imported only now
    try:
        return float(verifier(answer=answer, entry=entry))
    except MemoryError:
        raise
    except Exception:
        return 0.0


def guard() -> None:
    """Put `evaluated` in the place of whatever evaluates text in the package's modules, and in sympy."""
    import sympy.parsing.sympy_parser as parser

    from banpick_exp.tasks.graders.evaluated import guarded_eval, guarded_sympy, refused_exec

    if parser.eval_expr.__module__ == parser.__name__:
        parser.eval_expr = guarded_sympy(parser.eval_expr)
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == PACKAGE:
            vars(module).update({"eval": guarded_eval, "exec": refused_exec})


def prepare() -> None:
    import reasoning_gym  # noqa: F401


if __name__ == "__main__":
    sys.path += [path for path in json.loads(sys.argv[1]) if path not in sys.path]
    from banpick_exp.tasks.graders.serving import serve

    serve(judge, prepare, memory_bytes=MEMORY_BYTES)
