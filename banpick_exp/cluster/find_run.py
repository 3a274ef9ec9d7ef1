"""Which run a command such as `status` is about, and what to type to go on with it. Imports nothing heavy."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from banpick_exp.config import suggestion
from banpick_exp.errors import UserError
from banpick_exp.manifest import MANIFEST
from banpick_exp.run_folder import RunFolder
from banpick_exp.sweep.config import RunConfig
from banpick_exp.sweep.overrides import key_of
from banpick_exp.sweep.rerun import as_typed

OUTPUT_DIR = "output_dir"
NAMES_RUN = ("resume", "run")
"""Settings that say which run is meant."""
MOST_NAMED = 5


def typed_run(words: Sequence[str], others: int = 0) -> tuple[RunFolder, list[str]]:
    """The run among the words of a command, and up to `others` words behind it.

    `output_dir=FOLDER` may stand anywhere. Raises UserError for a run that is not there, or too many words.
    """
    settings = [word for word in words if word.partition("=")[0] == OUTPUT_DIR]
    rest = [word for word in words if word not in settings]
    if len(rest) > 1 + others:
        raise UserError(f"{shlex.join(rest[1 + others :])}: too many words, so nothing was done. Type one RUN.")
    output_dir = settings[-1].partition("=")[2] if settings else RunConfig.model_fields[OUTPUT_DIR].default
    parent = Path(output_dir).expanduser()
    return (found_run(rest[0], parent) if rest else newest_run(parent)), rest[1:]


def found_run(typed: str, output_dir: Path) -> RunFolder:
    """The run in a folder that was typed, or of that name (SWEEP/RUN or RUN) below `output_dir`. UserError for none."""
    for folder in (Path(typed).expanduser(), output_dir / typed):
        if _is_run(folder):
            return RunFolder(folder)
    known = _newest_first(output_dir)
    same = [run for run in known if run.path.name == typed]
    if len(same) == 1:
        return same[0]
    beside = _beside(Path(typed).expanduser())
    within = same or [run for run in known if run.path.parent.name == typed]
    names = [run.name for run in within or known]
    raise UserError(
        f"{typed} is no run{', but runs have that name' if within else ''}: nothing was done."
        f" {'' if within else suggestion(typed, [*names, *beside])}{_listed(names or beside, output_dir)}"
    )


def newest_run(output_dir: Path) -> RunFolder:
    """The run below `output_dir` that was at work last. UserError where there is none."""
    runs = _newest_first(output_dir)
    if not runs:
        raise UserError(f"No RUN was typed, so the newest one was looked for. {_listed([], output_dir)}")
    return runs[0]


def resume_command(folder: RunFolder) -> str:
    """What to type to go on with a run, for a shell."""
    typed = folder.manifest().command
    kept = shlex.join(word for word in shlex.split(typed) if key_of(word) not in NAMES_RUN) if typed else ""
    resume = shlex.quote(f"resume={as_typed(str(folder.path.resolve()))}")
    return f"{kept or 'the command that began the run, with'} {resume}"


def _listed(names: Sequence[str], output_dir: Path) -> str:
    if not names:
        return f"There is no run below {output_dir}. Type output_dir=FOLDER, or the folder that the sweep printed."
    return f"Type one of these: {', '.join(names[:MOST_NAMED])}{' ...' if len(names) > MOST_NAMED else '.'}"


def _beside(folder: Path) -> list[str]:
    """Runs where one was typed by its folder: a name may be wrong by a letter."""
    try:
        return sorted(str(each) for each in folder.parent.iterdir() if _is_run(each))
    except OSError:
        return []


def _is_run(folder: Path) -> bool:
    try:
        return (folder / MANIFEST).is_file()
    except OSError:  # a name that is too long, or not ours to look at
        return False


def _newest_first(output_dir: Path) -> list[RunFolder]:
    try:
        found = [RunFolder(path.parent) for path in output_dir.glob(f"*/*/{MANIFEST}")]
    except OSError:
        return []
    return sorted(found, key=_last_at_work, reverse=True)


def _last_at_work(run: RunFolder) -> float:
    """A run that was resumed is newer than its name says."""
    times = [0.0]
    for path in (run.path / MANIFEST, run.events):
        try:
            times.append(path.stat().st_mtime)
        except OSError:
            continue
    return max(times)
