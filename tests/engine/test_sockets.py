"""Where the sockets of vLLM's processes lie: below the temporary folder, or where an address still fits."""

from __future__ import annotations

import tempfile

import pytest

from banpick_exp.engine.sockets import LONGEST, socket_folder

OF_VLLM = 1 + 36
"""Characters of a socket's own name: a slash and a UUID."""
MOST = 107
"""Of an address, by `sockaddr_un`."""


def test_a_folder_that_is_short_enough_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_RPC_BASE_PATH", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", "/" + "x" * (LONGEST - 1))
    assert socket_folder() == {} and LONGEST + OF_VLLM <= MOST


@pytest.mark.parametrize("name", ["x" * LONGEST, "\u00e9" * (LONGEST // 2 + 1)], ids=["long", "of two bytes each"])
def test_one_that_is_too_long_gives_way(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.delenv("VLLM_RPC_BASE_PATH", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", f"/{name}")
    assert socket_folder() == {"VLLM_RPC_BASE_PATH": "/tmp"}


def test_what_the_user_set_is_looked_at_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/" + "x" * 200)
    monkeypatch.setenv("VLLM_RPC_BASE_PATH", "/run/user")
    assert socket_folder() == {}
