"""What a reward model is, read from its folder without loading it: a checkpoint that scores a text with one number.

Its identity is that of any checkpoint (`folder_identity`): config, weights and tokenizer, whatever the path.
"""

from __future__ import annotations

from pathlib import Path
from shlex import quote

from banpick_exp.errors import UserError
from banpick_exp.models.checkpoint import folder_identity, weight_files
from banpick_exp.models.folder import OTHER_WEIGHTS, missing_files, read_json

HEAD = "ForSequenceClassification"
"""How the name of a class of Transformers ends that scores texts."""
USUAL_LABELS = 2
"""Of a config.json that does not say how many: Transformers' own default."""


def reward_identity(typed: str) -> str:
    """The identity of the reward model in the folder `typed`.

    Raises UserError for what is none: no folder, another head or number of labels, weights that are no safetensors.
    """
    folder, named = reward_folder(typed), f"task.reward_model={typed}"
    try:
        if not folder.is_dir():
            hub = typed if typed.count("/") == 1 and not typed.startswith((".", "/", "~")) else "ORGANISATION/NAME"
            raise UserError(
                f"{named} is no folder here: nothing could score an answer. Type the folder that holds its config.json"
                f" and *.safetensors; one of the Hugging Face Hub is fetched first: hf download {quote(hub)}"
                " --local-dir reward_model, then task.reward_model=reward_model."
            )
        if not (folder / "config.json").is_file():
            raise UserError(
                f"{named} has no config.json, so it is no Hugging Face checkpoint and could score nothing. Type the"
                " folder that holds config.json and the *.safetensors files (an adapter is merged first)."
            )
        _check_head(named, folder)
        _check_weights(named, folder)
        if missing := missing_files(folder):
            raise UserError(f"{named} could score nothing: {missing}.")
        return folder_identity(folder)
    except OSError as error:
        raise UserError(
            f"{named} cannot be read ({error.strerror}): nothing could score an answer. Make it readable, or type"
            " another folder."
        ) from None


def reward_folder(typed: str) -> Path:
    return Path(typed).expanduser()


def _check_head(named: str, folder: Path) -> None:
    config = read_json(folder / "config.json")
    stated = config.get("architectures")
    names = [str(name) for name in stated] if isinstance(stated, list) else []
    remedy = "Type the folder of a reward model: one of AutoModelForSequenceClassification, trained with num_labels=1."
    if not any(name.endswith(HEAD) for name in names):
        what = f"is a {', '.join(names)}" if names else "does not say what it is (no architectures in its config.json)"
        raise UserError(f"{named} {what}, and only a ...{HEAD} has a head that scores a text. {remedy}")
    labels = config.get("id2label")
    count = len(labels) if isinstance(labels, dict) else config.get("num_labels") or USUAL_LABELS
    if count != 1:
        raise UserError(
            f"{named} is a {names[0]} of {count} labels (id2label in its config.json), where a reward model has one: no"
            f" one number would say which answer is best. {remedy}"
        )


def _check_weights(named: str, folder: Path) -> None:
    """UserError for weights in another format, which are not opened: several of these are pickles, and run code."""
    if weight_files(folder):
        return
    for pattern, name in OTHER_WEIGHTS.items():
        if found := sorted(path.name for path in folder.glob(pattern) if path.name != "training_args.bin"):
            raise UserError(
                f"{named} holds its weights as {name} ({found[0]}), not as *.safetensors: they are not read here."
                f' If you trust it, convert it: python -c "from transformers import AutoModelForSequenceClassification'
                f" as M, AutoTokenizer as T; M.from_pretrained('{folder}').save_pretrained('converted');"
                f" T.from_pretrained('{folder}').save_pretrained('converted')\", then type"
                " task.reward_model=converted."
            )
