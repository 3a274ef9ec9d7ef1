"""lm-eval's own `evaluate` on this very engine, against ours: the same verdict on every problem."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from lm_eval_tasks import CHOICES, GENERATION, LIKELIHOOD, keep_to, write_task

from banpick_exp.engine.engine import Engine
from banpick_exp.evaluation.answer import ask_once, graded
from banpick_exp.tasks.config import TaskConfig
from banpick_exp.tasks.files import inspect_task
from banpick_exp.tasks.harness.building import build

pytestmark = pytest.mark.engine
lm_eval = pytest.importorskip("lm_eval")

GIVEN = [(a, b) for a in range(1, 10) for b in range(2, 6)]
SUMS = [{"question": f"m:{a}+{b}=", "answer": str(a + b)} for a, b in GIVEN]
WHICH = [
    {"country": f"m:{a}+{b}=", "cities": [f"{a + b}", f"{a + b + 1}", f"{a * 7}, or {b}"], "gold": 0} for a, b in GIVEN
]
CHOSEN = CHOICES.replace("The capital of {{country}} is", "{{country}}").replace("num_fewshot: 1", "num_fewshot: 0")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    keep_to(tmp_path, monkeypatch)
    return tmp_path


def theirs(engine: Engine, path: Path) -> dict[int, dict[str, float]]:
    """What lm-eval says of each document: metric/filter -> value. Its own code divides, batches, filters and judges."""
    from lm_eval.api.model import TemplateLM
    from lm_eval.evaluator import evaluate
    from lm_eval.tasks import TaskManager

    class OnEngine(TemplateLM):
        @property
        def eot_token_id(self) -> int:
            token = engine.end_token()
            assert token is not None
            return token

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
            return engine.tokenize([string], special_tokens=add_special_tokens is not False)[0]

        def _loglikelihood_tokens(
            self, requests: Sequence[Any], disable_tqdm: bool = False, **kwargs: Any
        ) -> list[tuple[float, bool]]:
            found = []
            for _, context, continuation in requests:
                whole = [*context, *continuation]
                entries = engine.llm.generate(
                    {"prompt_token_ids": whole},
                    _greedy(max_tokens=1, prompt_logprobs=1),
                    use_tqdm=False,
                )[0].prompt_logprobs
                assert entries is not None
                told = [(entries[n], whole[n]) for n in range(len(context), len(whole))]
                total = sum(entry[token].logprob for entry, token in told if entry is not None)
                greedy = all(max(e, key=lambda t: e[t].logprob) == token for e, token in told if e is not None)
                found.append((total, greedy))
            return found

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
            raise NotImplementedError

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
            # Cut by hand: what the engine stops at is ours to prove.
            texts = []
            for request in requests:
                prompt, how = request.args
                text = engine.generate([prompt], max_tokens=how["max_gen_toks"])[0].text
                for end in how["until"]:
                    text = text.split(end)[0]
                texts.append(text)
            return texts

    tasks = TaskManager(include_defaults=False).load([str(path)])
    for task in tasks["tasks"].values():
        task.set_fewshot_seed(seed=1234)
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
    told = evaluate(lm=OnEngine(), task_dict=tasks, bootstrap_iters=0, log_samples=True)
    (samples,) = told["samples"].values()
    by_document: dict[int, dict[str, float]] = {}
    for sample in samples:
        values = by_document.setdefault(sample["doc_id"], {})
        values |= {f"{metric}/{sample['filter']}": sample[metric] for metric in sample["metrics"]}
    return by_document


def _greedy(**more: Any) -> Any:
    from vllm import SamplingParams

    return SamplingParams(temperature=0.0, **more)


def ours(engine: Engine, path: Path, metrics: Sequence[str]) -> Iterator[tuple[str, list[bool], list[str]]]:
    """Metric by metric: whether each problem is right, and what was answered; all asked in one batch."""
    settings: dict[str, Any] = {"name": str(path), "source": "lm_eval", "answer_separator": None, "max_tokens": 24}
    task = TaskConfig.model_validate(settings)
    (problems,) = inspect_task(task).loaded.values()
    given = [
        (problem, answer, None) for problem, answer in zip(problems, ask_once(engine, problems, task), strict=True)
    ]
    for metric in metrics:
        outcomes = graded(given, TaskConfig.model_validate(settings | {"metric": metric}))
        yield metric, [outcome.correct for outcome in outcomes], [str(outcome.completion) for outcome in outcomes]


@pytest.mark.parametrize(
    ("kind", "text", "rows"),
    [
        ("sums", GENERATION, SUMS),
        ("stopped", GENERATION.replace('"!"', '";"'), SUMS),
        ("chosen", CHOSEN, WHICH),
        ("examples", CHOSEN.replace("num_fewshot: 0", "num_fewshot: 2"), WHICH),
        ("word", LIKELIHOOD, SUMS),
        ("nothing before", CHOSEN.replace('doc_to_text: "{{country}}"', 'doc_to_text: ""').replace(
            "num_fewshot: 0", "num_fewshot: 0\ntarget_delimiter: ''"), WHICH),
    ],
)  # fmt: skip
def test_lm_eval_says_the_same_of_every_problem(
    kind: str, text: str, rows: list[dict[str, Any]], folder: Path, tiny_engine: Engine
) -> None:
    tiny_engine.set_policy("none", {})
    path = write_task(folder, kind.replace(" ", "_"), text, rows)
    built = build(str(path))
    said = theirs(tiny_engine, path)
    assert len(said) == len(rows)
    for metric, right, completions in ours(tiny_engine, path, built.metrics):
        assert right == [bool(said[number][metric]) for number in range(len(rows))], metric
        if kind in ("sums", "chosen"):
            assert any(right), "where nothing is right any two agree"
        if kind in ("sums", "stopped"):
            assert any(";" in each for each in completions) == (kind == "sums")
            continue
        scores = [json.loads(each) for each in completions]
        assert all(logprob < 0 for each in scores for logprob, _ in each)


def test_likelihoods_count_what_is_routed(folder: Path, tiny_engine: Engine) -> None:
    """A problem of choices routes every token of its texts, once for each choice, and a policy's swap is seen in it."""
    path = write_task(folder, "chosen", CHOSEN, WHICH[:4])
    build(str(path))
    task = TaskConfig.model_validate({"name": str(path), "source": "lm_eval", "answer_separator": None})
    (problems,) = inspect_task(task).loaded.values()
    tokens = sum(len(ids) for p in problems for ids in tiny_engine.tokenize(p.sequences))
    found = {}
    for k in (4, 1):
        tiny_engine.set_policy("fixed_k", {"k": k})
        tiny_engine.counters(reset=True)
        found[k] = [each.text for each in ask_once(tiny_engine, problems, task)]
        counted = tiny_engine.counters(reset=True)
        assert set(counted.tokens) == {tokens} and set(counted.kept) == {tokens * k}
    tiny_engine.set_policy("none", {})
    assert found[4] != found[1]
