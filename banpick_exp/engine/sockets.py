"""Where vLLM's processes put the sockets by which they talk: a folder whose name is short enough for the system.

A socket's address holds 107 bytes (`sockaddr_un`), of which vLLM's name for one takes 37. vLLM 0.32 puts it below the
temporary folder (`VLLM_RPC_BASE_PATH`), and one whose name is longer (a job's, a test's) ends the start in a ZMQError.
"""

from __future__ import annotations

import os
import tempfile

LONGEST = 64
"""Bytes of the folder's name."""


def socket_folder() -> dict[str, str]:
    """What to put into the environment of what starts vLLM; nothing where the temporary folder will do."""
    base = os.environ.get("VLLM_RPC_BASE_PATH") or tempfile.gettempdir()
    return {} if len(os.fsencode(base)) <= LONGEST else {"VLLM_RPC_BASE_PATH": "/tmp"}
