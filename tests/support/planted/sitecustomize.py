"""Loaded by every Python process that has this folder on its PYTHONPATH: problems that break a real engine's process.

`BANPICK_PLANTED` is a JSON object: `prompts` that break it; `how`, `kill` or `hang`; `times`, after which no more;
`log`, a file with a line for each that did. A process that hangs here goes on with all its other threads.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

ENGINE = "banpick_exp.engine.engine"


class Planting(importlib.abc.MetaPathFinder):
    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name != ENGINE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.loader is not None
        load = spec.loader.exec_module

        def planted(module: Any) -> None:
            load(module)
            plant(module.Engine)

        spec.loader.exec_module = planted  # type: ignore[method-assign]
        return spec


def plant(engine_class: Any) -> None:
    told = json.loads(os.environ["BANPICK_PLANTED"])
    log, run, marked = Path(told["log"]), engine_class._run, set[tuple[int, ...]]()

    def breaking(engine: Any, prompts: Any, sampling: Any, salt: str, *rest: Any) -> Any:
        if not marked:
            marked.update(map(tuple, engine.tokenize(told["prompts"])))
        done = len(log.read_text().splitlines()) if log.exists() else 0
        if done < told["times"] and any(tuple(ids) in marked for ids in prompts):
            with log.open("a") as file:
                file.write(f"{os.getpid()}\n")
            if told["how"] == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(1e6)
        return run(engine, prompts, sampling, salt, *rest)

    engine_class._run = breaking


if "BANPICK_PLANTED" in os.environ:
    sys.meta_path.insert(0, Planting())
