"""`python -m banpick_exp retry RUN`: let the points that failed be computed again."""

from __future__ import annotations

import shlex

from banpick_exp.cluster.events import Events
from banpick_exp.cluster.find_run import resume_command, typed_run
from banpick_exp.disk import ASIDE, reading
from banpick_exp.errors import UserError
from banpick_exp.options import Options
from banpick_exp.records import PointRecord
from banpick_exp.run_folder import LeftOut, RunFolder
from banpick_exp.run_lock import driver_of, held

DESCRIPTION = f"""\
Sets the records of failed points aside, says why each failed, and prints the command that computes them again. Blocks
that were answered are kept, and so is every other point. The records stay in points/, as *{ASIDE}. RUN is the folder
that the sweep printed, or SWEEP/RUN; without it, the run that was at work last below outputs/ (or output_dir=FOLDER).
"""
EPILOG = """\
examples:
  python -m banpick_exp retry pick_strength/20261122-101500

Exit code: 0, 2 there is no such run, or a driver computes it.
"""


def run(arguments: list[str]) -> int:
    """Returns 0. Raises UserError where a driver holds the run, or its folder cannot be read or written."""
    folder, _ = typed_run(_options().parse_intermixed_args(arguments).words)
    driver = driver_of(folder)
    if driver is not None:
        raise UserError(
            f"{folder.path} is computed by process {driver.pid} on {driver.host}, so its records must stay as they are:"
            " nothing was set aside. Wait until it ends, or type python -m banpick_exp stop"
            f" {shlex.quote(str(folder.path))} --wait"
        )
    try:
        with held(folder):  # and no driver may begin meanwhile
            failed = set_failed_aside(folder)
    except OSError as error:
        raise UserError(
            f"{error.filename or folder.path}: {error.strerror or error}, so not every failed point was set aside. Make"
            " the folder readable and writable, then type the same again."
        ) from None
    if not failed:
        print(f"{folder.name}: no point failed, nothing was set aside. To go on with it: {resume_command(folder)}")
        return 0
    print(f"{folder.name}: {len(failed)} failed point(s) count as not run now:")
    for record in failed:
        print(f"  {record.label}: {record.reason}")
    print(f"To compute them: {resume_command(folder)}")
    return 0


def help_page() -> str:
    return _options().format_help()


def set_failed_aside(folder: RunFolder) -> list[PointRecord]:
    """The failed points whose records were set aside just now; to be called by who holds the run's lock."""
    with reading(folder.path):
        failed = [record for record in folder.load_points()[0] if record.status == "failed"]
    events = Events(folder)
    try:
        for record in failed:
            reason = record.reason or "failed"
            folder.set_aside(LeftOut(folder.record_path(record.fingerprint), reason, whole=False))
            events.write("point_aside", point=record.fingerprint, label=record.label, reason=record.reason)
    finally:
        events.close()
    return failed


def _options() -> Options:
    parser = Options(prog="python -m banpick_exp retry", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument("words", nargs="*", metavar="RUN", help="run folder or SWEEP/RUN; default: the newest")
    return parser
