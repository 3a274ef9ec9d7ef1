"""Reaching a Ray cluster that stands already: what is wrong with an address or a token, said in one line."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from banpick_exp.cluster.faults import reason_of
from banpick_exp.errors import UserError

CONNECT_SECONDS = 5
"""How long a cluster's port may take to answer."""
HOW_TO_GIVE_A_TOKEN = (
    "RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=FILE before the command, with the file that its nodes were started with"
)


def check_reachable(address: str, ray_address: str | None) -> None:
    """UserError unless something answers at a cluster's address. `ray_address`: RAY_ADDRESS, which `auto` follows."""
    typed = f"cluster.address={address}"
    if address == "auto":
        if not ray_address:
            return
        address, typed = ray_address, f"RAY_ADDRESS={ray_address}"
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UserError(
            f"{typed} is no address of a cluster that a driver can join: no engine was started. Run the command on a"
            " machine of the cluster and type cluster.address=auto, or the head's HOST:PORT (its port is mostly 6379)."
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except OSError as error:
        raise UserError(
            f"{typed} does not answer ({error.strerror or error}): no engine was started. Start the cluster (ray start"
            " --head), or leave it out and type cluster=local for one on this machine."
        ) from None


def check_token() -> None:
    """UserError where RAY_AUTH_MODE=token is set and no token can be read: Ray's own words for it are a page."""
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "token" or os.environ.get("RAY_AUTH_TOKEN"):
        return
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    path = Path(named) if named else Path.home() / ".ray" / "auth_token"
    try:
        if path.read_text().strip():
            return
        why = "is empty"
    except (OSError, UnicodeDecodeError) as error:
        why = f"cannot be read ({getattr(error, 'strerror', None) or error})"
    raise UserError(
        f"RAY_AUTH_MODE=token, but {'RAY_AUTH_TOKEN_PATH=' if named else ''}{path} {why}: a cluster with tokens could"
        f" not be joined. Type {HOW_TO_GIVE_A_TOKEN}."
    )


@contextlib.contextmanager
def stderr_held() -> Iterator[None]:
    """What is written to stderr comes when the block is over, and not at all where a token is refused in it: Ray's
    client says that each second for twenty, and once, by us, is enough."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        told = False
        try:
            yield
        except Exception as error:
            told = token_refused(error) is not None
            raise
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
            held.seek(0)
            while not told and (text := held.read(65536)):
                os.write(2, text)


def token_refused(error: BaseException) -> str | None:
    """What to say of an error by which a cluster refuses a token, or the lack of one; None for any other."""
    text = f"{type(error).__name__} {error} {reason_of(error)}"
    if "AuthenticationError" not in text and "InvalidAuthToken" not in text:
        return None
    without = os.environ.get("RAY_AUTH_MODE", "").lower() != "token"
    what = "it wants a token and none was given" if without else "it refuses the token that was given"
    return f"{what}. Type {HOW_TO_GIVE_A_TOKEN}"
