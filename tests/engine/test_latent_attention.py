"""DeepSeek is right on a CPU: the kernel that errs for its query is kept out, for such checkpoints alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from own_process import findings
from run_latent_attention import NAMES

pytestmark = pytest.mark.engine

OWN_PROCESS = "run_latent_attention.py"

TOLERANCE = 1e-4
"""Nats; measured: a few 1e-6, and 2.0 to 2.5 with vLLM's kernel."""


@pytest.fixture(scope="module")
def found(request: pytest.FixtureRequest) -> dict[str, Any]:
    return findings(OWN_PROCESS, request)


@pytest.mark.parametrize("name", NAMES)
def test_the_engine_is_the_model_of_transformers(found: dict[str, Any], name: str) -> None:
    scores, expected = (torch.tensor(found["found"][name][key]) for key in ("scores", "expected"))
    assert float((scores - expected).abs().max()) < TOLERANCE


def test_others_keep_the_kernel(found: dict[str, Any]) -> None:
    assert found["embedded"] == {}
