"""Is a CPU engine the model? Its log-probabilities of a few token ids against Transformers' forward of the same folder.

No check of the routing sees an engine that errs elsewhere: vLLM 0.32's CPU rotary kernel was 2 nats off on DeepSeek
while every router matched its reference. Transformers computes in a process of its own (`transformers_process`).

An engine in float32 must agree token by token. One in bfloat16 or float16 cannot, so it is held against the rounding of
the model itself: Transformers computes once in float32 and once in the engine's format, and the engine's median
distance from the first may be `ROUNDINGS` times that of the second. Measured, medians in nats: 0.013 (rounding 0.012)
on a miniature of DeepSeek-V2 in bfloat16, 0.31 with vLLM's rotary kernel; 0.049 (0.071) on the embedded model.
"""

from __future__ import annotations

import functools
import json
import os
import random
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from banpick_exp.engine.engine import Engine, EngineError
from banpick_exp.engine.latent_attention import ROTARY_IN_TORCH, cpu_options
from banpick_exp.engine.types import FAILED, NOT_APPLICABLE, OK, Check, RankReport
from banpick_exp.engine.verify import verdicts
from banpick_exp.keys import NAMES
from banpick_exp.models.checkpoint import folder_identity
from banpick_exp.models.dtype import BYTES, stored_dtype, this_machine
from banpick_exp.models.folder import read_json
from banpick_exp.models.inspect import EMBEDDED_CHECKPOINT
from banpick_exp.models.language import language_part
from banpick_exp.models.moe_layers import first_int
from banpick_exp.models.sizes import stored_bytes
from banpick_exp.versions import versions

NAME = "log-probabilities against Transformers"

TOLERANCE = 1e-3
"""Nats, of any token in float32; miniatures of thirteen families are within 5e-6."""
ROUNDINGS, LEAST = 4, 0.01
"""How many times the median rounding (nats) a format below float32 may be off, and what is never too much."""
MOST_ROUNDING = 0.5
"""Nats, median: where rounding alone moves a model further, an error could hide in it."""

SEQUENCES, LENGTH = 2, 24
LARGEST_BYTES = 4e9
"""Of weights as they lie in the folder: larger ones are not loaded a second time, in float32."""
MEMORY_SHARE = 0.25
"""Of the machine's memory that they may take in float32, beside the engine."""
MOST_SECONDS = 300
"""For Transformers to load and compute; half of engine.start_timeout_seconds where that is less."""

Sequences = tuple[tuple[int, ...], ...]


def check_at_start(engine: Engine, rank: RankReport) -> str:
    """Once for each checkpoint, format and version, before anything is measured. Returns a line for the user; empty
    where there is nothing to say. Raises EngineError where the engine is not the model.

    `rank`: what `Engine.verify` found. The policy is none.
    """
    if engine.settings.gpus or shipped(engine):
        return ""
    if reason := unchecked(engine):
        return f"not held against Transformers: {reason}"
    facts = facts_of(engine, rank.dtype)
    kept = verdicts.passed(facts)
    if kept is not None:
        return f"{kept} (measured at an earlier start)"
    check = measured(engine, rank.dtype)
    if check.failed:
        raise EngineError(f"{check.finding} engine.parity_check=false measures all the same.")
    if check.status == NOT_APPLICABLE:
        return f"not held against Transformers: {check.finding}"
    verdicts.keep(facts, check.finding)
    return check.finding


def check(engine: Engine, rank: RankReport) -> Check:
    """The row of `verify`: measured each time, whatever was found before."""
    if engine.settings.gpus:
        return Check(NAME, NOT_APPLICABLE, "not checked on a GPU")
    if reason := unchecked(engine):
        return Check(NAME, NOT_APPLICABLE, f"not checked: {reason}")
    engine.set_policy("none", {})
    found = measured(engine, rank.dtype)
    if found.status == NOT_APPLICABLE:
        return Check(NAME, NOT_APPLICABLE, f"not checked: {found.finding}")
    if not found.failed:
        verdicts.keep(facts_of(engine, rank.dtype), found.finding)
    return found


