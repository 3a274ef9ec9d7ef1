"""Where problems lie that were fetched or made once: a folder outside every run and every checkout."""

from __future__ import annotations

import os
from pathlib import Path

FOLDER_VARIABLE = "BANPICK_DATA"


def data_folder() -> Path:
    """BANPICK_DATA, else the user's data folder."""
    if named := os.environ.get(FOLDER_VARIABLE):
        return Path(named).expanduser().absolute()
    import platformdirs

    return Path(platformdirs.user_data_dir("banpick_exp"))
