"""`python -m banpick_exp bench serve [MODEL] [[NAME=]OUT/ ...]`: what a served policy saves, what the plugin costs."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from banpick_exp.cluster.commands.bench_options import numbers, path_of, unwritable_problem
from banpick_exp.cluster.run import end_on_signals
from banpick_exp.engine.serving.command import leading_words, option, server_command
from banpick_exp.engine.serving.loopback import OURS
from banpick_exp.engine.serving.served import NAMED, ONLY, POLICY, checkpoint_served, served_policies
from banpick_exp.errors import UserError
from banpick_exp.evaluation.bench.layer import native_dtype, on_gpu
from banpick_exp.models.inspect import EMBEDDED_CHECKPOINT
from banpick_exp.models.tiny import ASSETS
from banpick_exp.options import Options
from banpick_exp.policy.exported_files import is_export
from banpick_exp.sweep.price import duration

if TYPE_CHECKING:
    from banpick_exp.evaluation.bench.serve import Asked

TINY = "tiny"
TINY_OPTIONS = ("--enforce-eager", "--max-model-len", "256")
TINY_SETTINGS = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
"""A GiB of cache in place of most of the machine's memory, for two servers side by side."""
RECIPE = ("policy=ban_pick", "policy.k_min=3", "policy.lambda=0.9")
"""What is measured where no folder is named."""
RECIPE_RULE = RECIPE[0].removeprefix("policy=")
OF_RECIPE = (
    "cluster=inline", "tracking=none", "search.ladder=none", "task.domains=[math]", "task.max_problems=100",
    "task.speed_seconds=0",
)  # fmt: skip
RECIPE_DOMAIN = "math"
TINY_TOKENS_PER_SECOND = 600.0
"""Of all arms at 1, 8 and 32 clients together, on two busy cores of an AMD EPYC (docs/performance.md)."""
START_SECONDS = 60.0
RECIPE_SECONDS = 35.0

DESCRIPTION = """\
Throughput of a real server at 1, 8 and 32 clients: stock against a policy, as ratios with their 95 % intervals. The
server holds stock and the policies, as `python -m banpick_exp serve MODEL NAME=OUT/` starts it; a second one is vLLM
without the plugin. They stand on loopback, one is loaded at a time, and both are gone when the command ends, however it
ends. `vllm bench serve` is the client.

In each round every arm answers the same prompts to the same length, first in one order, then in the other; the first
round is thrown away. No prompt comes from the prefix cache. Where the workers' own counts (/metrics) do not agree with
the exported policy the figure is INVALID, and the exit code 1.

  no plugin      vLLM alone (--servers 1 leaves it out)
  stock          vLLM's own routing, asked by name of the server that holds the policies
  NAME           a policy; over_stock is what it saves, over_plain what is left of that with the plugin's own cost

MODEL is a folder or a Hugging Face id; tiny, the default, is the embedded model. Without a folder a ban_pick policy of
the embedded model is calibrated and exported first (about 35 s). Prompts are problems of the embedded model, else
random tokens, whose routing is no text's: give texts of your own with --prompts. Options that are not below go to
vLLM, to both servers: --tensor-parallel-size 2, --gpu-memory-utilization 0.45.
"""
EXAMPLES = """\
examples:
  python -m banpick_exp bench serve                                        about 8 minutes on two busy cores
  python -m banpick_exp bench serve tiny OUT/@math --clients 1,8 --rounds 6
  python -m banpick_exp bench serve /models/mine fast=OUT1/ careful=OUT2/@math --prompts questions.jsonl --tokens 256
  python -m banpick_exp bench serve Qwen/Qwen3-30B-A3B OUT/ --servers 2 --gpu-memory-utilization 0.45 --dry-run

JSON lines go to stdout, the table to stderr. Exit code: 0; 1 where a figure is invalid; 2 where nothing was measured.
"""


def _options() -> Options:
    parser = Options(
        prog="python -m banpick_exp bench serve",
        usage="python -m banpick_exp bench serve [MODEL] [[NAME=]OUT/[@DOMAIN] ...] [options, and vLLM's own]",
        description=DESCRIPTION,
        epilog=EXAMPLES,
    )
    parser.add_argument("--clients", type=numbers, default=(1, 8, 32), help="at once, as 1,8,32 (the default)")
    parser.add_argument("--rounds", type=int, default=12, help="of every arm (default: 12; 6 or more for 95 %%)")
    parser.add_argument("--requests", type=int, default=2, help="of each client in a round, 4 in all at least (2)")
    parser.add_argument("--tokens", type=int, default=64, help="of each answer (default: 64)")
    parser.add_argument("--prompts", type=path_of, metavar="FILE", help="JSON lines, each with a text called prompt")
    parser.add_argument("--prompt-tokens", type=int, help="random tokens of each prompt, without --prompts (256)")
    servers = "1: leave vLLM without the plugin out (default: 2 on a CPU, 1 on a GPU: weights are held by each)"
    parser.add_argument("--servers", type=int, choices=(1, 2), help=servers)
    parser.add_argument("--output", type=path_of, metavar="FILE", help="append the JSON lines to FILE too")
    parser.add_argument("--picture", type=path_of, metavar="PNG", help="draw the ratios over stock by clients")
    parser.add_argument("--dry-run", action="store_true", help="check, say what would be started, and start nothing")
    return parser


