"""Prompts as chats: what the settings hand to the chat template gets there."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from pydantic import ValidationError
from transformers import AutoTokenizer

from banpick_exp.engine.engine import Engine
from banpick_exp.models.inspect import EMBEDDED_CHECKPOINT
from banpick_exp.tasks.config import TaskConfig
from banpick_exp.tasks.problem import Problem

TEMPLATE = "{{ messages[0]['content'] }}{% if loud %}={% endif %}"


def task(**settings: Any) -> TaskConfig:
    return TaskConfig(name="t", domains=("math",), **settings)


def test_the_template_is_given_what_was_typed() -> None:
    tokenizer = AutoTokenizer.from_pretrained(str(EMBEDDED_CHECKPOINT))
    tokenizer.chat_template = TEMPLATE
    engine = cast(Engine, SimpleNamespace(llm=SimpleNamespace(get_tokenizer=lambda: tokenizer)))

    def text(chat: Any) -> str:
        (ids,) = Engine.tokenize(engine, ["1+1"], chat=chat)
        return str(tokenizer.decode(ids)).replace(" ", "")

    assert text(task(chat_template=True, chat_template_kwargs={"loud": True}).chat).endswith("1+1=")
    assert text(task(chat_template=True, chat_template_kwargs={"loud": False}).chat).endswith("1+1")
    assert text(task(chat_template=True).chat).endswith("1+1")
    assert task(chat_template=False).chat is False


def test_arguments_of_no_template_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"Type task\.chat_template=true"):
        task(chat_template=False, chat_template_kwargs={"loud": True})


def test_a_chat_of_several_messages_reaches_the_template_whole() -> None:
    tokenizer = AutoTokenizer.from_pretrained(str(EMBEDDED_CHECKPOINT))
    tokenizer.chat_template = "{% for message in messages %}{{ message['role'] }}:{{ message['content'] }};{% endfor %}"
    engine = cast(Engine, SimpleNamespace(llm=SimpleNamespace(get_tokenizer=lambda: tokenizer)))
    chat = Problem("p", "m", "m", "shown", "2", chat=(("system", "short"), ("user", "1+1"))).asked
    ids = Engine.tokenize(engine, [chat, "1+1"], chat=True)
    alone = [tokenizer(text).input_ids for text in ("system:short;user:1+1;", "user:1+1;")]
    assert [tokenizer.decode(each) for each in ids] == [
        tokenizer.decode(each, skip_special_tokens=True) for each in alone
    ]
