"""`python -m banpick_exp.search.compare`, as it was typed once: today `python -m banpick_exp compare`."""

import sys

from banpick_exp.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["compare", *sys.argv[1:]]))
