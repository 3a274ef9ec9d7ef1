"""A reward model chooses among answers: which folders are one, what counts for identities, and the scores."""

from __future__ import annotations

import dataclasses
import json
import math
import random
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from reward_checkpoint import reward_folder, reward_model

from banpick_exp.config import validated
from banpick_exp.errors import UserError
from banpick_exp.evaluation.answer import DomainRun, choose_among
from banpick_exp.evaluation.choosing import with_chosen
from banpick_exp.evaluation.reward import check_reward_model, with_scores
from banpick_exp.evaluation.reward_process import batches, encode
from banpick_exp.models.reward_model import reward_identity
from banpick_exp.records import Counters, Metrics, Outcome, PointMetrics, outcomes_frame, outcomes_of, wrong_numbers
from banpick_exp.sweep.plan import SweepPlan, plan_sweep
from banpick_exp.tasks.config import TaskConfig
from banpick_exp.tasks.problem import Problem

SAMPLED = ["policy=none", "task.samples=4", "task.temperature=0.5", "dry_run=true"]
RIVAL = 'sweep.reference=[["policy=fixed_k","policy.k=5"]]'
TEMPLATE = "{% for m in messages %}{{ m.role[0] }}={{ m.content }};{% endfor %}"


def answers(*given: str, problem: str = "p", domain: str = "math") -> list[Outcome]:
    """Samples of one problem, whose right answer is 7."""
    return [
        Outcome(
            problem_id=problem, domain=domain, task=domain, correct=text == "7", truncated=False, tokens=3, answer=text,
            found=True, sample=n, completion=text, gold="7",
        )
        for n, text in enumerate(given)
    ]  # fmt: skip


def scored(*scores: float) -> list[Outcome]:
    """Answers to one problem; the third is right."""
    given = answers(*("12734"[: len(scores)]))
    return [dataclasses.replace(each, score=score) for each, score in zip(given, scores, strict=True)]


@pytest.mark.parametrize(
    ("scores", "sample"),
    [((0.1, 0.3, 0.2), 1), ((-1.0, -2.0, -0.5), 2), ((0.5, 0.5, 0.5), 0), ((-3.0, 1.0, 1.0), 1), ((0.0, -0.0), 0)],
)
def test_the_highest_score_counts_and_the_first_of_equals(scores: tuple[float, ...], sample: int) -> None:
    for order in (1, -1):
        chosen = with_chosen(scored(*scores)[::order], "reward")
        assert [each.sample for each in chosen if each.chosen] == [sample]
        assert [each.score for each in chosen] == list(scores)[::order]


def test_scores_are_kept_with_the_choice_and_checked_when_they_are_read() -> None:
    chosen = with_chosen(scored(0.1, 0.3, 0.3), "reward")
    frame = outcomes_frame(chosen)
    assert outcomes_of(frame) == chosen and frame.schema["score"] == pl.Float64
    assert "score_cut" not in frame.columns and "score" not in outcomes_frame(answers("1", "7")).columns
    assert all(each.score is None for each in with_chosen(chosen, "majority")), "a score is of the model that chose"

    def wrong(frame: pl.DataFrame) -> str | None:
        right = float(frame.filter("chosen")["correct"].mean())  # type: ignore[arg-type]
        told = Metrics.model_construct(n_problems=1, accuracy=right, accuracy_ci95=None, delta=None, delta_ci95=None,
                                       speedup=None, speedup_ci95=None, speedup_spread=None, speed=())  # fmt: skip
        return wrong_numbers(PointMetrics.model_construct(overall=told, domains={}), frame)

    assert wrong(frame) is None and wrong(frame[::-1]) is None
    for number in (0, 2):  # a lower score, and the second of two equal ones
        other = frame.with_columns(chosen=pl.int_range(3) == number)
        assert wrong(other) == "its outcomes choose an answer that the reward model does not score highest"
    for score in (None, math.nan, math.inf):
        other = frame.with_columns(score=pl.Series([0.1, 0.3, score], dtype=pl.Float64))
        assert wrong(other) == "its outcomes do not say of every answer how the reward model scores it"


# ---------------------------------------------------------------- planning


