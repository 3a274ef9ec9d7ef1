"""`bp.sweep([...])`: what `python -m banpick_exp ...` runs, from Python."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator, Sequence

from banpick_exp.api.run import Run
from banpick_exp.cluster.commands.sweep import run_planned
from banpick_exp.cluster.plan import plan_run
from banpick_exp.errors import UserError
from banpick_exp.keys import check_no_keys


def sweep(words: Sequence[str]) -> Run:
    """Runs a sweep to its end, as the same words do on the command line, and returns the run.

    Points that failed are in its `points` with the reason. Ctrl-C (a notebook's stop button) ends it in order.

    Args: words: as they are typed behind `python -m banpick_exp`, without the shell's quotes.

    Raises: UserError for words that cannot work, before anything is started; KeyboardInterrupt.
    """
    if isinstance(words, str):
        raise UserError(f"bp.sweep({words!r}): it takes a list of words, so nothing was started. Type bp.sweep([...]).")
    check_no_keys(list(words), os.environ)
    plan = plan_run(list(words))
    if plan.sweep.dry_run:
        raise UserError(
            "dry_run=true makes no run to return: nothing was started. Type the words behind python -m banpick_exp for"
            " the plan, or leave dry_run out."
        )
    with _signals_given_back():
        run_planned(plan)
    return Run(plan.folder.path)


@contextlib.contextmanager
def _signals_given_back() -> Iterator[None]:
    """A run ends on signals; the session that asked for it has handlers of its own."""
    before = {sign: signal.getsignal(sign) for sign in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # not the main thread, whose handlers a run left alone
            for sign, handler in before.items():
                signal.signal(sign, handler)
