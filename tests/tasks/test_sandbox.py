"""What a program may try in a sandbox, really tried: it ends as a failed one, in time, and nothing is left behind.

`test_sandbox_as_others` runs this file again as another user, and as root where Python lies open to all.
"""

from __future__ import annotations

import json
import os
import platform
import re
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from banpick_exp.tasks.sandbox import landlock, seccomp
from banpick_exp.tasks.sandbox.available import available
from banpick_exp.tasks.sandbox.bubblewrap import Bubblewrap
from banpick_exp.tasks.sandbox.interpreter import ENVIRONMENT
from banpick_exp.tasks.sandbox.landlocked import Landlocked
from banpick_exp.tasks.sandbox.limits import Limits
from banpick_exp.tasks.sandbox.outcome import Outcome
from banpick_exp.tasks.sandbox.sandbox import Sandbox, SandboxFailed
from banpick_exp.tasks.sandbox.self_test import fault

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="the sandboxes are Linux's"),
]

SHORT, LONG = Limits(seconds=1.0), Limits(seconds=20.0)
PATIENCE = 300.0
"""Seconds for what takes one on an idle machine."""


MARK = "SANDBOX_OF"
"""A word in the environment of all that a test starts: other sandboxes may run on this machine."""


@pytest.fixture(params=[Bubblewrap(), Landlocked()], ids=["bubblewrap", "landlock"])
def sandbox(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    found: Sandbox = request.param
    if (reason := found.missing()) is not None:
        pytest.skip(f"{found.name}: {reason}")
    monkeypatch.setitem(ENVIRONMENT, MARK, secrets.token_hex(8))
    yield found
    assert waited_for(lambda: not own_processes()), f"{own_processes()} are left behind"


def own_processes() -> dict[str, str]:
    """Those of the sandboxes that this test has started, with bubblewrap's own: number and program."""
    mark = f"{MARK}={ENVIRONMENT[MARK]}".encode()
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (folder / "environ").read_bytes():
                found[folder.name] = (folder / "cmdline").read_text().split("\0")[0]
        except OSError:
            continue  # somebody else's, or it has ended
    return found


def script(sandbox: Sandbox, code: str, limits: Limits = LONG, stdin: bytes = b"") -> Outcome:
    return sandbox.run({"kind": "script", "code": code}, stdin=stdin, limits=limits)


def test_it_holds_here(sandbox: Sandbox) -> None:
    assert fault(sandbox) is None
    assert isinstance(available(), Sandbox)


def test_a_program_reads_and_prints(sandbox: Sandbox) -> None:
    outcome = script(
        sandbox, "import sys\nprint(input()[::-1], file=sys.stdout)\nprint('aside', file=sys.stderr)", stdin=b"abc\n"
    )
    assert (outcome.status, outcome.stdout, outcome.tail) == ("passed", b"cba\n", "aside\n")
    assert json.loads(outcome.results[-1])["cpu_seconds"] < 1


@pytest.mark.parametrize(
    ("code", "stdout"),
    [
        ("import threading as t\nt.stack_size(2**26)\nt.Thread(target=print, args=(1,)).start()", b"1\n"),
        ("import atexit, os\natexit.register(os.write, 1, b'at the end')", b"at the end"),
        ("import sys\nprint(2)\nsys.exit(0)", b"2\n"),
        ("import numpy\nprint(numpy.arange(3).sum())", b"3\n"),
        ("import sys\nsys.setrecursionlimit(10**5)\nf = lambda n: n and 1 + f(n - 1)\nprint(f(20000))", b"20000\n"),
        ("if __name__ == '__main__':\n    print('main')", b"main\n"),
        ("print(sorted({'b', 'a'}), hash('x') == hash('x'))", b"['a', 'b'] True\n"),
    ],
)  # fmt: skip
def test_what_programs_do(code: str, stdout: bytes, sandbox: Sandbox) -> None:
    outcome = script(sandbox, code)
    assert (outcome.status, outcome.stdout) == ("passed", stdout), outcome.tail


def test_sets_are_in_the_same_order_every_time(sandbox: Sandbox) -> None:
    assert len({script(sandbox, "print({str(n) for n in range(9)})").stdout for _ in range(3)}) == 1


ENDS = {
    # what is tried: (program, how it ends)
    "fork bomb": ("import os\nwhile True: os.fork()", {"failed"}),
    "fork bomb that goes on": (
        "import os\nwhile True:\n  try: os.fork()\n  except OSError: pass",
        {"timeout"},
    ),
    "fork bomb of threads": (
        "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(99,)).start()",
        {"failed"},
    ),
    "other ways to fork": (
        "import ctypes\nlib = ctypes.CDLL(None)\n"
        "assert lib.syscall(435, None, 0) == -1 and lib.vfork() == -1 and lib.syscall(56, 0, 0, 0, 0, 0) == -1\n"
        "import subprocess\nsubprocess.run(['/bin/true'])",
        {"failed"},
    ),
    "endless loop": ("while True: pass", {"timeout"}),
    "endless loop that hears no signal": (
        "import signal\nfor s in range(1, 65):\n  try: signal.signal(s, signal.SIG_IGN)\n  except Exception: pass\n"
        "while True: pass",
        {"killed"},
    ),
    "sleep": ("import time\ntime.sleep(10**6)", {"timeout"}),
    "a stopped child": ("import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)", {"timeout"}),
    "10 GB of memory": ("x = bytearray(10 * 2**30)", {"memory"}),
    "10 GB in pieces": ("x = []\nwhile True: x.append(bytearray(2**24))", {"memory"}),
    "10 GB of files": (
        "import tempfile\nfor n in range(999):\n  f = open(f'/tmp/{n}', 'wb')\n  f.write(bytes(2**24))\n  f.flush()",
        {"failed", "killed"},
    ),
    "10 GB of output": ("import os\nwhile True: os.write(1, bytes(2**16))", {"output"}),
    "10 GB of errors": ("import os\nwhile True: os.write(2, bytes(2**16))", {"output"}),
    "10 GB of results": ("import os\nfor n in range(3, 1024):\n  try:\n    while True: os.write(n, bytes(2**16))\n"
                         "  except OSError: pass", {"output"}),
    "a socket": ("import socket\nsocket.create_connection(('127.0.0.1', 22))", {"failed"}),
    "a raw call for a socket": ("import ctypes\nassert ctypes.CDLL(None).socket(2, 1, 0) >= 0", {"failed"}),
    "killing the parent": ("import os\nos.kill(os.getppid(), 9)", {"failed"}),
    "killing all": ("import os\nos.kill(-1, 9)", {"failed"}),
    "killing its group": ("import os\nos.killpg(0, 9)", {"failed"}),
    "a signal by way of a file": ("import fcntl\nfcntl.fcntl(0, fcntl.F_SETOWN, 1)", {"failed"}),
    "tracing": ("import ctypes\nassert ctypes.CDLL(None).ptrace(16, 1, 0, 0) == 0", {"failed"}),
    "shared memory that stays": ("import ctypes\nassert ctypes.CDLL(None).shmget(0, 4096, 0o1666) >= 0", {"failed"}),
    "a message queue": ("import ctypes\nassert ctypes.CDLL(None).msgget(0, 0o1666) >= 0", {"failed"}),
    "becoming root": ("import os\nos.setuid(0)\nopen('/etc/shadow')", {"failed"}),
    "namespaces": ("import ctypes\nassert ctypes.CDLL(None).unshare(0x10000000) == 0", {"failed"}),
    "a crash": ("import ctypes\nctypes.string_at(0)", {"killed"}),
    "closing all it has": ("import os, time\nos.closerange(0, 1024)\ntime.sleep(10**6)", {"timeout"}),
    "leaving early": ("import os\nos._exit(7)", {"failed"}),
}  # fmt: skip


@pytest.mark.parametrize("what", ENDS)
def test_it_ends(what: str, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    code, statuses = ENDS[what]
    waits = what in ("sleep", "a stopped child", "closing all it has")  # others end at a limit of their own
    monkeypatch.setattr("banpick_exp.tasks.sandbox.limits.WALL_FACTOR", 1)
    monkeypatch.setattr("banpick_exp.tasks.sandbox.limits.WALL_SECONDS", 1 if waits else PATIENCE)
    loops = "loop" in what or "goes on" in what
    begun = time.monotonic()
    outcome = script(sandbox, code, SHORT if waits or loops else LONG)
    assert outcome.status in statuses, outcome
    assert time.monotonic() - begun < PATIENCE, "in time, however busy the machine is"


def test_files_outside_are_neither_read_nor_changed(sandbox: Sandbox, tmp_path: Path) -> None:
    """Although their modes would let it: a run's folder, and this project."""
    run = tmp_path / "run"
    run.mkdir()
    secret = run / "run.json"
    secret.write_text("secret")
    for each in (secret, run, *run.parents):
        if each.stat().st_uid == os.geteuid() and each != Path("/") and str(each).startswith(str(tmp_path.parent)):
            each.chmod(0o777)
    tries = [
        f"open({str(secret)!r}).read()", f"os.unlink({str(secret)!r})", f"os.listdir({str(run)!r})",
        f"shutil.rmtree({str(run)!r})", f"open({str(secret)!r}, 'w')", f"os.truncate({str(secret)!r}, 0)",
        f"os.chmod({str(secret)!r}, 0)", f"os.utime({str(secret)!r}, (0, 0))", f"os.rename({str(run)!r}, '/tmp/x')",
        f"os.symlink('/tmp', {str(run / 'link')!r})", f"os.link({str(secret)!r}, '/tmp/hard')",
        f"os.setxattr({str(secret)!r}, 'user.x', b'1')", f"os.mkfifo({str(run / 'fifo')!r})",
        f"open({str(Path(__file__).resolve())!r}).read()", "open('/etc/passwd').read()", "os.listdir('/home')",
        "open('/proc/1/environ').read()", "open('/proc/self/maps').read()", "open('/new', 'w')",
        "open('/usr/lib/new', 'w')", "open('/etc/hostname').read()", "open('/dev/mem')", "os.mkdir('/lib/new')",
    ]  # fmt: skip
    code = f"import os, shutil\nfor each in {tries!r}:\n  try: eval(each)\n  except OSError: continue\n  print(each)"
    before = state(secret)
    outcome = script(sandbox, code)
    assert (outcome.status, outcome.stdout.decode()) == ("passed", "")
    assert state(secret) == before and secret.read_text() == "secret"
    assert [path.name for path in run.iterdir()] == ["run.json"]


def state(path: Path) -> tuple[int, ...]:
    """What a change leaves a mark on; not when it was last read, which the test does too."""
    found = path.stat()
    return (*found[:7], found.st_mtime_ns, found.st_ctime_ns)


def test_the_environment_is_not_there(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    outcome = script(sandbox, "import os\nprint(os.environ)")
    assert b"secret" not in outcome.stdout and b"WANDB" not in outcome.stdout and b"PYTHONHASHSEED" in outcome.stdout


def test_descriptors_of_who_asks_are_not_there(sandbox: Sandbox, tmp_path: Path) -> None:
    with open(tmp_path / "open", "w") as file:
        os.set_inheritable(file.fileno(), True)
        code = "import os\nfor n in range(1024):\n  try: print(os.fstat(n).st_ino)\n  except OSError: pass"
        seen = script(sandbox, code).stdout.decode().split()
        assert str(os.fstat(file.fileno()).st_ino) not in seen and len(seen) == 4, "0, 1, 2 and the results"


def test_what_is_written_in_tmp_is_gone(tmp_path: Path) -> None:
    sandbox = Bubblewrap()
    if (reason := sandbox.missing()) is not None:
        pytest.skip(reason)
    name = f"left-{os.getpid()}"
    code = f"import os\nprint(os.path.exists('{name}'))\nopen('/tmp/{name}', 'w').write('x')\nprint(os.listdir('/tmp'))"
    for _ in range(2):
        assert script(sandbox, code).stdout.decode() == f"False\n['{name}']\n"
    assert not Path(f"/tmp/{name}").exists()


def test_who_asks_dies_and_the_program_with_it(sandbox: Sandbox) -> None:
    code = (
        f"from {type(sandbox).__module__} import {type(sandbox).__name__} as Box\n"
        "from banpick_exp.tasks.sandbox.interpreter import ENVIRONMENT\n"
        f"ENVIRONMENT[{MARK!r}] = {ENVIRONMENT[MARK]!r}\n"
        "from banpick_exp.tasks.sandbox.limits import Limits\n"
        "Box().run({'kind': 'script', 'code': 'import time; time.sleep(999)'}, limits=Limits(seconds=300))"
    )
    asking = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[2])
    try:
        assert waited_for(lambda: any("python" in program for program in own_processes().values())), "it runs"
    finally:
        asking.kill()
        asking.wait()
    assert waited_for(lambda: not own_processes())


def waited_for(condition: Callable[[], bool]) -> bool:
    until = time.monotonic() + PATIENCE
    while not condition() and time.monotonic() < until:
        time.sleep(0.05)
    return condition()


def test_a_sandbox_that_does_not_come_up_is_no_failed_program(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(sandbox), "command", lambda self, limits: ["/bin/false"])
    with pytest.raises(SandboxFailed, match=f"{sandbox.name} did not come up"):
        script(sandbox, "print(1)")
    assert "did not come up" in str(fault(sandbox))
    monkeypatch.setattr(type(sandbox), "command", lambda self, limits: ["/no/such/program"])
    with pytest.raises(SandboxFailed, match="did not start"):
        script(sandbox, "print(1)")


def test_one_that_does_not_hold_is_refused(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """The self-test finds it: without a wall and without a filter, each alone."""
    real = type(sandbox).given_up
    if isinstance(sandbox, Landlocked):
        none = {"readable": ["/"], "listable": [], "writable": ["/"]}
        monkeypatch.setattr(Landlocked, "given_up", lambda self: real(self) | {"landlock": none})
        expected = "reading a file outside"
    else:
        command = Bubblewrap.command
        monkeypatch.setattr(Bubblewrap, "command", lambda self, limits: with_all_files(command(self, limits)))
        expected = "deleting it.*reading a file outside"
    assert re.search(rf"does not hold here: .*{expected}", str(fault(sandbox)))


def with_all_files(command: list[str]) -> list[str]:
    """bwrap's words, with the machine's files for temporary ones bound over its own."""
    at = command.index("--remount-ro")
    folder = tempfile.gettempdir()
    return [*command[:at], "--bind", folder, folder, *command[at:]]


# ---------------------------------------------------------------- the filter


HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}


@pytest.mark.parametrize("machine", HEADERS)
def test_numbers_are_those_of_the_kernels_headers(machine: str) -> None:
    if not HEADERS[machine].is_file():
        pytest.skip(f"no {HEADERS[machine]}")
    text = HEADERS[machine].read_text()
    known = {name: int(number) for name, number in re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", text)}
    place = list(seccomp.AUDIT_ARCH).index(machine)
    told = seccomp.DENIED | seccomp.NO_FILES | seccomp.OF_ITSELF | seccomp.OF_ITSELF_OR_0 | {"clone": seccomp.CLONE}
    told |= {name: numbers for name, (numbers, _) in seccomp.COMMANDS.items()}
    for name, numbers in told.items():
        if numbers[place] is not None:
            assert known.get(name, numbers[place]) == numbers[place], name
    checked = [name for name in told if name in known]
    assert len(checked) > 80
    assert all(known.get(name, number) == number for name, number in seccomp.LATER_ALLOWED.items())
    made = seccomp.program(machine, 7, files=False)
    assert len(made) < 4096 and all(0 <= jump < 256 for _, *jumps, _ in made for jump in jumps)


def test_this_machine_is_one_of_them() -> None:
    assert platform.machine() in seccomp.AUDIT_ARCH
    assert landlock.version() >= 0
