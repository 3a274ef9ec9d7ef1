"""Runs the kernel under triton's interpreter and prints its findings as JSON: what, how many, which mutants survive.

    TRITON_INTERPRET=1 PYTHONPATH=kernels python tests/kernels/triton_interpreter.py

A process of its own, because triton decides at import whether it interprets.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from triton_interpreter_cases import ALL, Case, Inputs, compare, inputs_of
from triton_interpreter_exact import exact_cases
from triton_interpreter_mutants import MUTANTS

from banpick_kernels import triton_kernel, triton_router

EXAMPLES = 40
SOURCE = Path(triton_kernel.__file__).read_text(encoding="utf-8")


@st.composite
def cases(draw: st.DrawFn) -> tuple[Case, int]:
    """Any shape the kernel takes, and the tokens of a program."""
    num_experts = draw(st.sampled_from((1, 2, 3, 60, 64, 127, 128, 160, 257, 384, 512)) | st.integers(1, 512))
    top_k = draw(st.integers(1, min(16, num_experts)))
    stock = draw(st.booleans())
    slots = draw(st.integers(top_k if stock else max(1, top_k - 2), min(32, num_experts, top_k + 5)))
    case = Case(
        num_tokens=draw(st.sampled_from((0, 1, 17, 32, 33))),
        num_experts=num_experts,
        top_k=top_k,
        slots=slots,
        dtype=draw(st.sampled_from(("bfloat16", "float16", "float32"))),
        scoring=draw(st.sampled_from(("softmax", "sigmoid"))),
        logits=draw(st.sampled_from(("normal", "grid", "extreme"))),
        renormalize=draw(st.booleans()),
        correction=draw(st.booleans()),
        rows=draw(st.booleans()),
        padding=draw(st.booleans()),
        counters=draw(st.booleans()),
        stock=stock,
        filler=draw(st.sampled_from(("dup", "skip"))),
        policies=tuple(draw(st.permutations(ALL))),
        scale=draw(st.sampled_from((1.0, 2.5))),
        seed=draw(st.integers(0, 2**31)),
    )
    return case, draw(st.sampled_from((16, 32)))


def check_everything() -> dict[str, object]:
    """The generated cases: how many tokens, how many skipped as undecided, and the first thing that is wrong."""
    found = {"examples": 0, "tokens": 0, "skipped": 0}

    @settings(
        max_examples=EXAMPLES, derandomize=True, database=None, deadline=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(cases())
    def run(drawn: tuple[Case, int]) -> None:
        case, block_tokens = drawn
        problem, skipped = compare(case, block_tokens)
        assert not problem, f"{problem}: {case}"
        found["examples"] += 1
        found["tokens"] += case.num_tokens
        found["skipped"] += skipped

    try:
        run()
    except AssertionError as error:
        return {**found, "problem": str(error)}
    return {**found, "problem": ""}


def mutant_cases() -> Iterator[tuple[Case, Inputs, bool]]:
    """Cases that together see every mutant, and whether they are exact."""
    for seed, logits in enumerate(("extreme", "normal", "grid")):
        correction, scoring = seed == 1, "sigmoid" if seed == 2 else "softmax"
        for slots, filler in ((8, "skip"), (4, "dup")):
            case = Case(
                num_tokens=90, num_experts=27, top_k=4, slots=slots, logits=logits, correction=correction,
                scoring=scoring, filler=filler, stock=slots == 4, scale=2.5, seed=seed,
            )  # fmt: skip
            yield case, inputs_of(case), False
    for _, case, inputs in exact_cases():
        yield case, inputs, True


def mutated(folder: Path, number: int, old: str, new: str) -> ModuleType:
    """The kernel's module with one text replaced."""
    path = folder / f"mutant_{number}.py"
    path.write_text(SOURCE.replace(old, new), encoding="utf-8")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def check_mutants() -> dict[str, str]:
    """What each mutant does wrong, "" if nothing."""
    prepared, caught = list(mutant_cases()), {}
    healthy = triton_router.route_kernel
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, (old, new)) in enumerate(MUTANTS.items()):
            triton_router.route_kernel = mutated(Path(folder), number, old, new).route_kernel
            problems = (compare(case, 128, given, exact)[0] for case, given, exact in prepared)
            caught[name] = next((problem for problem in problems if problem), "")
    triton_router.route_kernel = healthy
    return caught


def main() -> None:
    """All findings, one JSON object."""
    warnings.filterwarnings("ignore", category=RuntimeWarning)  # numpy on exp(inf); the reference says nothing there
    findings = {
        "property": check_everything(),
        "exact": {name: compare(case, 16, given, exact=True)[0] for name, case, given in exact_cases()},
        "missing": [name for name, (old, _) in MUTANTS.items() if SOURCE.count(old) < 1],
        "mutants_on_healthy": [
            problem for case, given, exact in mutant_cases() if (problem := compare(case, 128, given, exact)[0])
        ],
        "mutants": check_mutants(),
    }
    print(json.dumps(findings, indent=1))


if __name__ == "__main__":
    main()
