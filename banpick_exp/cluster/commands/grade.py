"""`python -m banpick_exp grade RUN task.grader=NAME`: grade a finished run again, without an engine."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from banpick_exp.cluster.find_run import found_run
from banpick_exp.config import suggestion
from banpick_exp.disk import reading
from banpick_exp.errors import UserError
from banpick_exp.manifest import Manifest
from banpick_exp.options import Options
from banpick_exp.run_folder import RunFolder

if TYPE_CHECKING:
    from banpick_exp.evaluation.regrading import Regraded

DESCRIPTION = """\
Grades the stored completions of a finished run by another grader, or with another mark of the answer, and prints each
point's accuracy before and after, and which answers flip. No engine is loaded and nothing is asked again. RUN is the
folder that the sweep printed, or SWEEP/RUN below outputs/ (or output_dir=FOLDER). Nothing is changed in it: with
--write the graded run goes into a folder beside it, RUN-NAME, which report and choose take like any other.
"""
EPILOG = r"""
examples:
  python -m banpick_exp grade outputs/pick_strength/20261122-101500 task.grader=math_verify
  python -m banpick_exp grade RUN task.grader=exact_match 'task.answer_pattern=boxed\{([^{}]*)\}' --write
  python -m banpick_exp grade RUN task.grader=my_module:my_function --write
  python -m banpick_exp grade RUN task.grader=code task.allow_code=true
  python -m banpick_exp grade RUN task.choose=majority      of a run with task.samples above 1: the most frequent answer
  python -m banpick_exp grade RUN task.choose=reward task.reward_model=FOLDER      the one that a reward model prefers

Exit code: 0, 2 there is no such run, or it cannot be graded so.
"""
CHANGED = (
    *("task.grader", "task.answer_pattern", "task.answer_separator", "task.metric"),
    *("task.choose", "task.reward_model", "task.data_files", "task.allow_code"),
)
"""What may be typed: how an answer is read and judged, which of several counts, whether code may run, and where the
problems lie. All else would be another answer."""
OUTPUT_DIR = "output_dir="
MOST_SHOWN = 10
LONGEST = 60


def run(arguments: list[str]) -> int:
    """Returns 0. Raises UserError for what is no run, or cannot be graded so, and for a copy that is there already."""
    typed = _options().parse_intermixed_args(arguments)
    folder, changes = _typed(typed.words)
    target = RunFolder(folder.path.resolve().with_name(f"{folder.path.resolve().name}-{_short(changes)}"))
    if typed.write and target.path.exists():
        raise UserError(
            f"{target.path} is there already, and a graded run is never written over: nothing was graded. Remove it, or"
            " leave out --write."
        )
    # Imported here: --help and a wrong option answer at once.
    from banpick_exp.evaluation.regrading import regraded

    with reading(folder.path):
        points = folder.read_points()
    for left_out in points.left_out:
        print(f"Left out: {left_out.file}: {left_out.reason}")
    found, notes = regraded(points.records, points.outcomes, changes)
    if not found:
        raise UserError(f"{folder.path} has no point with answers: there is nothing to grade. Type another run.")
    for note in notes:
        print(f"note: {note}")
    for each in found:
        _print_point(each, typed.all)
    rest = len(points.records) - len(found)
    if rest:
        print(f"{rest} failed point(s) have no answers, and are left out")
    if not typed.write:
        print("Nothing was written. --write keeps this as a run of its own.")
        return 0
    settings = [word for word in typed.words if word.partition("=")[0] in CHANGED]
    _write(folder, target, found, settings, shlex.join(["python", "-m", "banpick_exp", "grade", *arguments]))
    print(f"Written to {target.path}. To draw it: python -m banpick_exp report {shlex.quote(str(target.path))}")
    return 0


def help_page() -> str:
    return _options().format_help()


def _options() -> Options:
    parser = Options(prog="python -m banpick_exp grade", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument("words", nargs="+", metavar="RUN task.grader=NAME", help="a run, and what to grade with")
    parser.add_argument("--write", action="store_true", help="keep the result as a run of its own, beside RUN")
    parser.add_argument("--all", action="store_true", help="print every answer that flips")
    return parser


def _typed(words: list[str]) -> tuple[RunFolder, dict[str, Any]]:
    """The run, and the task's settings that are changed, without `task.`."""
    settings = [word for word in words if word.partition("=")[0] in CHANGED]
    places = [word for word in words if word.startswith(OUTPUT_DIR)]
    rest = [word for word in words if word not in settings and word not in places]
    wrong = [word for word in rest if "=" in word and not Path(word).exists()]
    if wrong:
        raise UserError(
            f"{shlex.join(wrong)}: a run is graded again from the answers it has, so only {', '.join(CHANGED)} can be"
            f" typed: nothing was graded. {suggestion(wrong[0].partition('=')[0], CHANGED)}".rstrip()
        )
    if len(rest) != 1 or not settings:
        raise UserError(
            "grade takes one RUN and what to grade it with: nothing was graded. Type e.g. python -m banpick_exp grade"
            f" {shlex.quote(rest[0]) if rest else 'RUN'} task.grader=math_verify"
        )
    output_dir = Path(places[-1].removeprefix(OUTPUT_DIR) if places else "outputs").expanduser()
    pairs = (word.partition("=") for word in settings)
    return found_run(rest[0], output_dir), {key.removeprefix("task."): _value(value) for key, _, value in pairs}


