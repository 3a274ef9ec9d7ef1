"""What is said to type works as it is said: the texts to type of planning errors, typed in the place of the mistake."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from checkpoint_folder import write_checkpoint

from banpick_exp.cluster.plan import plan_run
from banpick_exp.errors import UserError
from banpick_exp.sweep.overrides import key_of

PLACEHOLDERS = re.compile(r"\b(VALUE|FOLDER|NUMBER|NAME|PATH|PORT|FILE|A,B|a,b)\b|\.\.\.|data/|/data")
"""What a user fills in."""
OVERRIDE = re.compile(r"""^['"]?\+?[a-z_]+(\.[a-z_]+)*=""")


def bad_input() -> list[list[str]]:
    """The mistakes that the tests of the command line type."""
    path = Path(__file__).resolve().parents[1] / "cli" / "test_cli.py"
    spec = importlib.util.spec_from_file_location("cli_of_the_tests", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return [typed for typed, _ in module.BAD_INPUT]


FIXED = ["policy=fixed_k", "policy.k=4"]
MISTAKES: list[list[str]] = [
    *bad_input(),
    [*FIXED, "engine.max_model_len=512"],
    [*FIXED, "task.max_tokens=128"],
    [*FIXED, "task.max_tokens=200"],
    [*FIXED, "task.max_tokens=1000"],
    [*FIXED, 'task.answer_separator=""'],
    [*FIXED, "task.answer_pattern='(a)(b)'"],
    [*FIXED, "task.samples=4"],
    [*FIXED, "task.top_p=0.5"],
    [*FIXED, "task.chat_template=true"],
    [*FIXED, "task.domains=[math,math]"],
    [*FIXED, "task.domains=math"],
    [*FIXED, "task.name=mine"],
    [*FIXED, "seed=-5"],
    [*FIXED, "seed=99999999999999"],
    [*FIXED, "seed=one"],
    [*FIXED, "repeat=-1"],
    [*FIXED, "repeats=0"],
    [*FIXED, "repeats=2", "repeat=1"],
    [*FIXED, "engine.max_num_seqs=0"],
    [*FIXED, "engine.max_num_seqs=many"],
    [*FIXED, "engine.max_num_batched_tokens=8"],
    [*FIXED, "engine.gpu_memory_utilization=2"],
    [*FIXED, "engine.distributed_executor_backend=ray"],
    [*FIXED, "engine.model_runner=v2"],
    [*FIXED, "engine.distributed_executor_backend=rey"],
    [*FIXED, "engine.gpus=1", "engine.tensor_parallel_size=2"],
    [*FIXED, "engine=cuda", "engine.tensor_parallel_size=4"],
    [*FIXED, "engine=cuda", "engine.pipeline_parallel_size=4"],
    [*FIXED, "engine.expert_parallel=true"],
    [*FIXED, "engine=cuda", "engine.expert_parallel=true"],
    [*FIXED, "calibration=3"],
    [*FIXED, "calibration.samples=0"],
    [*FIXED, "calibration.path=nowhere"],
    [*FIXED, "cluster.engines=0"],
    [*FIXED, "cluster=rey"],
    [*FIXED, "tracking=wandbb"],
    [*FIXED, "tracking.mode=on"],
    [*FIXED, "search=racingg"],
    [*FIXED, "search.trials=4"],
    [*FIXED, "search=racing", "search.blocks=[0.5,0.2]"],
    [*FIXED, "search=racing", "search.error_rate=2"],
    [*FIXED, "sweep.name=a/b"],
    [*FIXED, "sweep.name=.."],
    [*FIXED, "model.control=math", "model.path={moe}"],
    [*FIXED, "model.dtype=int8"],
    [*FIXED, "model.path=nowhere at all"],
    [*FIXED, "model.num_layers=3"],
    [*FIXED, "model.top_k=4"],
    [*FIXED, "dry_run=maybe"],
    ["policy=fixed_k"],
    ["policy=fixed_k", "policy.k=0"],
    ["policy=fixed_k", "policy.k=9"],
    ["policy=fixed_k", "policy.k=two"],
    ["policy=fixed_k", "policy.k=range(4,1)"],
    ["policy=fixed_k", "policy.k=range(1,10000000)"],
    ["policy=fixed_k", "policy.k=interval(1,4)"],
    ["policy=fixed_k", "policy.k=choice()"],
    ["policy=fixed_k", "policy.k=glob(*)"],
    ["policy=fixed_k", "policy.k=4", "policy.k=5"],
    ["policy=fixed_k", "policy.kk=4"],
    ["policy.k=4"],
    ["policy=pick", "policy.boost=0"],
    ["policy=pick", "policy.key_experts=0"],
    ["policy=pick", "policy.mode=range"],
    ["policy=pick", "calibration.k_min=9"],
    ["policy=pick", "policy.mode=range_replace", "policy.boost=2"],
    ["policy=ban", "policy.lambda=3"],
    ["policy=ban", "policy.lambda=interval(1,1)", "search=optuna"],
    ["policy=ban", "policy.budget=20"],
    ["policy=ban", "policy.budget=4", "policy.lambda=0.5"],
    ["policy=top_p"],
    ["policy=top_p", "policy.p=2"],
    ["policy=naee", "policy.beta=5"],
    ["policy=modes", "policy.tau=9"],
    ["policy=mask"],
    ["policy=mask", "'policy.experts={0:[99]}'"],
    ["policy=steer"],
    ["policy=rice", "policy.multiplier=2"],
    ["policy=expert_sample", "policy.temperature=1000"],
    ["policy=expert_sample", "engine=cuda", "engine.compile=true"],
    ["policy=logit_offset"],
    ["policy=logit_offset", "policy.path=nowhere"],
    ["+sweep=ban_pick", "policy=pick"],
    ["+sweep=ban_pick", "policy.nothing=3"],
    ["+sweep=ban_pick", "sweep.params=[]"],
    ["+sweep=ban_pick", "search=optuna"],
    ["+sweep=pick_strength", "--multirun"],
    ["-m", *FIXED],
    ["max_problems=3", *FIXED],
    ["fixed_k"],
    ["task", *FIXED],
    [],
]


def texts_to_type(message: str) -> list[list[str]]:
    """The overrides after each `Type` or `Did you mean`, those side by side in one list; none to fill in."""
    found = []
    for match in re.finditer(r"(?:\b[Tt]ype (?:e\.g\. )?|\bor type |Did you mean |, or )", message):
        rest, words = message[match.end() :], []
        while rest:
            word = re.match(r"""((?:'[^']*'|"[^"]*"|[^\s'"])+)\s*""", rest)
            if word is None or not OVERRIDE.match(word[1]) or PLACEHOLDERS.search(word[1]):
                break
            bare = re.sub(r"[.,;:?)]+$", "", word[1])
            try:
                (typed,) = shlex.split(bare)
            except ValueError:
                break
            words.append(typed)
            if bare != word[1]:
                break
            rest = rest[word.end() :]
        if words:
            found.append(words)
    return found


def with_typed(typed: list[str], remedy: list[str]) -> list[str]:
    """The line with the remedy in the place of the words of its keys."""
    keys = {key_of(word) for word in remedy}
    # A name that was nearly right, or stood without its group, gives way to the right one.
    kept = [word for word in typed if key_of(word) not in keys and "=" in word and not word.startswith(("-", "~"))]
    return [*kept, *remedy]


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    for name in ("empty", "other"):
        (tmp_path / name).mkdir()
    write_checkpoint(tmp_path / "moe")
    write_checkpoint(tmp_path / "dense", num_experts=0, architectures=["LlamaForCausalLM"])
    write_checkpoint(tmp_path / "bypass", architectures=["MiniCPMForCausalLM"])
    (tmp_path / "file").write_text("")
    (tmp_path / "other" / "run.json").write_text(json.dumps({"sweep": "ban_pick", "models": {}, "tasks": {}}))
    return {name: str(tmp_path / name) for name in ("empty", "other", "moe", "dense", "bypass", "file")}


def answer(typed: list[str]) -> str:
    """What is said of a line, empty where it plans. Raises nothing else."""
    try:
        plan_run(typed)
    except UserError as error:
        return str(error)
    return ""


def what_it_is_about(message: str) -> str:
    """Without the values: the same complaint of another value is the same complaint."""
    return re.sub(r"\S*=\S+|[\d.]+", "", message)


@pytest.mark.parametrize("typed", MISTAKES, ids=lambda typed: " ".join(typed)[:80])
def test_what_is_said_to_type_works(typed: list[str], places: dict[str, str]) -> None:
    typed = [re.sub(r"\{(\w+)\}", lambda m: places.get(m[1], m[0]), word.strip("'")) for word in typed]
    message = answer(typed)
    for remedy in texts_to_type(message):
        again = answer(with_typed(typed, remedy))
        assert not again or what_it_is_about(again) != what_it_is_about(message), (message, remedy, again)


def test_the_texts_to_type_are_found() -> None:
    def of(message: str) -> Any:
        return [words for words in texts_to_type(message)]

    assert of("x. Type engine.max_model_len=256, or less.") == [["engine.max_model_len=256"]]
    assert of("Type e.g. 'policy.k=choice(1,2)'.") == [["policy.k=choice(1,2)"]]
    assert of("Type policy=fixed_k 'policy.k=choice(4,6)'.") == [["policy=fixed_k", "policy.k=choice(4,6)"]]
    assert of("Type output_dir=FOLDER with a folder of yours.") == []
    assert of("Did you mean policy=pick? Use one of a, b.") == [["policy=pick"]]
    assert of("Type engine.gpus=2 or engine.tensor_parallel_size=1") == [["engine.gpus=2"]]


def test_most_mistakes_say_what_to_type(places: dict[str, str]) -> None:
    said = []
    for typed in MISTAKES:
        message = answer([re.sub(r"\{(\w+)\}", lambda m: places.get(m[1], m[0]), word.strip("'")) for word in typed])
        said.append(bool(texts_to_type(message)))
    assert sum(said) > len(MISTAKES) / 3
