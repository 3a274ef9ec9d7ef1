"""`python -m banpick_exp serve MODEL OUT/ [vLLM's own options]`: an exported policy behind vLLM's OpenAI server."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

from banpick_exp.engine.serving.served import DEFAULT, POLICY, checkpoint_served, served_policies
from banpick_exp.engine.sockets import socket_folder
from banpick_exp.errors import UserError
from banpick_exp.models.inspect import EMBEDDED_CHECKPOINT
from banpick_exp.options import Options

DESCRIPTION = """\
Starts vLLM's OpenAI-compatible server with every request answered under exported policies. The folders are checked
first: digests, and that MODEL is the checkpoint they were measured on. Then the command is printed and becomes this
process; every option that is not below goes to vLLM as it is (host, port, --tensor-parallel-size, ...).

One folder without a name: every request is answered under it. NAME=OUT/ once or more: a request chooses by
"vllm_xargs": {"routing_policy": "NAME"} or by the model name, MODEL:NAME; stock is always there beside them. A policy
that follows a calibration is one a domain: say which behind the folder, OUT/@math.

MODEL is a folder or a Hugging Face id; tiny is the embedded model.
"""
EXAMPLES = """\
examples:
  python -m banpick_exp serve Qwen/Qwen3-30B-A3B OUT/
  python -m banpick_exp serve /models/mine fast=OUT1/ careful=OUT2/@math --default careful --port 8001
  python -m banpick_exp serve tiny OUT/ --enforce-eager --max-model-len 128 --dry-run

Exit code: the server's; 2 where it is not started, and the message says why and what to type.
"""


def help_page() -> str:
    return _options().format_help()


def _options() -> Options:
    parser = Options(
        prog="python -m banpick_exp serve",
        usage="python -m banpick_exp serve MODEL [NAME=]OUT/[@DOMAIN] ... [options, and vLLM's own]",
        description=DESCRIPTION,
        epilog=EXAMPLES,
    )
    parser.add_argument("--default", metavar="NAME", help="who answers requests that name no policy (the first)")
    parser.add_argument("--dry-run", action="store_true", help="check, print the command, and start nothing")
    return parser


def run(arguments: list[str]) -> int:
    """Becomes the server; returns 0 after --dry-run. Raises UserError for what cannot be served."""
    words = leading_words(arguments)
    typed, of_vllm = _options().parse_known_args(arguments[len(words) :])
    if len(words) < 2:
        what = "MODEL and a folder are" if not words else "a folder is"
        raise UserError(f"{what} missing: nothing was started. Type python -m banpick_exp serve MODEL OUT/")
    model = str(EMBEDDED_CHECKPOINT) if words[0] == "tiny" and not os.path.isdir("tiny") else words[0]
    ours = {"VLLM_PLUGINS": _plugins(os.environ), POLICY: ",".join(words[1:])}
    if typed.default is not None:
        ours[DEFAULT] = typed.default
    served = served_policies({DEFAULT: os.environ.get(DEFAULT, ""), **ours})
    for each in served:
        if each.exported is not None:
            each.exported.check(checkpoint_served(each, model, option(of_vllm, "--revision")))
    command = [*server_command(model), *of_vllm]
    settings = " ".join(f"{name}={shlex.quote(value)}" for name, value in ours.items())
    for each in served:
        at = f" on {each.domain}" if each.exported is not None and not each.exported.one_policy else ""
        print(f"{each.name}: {each.label}{at} ({each.fingerprint})")
    print(f"{settings} {shlex.join(command)}", flush=True)
    if not typed.dry_run:
        os.execvpe(command[0], command, {**os.environ, **socket_folder(), **ours})
    return 0


def leading_words(arguments: list[str]) -> list[str]:
    """MODEL and the folders: all that stands before the first option."""
    first = next((at for at, word in enumerate(arguments) if word.startswith("-")), len(arguments))
    return arguments[:first]


def _plugins(environment: Mapping[str, str]) -> str:
    """What VLLM_PLUGINS must be: this plugin, beside those that are named already."""
    named = [name for name in environment.get("VLLM_PLUGINS", "").split(",") if name]
    return ",".join(named if "banpick" in named else [*named, "banpick"])


def other_plugins(environment: Mapping[str, str]) -> list[str]:
    """Those that VLLM_PLUGINS names, but for this one."""
    return [name for name in environment.get("VLLM_PLUGINS", "").split(",") if name not in ("", "banpick")]


def option(words: list[str], name: str) -> str | None:
    """The value of one of vLLM's options as it was typed, `--name value` or `--name=value`."""
    for at, word in enumerate(words):
        if word == name and at + 1 < len(words):
            return words[at + 1]
        if word.startswith(f"{name}="):
            return word.partition("=")[2]
    return None


def server_command(model: str) -> list[str]:
    """`vllm serve MODEL`. vLLM's wheel for CPUs has the command too, but it looks for a package of another name."""
    try:
        version("vllm")
    except PackageNotFoundError:
        return [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model]
    return ["vllm", "serve", model]
