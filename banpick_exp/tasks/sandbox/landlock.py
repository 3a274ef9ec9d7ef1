"""Inside: Landlock, by which a process gives up all files but those named, for good and without any privilege.

https://docs.kernel.org/userspace-api/landlock.html. What this kernel's version of it does not know (changing modes and
owners, whatever the version) the filter of system calls denies (`seccomp`).
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterable
from typing import Any

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
VERSION_FLAG, PATH_BENEATH = 1, 1

WRITE_FILE, READ_FILE, READ_DIR = 1 << 1, 1 << 2, 1 << 3
FILE_RIGHTS = {1: 1 << 13, 2: 1 << 14, 3: 1 << 15, 5: 1 << 16}
"""All rights below this bit exist from that version on."""
TCP, TCP_SINCE = 0b11, 4
"""To bind and to connect."""
SCOPES, SCOPES_SINCE = 0b11, 6
"""Abstract sockets and signals stay inside."""


def version() -> int:
    """Of the kernel's Landlock; 0 where there is none, or it is switched off."""
    try:
        return _call(CREATE_RULESET, None, 0, VERSION_FLAG)
    except OSError:
        return 0


def restrict(readable: Iterable[str], listable: Iterable[str], writable: Iterable[str]) -> None:
    """Nothing but reading below `readable`, the names below `listable`, and the files `writable`; no TCP, no signals
    to others. Needs no_new_privs. Raises OSError."""
    known = version()
    files = max(bit for since, bit in FILE_RIGHTS.items() if since <= known) - 1
    attributes = struct.pack("=Q", files)
    if known >= TCP_SINCE:
        attributes += struct.pack("=Q", TCP)
    if known >= SCOPES_SINCE:
        attributes += struct.pack("=Q", SCOPES)
    rules = _call(CREATE_RULESET, attributes, len(attributes), 0)
    for paths, rights in (
        (readable, READ_FILE | READ_DIR),
        (listable, READ_DIR),
        (writable, READ_FILE | WRITE_FILE),
    ):
        for path in paths:
            _allow(rules, path, rights)
    _call(RESTRICT_SELF, rules, 0)
    os.close(rules)


def _allow(rules: int, path: str, rights: int) -> None:
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return  # not on this machine, or not for this user
    try:
        if not os.path.isdir(path):
            rights &= ~READ_DIR
        _call(ADD_RULE, rules, PATH_BENEATH, struct.pack("=Qi", rights, place), 0)
    finally:
        os.close(place)


def _call(number: int, *arguments: Any) -> int:
    library = ctypes.CDLL(None, use_errno=True)
    words = [each if isinstance(each, bytes) or each is None else ctypes.c_long(each) for each in arguments]
    found: int = library.syscall(ctypes.c_long(number), *words)
    if found < 0:
        raise OSError(ctypes.get_errno(), f"Landlock, call {number}: {os.strerror(ctypes.get_errno())}")
    return found
