"""`python -m banpick_exp.calibrate`, as it was typed once: today `python -m banpick_exp calibrate`."""

import sys

from banpick_exp.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["calibrate", *sys.argv[1:]]))
