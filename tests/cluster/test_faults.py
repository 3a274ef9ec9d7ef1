"""What is said of an error: the line that helps, from the root cause, and never a footer."""

from __future__ import annotations

import doctest
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel, model_validator

from banpick_exp.cluster import faults
from banpick_exp.cluster.backends import joining, own_ray
from banpick_exp.cluster.backends.inline import InlineCall
from banpick_exp.cluster.faults import reason_of
from banpick_exp.errors import UserError


class Checked(BaseModel):
    size: int

    @model_validator(mode="after")
    def _small(self) -> Checked:
        if self.size > 256:
            raise ValueError(
                f"User-specified max_model_len ({self.size}) is greater than the derived 256.\nShorten it."
            )
        return self


def chained() -> BaseException:
    try:
        try:
            raise ValueError("the disk is full")
        except ValueError as error:
            raise RuntimeError("Engine core initialization failed.") from error
    except RuntimeError as error:
        return error


def pydantic_error() -> BaseException:
    with pytest.raises(ValueError) as caught:
        Checked(size=512)
    return caught.value


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (pydantic_error(), "Shorten it."),
        (chained(), "the disk is full"),
        (ValueError(), "ValueError()"),
        (RuntimeError("first\nlast\n\nSet the environment variable X=1 for more"), "last"),
    ],
)
def test_the_reason_is_the_line_that_helps(error: BaseException, words: str) -> None:
    found = reason_of(error)
    assert found == words and "further information" not in found and "\n" not in found


def test_vllms_commonest_mistake_names_the_lengths() -> None:
    """E1: all that was said was an address of pydantic's."""
    text = (
        "1 validation error for ModelConfig\n  Value error, User-specified max_model_len (512) is greater than the"
        " derived max_model_len (256) [type=value_error, input_value=ArgsKwargs((), {}), input_type=ArgsKwargs]\n"
        "    For further information visit https://errors.pydantic.dev/2.13/v/value_error"
    )
    assert reason_of(ValueError(text)).endswith("greater than the derived max_model_len (256)")


def test_what_ray_says_when_memory_ran_out_is_one_line_with_a_remedy() -> None:
    """It says two thousand characters, and ends with how to switch its monitor off."""
    text = (
        "1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 10.1.2.3, ID: 64010595)"
        " was 5.81GB used / 23.54GB limit (0.246798)\nOOM kill reason: Memory usage 6234398720B exceeded threshold of"
        " 2527651B (0.0% of 25276510208B limit)\nObject store memory usage: [- objects spillable: 0\n]\nTop 10 memory"
        " users: PID\tMEM(GB)\tCOMMAND\n17650\t1.02\tpython train.py\nRefer to the documentation on how to address it."
    )
    found = reason_of(RuntimeError(text))
    assert "node 10.1.2.3 ran out of memory (5.81GB used / 23.54GB limit)" in found and "cluster.engines=1" in found
    assert "train.py" not in found and "\n" not in found
    died = "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail:"
    died = (
        f"{died} Worker unexpectedly exits with a connection error code 2. End of file. Some common causes include ..."
    )
    assert reason_of(RuntimeError(died)).startswith("its process ended without a word")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("MemoryError", "MemoryError: MemoryError()"),
        ("OutOfMemoryError", "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."),
        ("RuntimeError", "RuntimeError: [enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
        ("RuntimeError", "RuntimeError: could not create a primitive"),
        ("OSError", "OSError: [Errno 12] Cannot allocate memory"),
        ("EngineDeadError", "EngineDeadError: EngineCore encountered an issue."),
    ],
)  # fmt: skip
def test_an_engine_whose_allocation_failed_is_lost(name: str, said: str) -> None:
    reason = faults.lost_with(name, said)
    assert reason is not None and said in reason
    assert name == "EngineDeadError" or "cluster.engines=1" in reason
    assert faults.lost_with("ValueError", "ValueError: max_tokens is out of range") is None


def test_the_worked_example() -> None:
    assert doctest.testmod(faults).failed == 0


def test_a_failed_call_keeps_its_whole_trace() -> None:
    call = InlineCall(lambda: 1 // 0)
    call.run()
    with pytest.raises(Exception, match="ZeroDivisionError: integer division") as caught:
        call.result()
    assert "Traceback (most recent call last)" in caught.value.trace  # type: ignore[attr-defined]


# ---------------------------------------------------------------- reaching a cluster


@pytest.fixture
def listening() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def closed() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def test_a_cluster_that_answers_is_reachable(listening: int) -> None:
    joining.check_reachable(f"127.0.0.1:{listening}", None)
    joining.check_reachable("auto", None)
    joining.check_reachable("auto", f"127.0.0.1:{listening}")


@pytest.mark.parametrize(
    ("address", "environment"),
    [
        ("foo", None), ("ray://127.0.0.1:10001", None), ("127.0.0.1", None), ("host:port", None), ("h:99999", None),
        ("auto", "http://127.0.0.1:8265"), ("auto", "ray://head:10001"), ("", None),
    ],
)  # fmt: skip
def test_an_odd_address_is_refused_in_one_line(address: str, environment: str | None) -> None:
    with pytest.raises(UserError, match="no address of a cluster") as caught:
        joining.check_reachable(address, environment)
    assert "\n" not in str(caught.value) and (environment or address) in str(caught.value)


def test_a_port_where_nothing_listens_is_refused_at_once(closed: int) -> None:
    with pytest.raises(UserError, match=re.escape(f"cluster.address=127.0.0.1:{closed} does not answer")):
        joining.check_reachable(f"127.0.0.1:{closed}", None)


def test_a_temp_folder_too_long_for_sockets_gives_way(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.delenv("TMPDIR", raising=False)
    monkeypatch.setattr(own_ray.tempfile, "gettempdir", lambda: "/tmp")
    assert own_ray.short_temp_dir() is None
    long = "/tmp/" + "x" * 100
    monkeypatch.setattr(own_ray.tempfile, "gettempdir", lambda: long)
    shorter = [own_ray.short_temp_dir()]
    monkeypatch.undo()
    (tmp_path / ("x" * 100)).mkdir()
    for there_or_not in (tmp_path / ("x" * 100), "/tmp/" + "é" * (own_ray.LONGEST_TEMP_DIR // 2)):
        for name in ("TMPDIR", "RAY_TMPDIR"):
            with monkeypatch.context() as patch:
                patch.setenv(name, str(there_or_not))
                shorter.append(own_ray.short_temp_dir())
    for short in shorter:
        assert short is not None and len(short) < own_ray.LONGEST_TEMP_DIR and Path(short).is_dir()
        Path(short).rmdir()
    assert len(set(shorter)) == 5
