"""`python -m banpick_exp`: plan what was typed, then run it. Exit codes: 0 done, 1 a point went wrong, 2 bad input."""

from __future__ import annotations

import sys

from rich.console import Console

from banpick_exp.cli.console import BAD_INPUT, run


def main(argv: list[str] | None = None) -> int:
    """Runs one command (`argv` without the program's name, default the process's own) and returns its exit code."""
    goes_on = "interrupted; the same command with resume=<run> goes on from here"
    return run(_run, _help_page, argv, on_interrupt=goes_on)


def _help_page() -> str:
    from banpick_exp.sweep.help import help_page

    return help_page()


def _run(arguments: list[str]) -> int:
    # Imported here so that Ctrl-C during the imports is also answered in words.
    from banpick_exp.run_folder import write_manifest
    from banpick_exp.sweep.dry_run import print_plan
    from banpick_exp.sweep.help import WELCOME
    from banpick_exp.sweep.plan import plan_sweep

    if not arguments:
        print(WELCOME)
        return BAD_INPUT
    plan = plan_sweep(arguments)
    if plan.dry_run:
        print_plan(plan, Console())
        return 0
    for note in plan.notes:
        print(f"Note: {note}")
    write_manifest(plan.run_dir, plan.manifest())

    from banpick_exp.cluster.run import run_sweep  # only now: it loads Ray, and bad input must end before that

    return run_sweep(plan)


if __name__ == "__main__":
    sys.exit(main())
