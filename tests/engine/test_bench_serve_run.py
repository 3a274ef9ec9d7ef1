"""`bench serve` for real, tiny: two servers on loopback, vLLM's own client, and nothing left of them when it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from exportable_run import of_label, of_the_embedded_model

from banpick_exp.__main__ import main

pytestmark = [pytest.mark.engine, pytest.mark.slow]

CLIENTS, ROUNDS, TOKENS = (1, 2), 2, 4


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An export of a run of the embedded model."""
    folder = tmp_path_factory.mktemp("exported")
    synthetic, run = of_the_embedded_model(folder)
    assert main(["export", str(run), of_label(synthetic, "fixed_k k=4").fingerprint, str(folder / "OUT")]) == 0
    return str(folder / "OUT")


def started(out: str, place: Path, servers: int) -> subprocess.Popen[str]:
    """The command as it is typed; its servers are known by their TMPDIR."""
    # An engine in this process has set what vLLM reads from the environment.
    rest = {name: value for name, value in os.environ.items() if not name.startswith(("VLLM_", "BANPICK_"))}
    words = ["--clients", ",".join(map(str, CLIENTS)), "--rounds", str(ROUNDS), "--tokens", str(TOKENS)]
    words += ["--requests", "2", "--servers", str(servers), "--num-gpu-blocks-override", "64", "--block-size", "32"]
    words += ["--prompt-tokens", "16"] if servers == 2 else []  # else problems of the embedded model
    words += ["--output", str(place / "bench.jsonl"), "--picture", str(place / "bench.png")]
    return subprocess.Popen(
        [sys.executable, "-m", "banpick_exp", "bench", "serve", f"fast={out}", *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**rest, "TMPDIR": str(place)},
    )  # fmt: skip


def processes_of(place: Path) -> list[int]:
    """Those that were started there, by their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"TMPDIR={place}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def gone(place: Path) -> bool:
    """Whether none is left, once those that were killed have had the time to end."""
    end = time.monotonic() + 10
    while processes_of(place) and time.monotonic() < end:
        time.sleep(0.05)
    return not processes_of(place)


def test_interrupted_while_its_servers_start(out: str, tmp_path: Path) -> None:
    command = started(out, tmp_path, 2)
    end = time.monotonic() + 120
    while len(processes_of(tmp_path)) < 4:  # the command, two servers and the client
        assert command.poll() is None and time.monotonic() < end
        time.sleep(0.1)
    command.send_signal(signal.SIGTERM)
    _, said = command.communicate(timeout=60)
    assert command.returncode == 130 and "interrupted" in said
    assert gone(tmp_path) and not list(tmp_path.iterdir()), "its temporary folder is gone too"


@pytest.mark.parametrize("servers", [1, pytest.param(2, marks=pytest.mark.long)])
def test_the_table_the_figures_and_the_exit(out: str, tmp_path: Path, servers: int) -> None:
    """With one server in every run of CI: a start takes half a minute of processor."""
    arms = ("no plugin", "stock", "fast")[2 - servers :]
    command = started(out, tmp_path, servers)
    printed, said = command.communicate(timeout=500)
    assert command.returncode == 0, said
    rows = [json.loads(line) for line in printed.splitlines()]
    assert [json.loads(line) for line in (tmp_path / "bench.jsonl").read_text().splitlines()] == rows
    assert [(row["clients"], row["arm"]) for row in rows] == [(clients, arm) for clients in CLIENTS for arm in arms]
    kept = {"no plugin": None, "stock": 8, "fast": 4}
    for row in rows:
        assert row["valid"] and row["mean_kept"] == kept[row["arm"]], row
        assert (row["rounds"], row["requests"], row["tokens"]) == (ROUNDS, 4, TOKENS)
        assert row["prompts"] == ("given" if servers == 1 else "16 random tokens")
        assert row["tokens_per_second"] > 0 and 0 < row["first_token_ms"] <= row["first_token_ms_p99"]
        assert 0 < row["between_tokens_ms"] <= row["between_tokens_ms_p99"]
        for key, base in (
            ("over_stock", "stock"), ("over_plain", "no plugin"), ("cpu_over_stock", "stock"),
            ("cpu_over_plain", "no plugin"),
        ):  # fmt: skip
            ends = [row[f"{key}{end}"] for end in ("_low", "", "_high")]
            assert ends == [None] * 3 if base not in arms or base == row["arm"] else 0 < ends[0] <= ends[1] <= ends[2]
    for words in ("warmed up", f"round {ROUNDS} of {ROUNDS}", "ETA 0 s", "over stock", "first token, ms", "4.00"):
        assert words in said
    assert "INVALID" not in said and ("over no plugin" in said) == (servers == 2)
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")
    assert gone(tmp_path)
