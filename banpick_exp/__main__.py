"""`python -m banpick_exp`: plan what was typed, then run it. Exit codes: 0 done, 1 a point went wrong, 2 bad input."""

from __future__ import annotations

import sys

from rich.console import Console

from banpick_exp.errors import UserError

BAD_INPUT = 2


def main(argv: list[str] | None = None) -> int:
    """Runs one command (`argv` without the program's name, default the process's own) and returns its exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    try:
        return _run(arguments)
    except UserError as error:
        print(f"banpick: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("banpick: interrupted; the same command with resume=<run> goes on from here", file=sys.stderr)
        return 130


def _run(arguments: list[str]) -> int:
    # Imported here so that Ctrl-C during the imports is also answered in words.
    from banpick_exp.plan import plan_sweep
    from banpick_exp.preview import WELCOME, help_page, print_plan
    from banpick_exp.run_folder import write_manifest

    if not arguments:
        print(WELCOME)
        return BAD_INPUT
    if {"-h", "--help"} & set(arguments):
        print(help_page())
        return 0
    plan = plan_sweep(arguments)
    if plan.dry_run:
        print_plan(plan, Console())
        return 0
    for note in plan.notes:
        print(f"Note: {note}")
    write_manifest(plan.run_dir, plan.manifest())

    from banpick_exp.runner import run_sweep  # only now: it loads Ray, and bad input must end before that

    return run_sweep(plan)


if __name__ == "__main__":
    sys.exit(main())
