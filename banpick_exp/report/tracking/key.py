"""Whether W&B has a key, known before the first engine loads."""

from __future__ import annotations

import netrc
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from banpick_exp.errors import UserError
from banpick_exp.report.tracking.config import TrackingConfig

TOKEN_FILE = "WANDB_IDENTITY_TOKEN_FILE"
"""Names a file whose token W&B exchanges for a key: federated identity."""


def check_tracking(tracking: TrackingConfig, environment: Mapping[str, str]) -> None:
    """UserError when W&B is to be online and neither the environment nor the netrc file has a key. Prints no key."""
    if tracking.name != "wandb" or tracking.mode != "online":
        return
    if not has_key(environment, "the first point could not be logged"):
        raise UserError(
            "tracking.mode=online needs a W&B key, and there is none: the first point could not be logged. Type wandb"
            " login, or set WANDB_API_KEY, or type tracking.mode=offline (upload later with wandb sync) or"
            " tracking=none."
        )


def has_key(environment: Mapping[str, str], consequence: str) -> bool:
    """Whether W&B would find one. UserError, with the consequence, where what names one is wrong."""
    key, token = (environment.get(name, "").strip() for name in ("WANDB_API_KEY", TOKEN_FILE))
    if key and token:
        raise UserError(
            f"WANDB_API_KEY and {TOKEN_FILE} are both set, and W&B takes one: {consequence}. Type"
            f" unset {TOKEN_FILE} (or unset WANDB_API_KEY)."
        )
    if token and not Path(token).is_file():
        raise UserError(
            f"{TOKEN_FILE}={token} is no file, and W&B looks nowhere else: {consequence}. Type"
            f" unset {TOKEN_FILE}, or set it to the file of the token."
        )
    return bool(key or token or _in_netrc(environment))


def _in_netrc(environment: Mapping[str, str]) -> bool:
    host = urlsplit(environment.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or "api.wandb.ai"
    home = Path(environment.get("HOME", "~")).expanduser()
    named = environment.get("NETRC")
    for path in [Path(named).expanduser()] if named else [home / ".netrc", home / "_netrc"]:
        try:
            entry = netrc.netrc(str(path)).authenticators(host)
        except (OSError, netrc.NetrcParseError):
            continue
        if entry is not None and entry[2]:
            return True
    return False
