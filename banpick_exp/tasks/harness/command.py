"""`python -m banpick_exp lm_eval TASK`: the problems of a task of lm-eval, made once."""

from __future__ import annotations

import logging

from banpick_exp.options import Options
from banpick_exp.tasks.data_folder import FOLDER_VARIABLE
from banpick_exp.tasks.harness.building import build, said

DESCRIPTION = f"""\
Has lm-eval make the requests of a task, and keeps them as problems: a file in the user's data folder ({FOLDER_VARIABLE}
names another). task=lm_eval task.name=TASK then asks them without lm-eval's data, network or caches. A task whose data
is on the Hugging Face Hub needs a network here, once. The Python that a YAML of yours names with !function is run.
"""
EPILOG = """
examples:
  python -m banpick_exp lm_eval arc_easy
  python -m banpick_exp lm_eval my_task.yaml

Exit code: 0, 2 there is no such task, or it cannot be asked.
"""


def run(arguments: list[str]) -> int:
    """Returns 0. Raises UserError for what is no task, or cannot be asked."""
    typed = _options().parse_args(arguments)
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    print(said(typed.task, build(typed.task)))
    return 0


def help_page() -> str:
    return _options().format_help()


def _options() -> Options:
    parser = Options(prog="python -m banpick_exp lm_eval", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument("task", metavar="TASK", help="a name that lm-eval lists, or the path of a YAML of its form")
    return parser
