"""Clients that ask a server as fast as it answers: `vllm bench serve`, the field's own, held in one process.

What is compared is made equal: every request is answered to its full length (`ignore_eos`), greedily, and each measured
turn has a cache salt of its own, so that no prompt comes from the prefix cache.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from banpick_exp.errors import UserError

TAIL = 3000
"""Characters of its log that are shown where it fails."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """One turn: so many clients, each of which asks its next question when the last one is answered."""

    clients: int
    requests: int
    """Of all clients together."""
    tokens: int
    """Answered to each request."""
    prompts: Path | None
    """JSON lines with a `prompt` each; None: `prompt_tokens` random tokens."""
    prompt_tokens: int
    seed: int
    """Of random prompts: the same seed, the same prompts."""
    salt: str

    def words(self) -> list[str]:
        """As options of `vllm bench serve`."""
        if self.prompts is not None:
            asked = ["--dataset-name", "custom", "--dataset-path", str(self.prompts), "--custom-output-len"]
            asked += [str(self.tokens), "--disable-shuffle", "--skip-chat-template", "--no-oversample"]
        else:
            asked = ["--dataset-name", "random", "--random-input-len", str(self.prompt_tokens)]
            asked += ["--random-output-len", str(self.tokens), "--seed", str(self.seed)]
        asked += ["--num-prompts", str(self.requests), "--max-concurrency", str(self.clients)]
        return [*asked, "--ignore-eos", "--temperature", "0", "--extra-body", json.dumps({"cache_salt": self.salt})]


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """What one turn took."""

    seconds: float
    prompt_tokens: int
    output_tokens: int
    first_token_seconds: list[float]
    """By request, from asking to the first token."""
    between_tokens_seconds: list[float]

    @property
    def tokens_per_second(self) -> float:
        return self.output_tokens / self.seconds


class LoadClient:
    """The process with `vllm bench serve`. Its answers are awaited: one server is loaded at a time."""

    def __init__(self, tokenizer: str, options: Sequence[str], folder: Path) -> None:
        """Starts it. `options`: further ones of `vllm bench serve`, such as --trust-remote-code."""
        self._log = folder / "client.log"
        self._options = ["--backend", "openai", "--tokenizer", tokenizer, *options]
        # Plugins change engines, and this process has none; a proxy has no way to this machine's loopback.
        environment = {**os.environ, "VLLM_PLUGINS": "", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
        environment.pop("BANPICK_POLICY", None)
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "banpick_exp.engine.serving.load_process"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, encoding="utf-8",
                env=environment, start_new_session=True,
            )  # fmt: skip

    def wait(self) -> None:
        """Until it is ready. UserError, with the end of its log, where it is not."""
        self._answer()

    def measure(self, url: str, model: str, load: Load) -> Turn:
        """One turn against the server at `url`. UserError where a request failed or was answered short."""
        fixed = ["--base-url", url, "--endpoint", "/v1/completions", "--model", model, "--save-detailed"]
        fixed += ["--ready-check-timeout-sec", "0", "--num-warmups", "0", "--disable-tqdm"]
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the answer says why
            print(json.dumps([*self._options, *fixed, *load.words()]), file=self._process.stdin, flush=True)
        return turn_of(self._answer(), load, model)

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._fail(f"ended with code {self._process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            self._fail(f"failed ({answer['error']})")
        result: dict[str, Any] = answer["result"]
        return result

    def _fail(self, how: str) -> None:
        said = self._log.read_text(encoding="utf-8", errors="replace")[-TAIL:].strip()
        raise UserError(f"vLLM's benchmark client {how}, so nothing can be measured. The end of its log:\n{said}")

    def stop(self) -> None:
        """With what it started; safe to call again."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def turn_of(result: dict[str, Any], load: Load, model: str) -> Turn:
    """The result of `vllm bench serve --save-detailed`, checked. UserError where the work was not what was asked."""
    wanted = load.requests * load.tokens
    if result["failed"] or result["completed"] != load.requests or result["total_output_tokens"] != wanted:
        why = next((error.strip().splitlines()[-1] for error in result["errors"] if error), "no reason was given")
        raise UserError(
            f"{load.clients} clients asked {model} {load.requests} times for {load.tokens} tokens:"
            f" {result['completed']} requests were answered with {result['total_output_tokens']} of {wanted} tokens"
            f" ({why}). Turns of other work cannot be compared. Ask for fewer (--tokens, --prompt-tokens), or give the"
            " server more room (--max-model-len)"
        )
    return Turn(
        seconds=result["duration"],
        prompt_tokens=result["total_input_tokens"],
        output_tokens=result["total_output_tokens"],
        first_token_seconds=list(result["ttfts"]),
        between_tokens_seconds=[seconds for each in result["itls"] for seconds in each],
    )
