"""What of a run stands on a cluster after its driver: found by name, taken over, or cleared away. Without an engine."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray
from ray import cloudpickle

from banpick_exp.cluster.backends import lasting
from banpick_exp.cluster.backends import ray as placement
from banpick_exp.cluster.backends.keeper import keep
from banpick_exp.cluster.backends.lasting import RunsEngines, living_engines, places, run_digest
from banpick_exp.cluster.backends.slots import Lasting, RaySlot
from banpick_exp.cluster.presence import Presence
from banpick_exp.run_folder import RunFolder
from banpick_exp.run_lock import held

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
TIMEOUT_SECONDS = 120


class Witness:
    """Stands in for an engine."""

    def pid(self) -> int:
        return os.getpid()


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test module
    with placement.own_ray.on_loopback():
        ray.init(
            address="local", num_cpus=8, num_gpus=8, namespace=placement.NAMESPACE, include_dashboard=False,
            log_to_driver=False, logging_level="ERROR", _node_ip_address="127.0.0.1",
        )  # fmt: skip
    yield
    ray.shutdown()
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


def awaited(what: Callable[[], bool]) -> bool:
    end = time.monotonic() + TIMEOUT_SECONDS
    while not (found := what()) and time.monotonic() < end:
        time.sleep(0.1)
    return found


def engines(run: str, names: list[str]) -> list[RaySlot]:
    """As a driver makes them that then dies without a word."""
    found = RunsEngines(run)
    made = [RaySlot(name, [{"CPU": 1, "GPU": 1}], "STRICT_PACK", Lasting(found, 300)) for name in names]
    for slot in made:
        slot.ask_for_place()
        slot.occupy(Witness)
        ray.get(slot.actor.pid.remote(), timeout=TIMEOUT_SECONDS)
    return made


def standing(run: str) -> list[str]:
    return sorted(place for place, gone in places(run).items() if not gone)


def test_the_next_driver_takes_over_what_lives_and_clears_the_rest(
    cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_digest("/one/run")
    alive, dead, unwanted, of_another = engines(
        run, ["engine-a-x.y-0", "engine-a-x.y-1", "engine-a-x.y-2", "engine-b-0"]
    )
    other_run = engines(run_digest("/another/run"), ["engine-a-x.y-0"])
    pid = ray.get(alive.actor.pid.remote())
    ray.kill(dead.actor)
    assert awaited(lambda: len(living_engines(run)) == 3)

    found = RunsEngines(run)
    found.find()
    assert sorted(found.living) == ["engine-a-x.y-0", "engine-a-x.y-2", "engine-b-0"]
    assert awaited(lambda: dead.place not in standing(run)), "a group whose engine is dead is removed"
    (slot, anew) = (
        RaySlot(name, [{"CPU": 1, "GPU": 1}], "STRICT_PACK", Lasting(found, 300)) for name in (alive.name, dead.name)
    )
    assert slot.take_over() and slot.placed() and not slot.occupied
    assert ray.get(slot.left_by_another.pid.remote()) == pid
    assert not anew.take_over()
    anew.ask_for_place()
    assert anew.place != dead.place
    found.end_others([alive.name, dead.name])
    assert awaited(lambda: unwanted.place not in standing(run)), "of this kind fewer are wanted now"
    assert of_another.place in standing(run), "another kind may still be asked for"
    anew.release()
    assert slot.leave() and not anew.leave()

    monkeypatch.setattr(lasting, "code_digest", lambda: "other")
    changed = RunsEngines(run)
    changed.find()
    assert not changed.living, "an engine of other code would answer otherwise"
    assert awaited(lambda: standing(run) == [] and living_engines(run) == [])
    assert standing(run_digest("/another/run")) == [other_run[0].place], "a run of the same name is not ours"
    other_run[0].release()


def test_an_engine_that_waits_for_room_sends_away_what_nobody_took_over(cluster: None) -> None:
    run = run_digest("/third/run")
    (old,) = engines(run, ["engine-a-x-0"])
    found = RunsEngines(run)
    found.find()
    whole = RaySlot("engine-b-x-0", [{"CPU": 1, "GPU": 8}], "STRICT_PACK", Lasting(found, 300))
    whole.ask_for_place()
    assert awaited(whole.placed)
    assert standing(run) == [whole.place] and old.place != whole.place
    waiting = RaySlot("engine-c-x-0", [{"CPU": 1, "GPU": 1}], "STRICT_PACK", Lasting(found, 300))
    waiting.ask_for_place()
    waiting.occupy(Witness)
    assert not waiting.leave(), "nobody is to find an engine that was never there"
    assert awaited(lambda: standing(run) == [whole.place])
    whole.release()


def test_the_keeper_gives_back_what_has_no_engine_and_goes(cluster: None, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "sweep" / "run")
    run = run_digest(str(folder.path))
    dead, waiting = RunsEngines(run), 100
    with held(folder):
        (slot,) = engines(run, ["engine-a-run-0"])
        never = RaySlot("engine-b-run-0", [{"CPU": 1, "GPU": waiting}], "STRICT_PACK", Lasting(dead, 300))
        never.ask_for_place()
        keep(str(folder.path), run, 1.0)
        ray.kill(slot.actor)
        time.sleep(6)
        assert standing(run) == sorted([slot.place, never.place]), "its driver is there and will want them"
    assert awaited(lambda: standing(run) == [])
    assert awaited(lambda: f"keeper.{run}" not in ray.util.list_named_actors())


def test_a_driver_is_missed_once_it_gives_no_sign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder(tmp_path / "sweep" / "run")
    presence = Presence(folder)
    with held(folder):
        time.sleep(0.2)
        assert presence.absent_seconds() == 0
        # The same lock as another machine sees it: its signs are all that is known.
        monkeypatch.setattr("banpick_exp.run_lock.socket.gethostname", lambda: "elsewhere")
        afar = Presence(folder)
        time.sleep(0.2)
        assert afar.absent_seconds() == 0, "no sign for less than STALE_SECONDS says nothing"
        monkeypatch.setattr("banpick_exp.cluster.presence.STALE_SECONDS", 0.1)
        assert afar.absent_seconds() > 0.1
        os.utime(folder.lock, (1, 1))
        assert afar.absent_seconds() == 0, "whatever its clock says, it changed"
        monkeypatch.undo()
    time.sleep(0.2)
    assert presence.absent_seconds() > 0.1


def test_the_code_of_an_engine_is_its_sources_and_versions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert lasting.code_digest() == lasting.code_digest()
    before = lasting.code_digest()
    monkeypatch.setattr(lasting, "versions", lambda: {"vllm": "other"})
    assert lasting.code_digest() != before
    monkeypatch.undo()
    (tmp_path / "one.py").write_text("1")
    monkeypatch.setattr(lasting.banpick_kernels, "__path__", [str(tmp_path)])
    first = lasting.code_digest()
    (tmp_path / "one.py").write_text("2")
    assert lasting.code_digest() != first != before
