"""`python -m banpick_exp verify`: does this machine route, skip and count as the paper and the reference say?

Usage: python -m banpick_exp verify [model=NAME] [engine=NAME] [engine.compile=true] [--output FILE] [KEY=VALUE ...]

Loads one engine, the embedded model's by default, and tries everything that a result rests on: every layer hooked, the
router exact under a policy of each family, banned experts that add nothing, counters exact, stock answers untouched,
policies that still take effect in compiled code and captured graphs; on a CPU also that the engine computes what
Transformers does (up to 4 GB of weights, which are loaded a second time). Prints one report in plain text, made to be
pasted into an issue: a line a check, marked ok, FAILED or not applicable, with what was found.

  python -m banpick_exp verify                                        this machine, a quarter of a minute
  python -m banpick_exp verify engine.compile=true                    the same through torch.compile
  python -m banpick_exp verify engine=cuda                            the acceptance test of a GPU
  python -m banpick_exp verify model=qwen3_30b_a3b engine=cuda --output report.txt

Settings are those of `python -m banpick_exp --help`, one value each; policies are its own. dry_run=true says what would
be checked and starts nothing. Every sweep runs the short form of this before its first point.

Exit code: 0 everything that applies holds, 1 something failed, 2 the command could not be understood.
"""

from __future__ import annotations

import shlex
import textwrap
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from banpick_exp.errors import UserError
from banpick_exp.sweep.overrides import key_of

if TYPE_CHECKING:
    from banpick_exp.engine.types import Check
    from banpick_exp.sweep.point import Point

WIDTH = 118
STATUS_WIDTH = 16


def help_page() -> str:
    return str(__doc__)


def run(arguments: list[str]) -> int:
    """Returns 0, or 1 where something failed."""
    from banpick_exp.cluster.plan import plan_run

    settings, output = _output_file(arguments)
    for text in settings:
        if key_of(text).split(".")[0] in ("policy", "sweep"):
            raise UserError(f"{text} chooses a policy, but verify tries its own, of every family. Leave it out.")
    asked = any(key_of(text) in ("task", "study") for text in settings)
    task = [] if asked else ["task=tiny"]  # its prompts are its own: no task has to suit the model
    plan = plan_run([*settings, "policy=none", *task]).sweep
    if len(plan.points) != 1:
        raise UserError(
            f"{len(plan.points)} engines are named, but a report is about one. Type one value a setting, and run the "
            f"command once for each."
        )
    point = plan.points[0]
    if plan.dry_run:
        print(_intention(point))
        return 0
    from banpick_exp.engine.verify.checks import check_machine  # only now: they load the engine's modules
    from banpick_exp.evaluation.session import engine_of

    checks = list(check_machine(engine_of(point)))
    text = report(point, checks, shlex.join(["python", "-m", "banpick_exp", "verify", *arguments]))
    print(text)
    if output is not None:
        output.write_text(text + "\n", encoding="utf-8")
    return int(any(check.failed for check in checks))


def _output_file(arguments: Sequence[str]) -> tuple[list[str], Path | None]:
    """The settings, and the file of --output FILE or --output=FILE. Raises UserError where it cannot be written."""
    settings, name = [], None
    texts = iter(arguments)
    for text in texts:
        if text == "--output":
            name = next(texts, None)
            if name is None:
                raise UserError("--output names no file: the report would go nowhere. Type --output report.txt.")
        elif text.startswith("--output="):
            name = text.removeprefix("--output=")
        else:
            settings.append(text)
    if name is None:
        return settings, None
    path = Path(name).expanduser()
    if not path.parent.is_dir() or path.is_dir():
        raise UserError(
            f"--output {name} cannot be written: {path.parent} is no folder, or {name} is one. Type the name of a file "
            f"in a folder that exists: --output report.txt."
        )
    return settings, path


def _intention(point: Point) -> str:
    engine = point.engine
    where = f"{engine.gpus} GPU(s)" if engine.gpus else "CPU"
    compiled = "compiled: also swaps in compiled code and the compile cache" if engine.compile else "eager"
    model = "" if engine.gpus else " and log-probabilities against Transformers"
    return (
        f"verify would load {point.model.name} ({point.checkpoint.location}) on {where},\n{compiled},\n"
        f"and check versions, sandbox, device, hook coverage ({point.checkpoint.shape.num_layers} MoE layers), "
        f"backend, router against reference,\nfillers, counters, stock parity{model}.\nNothing was started."
    )


# ------------------------------------------------------------ report


def report(point: Point, checks: Sequence[Check], command: str) -> str:
    """The whole report: a line a check, its finding folded below where it is long, and the sum at the end."""
    engine = point.engine
    lines = [
        f"banpick_exp verify, {datetime.now(UTC).isoformat(timespec='seconds')}",
        f"{command}",
        f"model {point.model.name} ({point.checkpoint.identity}), {point.model.dtype}, "
        f"{'compiled' if engine.compile else 'eager'}{engine.ranks_in_words or ', one rank'}",
        "",
    ]
    indent = " " * STATUS_WIDTH
    for check in checks:
        text = f"{check.status:<{STATUS_WIDTH}}{check.name}: {check.finding}"
        lines += textwrap.wrap(text, WIDTH, subsequent_indent=indent + "  ", break_long_words=False)
    counts = Counter(check.status for check in checks)
    failed = [check.name for check in checks if check.failed]
    verdict = f"FAILED: {'; '.join(failed)}" if failed else "everything that applies holds"
    lines += ["", f"{verdict} ({', '.join(f'{count} {status}' for status, count in counts.items())})"]
    return "\n".join(lines)
