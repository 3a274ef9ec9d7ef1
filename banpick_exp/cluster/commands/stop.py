"""`python -m banpick_exp stop RUN`: end a run in order, from any machine that sees its folder."""

from __future__ import annotations

import shlex
import time

from banpick_exp.cluster import stop_request
from banpick_exp.cluster.commands.status import Look, Watched
from banpick_exp.cluster.find_run import resume_command, typed_run
from banpick_exp.errors import UserError
from banpick_exp.options import Options

POLL_SECONDS = 0.5
DESCRIPTION = """\
Asks the driver of a run to begin nothing more, to wait for the blocks and points that run, and then to end as it always
does, with its report. Nothing is lost, and the command that it prints goes on from there. RUN is the folder that the
sweep printed, or SWEEP/RUN; without it, the run that was at work last below outputs/ (or output_dir=FOLDER).
"""
EPILOG = """\
examples:
  python -m banpick_exp stop pick_strength/20261122-101500
  python -m banpick_exp stop --wait            returns when the run has ended

Exit code: 0 it was asked (with --wait: it ended), 1 the driver ended without a word meanwhile, 2 there is no such run,
or nobody computes it. To end at once, without waiting for what runs: Ctrl-C, or kill -INT of the driver.
"""


def run(arguments: list[str]) -> int:
    """Returns 0, or 1 where the driver went away meanwhile.

    Raises UserError where no driver computes the run, or none can be asked.
    """
    typed = _options().parse_intermixed_args(arguments)
    folder, _ = typed_run(typed.words)
    watched = Watched(folder)
    look = watched.look()
    driver = look.holder
    if driver is None:
        raise UserError(
            f"{folder.path} is computed by nobody at the moment ({look.phase}), so there is nothing to stop. To go on"
            f" with it, type {resume_command(folder)}"
        )
    name = f"process {driver.pid} on {driver.host}"
    earlier = stop_request.asked(folder)
    if earlier is not None:
        print(f"{folder.name}: {earlier.by} asked {name} at {earlier.at} already.")
    else:
        try:
            stop_request.ask(folder, driver)
        except OSError as error:
            raise UserError(
                f"{folder.stop_request} cannot be written ({error.strerror or error}), so the driver was not asked."
                f" Type kill -INT {driver.pid} on {driver.host} to end it at once; finished blocks are kept."
            ) from None
        print(f"{folder.name}: {name} was asked to stop after what runs now: {_running(look)}.")
    if typed.wait:
        return _wait(watched, driver.token)
    print(f"Look: python -m banpick_exp status {shlex.quote(str(folder.path))}")
    print(f"To go on later: {resume_command(folder)}")
    return 0


def help_page() -> str:
    return _options().format_help()


def _options() -> Options:
    parser = Options(prog="python -m banpick_exp stop", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument("words", nargs="*", metavar="RUN", help="run folder or SWEEP/RUN; default: the newest")
    parser.add_argument("--wait", action="store_true", help="return when the run has ended")
    return parser


def _running(look: Look) -> str:
    jobs = [engine.job for engine in look.state.engines if engine.job is not None]
    kinds = [f"{sum(job.kind == kind for job in jobs)} {kind}(s)" for kind in ("calibration", "block", "point")]
    told = [text for text in kinds if not text.startswith("0 ")]
    return ", ".join(told) or "nothing"


def _wait(watched: Watched, token: str) -> int:
    while (look := watched.look()).holder is not None and look.holder.token == token:
        time.sleep(POLL_SECONDS)
    state, folder = look.state, look.folder
    if state.ended is None:
        print(f"{folder.name}: its driver is gone without a word. To go on: {resume_command(folder)}")
        return 1
    print(f"{folder.name}: ended after {state.seconds:.0f} s, {state.left} points are left.")
    if state.left:
        print(f"To go on: {resume_command(folder)}")
    return 0
