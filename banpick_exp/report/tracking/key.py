"""Whether W&B has a key, known before the first engine loads."""

from __future__ import annotations

import netrc
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from banpick_exp.errors import UserError
from banpick_exp.report.tracking.config import TrackingConfig


def check_tracking(tracking: TrackingConfig, environment: Mapping[str, str]) -> None:
    """UserError when W&B is to be online and neither the environment nor the netrc file has a key. Prints no key."""
    if tracking.name != "wandb" or tracking.mode != "online" or environment.get("WANDB_API_KEY", "").strip():
        return
    if (token := environment.get("WANDB_IDENTITY_TOKEN_FILE", "").strip()) and Path(token).expanduser().is_file():
        return  # federated identity: W&B exchanges the token in this file for a key of its own
    host = urlsplit(environment.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or "api.wandb.ai"
    home = Path(environment.get("HOME", "~")).expanduser()
    named = environment.get("NETRC")
    for path in [Path(named).expanduser()] if named else [home / ".netrc", home / "_netrc"]:
        try:
            entry = netrc.netrc(str(path)).authenticators(host)
        except (OSError, netrc.NetrcParseError):
            continue
        if entry is not None and entry[2]:
            return
    raise UserError(
        "tracking.mode=online needs a W&B key, and there is none: the first point could not be logged. Type wandb"
        " login, or set WANDB_API_KEY, or type tracking.mode=offline (upload later with wandb sync) or tracking=none."
    )