def shipped(engine: Engine) -> bool:
    """Whether it is the embedded model or a control of it, by its config.json: tests of this package hold that one
    against Transformers (tests/engine/test_parity.py), so that no start of it has to."""
    config = Path(engine.model_path) / "config.json"
    return config.is_file() and read_json(config) == read_json(EMBEDDED_CHECKPOINT / "config.json")


def unchecked(engine: Engine) -> str | None:
    """Why a CPU engine is not held against Transformers; None where it is."""
    if not engine.settings.parity_check:
        return "engine.parity_check=false"
    folder = Path(engine.model_path)
    if not folder.is_dir():
        return f"{engine.model_path} is no folder"
    if length_of(engine) < 2:
        return f"engine.max_model_len={engine.settings.max_model_len} has no room for two tokens and an answer"
    config = read_json(folder / "config.json")
    if first_int(language_part(config), ("vocab_size",)) < 10:
        return "its config.json counts no vocabulary"
    stored = stored_dtype(config, int(stored_bytes(folder)))
    if stored.quantised:
        return "its weights are quantised, which Transformers computes in another way"
    if stored.bytes > LARGEST_BYTES:
        sizes = f"{stored.bytes / 1e9:.1f} GB of weights, the bound is {LARGEST_BYTES / 1e9:.0f} GB"
        return f"too large to load twice ({sizes})"
    needed, memory = stored.bytes / BYTES[stored.dtype or "bfloat16"] * BYTES["float32"], this_machine().memory_bytes
    if needed > MEMORY_SHARE * memory:
        return f"too large to load twice ({needed / 1e9:.1f} GB in float32, of {memory / 1e9:.0f} GB of memory)"
    return None


def facts_of(engine: Engine, dtype: str) -> dict[str, Any]:
    """All that a verdict holds for: equal facts need no second measurement. Plain values."""
    settings = engine.settings
    found = versions()
    return {
        "checkpoint": folder_identity(Path(engine.model_path)),
        "versions": {name: version for name, version in found.items() if name not in ("python", "ray")},
        "processor": sorted(_flags()),
        "dtype": dtype,
        "custom_ops": custom_ops(engine),
        "options": json.loads(json.dumps(engine.options, default=str)),
        "compile": settings.compile,
        "moe_backend": settings.moe_backend,
        "ranks": [settings.tensor_parallel_size, settings.pipeline_parallel_size],
        "trust_remote_code": engine.model.trust_remote_code,
        "bounds": [TOLERANCE, ROUNDINGS, LEAST, MOST_ROUNDING, SEQUENCES, LENGTH],
    }


def _flags() -> set[str]:
    """Of the processor, that decide which kernels vLLM takes."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return set()
    told = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    return {word for word in told.split() if word.startswith(("avx", "amx", "bf16", "asimd", "sve"))}


def custom_ops(engine: Engine) -> list[str]:
    """vLLM's switches of its own operations, as this engine has them."""
    return sorted(engine.llm.llm_engine.vllm_config.compilation_config.custom_ops)


# ------------------------------------------------------------ the measurement


