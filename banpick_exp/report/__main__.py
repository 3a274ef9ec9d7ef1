"""`python -m banpick_exp.report`, as it was typed once: today `python -m banpick_exp report`."""

import runpy
import sys

if __name__ == "__main__":
    sys.argv[1:1] = ["report"]
    runpy.run_module("banpick_exp", run_name="__main__", alter_sys=True)  # by name: a report knows no command line
