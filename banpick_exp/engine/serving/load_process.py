"""The process that has `vllm bench serve` in it: asked many times, it is imported once (some ten seconds of processor).

Reads a JSON list of that command's options a line on stdin; answers each with a JSON line on what was stdout:
`{"result": ...}`, what the command would write to its file, or `{"error": ...}`. All that vLLM prints goes to stderr.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any


def main() -> None:
    """Until stdin ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    measure = _command()
    print(json.dumps({"result": {}}), file=answers, flush=True)
    for line in sys.stdin:
        try:
            answer = {"result": measure(json.loads(line))}
        except (Exception, SystemExit) as error:  # argparse leaves by SystemExit; whoever asks decides what it means
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer, default=str), file=answers, flush=True)


def _command() -> Any:
    import asyncio

    from vllm.benchmarks.serve import add_cli_args, main_async
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = FlexibleArgumentParser()
    add_cli_args(parser)
    return lambda words: asyncio.run(main_async(parser.parse_args(words)))


if __name__ == "__main__":
    main()
