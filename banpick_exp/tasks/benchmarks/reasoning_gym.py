"""reasoning-gym (Stojanovski et al. 2025, arXiv 2505.24760): problems made by programs, with verifiers. A domain is
the name of one of its datasets.

Prompt: the dataset's own question, and where the answer is to stand: ours, as the package's examples ask with tags.
Splits are made with seeds of their own, and what the test split asks is in no other. Right is what the dataset's
verifier gives full score (grader `reasoning_gym`), which needs the whole entry: it is the material. Only entries
whose own answer still has full score after they were written down as JSON are kept; a dataset with none is refused.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator

from banpick_exp.config import suggestion
from banpick_exp.errors import UserError
from banpick_exp.tasks.benchmarks.published import published
from banpick_exp.tasks.benchmarks.source import OurRow, Source

ASKED = "\n\nPut your final answer, and nothing else, between <answer> and </answer>."
OFFSETS = {"test": 0, "calibration": 1_000_000}
"""What is added to the seed. The package draws entry n with seed + n, so splits lie far apart."""
FULL = 1.0


def make(domain: str, split: str, size: int, seed: int) -> Iterator[OurRow]:
    """`size` problems, or as many of them as are sound and new. Raises UserError for a dataset that there is not."""
    if importlib.util.find_spec("reasoning_gym") is None:
        raise UserError(
            "The package reasoning-gym is not installed, and it makes the problems of reasoning_gym. Type pip install"
            " reasoning-gym six."
        )
    import reasoning_gym
    from reasoning_gym.factory import DATASETS, get_score_answer_fn

    if domain not in DATASETS:
        raise UserError(
            f"--domains {domain} is no dataset of reasoning-gym: nothing was made. {suggestion(domain, DATASETS)}There"
            f" are {', '.join(sorted(DATASETS))}."
        )
    score = get_score_answer_fn(domain)
    tests = reasoning_gym.create_dataset(domain, size=size, seed=seed) if split != "test" else ()
    seen = {entry["question"] for entry in tests}
    for number, entry in enumerate(reasoning_gym.create_dataset(domain, size=size, seed=seed + OFFSETS[split])):
        if entry["answer"] is None or entry["question"] in seen:
            continue
        seen.add(entry["question"])
        kept = json.loads(json.dumps(dict(entry), default=str))
        if score(answer=kept["answer"], entry=kept) < FULL:
            continue
        yield {
            "problem_id": f"{domain}-{split}-{number:06d}",
            "prompt": entry["question"] + ASKED,
            "answer": kept["answer"],
            "material": {"dataset": domain, "entry": kept},
        }


REASONING_GYM = published(
    "reasoning_gym",
    Source(place="reasoning-gym", revision="0.1.25", licence="Apache-2.0", generated=make),
    grader="reasoning_gym",
)