def measured(engine: Engine, dtype: str) -> Check:
    """The engine, whose policy is none, against Transformers; not applicable where that cannot compute the model."""
    sequences = token_ids(Path(engine.model_path), length_of(engine))
    seconds = max(1, min(MOST_SECONDS, engine.settings.start_timeout_seconds // 2))
    folder, trusted = engine.model_path, engine.model.trust_remote_code
    told = json.loads(asked(folder, folder_identity(Path(folder)), dtype, trusted, sequences, seconds))
    if "problem" in told:
        return Check(NAME, NOT_APPLICABLE, f"Transformers cannot compute this model ({told['problem']})")
    ours = engine.score(sequences, salt="parity")
    finding, fine = judged(ours, told["scores"], told["rounded"], dtype)
    if fine is None:
        return Check(NAME, NOT_APPLICABLE, finding)
    if fine:
        return Check(NAME, OK, finding)
    return Check(NAME, FAILED, f"{finding}: every result would be of another model. {cure(engine)}")


def judged(
    ours: list[list[float]], exact: list[list[float]], rounded: list[list[float]] | None, dtype: str
) -> tuple[str, bool | None]:
    """What was found, and whether it holds; None where rounding is too large to tell.

    `exact`, `rounded`: by Transformers in float32 and in `dtype`, None where that is float32. All in nats.
    """
    away = distances(ours, exact)
    model = f"Transformers' log-probabilities ({len(away)} tokens, {dtype}"
    if rounded is None:
        worst = max(away)
        return f"at most {worst:.1e} nats from {model}; tolerance {TOLERANCE:g})", worst <= TOLERANCE
    middle, rounding = statistics.median(away), statistics.median(distances(rounded, exact))
    if not rounding <= MOST_ROUNDING:
        much = f"{dtype} alone moves the median token by {rounding:.2g} nats, in which an error could hide"
        return f"{much}; model.dtype=float32 can be checked", None
    bound = max(LEAST, ROUNDINGS * rounding)
    where = f"{model}; tolerance {bound:.2g}, as rounding alone is {rounding:.2g})"
    return f"a median of {middle:.2g} nats from {where}", middle <= bound


def distances(one: list[list[float]], other: list[list[float]]) -> list[float]:
    """Nats, of each token of all sequences. A score that is no number is infinitely far."""
    pairs = (pair for xs, ys in zip(one, other, strict=True) for pair in zip(xs, ys, strict=True))
    return [distance if (distance := abs(x - y)) == distance else float("inf") for x, y in pairs]


def length_of(engine: Engine) -> int:
    """Of each sequence: one token is answered beside it."""
    return min(LENGTH, engine.settings.max_model_len - 1)


def token_ids(folder: Path, length: int) -> Sequences:
    """The same at every start: drawn from the whole vocabulary but for tokens that begin, end or fill texts."""
    config = language_part(read_json(folder / "config.json"))
    vocabulary = first_int(config, ("vocab_size",))
    marks = {first_int(config, (key,)) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    plain = random.Random(0)
    usable = [token for token in range(vocabulary) if token not in marks]
    return tuple(tuple(plain.choices(usable, k=length)) for _ in range(SEQUENCES))


def cure(engine: Engine) -> str:
    """What to do about an engine that is not the model."""
    kept_out = set(ROTARY_IN_TORCH["compilation_config"]["custom_ops"])
    if cpu_options(engine.model, engine.model_path) and not kept_out <= set(custom_ops(engine)):
        return (
            "The checkpoint has latent attention, for which vLLM's CPU rotary kernel errs: keep it out with vllm.LLM's"
            ' compilation_config={"custom_ops": ["all", "-rotary_embedding"]}, as Engine does unless it is given'
            " another compilation_config."
        )
    return (
        "Compare the engine settings (model.dtype, engine.compile, engine.moe_backend) with those of an engine that"
        " agrees; do not trust results of this engine."
    )


@functools.cache
def asked(folder: str, identity: str, dtype: str, trusted: bool, sequences: Sequences, seconds: int) -> str:
    """What Transformers says of the folder with these contents, as JSON: {scores, rounded} or {problem}."""
    question = {
        "folder": folder,
        "dtype": dtype,
        "trust_remote_code": trusted,
        "sequences": sequences,
        "seconds": seconds,
    }
    script = Path(__file__).with_name("transformers_process.py")
    # `-P`: the folder of the script is no place to import from.
    command = [sys.executable, "-P", str(script)]
    environment = {name: value for name, value in os.environ.items() if not NAMES.search(name)}
    environment |= {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    try:
        done = subprocess.run(
            command, input=json.dumps(question).encode(), capture_output=True, timeout=seconds, env=environment
        )
    except subprocess.TimeoutExpired:
        return json.dumps({"problem": f"it took more than {seconds} s"})
    if done.returncode != 0 or not done.stdout:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        return json.dumps({"problem": f"its process ended with {done.returncode}; {''.join(last)[:200]}"})
    return done.stdout.decode()
