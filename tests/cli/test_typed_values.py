"""What is typed is read as it stands there, shown as it was typed, and mended by what the message says to type."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest
from test_streams import shell

from banpick_exp.cli.main import run
from banpick_exp.errors import UserError
from banpick_exp.sweep.overrides import parse_axis
from banpick_exp.sweep.plan import plan_sweep

FIXED = ["policy=fixed_k", "policy.k=4"]
PLAN = ["tracking=none", "dry_run=true"]


def refused(typed: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert run([*typed, *PLAN]) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("policy=ban policy.lambda=1e400", "policy.lambda=1e400: 1e400 is beyond the numbers of a computer"),
        ("policy=ban policy.lambda=choice(0.5,1e-400)", "1e-400 is beyond the numbers of a computer"),
        ("policy=mask policy.experts={0:[3],0:[4]}", "has 0 twice"),
        ("policy=mask policy.experts=choice({0:[3]},{1:[2],1:[4]})", "has 1 twice"),
        (f"policy=fixed_k policy.k=choice(K*{'9' * 400})", "cannot be read"),
        ("policy=fixed_k policy.k=choice(K*1e400)", "K*1e400 is beyond the numbers of a computer"),
        ("policy=fixed_k policy.k=choice(K*1e300*1e300)", "is beyond the numbers of a computer"),
        ("policy=none resume=", "resume= names no run"),
        ("policy=fixed_k policy.k=4 policy.k=5", "twice, as policy.k=4 and as policy.k=5"),
        ("sweep.blocks=[['policy=fixed_k','policy.k=4','policy.k=5']]", "in one list, by policy.k=4 and by policy.k=5"),
        ("policy=ban policy.lambda=3", "Use for example policy.lambda=0.8"),
        ("policy=fixed_k policy.k=true", "policy.k=true is not"),
        ("policy=none seed='7'", 'seed="7" is no whole number'),
        ("policy=none search.blocks=[0.5,1]", "search.blocks=[0.5,1] is idle"),
        ("policy=null", "policy=null is unknown"),
        ("policy=none task.domains=math", "Type 'task.domains=[math]'"),
        ("policy=none repeats=100000", "repeats=100000 is above 1000"),
        ("policy=fixed_k policy.kk=4", "Did you mean policy.k?"),
    ],
)
def test_a_value_is_shown_as_typed(typed: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert words in refused(typed.split(), capsys)


@pytest.mark.parametrize(
    "typed", ["output_dir=1e-300", "policy.lambda=1e308", 'output_dir="1e400"', "policy.k=1.2.3e4"]
)
def test_a_number_that_a_computer_has_is_no_mistake(typed: str) -> None:
    parse_axis(typed)


@pytest.mark.parametrize(("typed", "folder"), [("007", "007"), ("1_0", "1_0"), ("1.50", "1.50"), ("true", "true")])
def test_a_folder_has_the_name_that_was_typed(typed: str, folder: str, tmp_path: Path) -> None:
    plan = plan_sweep([*FIXED, f"output_dir={typed}", "dry_run=true"])
    assert plan.folder.path.parents[1].name == folder


@pytest.mark.parametrize(
    ("typed", "remedy"),
    [
        ("policy.k=ü", "policy.k=4"),
        ("policy.k='4", "policy.k=4"),
        ('policy.k="4', "policy.k=4"),
        ("policy.k=４", "policy.k=4"),
        ("policy.k=4;5", "policy.k=4"),
        ("seed='7", "seed=7"),
        ("repeats=é", "repeats=3"),
        ("engine.gpus='0", "engine.gpus=0"),
        ("engine.max_num_seqs=é", None),
        ("task.temperature=½", None),
        ("task.max_problems=é", None),
        ("calibration.samples=é", None),
        ("model.dtype=é", None),
        ("policy.budget=é", "policy.budget=4"),
        ("engine=é", None),
        ("model=é", None),
        ("task=é", None),
        ("search=é", None),
        ("cluster=é", None),
    ],
)
def test_the_remedy_for_a_number_is_a_number(
    typed: str, remedy: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError) as caught:
        parse_axis(typed)
    (said,) = shlex.split(str(caught.value).rpartition(" Type ")[2].removeprefix("e.g. ").removesuffix("."))
    assert said == (remedy or said)
    beside = [] if said.startswith(("policy.k", "policy.budget")) else ["policy.k=4"]
    assert run(["policy=fixed_k", *beside, said, *PLAN]) == 0, capsys.readouterr().err


def test_a_run_has_one_value_so_the_remedy_is_no_axis(capsys: pytest.CaptureFixture[str]) -> None:
    said = refused([*FIXED, "repeats=1", "repeats=2"], capsys)
    assert "as repeats=1 and as repeats=2" in said and "choice" not in said


@pytest.mark.parametrize("command", ["calibrate", "verify"])
@pytest.mark.parametrize("text", ["policy=ban", "++policy.k=4", "+sweep=pick_strength"])
def test_a_command_without_policies_says_so(command: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([command, text, *PLAN]) == 2
    assert f"{text} chooses a policy" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("typed", "words", "never"),
    [
        ("--foo", "--foo is no option", "foo=true"),
        ("--policy", "policy=VALUE", "policy=true"),
        ("--dry-run", "dry_run=true", "VALUE"),
        ("=", "names no setting", "would be ignored"),
        ("", "'' names no setting", "Did you mean"),
        ("~", "names no setting", "=VALUE instead"),
        ("help", "type --help", "Did you mean"),
        ("task", "Did you mean tasks?", "Did you mean task?"),
        ("policy", "Did you mean policy=VALUE?", "Did you mean policy?"),
    ],
)
def test_words_that_are_no_settings(typed: str, words: str, never: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused([typed], capsys)
    assert words in said and never not in said


@pytest.mark.parametrize(
    "value", ["'" + "9 " * 3000 + "'", "[" + "9," * 300 + "9]", "9" * 5000, "4 policy.k=4" * 999, "ü" * 999]
)
def test_a_long_value_is_not_repeated_whole(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(["policy=fixed_k", f"policy.k={value}"], capsys)
    assert len(said) < 2500 and "set_int_max_str_digits" not in said
    assert said.startswith("banpick: policy.k=") and said.rstrip().endswith("."), "what to type is at the end"


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ('"h:99999"', "no HOST:PORT"),
        ('"h:0"', "no HOST:PORT"),
        ('"::1"', "cluster.address=HOST:6379"),
        ('"é:6379"', "cluster.address=HOST:6379"),
        ("local", "Type cluster=local"),
    ],
)
def test_an_address_that_cannot_be_gets_one_that_can(
    address: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert words in refused([*FIXED, f"cluster.address={address}"], capsys)


def test_an_address_is_idle_in_this_process(capsys: pytest.CaptureFixture[str]) -> None:
    assert "is idle under cluster=inline" in refused([*FIXED, "cluster=inline", "cluster.address=auto"], capsys)


ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0"}
"""A locale in which Python would take all text for ASCII."""


def test_text_beyond_ascii_is_read_in_any_locale(tmp_path: Path) -> None:
    """As ASCII, a folder's name could stand in no record, and an answer separator would match no answer."""
    line = f"P {' '.join([*FIXED, *PLAN])} output_dir='\"é\"'"
    assert f"{tmp_path}/é/custom" in "".join(shell(line, tmp_path, **ASCII).stdout.split("\n"))
    assert "Did you mean" not in shell("P é", tmp_path, **ASCII).stderr


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    line = f"P {' '.join([*FIXED, *PLAN])} $'output_dir=\"\\xff\"'"
    for environment in ({}, ASCII):
        done = shell(line, tmp_path, **environment)
        assert done.returncode == 2 and "Traceback" not in done.stderr and "Type it in UTF-8" in done.stderr


def test_where_python_cannot_start_again_the_message_says_what_to_type(tmp_path: Path) -> None:
    line = f"{sys.executable} -X utf8=0 -m banpick_exp {' '.join([*FIXED, *PLAN])} output_dir='\"é\"'"
    done = shell(line, tmp_path, **ASCII)
    assert done.returncode == 2 and "Traceback" not in done.stderr and "PYTHONUTF8=1" in done.stderr
