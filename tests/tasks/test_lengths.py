"""Whether a checkpoint can be asked a task, known before anything loads: lengths and chat template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from banpick_exp.errors import UserError
from banpick_exp.models.inspect import EMBEDDED_CHECKPOINT
from banpick_exp.tasks.config import TaskConfig
from banpick_exp.tasks.files import inspect_task
from banpick_exp.tasks.lengths import check_chat_template, check_prompt_lengths
from banpick_exp.tasks.problem import Problem


def problems(*prompts: str) -> dict[str, list[Problem]]:
    return {"math": [Problem(f"p{n}", "math", "math", prompt, "2") for n, prompt in enumerate(prompts)]}


def check(*prompts: str, folder: Path = EMBEDDED_CHECKPOINT, limit: int | None = None) -> str | None:
    return check_prompt_lengths(problems(*prompts), folder, max_tokens=24, max_model_len=256, limit=limit)


def test_the_longest_prompt_that_fits_passes_and_one_more_is_named() -> None:
    """The embedded tokenizer makes one token of a character."""
    assert check("short", "x" * 232) is None
    with pytest.raises(UserError) as caught:
        check("short", "x" * 233, "x" * 300)
    message = str(caught.value)
    assert "problem p2 (domain math) has 300 tokens" in message and "2 problems" in message
    assert "task.max_tokens=24" in message and "Type engine.max_model_len=324" in message


def test_only_the_problems_that_are_asked_count() -> None:
    assert check("short", "x" * 300, limit=1) is None


def test_without_a_readable_tokenizer_it_is_said_that_the_engine_checks(tmp_path: Path) -> None:
    assert check("x" * 10, folder=tmp_path) is None, "a prompt that short fits whatever its tokens are"
    assert "checked when the engine starts" in str(check("x" * 300, folder=tmp_path))
    (tmp_path / "tokenizer.json").write_text("{}")
    assert "checked when the engine starts" in str(check("x" * 300, folder=tmp_path))


def test_the_embedded_tasks_fit_the_embedded_model() -> None:
    for split in ("calibration", "dev", "test"):
        found = inspect_task(TaskConfig(name="tiny", domains=("math", "code", "knowledge")), split)
        assert check_prompt_lengths(found.loaded, EMBEDDED_CHECKPOINT, max_tokens=24, max_model_len=256) is None


def test_where_nothing_fits_nothing_is_left_out() -> None:
    fits: dict[str, Any] = {"max_tokens": 24, "max_model_len": 256, "max_positions": 256}
    with pytest.raises(UserError, match="positions: type another model, or shorter problems"):
        check_prompt_lengths(problems("x" * 300), EMBEDDED_CHECKPOINT, **fits)
    with pytest.raises(UserError, match="positions: leave them out of the file"):
        check_prompt_lengths(problems("x" * 300, "short"), EMBEDDED_CHECKPOINT, **fits)


def test_a_template_that_cannot_be_read_is_known_before(tmp_path: Path) -> None:
    chat = TaskConfig(name="jsonl", domains=("math",), data_files="x", chat_template=True)
    whole = "{% for m in messages %}{% generation %}{{ m['content'] }}{% endgeneration %}{% continue %}{% endfor %}"
    for name in ("chat_template.jinja", "tokenizer_config.json"):
        folder = tmp_path / name.partition(".")[0]
        folder.mkdir()
        for template, fine in ((whole, True), (whole[:30], False), ("{% if x %}", False)):
            text = template if name.endswith("jinja") else json.dumps({"chat_template": template})
            (folder / name).write_text(text)
            if fine:
                check_chat_template(chat, folder)
            else:
                with pytest.raises(UserError, match=rf"{name}: its chat template is damaged.*Copy it again"):
                    check_chat_template(chat, folder)


def test_a_chat_needs_a_template(tmp_path: Path) -> None:
    """Case F3: jsonl asks in chat unless it is told not to."""
    chat = TaskConfig(name="jsonl", domains=("math",), data_files="x", chat_template=True)
    with pytest.raises(UserError, match=r"Type task\.chat_template=false"):
        check_chat_template(chat, EMBEDDED_CHECKPOINT)
    check_chat_template(chat.model_copy(update={"chat_template": False}), EMBEDDED_CHECKPOINT)
    check_chat_template(chat, Path("owner/name"))
    for name, content in {
        "chat_template.jinja": "{{ messages }}",
        "chat_template.json": "{}",
        "tokenizer_config.json": json.dumps({"chat_template": "{{ messages }}"}),
        "additional_chat_templates/default.jinja": "x",
    }.items():
        folder = tmp_path / name.replace("/", "_")
        (folder / name).parent.mkdir(parents=True)
        with pytest.raises(UserError):
            check_chat_template(chat, folder)
        (folder / name).write_text(content)
        check_chat_template(chat, folder)
