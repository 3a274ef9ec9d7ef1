"""`python -m banpick_exp.verify`, as it was typed once: today `python -m banpick_exp verify`."""

import sys

from banpick_exp.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["verify", *sys.argv[1:]]))