def _value(typed: str) -> str | bool | None:
    if len(typed) > 1 and typed[0] == typed[-1] and typed[0] in "\"'":  # quoted as a sweep's words are
        return typed[1:-1]
    return {"null": None, "true": True, "false": False}.get(typed, typed)


def _short(changes: dict[str, Any]) -> str:
    """Of the folder's name."""
    name = "-".join(str(changes[key]) for key in ("grader", "choose") if changes.get(key)) or "regraded"
    return "".join(sign if sign.isalnum() or sign in "_." else "-" for sign in name)


def _print_point(each: Regraded, everything: bool) -> None:
    before, after = each.before.measured.overall.accuracy, each.after.measured.overall.accuracy
    gained = sum(new.correct for _, new in each.flips)
    print(
        f"{each.before.label}: {100 * before:.1f} % -> {100 * after:.1f} %"
        f"  ({gained} answer(s) right now, {len(each.flips) - gained} wrong now)"
    )
    for old, new in each.flips if everything else each.flips[:MOST_SHOWN]:
        sample = "" if new.sample is None else f" sample {new.sample}"
        print(
            f"  {new.domain} {new.problem_id}{sample}: {'right' if new.correct else 'wrong'} now,"
            f" {_cut(old.answer)} -> {_cut(new.answer)}, right is {_cut(new.gold or '')}"
        )
    if not everything and len(each.flips) > MOST_SHOWN:
        print(f"  and {len(each.flips) - MOST_SHOWN} more; --all prints them")


def _cut(text: str) -> str:
    """The end of an answer, on one line."""
    return repr(text if len(text) <= LONGEST else f"...{text[-LONGEST:]}")


def _write(folder: RunFolder, target: RunFolder, found: list[Regraded], settings: list[str], command: str) -> None:
    new = {each.before.fingerprint: each.after.fingerprint for each in found}
    manifest = folder.manifest()
    candidates = [
        each.model_copy(update={"dev": new.get(each.dev, each.dev), "test": new.get(each.test, each.test)})
        for each in manifest.candidates
    ]
    target.write_manifest(
        Manifest(
            sweep=manifest.sweep,
            models=manifest.models,
            tasks={str(each.after.task.identity): each.after.task.name for each in found},
            search=f"{manifest.search}, graded again",  # so that no sweep goes on with it: its answers are another's
            command=command,
            candidates=tuple(candidates),
        )
    )
    for each in found:
        again = each.after.model_copy(update={"command": _with(each.after.command, settings)})
        target.write_point(again, each.outcomes)


def _with(command: str | None, settings: list[str]) -> str | None:
    """What to type to have a point again, graded so."""
    if command is None:
        return None
    keys = {word.partition("=")[0] for word in settings}
    keys |= {"task.reward_model"} if "task.choose" in keys else set()  # it goes with the choice that it makes
    return shlex.join([*(word for word in shlex.split(command) if word.partition("=")[0] not in keys), *settings])
