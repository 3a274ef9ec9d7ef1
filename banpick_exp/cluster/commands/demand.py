"""`python -m banpick_exp demand RUN [POINT ...]`: which experts policies of a finished run demand at once."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from banpick_exp.disk import write_atomically
from banpick_exp.errors import UserError
from banpick_exp.options import Options

if TYPE_CHECKING:
    from banpick_exp.cluster.demanding import Together
    from banpick_exp.evaluation.demand.found import DemandFile
    from banpick_exp.report.run import Run

DESCRIPTION = """\
Which experts do policies demand at once? For those who hold experts in slow memory and load them (offloading), and for
those who spread them over devices (expert parallel). Of each point, beside stock:

  steps    distinct experts of a layer that a decode step of 1, 8 and 32 sequences touches
  windows  distinct experts of 4, 16 and 64 consecutive tokens of one sequence; how well one fixed group of experts
           covers them (SRP); how often the best cache of K or 2 K experts hits (SCH), and how many it lacks a token

The engine of the run is loaded once more and reads a sample of the answers that the run has kept, each point's own
under its own policy, stock's under stock: nothing is generated, so it takes a prefill of each answer. Figures are
paired by problem and have 95 % intervals. A policy that keeps another number of experts than its record says gets none.

POINT is a fingerprint (or its first digits) or a label in quotes, as the report has them. Without one it is the points
that decide the result, at most 4. The run's records are not touched: RUN/demand.json and RUN/demand.png are written, in
the place of those of an earlier call, and `report RUN` puts them on the page.
"""
EXAMPLES = """\
examples:
  python -m banpick_exp demand outputs/pick_strength/20261122-101500
  python -m banpick_exp demand RUN "pick boost=1 key_experts=4" 134f96fe
  python -m banpick_exp demand RUN --problems 200 --caches 1,1.5,2 --windows 16,256
  python -m banpick_exp demand RUN --dry-run                which points and how many answers; loads nothing

What the figures mean, their formulas and sources: docs/demand.md.

Exit code: 0; 1 a point's budget was not that of its record; 2 it cannot be measured, and the message says why.
"""


def help_page() -> str:
    return _options().format_help()


def _options() -> Options:
    parser = Options(
        prog="python -m banpick_exp demand",
        usage="python -m banpick_exp demand RUN [POINT ...] [options]",
        description=DESCRIPTION,
        epilog=EXAMPLES,
    )
    parser.add_argument("run", metavar="RUN", help="run folder, as a sweep printed it (holds points/)")
    parser.add_argument("points", nargs="*", default=[], metavar="POINT", help="which points, beside stock")
    sample = "problems of each domain, drawn once for all points (default: 64)"
    parser.add_argument("--problems", type=int, default=64, metavar="N", help=sample)
    windows = "tokens of a window (default: 4,16,64)"
    parser.add_argument("--windows", type=_whole, default=(4, 16, 64), metavar="M,...", help=windows)
    caches = "experts that a cache holds of each layer, in multiples of the K a token selects (default: 1,2)"
    parser.add_argument("--caches", type=_numbers, default=(1.0, 2.0), metavar="RHO,...", help=caches)
    batches = "sequences of a decode step (default: 1,8,32)"
    parser.add_argument("--batches", type=_whole, default=(1, 8, 32), metavar="B,...", help=batches)
    parser.add_argument("--calibration", metavar="FOLDER", help="the calibration, where it is no longer beside the run")
    parser.add_argument("--json", action="store_true", help="print demand.json in place of the tables")
    parser.add_argument("--dry-run", action="store_true", help="say what would be read; load and write nothing")
    return parser


def _whole(text: str) -> tuple[int, ...]:
    try:
        return tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of whole numbers such as 1,8,32") from None


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(sorted({float(part) for part in text.split(",")}))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers such as 1,1.5,2") from None


def run(arguments: list[str]) -> int:
    """Returns 0, or 1 where a point's budget was not that of its record. Raises UserError where nothing is measured."""
    typed = _options().parse_intermixed_args(arguments)
    if problem := _wrong(typed):
        raise UserError(problem)
    # Imported here: --help and a mistyped option answer at once.
    from banpick_exp.report.run import opened_run

    opened = opened_run(typed.run)
    from banpick_exp.cluster.demanding import Wanted, groups_of, measured

    wanted = Wanted(
        run=typed.run,
        points=tuple(typed.points),
        problems=typed.problems,
        windows=typed.windows,
        caches=typed.caches,
        batches=typed.batches,
        calibration=None if typed.calibration is None else Path(typed.calibration).expanduser(),
    )
    groups = groups_of(opened, wanted)
    if typed.dry_run:
        print("\n".join([*(line for group in groups for line in _intention(group)), "Nothing was started."]))
        return 0
    _check_writable(opened)
    from banpick_exp.evaluation.demand.found import DemandFile
    from banpick_exp.report.demanded import told

    found = DemandFile(
        run=opened.name,
        made_at=datetime.now(UTC).isoformat(timespec="seconds"),
        command=shlex.join(["python", "-m", "banpick_exp", "demand", *arguments]),
        groups=tuple(measured(opened, group, wanted, _say) for group in groups),
    )
    text = found.model_dump_json(indent=1) + "\n"
    write_atomically(opened.folder.demand_path, text.encode(), "what was measured is lost")
    print(text.rstrip() if typed.json else "\n".join(told(found)))
    for path in (opened.folder.demand_path, *_drawn(opened, found)):
        print(f"  {path}", file=sys.stderr)
    print(f"To have it in report.html: python -m banpick_exp report {shlex.quote(typed.run)}", file=sys.stderr)
    return int(any(point.invalid is not None for group in found.groups for point in group.points))


