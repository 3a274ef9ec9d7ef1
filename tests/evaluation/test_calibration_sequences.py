"""What a calibration puts through the model: own answers, right ones, documents; in steps, and kept as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from banpick_exp.engine.types import Generation
from banpick_exp.errors import UserError
from banpick_exp.evaluation.calibration.probe import Scored
from banpick_exp.evaluation.calibration.sequences import (
    corpus,
    in_steps,
    own_answers,
    packed,
    right_answers,
    unpacked,
)
from banpick_exp.tasks.config import TaskConfig
from banpick_exp.tasks.problem import Problem

END, BEGIN = 0, 1


class OneTokenACharacter:
    """An engine as far as sequences ask one: a character is its code, prompts begin with BEGIN."""

    def __init__(self, max_model_len: int = 64, max_num_batched_tokens: int = 100, max_num_seqs: int = 4) -> None:
        self.settings: Any = SimpleNamespace(
            max_model_len=max_model_len, max_num_batched_tokens=max_num_batched_tokens, max_num_seqs=max_num_seqs
        )

    def tokenize(self, texts: Sequence[str], *, chat: bool = False, special_tokens: bool = True) -> list[list[int]]:
        texts = [f"<{text}>" if chat else text for text in texts]
        return [[BEGIN] * special_tokens + [ord(c) for c in text] for text in texts]

    def end_token(self) -> int:
        return END


def engine(**limits: int) -> Any:
    return OneTokenACharacter(**limits)


def ids(text: str, begin: bool = True) -> list[int]:
    return [BEGIN] * begin + [ord(c) for c in text]


def answer(text: str, *, truncated: bool = False, prompt: str = "1+1=") -> Generation:
    tokens, reason = ids(text, begin=False) + [END] * (not truncated), "length" if truncated else "stop"
    return Generation(text=text, token_ids=tuple(tokens), prompt_token_ids=tuple(ids(prompt)), finish_reason=reason)


def problem(answer: str, response: str | None = None, prompt: str = "1+1=") -> Problem:
    return Problem(problem_id="0", domain="math", task="sum", prompt=prompt, answer=answer, response=response)


TASK = TaskConfig(name="tiny", domains=("math",), max_tokens=8, answer_separator=";")


class TestOwn:
    def test_they_are_judged_from_the_first_generated_token_to_the_end(self) -> None:
        (found,) = own_answers([answer("2")])
        assert found == Scored([*ids("1+1="), ord("2")], 5, END)

    def test_one_that_was_cut_is_not_judged_by_what_would_follow(self) -> None:
        (found,) = own_answers([answer("22", truncated=True)])
        assert found == Scored([*ids("1+1="), ord("2"), ord("2")], 5, None)

    def test_equal_ones_are_one(self) -> None:
        """The probe tells sequences apart by their tokens."""
        found = own_answers([answer("2"), answer("3"), answer("2")])
        assert sorted(found) == sorted(own_answers([answer("2"), answer("3")]))


class TestRight:
    def of(self, problems: list[Problem], answers: list[Generation | None], **limits: int) -> list[Scored]:
        return right_answers(engine(**limits), problems, answers, TASK)

    def test_a_response_of_the_data_is_judged_throughout(self) -> None:
        (found,) = self.of([problem("2", response="one more;2")], [None])
        assert found == Scored([*ids("1+1="), *ids("one more;2", begin=False)], 5, END)

    def test_else_the_right_answer_stands_after_the_models_own_reasoning(self) -> None:
        """Wrong answer 3 after some reasoning: judged is the 2 alone, given all that was written before."""
        (found,) = self.of([problem("2")], [answer("hm 3;3")])
        assert found == Scored([*ids("1+1="), *ids("hm 3;2", begin=False)], 5 + len("hm 3;"), END)

    def test_a_right_answer_stays_as_the_model_wrote_it(self) -> None:
        (found,) = self.of([problem("2")], [answer("so;2")])
        assert found.ids == [*ids("1+1="), *ids("so;2", begin=False)] and found.start == 5 + 3

    def test_without_an_answer_it_stands_right_after_the_prompt(self) -> None:
        for given in (None, answer("no idea")):
            (found,) = self.of([problem("2")], [given])
            assert found == Scored([*ids("1+1="), ord("2")], 5, END)

    def test_too_long_ones_are_left_out(self) -> None:
        """One token must stay free for the step that asks for what follows."""
        problems = [problem("2", response="123456"), problem("3", response="1234567")]
        found = self.of(problems, [None, None], max_model_len=12)
        assert [each.ids[5:] for each in found] == [ids("123456", begin=False)]

    def test_an_empty_response_has_nothing_to_judge(self) -> None:
        assert self.of([problem("2", response="")], [None]) == []


class TestCorpus:
    @pytest.fixture
    def text(self, tmp_path: Path) -> Path:
        path = tmp_path / "c4.txt"
        path.write_text("first one\n\n  \nsecond\nx\nfourth, which is long\n", encoding="utf-8")
        return path

    def test_documents_are_judged_throughout_and_cut_to_what_fits(self, text: Path) -> None:
        found = corpus(engine(max_model_len=11), text, 4)
        assert found[0] == Scored(ids("first one"), 1, None) and found[1] == Scored(ids("second"), 1, None)
        assert found[3] == Scored(ids("fourth, w"), 1, None), "10 tokens: a step must have room for one more"
        assert [len(each.ids) for each in corpus(engine(max_num_batched_tokens=4), text, 2)] == [4, 4]

    def test_of_more_documents_the_first_are_taken(self, text: Path) -> None:
        assert [each.ids for each in corpus(engine(), text, 2)] == [ids("first one"), ids("second")]

    def test_too_few(self, text: Path) -> None:
        with pytest.raises(UserError, match=r"c4\.txt has 4 documents, calibration\.samples=5 are asked.*samples=4"):
            corpus(engine(), text, 5)

    def test_one_that_cannot_be_read(self, tmp_path: Path) -> None:
        (tmp_path / "latin").write_bytes(b"caf\xe9\n")
        for name in ("nowhere", "latin"):
            with pytest.raises(UserError, match=rf"calibration\.text=.*{name} cannot be read.*UTF-8 file with one doc"):
                corpus(engine(), tmp_path / name, 1)


SEQUENCES = [Scored([1] * length, 1, None) for length in (40, 60, 1, 99, 10, 10, 10, 10, 10)]


class TestSteps:
    def test_each_chosen_one_is_in_one_step_that_it_fits(self) -> None:
        chosen = [8, 7, 6, 5, 4, 3, 2, 1, 0]
        steps = in_steps(SEQUENCES, chosen, engine().settings)
        assert [number for step in steps for number in step] == chosen
        for step in steps:
            assert len(step) <= 4 and sum(len(SEQUENCES[number].ids) for number in step) <= 100
        assert steps == [[8, 7, 6, 5], [4], [3, 2], [1, 0]]

    def test_none(self) -> None:
        assert in_steps(SEQUENCES, [], engine().settings) == []


@pytest.mark.parametrize(
    "sequences",
    [
        [],
        [Scored([5], 1, None)],
        [Scored([5, 6, 7], 2, 0), Scored([8], 1, None), Scored([151_935, 0, 3, 4], 3, 151_935)],
    ],
)
def test_as_arrays_and_back(sequences: list[Scored]) -> None:
    flat, marks = packed(sequences)
    assert flat.dtype == marks.dtype == np.int32 and marks.shape == (len(sequences), 3)
    assert len(flat) == sum(len(each.ids) for each in sequences)
    assert unpacked(flat, marks) == sequences
