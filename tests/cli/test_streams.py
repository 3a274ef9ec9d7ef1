"""Streams that the shell closed or that are full, and words that no message repeats whole."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from banpick_exp.cli.main import run

ROOT = Path(__file__).resolve().parents[2]
PLAN = "policy=fixed_k policy.k=4 tracking=none dry_run=true"


def shell(line: str, tmp_path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """`line` in a shell, with P for this program."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    return subprocess.run(
        ["bash", "-c", line.replace("P ", f"{sys.executable} -m banpick_exp ", 1)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": path} | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_closed_stream_costs_no_run(tmp_path: Path, closed: str) -> None:
    done = shell(f"P {PLAN} {closed}", tmp_path)
    assert done.returncode == 0 and "Traceback" not in done.stderr
    assert ("fixed_k k=4" in done.stdout) == (">&-" not in closed.replace("2>&-", ""))


def test_a_file_opened_later_does_not_become_a_closed_stream(tmp_path: Path) -> None:
    """Number 1 would be the next file opened: what is printed would be written into it."""
    code = (
        "import os; from banpick_exp.cli.console import open_closed_streams; open_closed_streams();"
        "f = open('data', 'w'); assert f.fileno() > 2; print('printed')"
    )
    done = shell(f'{sys.executable} -c "{code}" >&-', tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "data").read_text() == ""


def test_a_full_disk_under_the_output_is_a_sentence(tmp_path: Path) -> None:
    done = shell(f"P {PLAN} > /dev/full", tmp_path)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr and "no space is left" in done.stderr


@pytest.mark.parametrize("line", ["policy.k=33", "policy.k=4 > /dev/full"])
def test_a_message_that_nobody_reads_leaves_the_exit_code(tmp_path: Path, line: str) -> None:
    done = shell(f"P policy=fixed_k tracking=none dry_run=true {line} 2> /dev/full", tmp_path)
    assert done.returncode == (1 if ">" in line else 2)


def test_a_value_of_five_thousand_digits_is_not_repeated_whole(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["policy=fixed_k", f"policy.k={'9' * 5000}", "dry_run=true"]) == 2
    said = capsys.readouterr().err
    assert len(said) < 1500 and "characters)" in said


def test_bytes_that_are_no_text_in_a_path(tmp_path: Path) -> None:
    """What LC_ALL=C makes of a folder's name: the plan is printed, or the name is refused, in words."""
    done = shell(f"P {PLAN} output_dir=$'\\xffx'", tmp_path, LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    assert done.returncode in (0, 2) and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (["policy=fixed_k", "policy.k=4", 'sweep.params=["policy.k=choice(5,6)"]'], "both set policy.k"),
        (["policy=fixed_k", 'sweep.params=["policy.k=5","policy.k=6"]'], "both set policy.k"),
        (["task.max_problems=5", 'sweep.params=["policy=none","task.max_problems=6"]'], "both set task.max_problems"),
        (["policy=pick", 'sweep.params=["policy=ban"]'], "both set policy"),
    ],
)
def test_what_is_typed_twice_is_refused(typed: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*typed, "dry_run=true", "tracking=none"]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("ray://10.0.0.1:10001", "cluster.address=10.0.0.1:6379"),
        ("http://head:8265", "cluster.address=head:6379"),
        ("foo", "is no HOST:PORT"),
        ("head:port", "is no HOST:PORT"),
        ("''", "is no HOST:PORT"),
    ],
)
def test_an_address_of_another_form_is_refused_while_planning(
    address: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*PLAN.split(), f'cluster.address="{address}"' if ":" in address else f"cluster.address={address}"]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("address", ["auto", "10.0.0.1:6379", "head-0.svc.local:6379", "[::1]:6379"])
def test_what_ray_takes_is_taken(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*PLAN.split(), f'cluster.address="{address}"']) == 0, capsys.readouterr().err


def test_a_federated_identity_counts_as_a_key(tmp_path: Path) -> None:
    from banpick_exp.errors import UserError
    from banpick_exp.report.tracking.config import TrackingConfig
    from banpick_exp.report.tracking.key import check_tracking

    online = TrackingConfig(name="wandb", mode="online")
    token = tmp_path / "token"
    environment = {"HOME": str(tmp_path), "WANDB_IDENTITY_TOKEN_FILE": str(token)}
    with pytest.raises(UserError, match=r"is no file.*Type unset WANDB_IDENTITY_TOKEN_FILE"):
        check_tracking(online, environment)
    token.write_text("a token")
    check_tracking(online, environment)
    with pytest.raises(UserError, match="are both set") as caught:
        check_tracking(online, environment | {"WANDB_API_KEY": "secret"})
    assert "secret" not in str(caught.value)
