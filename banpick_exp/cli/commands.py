"""The table of commands: the first word of a line, what it does, and the module that is imported when it is typed.

A line that begins with a setting (`=`, `+` or a leading `-`) is a sweep: `python -m banpick_exp KEY=VALUE ...`.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Protocol, cast

from banpick_exp.config import suggestion
from banpick_exp.errors import UserError


class CommandModule(Protocol):
    """What a module must have to be a command."""

    def run(self, arguments: list[str]) -> int:
        """Takes the arguments without the command's name; returns 0, or 1 where something went wrong."""

    def help_page(self) -> str:
        """For -h and --help."""


@dataclass(frozen=True, slots=True)
class Command:
    """One line of the table."""

    name: str
    summary: str
    module: str

    def load(self) -> CommandModule:
        return cast(CommandModule, import_module(self.module))


SWEEP = Command(
    "sweep",
    "run a search space, or one policy, next to stock",
    "banpick_exp.cluster.commands.sweep",
)
COMMANDS = {
    command.name: command
    for command in (
        Command(
            "inspect",
            "what a checkpoint is, takes and allows, or what an exported policy is",
            "banpick_exp.sweep.inspect_command",
        ),
        Command(
            "calibrate",
            "make the calibration of a model and task alone, and look at it",
            "banpick_exp.cluster.commands.calibrate",
        ),
        Command(
            "verify",
            "does this machine route, skip and count as the reference says?",
            "banpick_exp.cluster.commands.verify",
        ),
        Command("tasks", "the benchmarks there are; fetch one once", "banpick_exp.cluster.commands.tasks"),
        Command("list", "all runs of an output folder: state, verdict, age", "banpick_exp.cluster.commands.list"),
        Command("status", "where a run stands, from any machine", "banpick_exp.cluster.commands.status"),
        Command("logs", "what the engines of a run wrote", "banpick_exp.cluster.commands.logs"),
        Command("stop", "end a run in order, after what is running", "banpick_exp.cluster.commands.stop"),
        Command(
            "retry",
            "let the points of a run that failed be computed again",
            "banpick_exp.cluster.commands.retry",
        ),
        Command("report", "draw the report and figures of finished runs", "banpick_exp.report.command"),
        Command("grade", "grade a finished run again, without an engine", "banpick_exp.cluster.commands.grade"),
        Command("choose", "choose points on a dev run, report them on a test run", "banpick_exp.report.choose"),
        Command("compare", "what a search saved, and whether its front is the same", "banpick_exp.report.compare"),
        Command(
            "export",
            "write a measured policy as a folder that can be kept and read",
            "banpick_exp.report.export.command",
        ),
        Command(
            "serve",
            "answer requests under exported policies, as vLLM's OpenAI server",
            "banpick_exp.engine.serving.command",
        ),
        Command(
            "bench",
            "how fast is the router, and do banned experts cost nothing?",
            "banpick_exp.cluster.commands.bench",
        ),
        Command(
            "demand",
            "which experts policies of a finished run demand at once",
            "banpick_exp.cluster.commands.demand",
        ),
        Command("tiny", "train the embedded model, or build its controls", "banpick_exp.cluster.commands.tiny"),
    )
}
TWO_WORDS = {
    ("bench", "serve"): Command(
        "bench serve",
        "throughput of a server: stock against a policy, by number of clients",
        "banpick_exp.cluster.commands.bench_serve",
    ),
}
"""Commands with options of their own behind the second word."""

NEARNESS = 0.7
"""How alike a word and a command must be: `task` and `model` are words of a sweep, and `status` is not far from one."""


def command_of(words: list[str]) -> tuple[Command, list[str]]:
    """The command that a line names and its arguments. Raises UserError for a name that is nearly one.

    Any other line is a sweep's, which has words of its own for what is no setting.
    """
    first = words[0] if words else ""
    if len(words) > 1 and (first, words[1]) in TWO_WORDS:
        return TWO_WORDS[first, words[1]], words[2:]
    if first in COMMANDS:
        return COMMANDS[first], words[1:]
    if (
        first
        and "=" not in first
        and first[0] not in "+-~"
        and (near := suggestion(first, COMMANDS, nearness=NEARNESS))
    ):
        raise UserError(f"{first} is no command: nothing was started. {near}Commands: {', '.join(COMMANDS)}.")
    return SWEEP, words


def table() -> str:
    """The commands as lines of a help page."""
    return "\n".join(f"  {command.name:<12}{command.summary}" for command in COMMANDS.values())
