"""Offline W&B runs, read back with W&B's own tool."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from wandb.util import get_core_path


def read_back(run_dir: Path) -> dict[str, dict[str, Any]]:
    """Every offline run under the folder, by its name: its header, config, last value of each history, history rows,
    summary, defined metrics and artifacts."""
    runs = {}
    for log in (run_dir / "wandb").glob("offline-run-*/*.wandb"):
        command = [get_core_path(), "leet", "inspect", "--no-observability", "--json", "--run-file", str(log)]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        rows = [json.loads(line) for line in output.splitlines()]
        run: dict[str, Any] = {"history": {}, "summary": {}, "rows": [], "metrics": {}, "artifacts": [], "text": output}
        for row in rows:
            body = row.get(row["type"], {})
            if row["type"] == "run":
                run |= {"header": body, "config": body["config"]["update"]}
            elif row["type"] == "history":
                run["history"] |= body.get("item", {})
                run["rows"].append(body.get("item", {}))
            elif row["type"] == "metric":
                run["metrics"][body["name"]] = body
            elif row["type"] == "summary":
                run["summary"] |= body.get("update", {})
            elif row["type"] == "artifact":
                run["artifacts"].append(body)
            elif row["type"] == "exit":
                run["exit_code"] = body["exit_code"]
        runs[run["header"]["display_name"]] = run
    return runs