def help_page() -> str:
    return _options().format_help()


def run(arguments: list[str]) -> int:
    """Returns 0, or 1 where a figure is invalid. Raises UserError for what cannot be measured."""
    words = leading_words(arguments)
    typed, of_vllm = _options().parse_known_args(arguments[len(words) :])
    of_vllm = [word for word in of_vllm if word != "--"]
    model, folders = _model_and_folders(words)
    _check(typed, of_vllm)
    settings = {} if model != TINY else {name: os.environ.get(name, value) for name, value in TINY_SETTINGS.items()}
    if model == TINY:
        of_vllm = [*TINY_OPTIONS, "--dtype", native_dtype().dtype, *of_vllm]
    if not folders and typed.dry_run:
        print(f"A policy first: {shlex.join([*_command(*RECIPE), *OF_RECIPE])}")
        _say(typed, _arms(typed, ["stock", RECIPE_RULE]), RECIPE_SECONDS, tiny=True)
        return 0
    if not typed.dry_run:
        end_on_signals()
    with _exported_recipe(folders) as folders:
        asked = _asked(typed, model, folders, of_vllm, settings)
        if typed.dry_run:
            folder = str(EMBEDDED_CHECKPOINT) if model == TINY else model
            print(shlex.join([*_command("serve", model, *asked.typed), *of_vllm]))
            if asked.plain:
                print(shlex.join([*server_command(folder), *of_vllm]))
            _say(typed, asked.arms, 0.0, tiny=model == TINY)
            return 0
        return _measured(asked, typed.output, typed.picture)


def _measured(asked: Asked, output: Path | None, picture: Path | None) -> int:
    from banpick_exp.evaluation.bench.serve import bench_serve

    rows = bench_serve(asked, output, lambda text: print(text, file=sys.stderr, flush=True))
    if picture is not None:
        from banpick_exp.report.figures.bench_serve import throughput_png

        print(throughput_png(rows, picture), file=sys.stderr)
    return 0 if all(row["valid"] for row in rows) else 1


def _asked(
    typed: argparse.Namespace, model: str, folders: Sequence[str], of_vllm: list[str], settings: dict[str, str]
) -> Asked:
    """Everything checked that is known without a server. Raises UserError."""
    from banpick_exp.evaluation.bench.serve import Asked, too_few

    served = served_policies({POLICY: ",".join(folders)})
    location = str(EMBEDDED_CHECKPOINT) if model == TINY else model
    domains: set[str] = set()
    for each in served:
        if each.exported is not None:
            each.exported.check(checkpoint_served(each, location, option(of_vllm, "--revision")))
            domains |= set(each.exported.domains if each.exported.one_policy else [each.domain or ""])
    prompts = _texts(typed.prompts) if typed.prompts else ()
    if model == TINY and not typed.prompts and typed.prompt_tokens is None:
        prompts = _of_the_embedded(domains)
    asked = Asked(
        model=location, typed=folders, served=served, clients=typed.clients, rounds=typed.rounds,
        requests=typed.requests, tokens=typed.tokens, prompts=prompts, prompt_tokens=typed.prompt_tokens or 256,
        plain=_two_servers(typed), options=of_vllm, settings=settings,
    )  # fmt: skip
    too_few(asked)
    return asked


def _model_and_folders(words: list[str]) -> tuple[str, list[str]]:
    """MODEL may be left out before folders; one folder gets a name, so that stock is beside it."""
    words = list(words)
    first = words[0] if words else TINY
    names_a_policy = NAMED.fullmatch(first) is not None or is_export(Path(first.rpartition("@")[0] or first))
    model = TINY if not words or names_a_policy else words.pop(0)
    if model == TINY and os.path.isdir(TINY):
        model = str(Path(TINY).resolve())
    if not words and model != TINY:
        raise UserError(
            f"{model}: which policy of it? Export one first (python -m banpick_exp export RUN best OUT/) and type"
            f" python -m banpick_exp bench serve {shlex.quote(model)} OUT/"
        )
    if len(words) == 1 and NAMED.fullmatch(words[0]) is None:
        words = [f"{ONLY}={words[0]}"]
    return model, words