def planned(folder: Path, out: Path, *more: str) -> SweepPlan:
    words = [*SAMPLED, f"output_dir={out}", "task.choose=reward", f'task.reward_model="{folder}"', *more]
    return plan_sweep(list({word.split("=")[0]: word for word in words}.values()))


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ({"choose": "reward"}, "task.reward_model names none: nothing could be chosen. Type task.reward_model=FOLDER"),
        ({"reward_model": "x"}, "task.choose=mean asks it nothing: it would change nothing. Type task.choose=reward"),
        ({"choose": "majority", "reward_model": "x"}, "task.choose=majority asks it nothing"),
        ({"choose": "reward", "reward_model": "x", "samples": 1}, "has one answer to choose from"),
    ],
)
def test_a_choice_and_its_model_go_together(typed: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as caught:
        validated(TaskConfig, {"name": "tiny", "domains": ["math"], "samples": 4, "temperature": 0.5} | typed, "task")
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architectures": ["Qwen3ForCausalLM"]}, "is a Qwen3ForCausalLM, and only a ...ForSequenceClassification"),
        ({"architectures": None}, "does not say what it is (no architectures in its config.json)"),
        ({"id2label": {"0": "bad", "1": "good"}}, "is a Qwen3ForSequenceClassification of 2 labels"),
        ({"id2label": None}, "of 2 labels"),  # Transformers' default
        ({"id2label": None, "num_labels": 5}, "of 5 labels"),
    ],
)
def test_another_head_is_refused_while_planning(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    assert planned(reward_folder(tmp_path / "sound"), tmp_path).points[0].reward_model
    with pytest.raises(UserError) as caught:
        planned(reward_folder(tmp_path / "other", **changes), tmp_path)
    assert words in str(caught.value) and "Type the folder of a reward model" in str(caught.value)


def test_a_folder_that_cannot_be_loaded_is_refused_while_planning(tmp_path: Path) -> None:
    def refused(folder: Path | str) -> str:
        with pytest.raises(UserError) as caught:
            planned(Path(folder), tmp_path)
        return str(caught.value)

    assert "is no folder here: nothing could score an answer" in refused(tmp_path / "nowhere")
    assert "hf download Org/Reward-8B --local-dir reward_model" in refused("Org/Reward-8B")
    (tmp_path / "empty").mkdir()
    assert "has no config.json" in refused(tmp_path / "empty")
    pickled = reward_folder(tmp_path / "pickled", weights=None)
    assert "holds no weights (*.safetensors)" in refused(pickled)
    (pickled / "pytorch_model.bin").write_bytes(b"cos\nsystem\n")
    said = refused(pickled)
    assert "as PyTorch's *.bin (pytorch_model.bin), not as *.safetensors" in said
    assert "save_pretrained('converted')" in said and said.endswith("then type task.reward_model=converted.")
    mute = reward_folder(tmp_path / "mute")
    (mute / "tokenizer.json").unlink()
    assert "holds no tokenizer" in refused(mute)
    cut = reward_folder(tmp_path / "cut")
    (cut / "model.safetensors").write_bytes((cut / "model.safetensors").read_bytes()[:-1])
    assert "is cut off" in refused(cut)


def test_the_content_of_the_folder_counts_and_not_its_place(tmp_path: Path) -> None:
    def named(folder: Path, *more: str) -> str:
        (point,) = planned(folder, tmp_path, *more).points
        return point.fingerprint

    one = reward_folder(tmp_path / "one")
    seen = {named(one)}
    assert named(shutil.copytree(one, tmp_path / "copy")) in seen
    seen.add(named(reward_folder(tmp_path / "others", weights=b"others!")))
    (one / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
    seen.add(named(one))
    (one / "config.json").write_text(json.dumps(json.loads((one / "config.json").read_text()) | {"rope_theta": 2}))
    seen.add(named(one))
    plain = ["task.choose=majority", f"output_dir={tmp_path}"]
    seen.add(plan_sweep([*SAMPLED, *plain]).points[0].fingerprint)
    assert len(seen) == 5


def test_a_plan_with_a_reward_model_loads_nothing_heavy(tmp_path: Path) -> None:
    folder = reward_folder(tmp_path / "model")
    words = [*SAMPLED, f"output_dir={tmp_path}", "task.choose=reward", f'task.reward_model="{folder}"']
    code = (
        "import sys; from banpick_exp.sweep.plan import plan_sweep as plan;"
        f" print(plan({words!r}).points[0].reward_model,"
        " sorted({'torch', 'transformers', 'vllm', 'tokenizers', 'safetensors'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[-2] == f"{reward_identity(str(folder))} []"


def test_every_policy_of_a_sweep_is_chosen_alike(tmp_path: Path) -> None:
    folder = reward_folder(tmp_path / "model")
    plan = planned(folder, tmp_path, "policy=dynamic_experts", "policy.ks=[4,6]", RIVAL)
    assert {"none", "fixed_k", "dynamic_experts"} <= {point.rule.name for point in plan.points}
    assert {point.reward_model for point in plan.points} == {reward_identity(str(folder))}
    assert {point.task.choose for point in plan.points} == {"reward"}


def test_an_engine_refuses_another_model_than_was_planned(tmp_path: Path) -> None:
    folder = reward_folder(tmp_path / "model")
    task = rewarded(folder)
    check_reward_model(task, planned := reward_identity(str(folder)))
    reward_folder(folder, weights=b"others!")
    with pytest.raises(UserError, match=f"is another model than when the sweep was planned \\({planned}, here"):
        check_reward_model(task, planned)
    check_reward_model(TaskConfig(name="tiny", domains=("math",)), None)


def rewarded(folder: Path) -> TaskConfig:
    return TaskConfig(
        name="tiny", domains=("math", "code"), samples=4, temperature=0.5, choose="reward", reward_model=str(folder)
    )


# ---------------------------------------------------------------- scores


def test_texts_of_one_length_meet_and_none_is_left_out() -> None:
    lengths = [random.Random(0).choice([1, 7, 40, 90]) for _ in range(200)]
    found = list(batches(lengths, 100))
    assert sorted(number for batch in found for number in batch) == list(range(200))
    for batch in found:
        (length,) = {lengths[number] for number in batch}
        assert len(batch) * length <= 100
    assert list(batches([5, 3, 5], 1)) == [[0], [2], [1]], "where Transformers batches nothing, and for the longest"


PROBLEMS = {
    "math": [Problem("a", "math", "math", "3+4=", "7"), Problem("b", "math", "math", "12*12=", "144")],
    "code": [Problem("a", "code", "code", "len([1,2])=", "2", chat=(("system", "count"), ("user", "len([1,2])=")))],
}
COMPLETIONS = ("3+4=7;7", "8", "3+4=7;7", "1;2;3;4;5;6;7;8;9;10;11;12;13;14;15;16;17;18;19;20", "")


def given() -> dict[str, list[Outcome]]:
    return {
        domain: [each for p in items for each in answers(*COMPLETIONS, problem=p.problem_id, domain=domain)]
        for domain, items in PROBLEMS.items()
    }


def by_transformers(folder: Path, *, chat: bool, longest: int) -> list[float]:
    """Of every answer, in the order of `given`, each by itself."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    found = []
    for problem in (each for items in PROBLEMS.values() for each in items):
        said = [{"role": role, "content": text} for role, text in problem.chat or (("user", problem.prompt),)]
        for completion in COMPLETIONS:
            if chat:
                text = "".join(f"{m['role'][0]}={m['content']};" for m in said) + f"a={completion};"
                ids = tokenizer(text)["input_ids"]
            else:
                ids = tokenizer(problem.prompt)["input_ids"] + tokenizer(completion)["input_ids"]
            with torch.inference_mode():
                found.append(float(model(torch.tensor([ids[-longest:]])).logits[0, 0]))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("template", "longest"), [(None, 256), (TEMPLATE, 40)], ids=["pairs", "chats"])
def test_scores_are_those_of_transformers(template: str | None, longest: int, tmp_path: Path) -> None:
    """In a process of its own, in batches, each text once; those that are too long lose their beginning."""
    folder = reward_model(tmp_path / "model", template=template, positions=longest)
    expected = by_transformers(folder, chat=template is not None, longest=longest)
    assert len({round(score, 3) for score in expected}) > 8, "answers that score alike could hide in one another"
    counters = Counters([0], [0], [[0]])
    runs = {domain: DomainRun(outcomes, counters) for domain, outcomes in given().items()}
    choose_among([runs], rewarded(folder), PROBLEMS)
    found = [outcome for run in runs.values() for outcome in run.outcomes]
    assert [each.score for each in found] == pytest.approx(expected, abs=1e-5)
    for begin in range(0, len(found), len(COMPLETIONS)):
        several = found[begin : begin + len(COMPLETIONS)]
        assert several[0].score == several[2].score, "equal answers tie exactly"
        scores = [each.score for each in several]
        assert [each.chosen for each in several].index(True) == scores.index(max(scores))  # type: ignore[type-var]
        assert sum(each.chosen is True for each in several) == 1
        assert [each.score_cut for each in several] == [None, None, None, None if template is None else True, None]
    if template is None:
        from transformers import AutoTokenizer

        tokenizer: Any = AutoTokenizer.from_pretrained(folder, truncation_side="left")
        question, last = {"text": "3+4="}, tokenizer(COMPLETIONS[3])["input_ids"]
        text, was_cut = encode(tokenizer, question, COMPLETIONS[3], 24)
        assert was_cut and text["input_ids"] == tokenizer("3+4=")["input_ids"] + last[-20:]
        assert encode(tokenizer, question, "7", 24) == (dict(tokenizer("3+4=7")), False)


@pytest.mark.slow
def test_what_cannot_score_is_an_error_in_words(tmp_path: Path) -> None:
    known = {(each.domain, each.problem_id): each for items in PROBLEMS.values() for each in items}
    outcomes = given()["math"]
    folder = reward_model(tmp_path / "model")
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    begin, end = header["score.weight"]["data_offsets"]
    nan = struct.pack("<f", math.nan) * ((end - begin) // 4)
    weights.write_bytes(content[: 8 + length + begin] + nan + content[8 + length + end :])
    with pytest.raises(UserError, match=r"gives sample 0 of problem a \(math\) the score nan, which is neither better"):
        with_scores(outcomes, known, rewarded(folder))
    text = json.dumps({key.replace("score.weight", "scare.weight"): value for key, value in header.items()}).encode()
    weights.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])
    with pytest.raises(UserError, match=r"could not score the answers \(ValueError: it leaves 1 weights unset, score"):
        with_scores(outcomes, known, rewarded(folder))
    assert with_scores([], known, rewarded(folder)) == []
