"""A user's pattern has a time limit: what runs away is ended and counted; all else is found as `re` finds it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest
from synthetic_run import SyntheticRun, ladder

from banpick_exp.analysis import guards
from banpick_exp.config import validated
from banpick_exp.engine.types import Generation
from banpick_exp.errors import UserError
from banpick_exp.evaluation.answer import graded
from banpick_exp.records import outcomes_frame
from banpick_exp.sweep.plan import plan_sweep
from banpick_exp.tasks.config import TaskConfig
from banpick_exp.tasks.graders import bounded, pattern
from banpick_exp.tasks.graders.bounded import TooSlow
from banpick_exp.tasks.graders.exact_match import extract_answer
from banpick_exp.tasks.graders.pattern import last_match, never_ends
from banpick_exp.tasks.problem import Problem

RUNAWAY = [
    (r"(a+)+$", "a" * 60 + "!"),
    (r"^((?:\w+\s?)*)$", "word " * 40 + "!"),
    (r"answer: ((?:a|aa)+)$", "answer: " + "a" * 80 + "!"),
    (r"boxed\{((?:[^{}]+)*)\}", "boxed{" + "x" * 60),
    (r"^(?:(.*a)){12}\Z", "a" * 60 + "!"),
    (r"(?:(?:x*)*y)?((?:x|x)*)z", "x" * 60),
    (r"((?:a|b|ab)*)c", "ab" * 60),
]
"""Nested quantifiers, alternatives that overlap, and a text that nearly matches."""
BACKREFERENCES = (r"^(a*)(?:a*)(?:a*)(?:a*)(?:a*)\1!$", "a" * 400)
"""Slow by a power of the length, so on a long completion alone; the pattern has one group."""


@pytest.fixture(autouse=True)
def _short_limit(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(pattern, "LIMIT_SECONDS", 0.2)
    monkeypatch.setattr(pattern, "PROBE_SECONDS", 0.2)
    never_ends.cache_clear()
    yield
    never_ends.cache_clear()
    pattern._asked.clear()
    pattern._late.clear()


def task_of(answer_pattern: str) -> TaskConfig:
    return TaskConfig(name="jsonl", domains=("math",), data_files="x", answer_pattern=answer_pattern)


@pytest.mark.parametrize(("runaway", "text"), [*RUNAWAY, BACKREFERENCES])
def test_a_search_that_runs_away_is_ended(runaway: str, text: str) -> None:
    begin = time.perf_counter()
    with pytest.raises(TooSlow):
        last_match(runaway, text)
    assert time.perf_counter() - begin < 30, "by the limit of 0.2 s, on a busy machine too"
    assert last_match("is ([0-9])", "is 3, is 4") == "4", "and the next search is an ordinary one"


@pytest.mark.parametrize(("runaway", "_"), RUNAWAY)
def test_planning_refuses_what_runs_away_on_a_short_text(runaway: str, _: str) -> None:
    assert never_ends(runaway) is not None


@pytest.mark.parametrize(
    "honest",
    [
        r"boxed\{([^{}]*)\}",
        r"answer: *(.+)",
        r"^\s*([\w ]+)",
        r"(?m)^ANSWER: (.+)$",
        r"(?s).*####\s*(-?[\d,.]+)",
        r"(?i)the answer is:?\s*\(?([A-J])\)?",
        r"(?:the|so the)? ?answer (?:is|=) ([^\n.]*)",
        r"(\d+(?:\.\d+)?)(?!.*\d)",
        r"<answer>(.*?)</answer>",
    ],
)
def test_ordinary_patterns_find_what_re_finds(honest: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pattern, "LIMIT_SECONDS", 30)
    assert never_ends(honest) is None
    long = "let x = 3. " * 900
    for text in [
        "", "answer: 5", "so boxed{1} and boxed{ 2 }", "the answer is (B)\nThe answer is C", "ANSWER: a\nb\nANSWER: c",
        "####  -1,234.5", "<answer>1</answer><answer>\n</answer><answer>é\x1c\u2028\ud800</answer>", 
        f"{long}#### 7", long,
    ]:  # fmt: skip
        matches = re.findall(honest, text)
        assert last_match(honest, text) == (matches[-1] if matches else None)


def test_a_group_that_took_no_part_is_empty_as_ever() -> None:
    assert re.findall("a|b(c)", "bc a") == ["c", ""] and last_match("a|b(c)", "bc a") == ""
    assert extract_answer("bc a", task_of("a|b(c)")) == ("", True)


def test_what_was_ended_is_not_found_wrong_and_counted() -> None:
    runaway, text = RUNAWAY[2]
    problem = Problem("p", "math", "math", "?", "a")
    given = [
        (problem, Generation(text=each, token_ids=(1,), prompt_token_ids=(1,), finish_reason="stop"), None)
        for each in (text, "answer: a")
    ]
    answers = graded(given, task_of(runaway))
    assert [(each.answer, each.found, each.correct, each.pattern_timeout) for each in answers] == [
        ("", False, False, True),
        ("a", True, True, None),
    ]
    frame = outcomes_frame(answers)
    assert frame["pattern_timeout"].to_list() == [True, None]
    assert "pattern_timeout" not in outcomes_frame(answers[1:]).columns


@pytest.mark.parametrize("guard", ["pattern_timeout", "grader_timeout", "score_cut"])
def test_the_report_says_how_many(guard: str) -> None:
    run = ladder(SyntheticRun(problems=40), ks=(6,))
    assert guard not in guards(run.records, run.outcomes)["guard"].to_list()
    answers = run.outcomes[run.records[1].fingerprint]
    late = pl.Series(guard, [True, True, True] + [None] * (answers.height - 3))
    outcomes = {**run.outcomes, run.records[1].fingerprint: answers.with_columns(late)}
    found = guards(run.records, outcomes)
    (row,) = found.filter(found["guard"] == guard).iter_rows(named=True)
    assert (row["level"], row["value"], row["fingerprint"]) == ("warning", 3.0, run.records[1].fingerprint)
    assert "3 of 120 completions" in row["detail"]
    assert ("or its sandbox did not come up" in row["detail"]) == (guard == "grader_timeout")


def test_a_pattern_that_is_ended_again_and_again_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pattern, "MOST_LATE", 2)
    runaway, text = RUNAWAY[0]
    for _ in range(2):
        with pytest.raises(TooSlow):
            last_match(runaway, text)
    with pytest.raises(UserError, match=r"task\.answer_pattern='\(a\+\)\+\$' was stopped after 0\.2 s.* 3 of 3"):
        last_match(runaway, text)


def test_few_among_many_are_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pattern, "MOST_LATE", 0)
    runaway, text = RUNAWAY[0]
    for _ in range(60):
        last_match(runaway, "aaa")
    with pytest.raises(TooSlow):
        last_match(runaway, text)


def test_planning_says_what_to_change(tmp_path: Path) -> None:
    (tmp_path / "math_test.jsonl").write_text('{"prompt": "1+1=", "answer": "2"}\n')
    line = [
        "model=tiny",
        "task=jsonl",
        "task.domains=[math]",
        f'task.data_files="{tmp_path}/{{domain}}_{{split}}.jsonl"',
    ]
    begin = time.perf_counter()
    with pytest.raises(UserError) as caught:
        plan_sweep(["policy=none", *line, 'task.answer_pattern="answer: ((?:a+)+)$"'])
    assert time.perf_counter() - begin < 60
    assert "takes more than 1 s on a text of" in str(caught.value)
    assert "no + or * inside a group that is repeated itself" in str(caught.value)


@pytest.mark.parametrize("pattern_of_user", ["(a{99999999999999999999})", "(" * 5000 + "a" + ")" * 5000, "(a"])
def test_what_re_cannot_compile_is_refused(pattern_of_user: str) -> None:
    with pytest.raises(UserError, match=r"is no regular expression|groups"):
        validated(TaskConfig, {"name": "x", "domains": ["math"], "answer_pattern": pattern_of_user}, "task")


def test_a_process_that_is_gone_or_stopped_costs_no_answer_but_that_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert last_match("is (.)", "is 3") == "3"
    process = pattern._searcher._process
    assert process is not None
    os.kill(process.pid, signal.SIGALRM)  # as when it had nothing to do for long
    process.wait()
    assert last_match("is (.)", "is 3") == "3"
    process = pattern._searcher._process
    assert process is not None
    monkeypatch.setattr(bounded, "WALL_SECONDS", 0)
    os.kill(process.pid, signal.SIGSTOP)
    with pytest.raises(TooSlow):
        last_match("is (.)", "x" * 2**20)  # more than a pipe holds: writing waits, too
    assert last_match("is (.)", "is 4") == "4"


def test_the_time_of_other_threads_is_not_the_search_s() -> None:
    """Torch's threads would use up any limit measured for the whole process."""
    over = threading.Event()

    def burn() -> None:
        while not over.is_set():
            sum(range(10000))

    threads = [threading.Thread(target=burn) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        slow = "(.*)(?:.*)x"
        assert last_match(slow, "y" * 400) is None, "some hundredths of a second of its own"
        found: dict[str, str | None] = {}
        asking = threading.Thread(target=lambda: found.update(answer=last_match("is (.)", "is 3")))
        asking.start()
        asking.join(timeout=60)
        assert found == {"answer": "3"}, "in a thread that is not the main one, too"
    finally:
        over.set()
        for thread in threads:
            thread.join()


def test_it_ends_with_who_asks() -> None:
    code = (
        "from banpick_exp.tasks.graders import pattern\n"
        "pattern.last_match('(a)', 'a')\n"
        "print(pattern._searcher._process.pid, flush=True)\n"
        "pattern.LIMIT_SECONDS = 1e9\n"
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    pid = int(done.stdout)
    deadline = time.monotonic() + 30
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{pid}").exists()
