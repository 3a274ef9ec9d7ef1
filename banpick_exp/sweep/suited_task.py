"""Which task a checkpoint is asked where none is typed: the embedded model its own, any other one that suits it.

A model's file names the tasks that suit it (`model.suggested_tasks`), of which those count that conf/task/ has. A
shipped sweep takes the first and says so; a line of one's own is refused with all of them, because answers to the
embedded problems would say nothing of a real checkpoint.
"""

from __future__ import annotations

from pathlib import Path

from banpick_exp.errors import UserError
from banpick_exp.models.checkpoint import Checkpoint
from banpick_exp.models.config import ModelConfig
from banpick_exp.models.inspect import EMBEDDED_CHECKPOINT
from banpick_exp.sweep.compose import Composer, choices
from banpick_exp.sweep.overrides import Block, expand, key_of

TOKENIZER = "tokenizer.json"
CHOOSING = ("task", "task.name", "task.data_files")
"""Keys that say what is asked."""
SHOWN = 3
OWN_PROBLEMS = """task=jsonl 'task.domains=[math]' 'task.data_files="data/{domain}_{split}.jsonl"'"""


def suited_task(block: Block, composer: Composer, *, shipped: bool) -> str | None:
    """What a block of a shipped sweep is to ask, as `task=math500`; None where nothing is left open: it names a task,
    or its models are the embedded one.

    Raises UserError where a task must be typed, with what to type.
    """
    if any(key_of(text) in CHOOSING for text in block):
        return None
    line = tuple(text for text in block if key_of(text).split(".")[0] == "model")
    settings = [
        composer.setting(assignment)
        for assignment in expand(line, lambda assignment: composer.setting(assignment).checkpoint.shape)
    ]
    real = {setting.model.name: setting.model for setting in settings if not _embedded(setting.checkpoint)}
    if not real:
        return None
    suited = {name: suggested(model) for name, model in real.items()}
    alike = len(real) == len({setting.model.name for setting in settings}) and len(set(suited.values())) == 1
    first = next(iter(suited.values()))[:1]
    if shipped and alike and first:
        return f"task={first[0]}"
    offered = tuple(dict.fromkeys(task for tasks in suited.values() for task in tasks))[:SHOWN]
    fitting = f"one that suits it: {', '.join(f'task={task}' for task in offered)}; or " if offered else ""
    raise UserError(
        f"{' '.join(line)} and no task: the embedded problems, a few characters long, would say nothing of"
        f" {', '.join(real)}, so nothing was started. Type {fitting}problems of your own: {OWN_PROBLEMS}."
    )


def suggested(model: ModelConfig) -> tuple[str, ...]:
    """The tasks of conf/task/ that suit a model, its default first; those that are not installed are left out."""
    offered = choices("task")
    return tuple(task for task in model.suggested_tasks if task in offered)


def _embedded(checkpoint: Checkpoint) -> bool:
    """Whether it is the embedded model, or one trained like it: with the same tokenizer, it can be asked the same."""
    folder = Path(checkpoint.location)
    if folder == EMBEDDED_CHECKPOINT:
        return True
    own, embedded = folder / TOKENIZER, EMBEDDED_CHECKPOINT / TOKENIZER
    return own.is_file() and embedded.is_file() and own.read_bytes() == embedded.read_bytes()
