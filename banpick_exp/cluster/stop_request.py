"""A wish that reaches a driver through the run's folder: finish what is running, then end in order.

It is a file, because whoever wishes may sit on another machine, and is meant for one driver: that of a run that was
resumed meanwhile does not know it. Imports nothing heavy.
"""

from __future__ import annotations

import getpass
import json
import os
import socket
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from banpick_exp.disk import write_atomically
from banpick_exp.run_folder import RunFolder
from banpick_exp.run_lock import Holder, driver_of


@dataclass(frozen=True, kw_only=True, slots=True)
class StopRequest:
    """Who wished it, and of whom."""

    by: str
    """USER@HOST."""
    at: str
    """UTC, ISO 8601."""
    driver: str
    """The token of its lock."""


def ask(folder: RunFolder, driver: Holder) -> StopRequest:
    """Ask a driver to stop. Raises OSError where the folder cannot be written."""
    request = StopRequest(by=_oneself(), at=datetime.now(UTC).isoformat(timespec="seconds"), driver=driver.token)
    write_atomically(folder.stop_request, (json.dumps(asdict(request), indent=1) + "\n").encode())
    return request


def asked(folder: RunFolder) -> StopRequest | None:
    """The request to the driver that holds the run now; cheap where there is none."""
    try:
        request = StopRequest(**json.loads(folder.stop_request.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None
    driver = driver_of(folder)
    return request if driver is not None and driver.token == request.driver else None


def withdraw(folder: RunFolder) -> None:
    """Whatever was asked is over. For the driver, at its end; raises OSError where the folder cannot be written."""
    folder.stop_request.unlink(missing_ok=True)


def _oneself() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container may run under a number without a name
        user = f"user {os.getuid()}"
    return f"{user}@{socket.gethostname()}"
