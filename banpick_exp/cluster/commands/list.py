"""`python -m banpick_exp list [OUTPUT_DIR]`: all runs of an output folder, the one that was at work last first."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.markup import escape

from banpick_exp.cluster.find_run import OUTPUT_DIR
from banpick_exp.cluster.outputs import (
    ListedRun,
    Listing,
    age_words,
    listing,
    points_words,
    state_words,
    verdict_words,
)
from banpick_exp.cluster.progress import shown
from banpick_exp.errors import UserError
from banpick_exp.options import Options
from banpick_exp.sweep.config import RunConfig

SCHEMA = 1
"""Of --json; a field that changes its meaning is a new one."""
HEAD = ["run", "state", "points", "age", "verdict"]
STATE = 1
GAP = "  "
LEAST_ROOM = 40
MOST_OTHERS = 5
COLOURS = {"running": "green", "stopping": "green", "starting": "green", "gone": "red", "damaged": "red"}
DESCRIPTION = """\
Lists the runs below OUTPUT_DIR (default: outputs): which sweep, where it stands, how many of its points have a record,
the verdict in a sentence, and how long ago something was written; the newest first. Folders that are no runs are named
below. It reads a few small files of each run, never its records, and changes nothing: hundreds of runs take a second or
two. The verdict is the one of the run's last report; `report RUN` writes it anew.
"""
EPILOG = """\
examples:
  python -m banpick_exp list
  python -m banpick_exp list /shared/outputs --json
  python -m banpick_exp list outputs/pick_strength          one sweep's runs

Exit code: 0, also where runs failed; 2 where there is no such folder.
"""


def run(arguments: list[str]) -> int:
    """Returns 0. Raises UserError for a folder that is not there."""
    typed = _options().parse_args(arguments)
    found = listing(_folder(typed.words))
    if typed.json:
        print(json.dumps(plain(found), allow_nan=False))
    else:
        _print(found, _folder(typed.words))
    return 0


def help_page() -> str:
    return _options().format_help()


def _options() -> Options:
    parser = Options(prog="python -m banpick_exp list", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument("words", nargs="*", metavar="OUTPUT_DIR", help="folder that sweeps write to; default: outputs")
    parser.add_argument("--json", action="store_true", help="one JSON object, described in docs/running.md")
    return parser


def _folder(words: Sequence[str]) -> Path:
    """The folder that was typed, as it is or as output_dir=FOLDER."""
    if len(words) > 1:
        raise UserError(f"{' '.join(words[1:])}: too many words, so nothing was listed. Type one OUTPUT_DIR.")
    typed = words[0].removeprefix(f"{OUTPUT_DIR}=") if words else RunConfig.model_fields[OUTPUT_DIR].default
    return Path(typed).expanduser()


def _print(found: Listing, folder: Path) -> None:
    console = Console()
    if found.runs:
        for line in lines(found.runs, console.width if console.is_terminal else None):
            console.print(line, soft_wrap=True, highlight=False)
    else:
        console.print(f"There is no run in {folder} yet.", markup=False, highlight=False, soft_wrap=True)
    others = [_one_line(f"{path.name} {why}") for path, why in found.others.items()]
    if others:
        more = f"; and {len(others) - MOST_OTHERS} more" if len(others) > MOST_OTHERS else ""
        said = f"No runs: {'; '.join(others[:MOST_OTHERS])}{more}."
        console.print(said, markup=False, highlight=False, soft_wrap=True, style="dim")


def lines(runs: Sequence[ListedRun], width: int | None) -> list[str]:
    """A line a run, with Rich's markup. `width`: columns, so that a verdict is cut at its end; None cuts nothing.

    Where a terminal leaves a verdict less than LEAST_ROOM columns, it has a line of its own.
    """
    rows = [[_one_line(cell) for cell in cells(run)] for run in runs]
    widths = [max(cell_len(row[column]) for row in (HEAD, *rows)) for column in range(len(HEAD) - 1)]
    before = sum(widths) + len(GAP) * len(widths)
    beside = width is None or width - before >= LEAST_ROOM
    found = [f"[bold]{GAP.join(_set(cell, size) for cell, size in zip(HEAD, [*widths, None], strict=True))}[/]"]
    for run, row in zip(runs, rows, strict=True):
        padded = [escape(_set(cell, size)) for cell, size in zip(row, widths, strict=False)]
        padded[STATE] = f"[{COLOURS.get(run.phase, 'default')}]{padded[STATE]}[/]"
        room = None if width is None else width - (before if beside else len(GAP))
        verdict = escape(_cut(row[-1], room))
        first = GAP.join(padded)
        found += [f"{first}{GAP}{verdict}".rstrip()] if beside else [first, *([f"{GAP}{verdict}"] if verdict else [])]
    return found


def cells(run: ListedRun) -> list[str]:
    """As HEAD names them."""
    return [run.name, state_words(run), points_words(run), age_words(run.age_seconds), verdict_words(run)]


def _one_line(text: str) -> str:
    return " ".join(shown(text).split())


def _set(text: str, size: int | None) -> str:
    return text if size is None else set_cell_size(text, size)


def _cut(text: str, room: int | None) -> str:
    return text if room is None or cell_len(text) <= room else f"{set_cell_size(text, room - 1)}…"


def plain(found: Listing) -> dict[str, Any]:
    """What --json prints; seconds are seconds."""
    return {
        "schema": SCHEMA,
        "runs": [_plain(run) for run in found.runs],
        "others": [{"folder": str(path.resolve()), "reason": why} for path, why in found.others.items()],
    }


def _plain(run: ListedRun) -> dict[str, Any]:
    return {
        "run": run.name,
        "folder": str(run.folder.path.resolve()),
        "phase": run.phase,
        "host": run.host,
        "code": run.code,
        "points": {"recorded": run.recorded, "planned": run.planned, "by_status": run.counts},
        "verdict": run.headline,
        "verdict_tells_all": run.told_all,
        "spent": None if run.spent is None else run.spent.model_dump(),
        "age_seconds": round(run.age_seconds, 1),
        "reason": run.reason,
    }
