"""vLLM's V2 model runner on a CPU, its Triton kernels interpreted: sixteen policies in one batch, in chunks, preempted.

A process of its own. vLLM 0.32 has this runner for CPUs (`v1/worker/cpu/model_runner.py`), for a Triton with a CPU
backend; the interpreter does in its place. The runner, its model state, its request slots, batches and samplers are the
installed ones, so are the scheduler and the engine around them. What is not there: a device, graphs, a scheduler that
is a step ahead.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import triton
import triton.language
import vllm.triton_utils as triton_utils

# vLLM's CPU wheel puts placeholders where Triton has no driver; the interpreter needs none.
triton_utils.triton, triton_utils.tl, triton_utils.HAS_TRITON = triton, triton.language, True

from run_rows import HELD, KEY, alone, asked, engine_rows, preempted, prompts, refusal, shuffled, unchecked  # noqa: E402

from banpick_exp.engine.config import EngineConfig  # noqa: E402
from banpick_exp.engine.engine import Engine  # noqa: E402
from banpick_exp.models.config import ModelConfig  # noqa: E402
from banpick_exp.policy import Calibration  # noqa: E402
import time
