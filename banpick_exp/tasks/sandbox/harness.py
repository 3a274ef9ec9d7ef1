"""Inside: runs a program, after everything that could be given up has been given up (`jail`).

Three ways: a `script` reads standard input and prints; the results of a `function` go back, one line of JSON a call,
and are compared outside, where the right ones stay; a `call` runs tests beside the program and sends a nonce back when
all have passed. No exit code and nothing printed makes a `call` pass. But the program and its tests are one process:
code that looks for the nonce on purpose, in this module's frames, finds it. Only comparing outside is proof.
"""

from __future__ import annotations

import atexit
import builtins
import contextlib
import importlib
import json
import os
import resource
import sys
import threading
import traceback
import types
from typing import Any, NoReturn

from banpick_exp.tasks.sandbox.assembled import assembled

FAILED, OUT_OF_MEMORY = 1, 3
"""Exit codes."""
PRELUDE = (
    *("string", "re", "datetime", "collections", "heapq", "bisect", "copy", "math", "random", "statistics"),
    *("itertools", "functools", "operator", "typing"),
)
"""Modules whose names a solution of a contest may use without importing them, as on the sites that they come from;
LiveCodeBench begins every solution with these too (lcb_runner/evaluation/testing_util.py)."""
RECURSION = 50_000
"""As LiveCodeBench sets it."""


def run(work: dict[str, Any], results: int) -> NoReturn:
    """Ends the process: 0 where the program did not fail. `results`: where lines go back."""
    code = FAILED
    try:
        {"script": _script, "function": _function, "call": _call}[work["kind"]](work, results)
        code = 0
    except MemoryError:
        code = OUT_OF_MEMORY
    except SystemExit as end:
        code = 0 if work["kind"] == "script" else FAILED
        if code:
            _say(f"SystemExit: {end.code}, before the tests were over")
    except BaseException as error:
        _say("".join(traceback.format_exception(type(error), error, error.__traceback__, limit=-3)))
    if code == 0 and work["kind"] == "script":
        code = _ended(results)
    os._exit(code)


def _ended(results: int) -> int:
    """What a program does on its way out, and what it took."""
    try:
        for thread in threading.enumerate():
            if thread is not threading.current_thread() and not thread.daemon:
                thread.join()
        atexit._run_exitfuncs()
        sys.stdout.flush()
    except BaseException as error:
        _say(repr(error))
        return FAILED
    used = resource.getrusage(resource.RUSAGE_SELF)
    _send(results, {"cpu_seconds": used.ru_utime + used.ru_stime})
    return 0


def _say(text: str) -> None:
    with contextlib.suppress(BaseException):
        os.write(2, text[-4000:].encode(errors="replace"))


def _send(results: int, value: object) -> None:
    data = (json.dumps(value, default=_plain) + "\n").encode()
    while data:
        data = data[os.write(results, data) :]


def _plain(value: Any) -> Any:
    """What numpy returns, as JSON has it. Raises TypeError for what JSON has nothing for."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"a {type(value).__name__} is no JSON")


def _module(name: str, *, prelude: bool) -> dict[str, Any]:
    """The namespace of a module of its own, where dataclasses and the like find it."""
    module = types.ModuleType(name)
    sys.modules[name] = module
    space = module.__dict__
    if prelude:
        for each in PRELUDE:
            found = importlib.import_module(each)
            space[each] = found
            names = getattr(found, "__all__", [key for key in vars(found) if not key.startswith("_")])
            space |= {key: getattr(found, key) for key in names}
        space |= {"datetime": importlib.import_module("datetime").datetime, "pow": builtins.pow, "sys": sys}
        sys.setrecursionlimit(RECURSION)
    return space


def _execute(source: str, name: str, space: dict[str, Any]) -> None:
    exec(compile(source, name, "exec"), space)


def _script(work: dict[str, Any], results: int) -> None:
    sys.argv = ["answer.py"]
    _execute(work["code"], "<answer>", _module("__main__", prelude=bool(work.get("prelude"))))


def _function(work: dict[str, Any], results: int) -> None:
    space = _module("answer", prelude=True)
    _execute(assembled(work["code"], work.get("prefix", ""), work["entry_point"]), "<answer>", space)
    name, solution = work["entry_point"], space.get("Solution")
    of_class = isinstance(solution, type) and hasattr(solution, name)
    if not of_class and name not in space:
        raise NameError(f"the answer defines no {name}")
    for arguments in work["inputs"]:
        function = getattr(solution(), name) if of_class else space[name]  # type: ignore[misc]
        _send(results, function(*arguments))


def _call(work: dict[str, Any], results: int) -> None:
    nonce = work.pop("nonce")
    space = _module("answer", prelude=False)
    name = work.get("entry_point")
    _execute(assembled(work["code"], work.get("prefix", ""), name), "<answer>", space)
    if name is not None and name not in space:
        raise NameError(f"the answer defines no {name}")
    answer = space.get(name) if name is not None else None
    _execute(work["test"], "<test>", space)
    check = space.get("check")
    if name is not None and callable(check):
        check(answer)
    _send(results, nonce)
