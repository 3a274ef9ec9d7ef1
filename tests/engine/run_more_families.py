"""The other half of the miniature families, so that two processes share the time."""

from __future__ import annotations

import sys
from pathlib import Path

from run_families import MORE, main

if __name__ == "__main__":
    main(Path(sys.argv[1]), MORE)
