"""`python -m banpick_exp.choose`, as it was typed once: today `python -m banpick_exp choose`."""

import sys

from banpick_exp.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["choose", *sys.argv[1:]]))
