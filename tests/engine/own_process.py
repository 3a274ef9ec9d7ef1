"""Engines that need an environment, a width or a precision of their own run as scripts in a process of their own.

A script takes the path of the JSON it writes. Each runs once per test session, however many tests read its findings.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SCRIPT_SECONDS = 400


@functools.cache
def findings(script: str) -> dict[str, Any]:
    """What `script` (a file beside this one) found. Raises AssertionError with its last output when it fails."""
    path = os.pathsep.join(str(p) for p in (ROOT, ROOT / "kernels"))
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment.pop("VLLM_PLUGINS", None)
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "findings.json"
        command = [sys.executable, str(Path(__file__).parent / script), str(result)]
        process = subprocess.run(
            command, env=environment, cwd=folder, capture_output=True, text=True, timeout=SCRIPT_SECONDS
        )
        output = (process.stdout + process.stderr)[-6000:]
        assert process.returncode == 0 and result.exists(), f"{script} ended with {process.returncode}:\n{output}"
        found: dict[str, Any] = json.loads(result.read_text())
        return found
