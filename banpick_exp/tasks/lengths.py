"""Can a checkpoint be asked these problems? Its chat template and the length of every prompt, before anything loads.

And how much it reads of those that ask for likelihoods, which is what they cost.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from banpick_exp.errors import UserError
from banpick_exp.models.folder import has_chat_template, read_json
from banpick_exp.tasks.config import TaskConfig
from banpick_exp.tasks.problem import Problem

SPECIAL_TOKENS = 8
"""At most, that a tokenizer puts around a prompt by itself."""
GENERATION_TAG = re.compile(r"\{%-?\s*(end)?generation\s*-?%\}")
"""Transformers' own addition to Jinja (chat_template_utils.AssistantTracker)."""
LATER = "prompt lengths are checked when the engine starts: there is no {file} that could be read before"


def check_chat_template(task: TaskConfig, folder: Path) -> None:
    """Raise UserError where the task asks in chat and the checkpoint in `folder` has no template for it.

    `folder` may be a Hugging Face id, of which nothing is known before it is loaded.
    """
    if not task.chat_template or not folder.is_dir():
        return
    if not has_chat_template(folder):
        raise UserError(
            f"task.chat_template=true, but {folder} has no chat template (chat_template.jinja, or chat_template in"
            " tokenizer_config.json): no prompt could be made. Type task.chat_template=false."
        )

    if (file := folder / "chat_template.jinja").is_file():
        _check_template(file, file.read_text(encoding="utf-8", errors="replace"))
    elif (file := folder / "tokenizer_config.json").is_file():
        said = read_json(file).get("chat_template")
        _check_template(file, said if isinstance(said, str) else "")


def _check_template(file: Path, template: str) -> None:
    """UserError for a template that Jinja, with what Transformers adds to it, cannot read."""
    from jinja2 import Environment, TemplateSyntaxError

    try:
        Environment(extensions=["jinja2.ext.loopcontrols"]).parse(GENERATION_TAG.sub("", template))
    except TemplateSyntaxError as error:
        raise UserError(
            f"{file}: its chat template is damaged (its line {error.lineno}: {error.message}), so no prompt could be"
            " made. Copy it again, or type task.chat_template=false."
        ) from None


def check_prompt_lengths(
    problems: Mapping[str, Sequence[Problem]],
    folder: Path,
    *,
    max_tokens: int,
    max_model_len: int,
    limit: int | None = None,
    max_positions: int | None = None,
    setting: str = "task.max_tokens",
) -> str | None:
    """Raise UserError where a prompt and its answer do not fit the engine, naming problem and setting.

    Looks at the first `limit` problems of each domain (all if None). `max_positions`: of the checkpoint, None where no
    file says; an engine cannot be made longer than that. `setting`: where
    `max_tokens` was typed. A chat template adds tokens that are not counted,
    so what passes is a lower bound. Returns what to tell the user where no length can be checked, else None.
    """
    # A likelihood is read behind a whole text, and an engine writes one token at least.
    asked = [
        (problem, text, 1 if problem.choices else max_tokens)
        for items in problems.values()
        for problem in items[:limit]
        for text in problem.sequences
    ]
    # A token is at least one byte of ASCII text, so that short prompts need no tokenizer.
    doubtful = [
        each for each in asked if not each[1].isascii() or len(each[1]) + SPECIAL_TOKENS + each[2] > max_model_len
    ]
    if not doubtful:
        return None
    file = folder / "tokenizer.json"
    counts = _token_counts(file, [text for _, text, _ in doubtful]) if file.is_file() else None
    if counts is None:
        return LATER.format(file=file)
    needed = [count + written for count, (_, _, written) in zip(counts, doubtful, strict=True)]
    need = max(needed)
    if need <= max_model_len:
        return None
    over = sum(each > max_model_len for each in needed)
    worst, _, written = doubtful[needed.index(need)]
    longest = need - written
    if worst.choices:
        setting, max_tokens = "one token of an answer, task.max_tokens", 1
    remedy = _remedy(setting, longest, need, max_model_len, max_positions, every=over == len(asked))
    raise UserError(
        f"problem {worst.problem_id} (domain {worst.domain}) has {longest} tokens and with {setting}={max_tokens}"
        f" it needs {need}, but engine.max_model_len={max_model_len}: {over} problem{'s' if over > 1 else ''} could not"
        f" be answered. {remedy}"
    )


def _remedy(
    setting: str, longest: int, need: int, max_model_len: int, max_positions: int | None, *, every: bool
) -> str:
    """`every`: no problem fits, so to leave those out would leave none."""
    if max_positions is None or need <= max_positions:
        return f"Type engine.max_model_len={need}, a smaller {setting}, or leave them out of the file."
    if longest < max_model_len:
        return f"Type {setting}={max_model_len - longest} or less, or leave them out of the file."
    if every:
        return f"The checkpoint was made for {max_positions} positions: type another model, or shorter problems."
    return f"The checkpoint was made for {max_positions} positions: leave them out of the file."


def _token_counts(file: Path, prompts: list[str]) -> list[int] | None:
    """Tokens of each prompt, with what the tokenizer puts around it; None where the file is of another kind."""
    from tokenizers import Tokenizer  # in Rust, without Transformers: planning stays light

    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception:  # bare, as `tokenizers` raises it for any file that it cannot read
        return None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return [len(encoding.ids) for encoding in tokenizer.encode_batch(prompts)]


# ---------------------------------------------------------------- what is read

CHARACTERS = 4.0
"""Of a token, where no tokenizer can be read: English in a vocabulary of a hundred thousand."""
MEASURED = 64
"""Texts that a tokenizer is asked for their length, spread over all; the others are taken to be alike."""


@dataclass(frozen=True, slots=True)
class Reading:
    """Of one domain."""

    problems: int
    """Those with choices."""
    tokens: int
    """Of every context with its continuation, each a text of its own that is read whole; estimated."""


def reading_of(problems: Sequence[Problem], folder: Path) -> Reading | None:
    """What a checkpoint in `folder` reads of the problems whose choices are asked; None where there are none."""
    asked = [problem for problem in problems if problem.choices]
    texts = [text for problem in asked for text in problem.sequences]
    if not texts:
        return None
    sample = [texts[index * len(texts) // MEASURED] for index in range(MEASURED)] if len(texts) > MEASURED else texts
    file = folder / "tokenizer.json"
    counts = _token_counts(file, sample) if file.is_file() else None
    characters = CHARACTERS if not counts else sum(map(len, sample)) / sum(counts)
    return Reading(len(asked), max(1, round(sum(map(len, texts)) / characters)))
