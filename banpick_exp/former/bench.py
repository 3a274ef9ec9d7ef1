"""`python -m banpick_exp.bench`, as it was typed once: today `python -m banpick_exp bench`."""

import sys

from banpick_exp.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["bench", *sys.argv[1:]]))