def _check(typed: argparse.Namespace, of_vllm: Sequence[str]) -> None:
    """UserError for what would make the run meaningless."""
    if typed.rounds < 2:
        raise UserError(f"--rounds={typed.rounds} gives no spread. Use 2 or more; 12 is the default.")
    if typed.tokens < 2:
        raise UserError(f"--tokens={typed.tokens}: an answer of one token has no time between tokens. Use 2 or more.")
    if min(typed.clients) < 1 or typed.requests < 1 or (typed.prompt_tokens or 1) < 1:
        raise UserError("--clients, --requests and --prompt-tokens count things: each must be 1 or more.")
    if len(set(typed.clients)) != len(typed.clients):
        raise UserError(f"--clients {','.join(map(str, typed.clients))} has a number twice. Type each once.")
    if typed.prompts and typed.prompt_tokens:
        raise UserError("--prompts are texts, --prompt-tokens the length of random ones. Leave one of them out.")
    if typed.prompts:
        _texts(typed.prompts)
    for name, path, example in (("--output", typed.output, "bench.jsonl"), ("--picture", typed.picture, "bench.png")):
        if path is not None and (problem := unwritable_problem(name, path, example)):
            raise UserError(problem)
    for word in of_vllm:
        if word.partition("=")[0] in OURS:
            raise UserError(
                f"{word}: where the servers listen and what requests name is this command's own business. Leave it out;"
                f" `python -m banpick_exp serve` takes it."
            )
        if not word.startswith("-") and word == of_vllm[0]:
            raise UserError(f"{word}: a folder or a model stands before the first option. Move it there.")


def _two_servers(typed: argparse.Namespace) -> bool:
    return typed.servers == 2 or (typed.servers is None and not on_gpu())


def _arms(typed: argparse.Namespace, names: list[str]) -> list[str]:
    return [*(["no plugin"] if _two_servers(typed) else []), *names]


def _say(typed: argparse.Namespace, arms: Sequence[str], before: float, *, tiny: bool) -> None:
    from banpick_exp.evaluation.bench.serve import LEAST_REQUESTS

    requests = sum(max(LEAST_REQUESTS, clients * typed.requests) for clients in typed.clients)
    tokens = (typed.rounds + 1) * len(arms) * requests * typed.tokens
    print(
        f"{len(arms)} arms ({', '.join(arms)}), {', '.join(map(str, typed.clients))} clients, {typed.rounds} rounds and"
        f" one to warm up: {tokens:,} tokens answered"
    )
    if tiny:
        seconds = before + START_SECONDS + tokens / TINY_TOKENS_PER_SECOND
        print(f"About {duration(seconds)} on two busy cores")
    else:
        print("How long that takes is said once the first round, which warms up, is over")


@contextmanager
def _exported_recipe(folders: list[str]) -> Iterator[list[str]]:
    """What was typed; where that is nothing, a policy of the embedded model, exported from a run made for it."""
    if folders:
        yield folders
        return
    with tempfile.TemporaryDirectory(prefix="banpick-recipe-") as place:
        print(f"No folder is named: a policy of the embedded model first ({' '.join(RECIPE)})", file=sys.stderr)
        _do(_command(*RECIPE, *OF_RECIPE, f"output_dir={place}"), Path(place) / "run.log")
        (run,) = {path.parent.parent for path in Path(place).glob("*/*/points/*.json")}
        labels = [json.loads(path.read_text(encoding="utf-8"))["label"] for path in run.glob("points/*.json")]
        (label,) = [label for label in labels if label != "none"]
        _do(_command("export", str(run), label, f"{place}/OUT"), Path(place) / "export.log")
        yield [f"{RECIPE_RULE}={place}/OUT/@{RECIPE_DOMAIN}"]


def _command(*words: str) -> list[str]:
    return [sys.executable, "-m", "banpick_exp", *words]


def _do(command: Sequence[str], log: Path) -> None:
    with log.open("wb") as file:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, check=False)
    if done.returncode != 0:
        said = log.read_text(encoding="utf-8", errors="replace")[-3000:].strip()
        raise UserError(f"{shlex.join(command)} ended with code {done.returncode}: no policy to measure.\n{said}")


def _of_the_embedded(domains: set[str]) -> list[str]:
    """The test problems that its policies are about."""
    files = [ASSETS / "data" / f"{domain}_test.jsonl" for domain in sorted(domains)]
    return list(dict.fromkeys(text for file in files if file.is_file() for text in _texts(file)))


def _texts(path: Path) -> list[str]:
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        texts = [json.loads(line)["prompt"] for line in lines]
    except OSError as error:
        raise UserError(f"--prompts {path} cannot be read ({error.strerror}). Name a file of JSON lines.") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f'--prompts {path}: every line must be JSON such as {{"prompt": "What is 12+7?"}}. Mend the file.'
        ) from None
    if not texts or not all(isinstance(text, str) and text for text in texts):
        raise UserError(f"--prompts {path}: a prompt is a text, and there must be some. Mend the file.")
    return texts
