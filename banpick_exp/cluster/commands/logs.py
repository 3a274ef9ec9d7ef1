"""`python -m banpick_exp logs RUN [ENGINE]`: what the engines of a run wrote."""

from __future__ import annotations

import argparse
import re
import shlex
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path

from banpick_exp.cluster.find_run import typed_run
from banpick_exp.cluster.progress import shown
from banpick_exp.config import suggestion
from banpick_exp.errors import UserError
from banpick_exp.options import Options
from banpick_exp.run_folder import RunFolder

DESCRIPTION = """\
Prints what vLLM, torch and everything below them wrote while engines were loaded and at work. RUN is the folder that
the sweep printed, or SWEEP/RUN; ENGINE the name of an engine as status prints it, or its end. Without ENGINE the logs
of all engines, one after the other. Colours and control characters are left out; the files themselves have them.
"""
EPILOG = """\
examples:
  python -m banpick_exp logs pick_strength/20261122-101500
  python -m banpick_exp logs pick_strength/20261122-101500 -0 --tail 50      the engine whose name ends in -0
  python -m banpick_exp logs RUN --files                                     where the logs lie

The trace of each error is in the run's folder too, in errors/.
"""
COLOURS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
INLINE = "driver"
"""Stands for the one engine of cluster=inline, which has no process of its own."""


def run(arguments: list[str]) -> int:
    """Returns 0. Raises UserError for a run or an engine that is not there, or a log that cannot be read."""
    typed = _options().parse_intermixed_args(arguments)
    folder, engine = typed_run(typed.words, others=1)
    files = _chosen(_logs(folder), engine[0], folder) if engine else _logs(folder)
    if not files:
        raise UserError(
            f"{folder.path} has no log of an engine: none was loaded yet, or an earlier version loaded it. Type"
            f" python -m banpick_exp status {shlex.quote(str(folder.path))}"
        )
    for name, path in files.items():
        if typed.files:
            print(path)
            continue
        if len(files) > 1:
            print(f"==> {name} <==")
        try:
            for line in _last(_lines(path), typed.tail):
                print(line)
        except OSError as error:
            raise UserError(
                f"{error.filename} cannot be read ({error.strerror or error}). Mend the permission, then type the same"
                " again."
            ) from None
    return 0


def help_page() -> str:
    return _options().format_help()


def _options() -> Options:
    parser = Options(prog="python -m banpick_exp logs", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument("words", nargs="*", metavar="RUN [ENGINE]", help="default: the newest run, all engines")
    parser.add_argument("--tail", type=_count, metavar="N", help="the last N lines of each")
    parser.add_argument("--files", action="store_true", help="print where the logs lie, and not what is in them")
    return parser


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text} is no number of lines")
    return int(text)


def _logs(folder: RunFolder) -> dict[str, Path]:
    """Engine -> its log, of those that were written."""
    logs = {INLINE: folder.engine_log} if folder.engine_log.is_file() else {}
    own = sorted(folder.logs.glob("*.log")) if folder.logs.is_dir() else []
    return logs | {path.stem: path for path in own}


def _chosen(logs: dict[str, Path], engine: str, folder: RunFolder) -> dict[str, Path]:
    """The log of the engine of that name, or of those whose names end so."""
    if engine in logs:
        return {engine: logs[engine]}
    found = {name: path for name, path in logs.items() if name.endswith(engine)}
    if found or not logs:
        return found
    raise UserError(
        f"{engine} is no engine of {folder.name} that wrote a log: nothing was printed."
        f" {suggestion(engine, logs)}Type one of these: {', '.join(logs)}."
    )


def _lines(path: Path) -> Iterator[str]:
    """As a terminal would show them, without its commands: of a line that was drawn over, what was drawn last."""
    with path.open(encoding="utf-8", errors="replace", newline="\n") as file:
        for line in file:
            yield shown(COLOURS.sub("", line.rstrip("\r\n").rpartition("\r")[2]))


def _last(lines: Iterable[str], count: int | None) -> Iterable[str]:
    return lines if count is None else deque(lines, maxlen=count)
