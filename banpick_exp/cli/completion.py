"""Shell completion for commands, keys and names: `banpick --install-completion`. The scripts are Click's.

Bash splits a word at `=`, so what is completed may be the value of a key that stands two words back.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import click
from click.shell_completion import CompletionItem, get_completion_class, shell_complete

from banpick_exp.cli.commands import COMMANDS
from banpick_exp.errors import UserError

INSTALL = "--install-completion"
PROGRAM = "banpick"
COMPLETING = "_BANPICK_COMPLETE"
"""Set by the scripts when they ask for candidates."""
SCRIPTS = {
    "bash": Path(".local/share/bash-completion/completions") / PROGRAM,
    "zsh": Path(".zfunc") / f"_{PROGRAM}",
    "fish": Path(".config/fish/completions") / f"{PROGRAM}.fish",
}
"""Shell -> where it looks for scripts of the user's own, below the home folder."""


def candidates(words: Sequence[str], incomplete: str) -> list[str]:
    """What may stand in place of `incomplete`, after `words`."""
    from banpick_exp.sweep.compose import GROUPS, choices
    from banpick_exp.sweep.help import completion_keys
    from banpick_exp.sweep.study import studies

    if words and words[-1] == "=":  # bash: `policy`, `=`, and the beginning of a name
        words, incomplete = words[:-2], f"{words[-2]}={incomplete}"
        cut = incomplete.index("=") + 1
    else:
        cut = 0
    key, equals, _ = incomplete.partition("=")
    group = key.lstrip("+")
    if equals and group in (*GROUPS, "study"):
        offers = [f"{key}={name}" for name in (studies() if group == "study" else choices(group))]
    else:
        offers = ["+sweep=", *(f"{name}=" for name in completion_keys())]
        offers += list(COMMANDS) if not words else []
    return [offer[cut:] for offer in offers if offer.startswith(incomplete)]


def _complete_words(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    words = [str(word) for word in context.params.get("words") or ()]
    return [CompletionItem(word) for word in candidates(words, incomplete)]


def _words_only() -> click.Command:
    """A command of plain words: all that Click is asked for is completion."""
    argument = click.Argument(["words"], nargs=-1, shell_complete=_complete_words, required=False)
    settings = {"ignore_unknown_options": True, "allow_interspersed_args": False}
    return click.Command(PROGRAM, params=[argument], context_settings=settings, add_help_option=False)


def complete() -> int:
    """Answers a shell's script: the candidates for the words it put into the environment."""
    return shell_complete(_words_only(), {}, PROGRAM, COMPLETING, os.environ[COMPLETING])


def install(arguments: Sequence[str]) -> int:
    """`banpick --install-completion [bash|zsh|fish]`: writes the shell's script into the home folder."""
    shell = arguments[0] if arguments else Path(os.environ.get("SHELL", "")).name
    if shell not in SCRIPTS:
        raise UserError(
            f"{INSTALL}: {shell or 'no shell'} is not one that completion is written for. "
            f"Type {PROGRAM} {INSTALL} bash (or {', '.join(list(SCRIPTS)[1:])})."
        )
    kind = get_completion_class(shell)
    assert kind is not None
    path = Path.home() / SCRIPTS[shell]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(kind(_words_only(), {}, PROGRAM, COMPLETING).source(), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{INSTALL}: {path} cannot be written ({error.strerror}). Make the folder writable.") from None
    print(f"Wrote {path}. It is read by shells that start from now on.")
    if shell == "zsh":
        print("zsh: ~/.zshrc needs the lines  fpath+=~/.zfunc  and  autoload -U compinit && compinit")
    return 0
