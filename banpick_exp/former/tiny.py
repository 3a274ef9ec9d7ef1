"""`python -m banpick_exp.tiny`, as it was typed once: today `python -m banpick_exp tiny`."""

import sys

from banpick_exp.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["tiny", *sys.argv[1:]]))
