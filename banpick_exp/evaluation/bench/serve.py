"""What a served policy saves and what the plugin costs: tokens a second of real servers, in turn, by number of clients.

Two servers at most: one holds stock and the policies, as `serve` starts it, and one is vLLM without the plugin. One is
loaded at a time. In each round, and at each number of clients, every arm answers the same prompts to the same length.
"""

from __future__ import annotations

import contextlib
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from banpick_exp.engine.serving.command import option
from banpick_exp.engine.serving.load_client import Load, LoadClient, Turn
from banpick_exp.engine.serving.loopback import NAME, Loopback, with_policies, without_plugin
from banpick_exp.engine.serving.served import STOCK, Served
from banpick_exp.errors import UserError
from banpick_exp.evaluation.bench.layer import on_gpu
from banpick_exp.evaluation.bench.served_turns import PLAIN, Arm, Counted, counted, order, row_of
from banpick_exp.evaluation.bench.timing import Row, emit, print_table

LEAST_REQUESTS = 4
"""Of a turn, however few its clients are."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """What is measured, and on what."""

    model: str
    """Folder or Hugging Face id."""
    typed: Sequence[str]
    """NAME=OUT/[@DOMAIN], as `serve` takes them."""
    served: Sequence[Served]
    """The same, loaded, stock among them."""
    clients: Sequence[int] = (1, 8, 32)
    rounds: int = 12
    requests: int = 2
    """Of each client in a turn; a turn has `LEAST_REQUESTS` at least."""
    tokens: int = 64
    """Of each answer."""
    prompts: Sequence[str] = ()
    """Texts to draw from; empty: `prompt_tokens` random tokens each."""
    prompt_tokens: int = 256
    plain: bool = True
    """A second server, without the plugin."""
    options: Sequence[str] = ()
    """vLLM's own, of both servers."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """Of both servers' environment."""

    def requests_of(self, clients: int) -> int:
        return max(LEAST_REQUESTS, clients * self.requests)

    @property
    def top_k(self) -> int:
        return next(each.exported.shape.top_k for each in self.served if each.exported is not None)

    @property
    def arms(self) -> list[str]:
        names = [each.name for each in self.served if each.name != STOCK]
        return [*([PLAIN] if self.plain else []), STOCK, *names]

    @property
    def answered_tokens(self) -> int:
        """Of the whole run, the warm-up included."""
        requests = sum(map(self.requests_of, self.clients))
        return (self.rounds + 1) * len(self.arms) * requests * self.tokens


def bench_serve(asked: Asked, output: Path | None, say: Callable[[str], None]) -> list[Row]:
    """One row a number of clients and arm. Raises UserError where a server does not come up, or a request fails."""
    with tempfile.TemporaryDirectory(prefix="banpick-bench-") as folder, contextlib.ExitStack() as ends:
        servers = _servers(asked, Path(folder), ends, say)
        client = _client(asked, Path(folder), ends)
        for server in servers.values():
            server.wait()
        client.wait()
        arms = _measure(asked, servers, client, Path(folder), say)
    rows = [_about(asked, clients) | row_of(arm, each, asked.top_k) for clients, each in arms.items() for arm in each]
    for row in rows:
        emit(row, output)
    show(asked, rows)
    return rows


def _servers(
    asked: Asked, folder: Path, ends: contextlib.ExitStack, say: Callable[[str], None]
) -> dict[bool, Loopback]:
    """By whether it has the plugin."""
    what = "two servers, with the policies and without the plugin" if asked.plain else "a server with the policies"
    say(f"Starting {what}: {', '.join(asked.arms)}")
    servers = {True: with_policies(asked.model, asked.typed, asked.options, asked.settings, folder)}
    ends.callback(servers[True].stop)
    if asked.plain:
        if on_gpu():
            servers[True].wait()  # each measures what memory is free while it starts
        servers[False] = without_plugin(asked.model, asked.options, asked.settings, folder)
        ends.callback(servers[False].stop)
    return servers


def _client(asked: Asked, folder: Path, ends: contextlib.ExitStack) -> LoadClient:
    options = list(asked.options)
    mode, trust = option(options, "--tokenizer-mode"), "--trust-remote-code"
    known = [*(["--tokenizer-mode", mode] if mode else []), *([trust] if trust in options else [])]
    client = LoadClient(option(options, "--tokenizer") or asked.model, known, folder)
    ends.callback(client.stop)
    return client


def _measure(
    asked: Asked, servers: Mapping[bool, Loopback], client: LoadClient, folder: Path, say: Callable[[str], None]
) -> dict[int, list[Arm]]:
    """The arms by number of clients. The first round warms up, and says how long the others take."""
    by_name = {each.name: each for each in asked.served}
    arms = {clients: [Arm(name, by_name.get(name)) for name in asked.arms] for clients in asked.clients}
    texts = random.Random(0).sample(asked.prompts, len(asked.prompts))
    for turn in range(-1, asked.rounds):
        begin = time.perf_counter()
        for clients in asked.clients:
            load = _load(asked, clients, turn, texts, folder)
            for arm in order(arms[clients], turn):
                server = servers[arm.served is not None]
                found = _turn(server, client, arm, load)
                if turn >= 0:
                    arm.add(*found)
        took = time.perf_counter() - begin
        left = (asked.rounds - 1 - turn) * took
        where = "warmed up" if turn < 0 else f"round {turn + 1} of {asked.rounds}"
        ratios = "" if turn < 0 else f": {_of_round(arms)}"
        say(f"{where}{ratios} ({took:.0f} s, ETA {left:.0f} s)")
    return arms


def _turn(server: Loopback, client: LoadClient, arm: Arm, load: Load) -> tuple[Turn, Counted, float]:
    """What was answered, what its policy's row routed, and the server's processor time."""
    model = NAME if arm.served is None else f"{NAME}:{arm.name}"
    try:
        former = Counted(0, 0) if arm.served is None else counted(server.metrics(), arm.name)
        begin = server.cpu_seconds()
        answered = client.measure(server.url, model, load)
        spent = server.cpu_seconds() - begin
        routed = Counted(0, 0) if arm.served is None else counted(server.metrics(), arm.name) - former
    except (UserError, OSError):
        server.check()  # one that is gone says more than the requests that failed
        raise
    return answered, routed, spent


def _of_round(arms: Mapping[int, Sequence[Arm]]) -> str:
    """`1 client fast 1.04, 8 clients fast 1.10`: over stock, of the last round."""
    told = []
    for clients, each in arms.items():
        stock = next(arm for arm in each if arm.name == STOCK).turns[-1].tokens_per_second
        others = [arm for arm in each if arm.name != STOCK]
        ratios = " ".join(f"{arm.name} {arm.turns[-1].tokens_per_second / stock:.2f}" for arm in others)
        told.append(f"{clients} {'client' if clients == 1 else 'clients'} {ratios}")
    return ", ".join(told)


def _load(asked: Asked, clients: int, turn: int, texts: Sequence[str], folder: Path) -> Load:
    """The same for every arm of a round."""
    requests, path = asked.requests_of(clients), None
    if texts:
        first = (turn + 1) * requests % len(texts)
        chosen = [*texts[first:], *texts[:first]][:requests]
        path = folder / "prompts.jsonl"
        path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in chosen), encoding="utf-8")
    return Load(
        clients=clients, requests=requests, tokens=asked.tokens, prompts=path, prompt_tokens=asked.prompt_tokens,
        seed=1 + (turn + 1) * len(asked.clients) + list(asked.clients).index(clients), salt=f"{clients}.{turn}",
    )  # fmt: skip


def _about(asked: Asked, clients: int) -> Row:
    return {
        "bench": "serve", "model": asked.model, "options": list(asked.options), "clients": clients,
        "requests": asked.requests_of(clients), "tokens": asked.tokens,
        "prompts": "given" if asked.prompts else f"{asked.prompt_tokens} random tokens",
    }  # fmt: skip


def show(asked: Asked, rows: Sequence[Row]) -> None:
    """The table, and below it what makes a figure say nothing, on stderr."""
    told = [_told(row) for row in rows]
    columns = [(name, "") for name in told[0] if any(each[name] for each in told)]
    print_table(
        f"{asked.rounds} rounds of the same prompts for all arms, {asked.tokens} tokens an answer. Throughput over\n"
        "stock routing beside the policies, and over vLLM without the plugin: medians and their 95 % intervals. CPU:\n"
        "the same by processor time of the server. Times: medians, and 99th percentiles in brackets. kept: experts a\n"
        "token, as exported in brackets.",
        told,
        columns,
    )
    for row in rows:
        for text in row["problems"]:
            print(f"INVALID: {row['arm']} at {row['clients']} clients says nothing: {text}.", file=sys.stderr)
    for text in dict.fromkeys(f"{row['arm']}: {note}" for row in rows for note in row["notes"]):
        print(f"Note: {text}.", file=sys.stderr)


def _told(row: Row) -> Row:
    """Of a row, what people read; empty where there is nothing."""
    exported = "" if row["mean_kept_exported"] is None else f" ({row['mean_kept_exported']:.2f})"
    return {
        "clients": str(row["clients"]),
        "arm": row["arm"],
        "kept": "" if row["mean_kept"] is None else f"{row['mean_kept']:.2f}{exported}",
        "tokens/s": f"{row['tokens_per_second']:.0f}",
        "over stock": _interval(row, "over_stock"),
        "CPU over stock": _interval(row, "cpu_over_stock"),
        "over no plugin": _interval(row, "over_plain"),
        "CPU over no plugin": _interval(row, "cpu_over_plain"),
        "first token, ms": _percentiles(row, "first_token"),
        "between tokens, ms": _percentiles(row, "between_tokens"),
        "valid": "" if row["valid"] else "INVALID",
    }


def _interval(row: Row, key: str) -> str:
    return "" if row[key] is None else f"{row[key]:.2f} [{row[f'{key}_low']:.2f}, {row[f'{key}_high']:.2f}]"


def _percentiles(row: Row, key: str) -> str:
    return "" if row[f"{key}_ms"] is None else f"{row[f'{key}_ms']:.1f} ({row[f'{key}_ms_p99']:.1f})"


def too_few(asked: Asked) -> None:
    """UserError where a turn would ask a prompt twice: its prefix could come from the cache."""
    most = max(map(asked.requests_of, asked.clients))
    if asked.prompts and len(set(asked.prompts)) < most:
        raise UserError(
            f"{len(set(asked.prompts))} different prompts for a turn of {most} requests: some would be asked twice and"
            f" come from the prefix cache. Give {most} prompts or more, or type --requests 1 or fewer --clients."
        )