def _wrong(typed: argparse.Namespace) -> str | None:
    """What would make the figures meaningless, said before anything is read."""
    if typed.problems < 2:
        return f"--problems={typed.problems}: an interval needs two problems of a domain or more. Type --problems 64."
    if min(typed.windows) < 1 or max(typed.windows) > 4096:
        return f"--windows={_listed(typed.windows)}: a window has 1 to 4096 tokens. Type --windows 4,16,64."
    if min(typed.batches) < 1:
        return f"--batches={_listed(typed.batches)}: a step has one sequence or more. Type --batches 1,8,32."
    if max(typed.batches) >= typed.problems:
        return (
            f"--batches={_listed(typed.batches)}: a step of {max(typed.batches)} sequences needs more problems than"
            f" --problems={typed.problems}, so that one can be left out. Type --problems {2 * max(typed.batches)}, or"
            " smaller --batches, e.g. --batches 1."
        )
    if not min(typed.caches) > 0:
        return f"--caches={_listed(typed.caches)}: a cache holds more than 0 times K. Type --caches 1,2."
    return None


def _listed(numbers: Sequence[float]) -> str:
    return ",".join(f"{number:g}" for number in numbers)


def _intention(group: Together) -> list[str]:
    asked, sizes = group.asked, ", ".join(f"{name} {len(items)}" for name, items in group.problems.items())
    answers = (1 + len(group.points)) * sum(map(len, group.problems.values()))
    return [
        f"{group.planned.model.name}, {group.planned.task.name}: {answers} answers would be read ({sizes} a point)",
        f"  windows of {_listed(asked.windows)} tokens, caches of {_listed(asked.caches)} experts, steps of"
        f" {_listed(asked.batches)} sequences",
        *(
            f"  {record.label} ({record.fingerprint})"
            for record in (group.stock, *(record for record, _ in group.points.values()))
        ),
    ]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _check_writable(opened: Run) -> None:
    if (why := opened.folder.unwritable()) is not None:
        raise UserError(f"{why}: what is measured would be lost. Copy the run to a folder of yours and measure there.")


def _drawn(opened: Run, found: DemandFile) -> list[Path]:
    from banpick_exp.report.figures.demand import demand_figure
    from banpick_exp.report.figures.names import DEMAND
    from banpick_exp.report.figures.sheet import SCREEN, save

    figure = demand_figure(found, SCREEN)
    return [] if figure is None else [save(figure, opened.folder.figure_path(DEMAND))]
