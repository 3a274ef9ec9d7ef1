"""W&B: read the offline runs back from disk, and break the tracker to see that the sweep does not notice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import wandb
from synthetic_run import SyntheticRun, changed, ladder, three_times
from wandb_runs import read_back

from banpick_exp.analysis.flips import flips
from banpick_exp.errors import UserError
from banpick_exp.report.files import write_report, write_tables
from banpick_exp.report.run import read_run
from banpick_exp.report.tracking.config import TrackingConfig
from banpick_exp.report.tracking.environment import KEPT, of_no_run
from banpick_exp.report.tracking.found import MOST_FLIPS, FoundOut
from banpick_exp.report.tracking.logged import point_metrics, without_secrets
from banpick_exp.report.tracking.wandb import Tracker
from banpick_exp.run_folder import RunFolder

pytestmark = pytest.mark.slow

WANDB = TrackingConfig()
CONFIG = {"sweep": {"name": "pick_strength"}, "tracking": {"api_key": "do-not-log", "project": "banpick"}}


@pytest.fixture(scope="module")
def mirrored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SyntheticRun, dict[str, dict[str, Any]]]:
    run_dir = tmp_path_factory.mktemp("outputs") / "pick_strength" / "first"
    run = ladder(SyntheticRun(problems=40), ks=(4,))
    run.add("pick", {"boost": 8}, status="failed", reason="out of memory")
    run.add("pick", {"boost": 0.5}, kept=4.0, churn=0.3)
    run.add("pick", {"boost": 1.0}, kept=4.0, shift={"math": 0.2})
    found = read_run(RunFolder(run.write(run_dir)))
    write_tables(found)
    write_report(found)
    (run_dir / "calibration" / "plots").mkdir(parents=True)
    (run_dir / "calibration" / "artifact.json").write_text("{}")
    (run_dir / "calibration" / "plots" / "heat.txt").write_text("x")
    tracker = Tracker(WANDB)
    tracker.start(found.folder, CONFIG)
    for record in run.records:
        tracker.log_point(record)  # offline it waits for its verdict
    artifacts = [("calibration", "calibration-ab12", run_dir / "calibration")]
    assert tracker.finish({"headline": "No gain", "done": 2}, artifacts, FoundOut(found)) == []
    runs = read_back(run_dir)
    resumed = Tracker(WANDB)
    resumed.start(found.folder, CONFIG)
    # One that failed before ran again; the others are mirrored already.
    again = changed(run.records[2], finished_at="2026-11-23T00:00:00+00:00")
    records = [again if record.fingerprint == again.fingerprint else record for record in found.records]
    assert resumed.finish({}, found=FoundOut(replace(found, records=records))) == []
    return run_dir, run, runs


def test_one_run_a_point_in_the_group_of_the_sweep(mirrored: Any) -> None:
    run_dir, run, runs = mirrored
    assert sorted(runs) == ["fixed_k k=4", "none", "pick boost=0.5", "pick boost=1.0", "pick boost=8", "summary"]
    assert len(list((run_dir / "wandb").glob("offline-run-*"))) == len(run.points) + 3  # two summaries, one retry
    points = [runs[record.label] for record in run.records]
    assert {point["header"]["run_group"] for point in points} == {"pick_strength/first"}
    assert {point["header"]["job_type"] for point in points} == {"point"}


def test_a_point_reads_back(mirrored: Any) -> None:
    _, run, runs = mirrored
    record = run.records[1]
    logged, overall = runs[record.label], record.measured.overall
    summary = logged["summary"]
    for key, value in point_metrics(record).items():
        assert summary[key] == pytest.approx(value)
    assert summary["acc/overall"] == overall.accuracy
    assert summary["acc/math"] == record.measured.of("math").accuracy
    assert summary["perf/speedup"] == overall.speedup
    assert summary["route/mean_kept"] == overall.mean_kept == 4
    keys = {key.split("/")[0] for key in summary if "/" in key}
    assert keys == {"acc", "perf", "route"}
    assert logged["config"]["policy"] == {"name": "fixed_k", "k": 4}
    assert logged["config"]["fingerprint"] == record.fingerprint
    assert sorted(logged["header"]["tags"]) == ["done", "fixed_k"] and logged["exit_code"] == 0


def test_a_failed_point_is_marked(mirrored: Any) -> None:
    failed = mirrored[2]["pick boost=8"]
    assert failed["exit_code"] == 1 and failed["summary"]["reason"] == "out of memory"
    assert failed["summary"]["status"] == "failed" and failed["summary"]["verdict"] == "unmatched"
    assert failed["summary"]["guards"] == "engaged (invalid, overall)"
    assert "acc/overall" not in failed["summary"] and "failed" in failed["header"]["tags"]


def test_summary_has_table_plot_and_artifacts(mirrored: Any) -> None:
    run_dir, _, runs = mirrored
    summary = runs["summary"]
    assert summary["summary"]["headline"] == "No gain" and summary["summary"]["done"] == 2
    assert summary["history"]["points._type"] == "table-file" and summary["history"]["points.nrows"] == 5
    assert summary["history"]["points_by_domain.nrows"] == 17
    assert summary["history"]["pareto._type"] == "image-file" and summary["history"]["report._type"] == "html-file"
    kept = {a["name"]: a for a in summary["artifacts"]}
    files = {
        (a["type"], name): [entry["path"] for entry in a["manifest"]["contents"]]
        for name, a in kept.items()
        if a["type"] != "run_table"
    }
    assert files == {
        ("points", "pick_strength-first-points"): ["points.parquet"],
        ("report", "pick_strength-first-report"): ["report.html"],
        ("calibration", "pick_strength-calibration-ab12"): ["artifact.json", "plots/heat.txt"],
    }
    for artifact in summary["artifacts"]:
        for entry in artifact["manifest"]["contents"]:
            assert Path(entry["local_path"]).is_relative_to(run_dir)  # nothing is left in the user's home
            assert Path(entry["local_path"]).is_file()
    assert "WANDB_DATA_DIR" not in os.environ


def test_a_point_carries_what_only_the_end_knows(mirrored: Any) -> None:
    run_dir, _, runs = mirrored
    found = read_run(RunFolder(run_dir))
    row = next(row for row in found.verdicts.iter_rows(named=True) if row["label"] == "pick boost=1.0")
    summary = runs["pick boost=1.0"]["summary"]
    assert row["domain"] == "overall" and row["verdict"] == summary["verdict"] == "beats"
    assert (summary["wins"], summary["losses"], summary["rival"]) == (row["wins"], row["losses"], "fixed_k k=4")
    assert summary["difference_points"] == pytest.approx(100 * row["difference"])
    assert summary["difference_points_lo"] == pytest.approx(100 * row["lo_simultaneous"])
    assert summary["on_front"] is True and summary["guards"] == "none raised" and summary["status"] == "done"
    assert runs["pick boost=0.5"]["summary"]["verdict"] == "ties"
    for label in ("none", "fixed_k k=4"):
        assert runs[label]["summary"]["verdict"] == "reference" and "wins" not in runs[label]["summary"]
    front = {row["label"]: row["on_front"] for row in found.done_rows().iter_rows(named=True)}
    assert {label: runs[label]["summary"]["on_front"] for label in front} == front


def test_what_is_one_number_is_no_history_and_every_number_is_defined(mirrored: Any) -> None:
    for name, run in mirrored[2].items():
        own = {key for row in run["rows"] for key in row if key[0] != "_" and "." not in key}
        assert own <= {"layer", "route/kept_by_layer"}, name
        numbers = {
            key
            for key, value in run["summary"].items()
            if key[0] != "_" and "." not in key and isinstance(value, int | float) and not isinstance(value, bool)
        }
        assert numbers <= set(run["metrics"]), name
    point = mirrored[2]["fixed_k k=4"]
    assert [(row["layer"], row["route/kept_by_layer"]) for row in point["rows"]] == [(i, 4) for i in range(4)]
    assert point["metrics"]["route/kept_by_layer"]["step_metric"] == "layer"
    assert point["metrics"]["layer"]["options"]["hidden"]
    ends = {key: next(iter(point["metrics"][key]["summary"])) for key in point["metrics"]}
    assert ends["acc/overall"] == ends["perf/speedup"] == "max" and ends["acc/truncated_fraction"] == "min"
    assert ends["route/mean_kept"] == "last" and ends["perf/generate_seconds"] == "min"
    assert {"points", "flips", "pareto", "report"} <= set(mirrored[2]["summary"]["metrics"])


def table(run_dir: Path, run: dict[str, Any], name: str) -> list[dict[str, Any]]:
    (path,) = run_dir.glob(f"wandb/*{run['header']['run_id']}/files/{run['history'][f'{name}.path']}")
    plain = json.loads(path.read_text())
    return [dict(zip(plain["columns"], row, strict=True)) for row in plain["data"]]


def test_the_table_of_points_has_each_of_them_with_verdict_and_guards(mirrored: Any) -> None:
    run_dir, run, runs = mirrored
    rows = {row["label"]: row for row in table(run_dir, runs["summary"], "points")}
    assert set(rows) == {"stock", *(record.label for record in run.records if record.label != "none")}
    best, failed = rows["pick boost=1.0"], rows["pick boost=8"]
    assert (best["verdict"], best["knob boost"], best["guards"]) == ("beats", 1.0, "none raised")
    assert isinstance(best["wins"], int) and best["on_front"] is True and best["problems"] == 120
    assert best["wins"] - best["losses"] == pytest.approx(best["difference_points"] / 100 * 120, abs=0.01)
    assert failed["status"] == "failed" and failed["guards"] == "engaged (invalid, overall)"
    assert failed["reason"] == "out of memory" and failed["command"].startswith("python -m banpick_exp")


def test_the_flips_are_those_of_the_best_policies_with_both_completions(mirrored: Any) -> None:
    run_dir, run, runs = mirrored
    rows = table(run_dir, runs["summary"], "flips")
    labels = {record.label: record for record in run.records}
    for label in ("pick boost=1.0", "pick boost=0.5"):
        own = flips(run.outcomes[labels[label].fingerprint], run.outcomes[labels["none"].fingerprint])
        shown = [row for row in rows if row["policy"] == label]
        assert [row["problem"] for row in shown] == own["problem_id"].to_list()
        assert [row["completion of policy"] for row in shown] == own["completion_a"].to_list()
        assert [row["completion of stock"] for row in shown] == own["completion_b"].to_list()
        assert {row["solved by"] for row in shown} <= {"policy", "stock"}
    assert rows[0]["policy"] == "pick boost=1.0" and rows[0]["completion of stock"] == "=?;"


def test_flips_are_bounded_in_rows_and_bytes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run = ladder(SyntheticRun(problems=400), ks=(4,))
    run.add("pick", {"boost": 1.0}, kept=4.0, churn=0.9)
    found = read_run(RunFolder(run.write(tmp_path / "sweep" / "run")))
    whole = FoundOut(found).tables["flips"].rows
    side = FoundOut(found).tables["flips"].columns.index("solved by")
    assert len(whole) == MOST_FLIPS and [row[side] for row in whole].count("stock") == MOST_FLIPS // 2
    monkeypatch.setattr("banpick_exp.report.tracking.found.MOST_WRITTEN", 2)
    monkeypatch.setattr("banpick_exp.report.tracking.found.MOST_BYTES", 1_000)
    few = FoundOut(found).tables["flips"]
    written = [row[few.columns.index(f"completion of {who}")] for row in few.rows for who in ("policy", "stock")]
    assert 0 < len(few.rows) < MOST_FLIPS and sum(len(text.encode()) for text in written) <= 1_000
    assert any("characters more]" in text for text in written)


def test_neither_keys_nor_the_machine_are_logged(mirrored: Any) -> None:
    text = "".join(run["text"] for run in mirrored[2].values())
    assert "do-not-log" not in text and mirrored[2]["summary"]["config"]["tracking"] == {"project": "banpick"}
    for run in mirrored[2].values():
        assert run["header"]["host"] == "-" and "git" not in run["header"]
    files = {path.name for path in mirrored[0].glob("wandb/offline-run-*/files/*")}
    assert files <= {"media"}  # no source, no requirements, no machine description
    nested = {"a": [{"hf_token": 1, "max_tokens": 2}], "Password": 3, "tokens_per_second": 4}
    assert without_secrets(nested) == {"a": [{"max_tokens": 2}], "tokens_per_second": 4}


def test_is_quiet(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from banpick_exp.report.tracking.config import TrackingConfig\n"
        "from banpick_exp.report.tracking.wandb import Tracker; from banpick_exp.run_folder import RunFolder\n"
        "t = Tracker(TrackingConfig()); t.start(RunFolder(Path(sys.argv[1])), {})\n"
        "t.finish({}, [('a', 'a', Path(sys.argv[1]))])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout == "" and done.stderr == ""


def test_online_makes_a_report_and_says_why_it_could_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No server answers: the points and the summary are mirrored all the same, and the rest is told."""
    run = ladder(SyntheticRun(problems=12), ks=(4,))
    found = read_run(RunFolder(run.write(tmp_path / "sweep" / "run")))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    tracker = Tracker(WANDB)
    tracker.start(found.folder, CONFIG)
    monkeypatch.setattr(tracker, "_tracking", TrackingConfig(mode="online"))  # only what is asked in the end
    (failure,) = tracker.finish({"headline": "No gain"}, found=FoundOut(found))
    assert failure.startswith("the verdicts of the points could not be told (")
    assert "python -m banpick_exp report" in failure and failure.endswith("--wandb")
    assert set(read_back(found.folder.path)) == {"none", "fixed_k k=4", "summary"}


def test_off_does_nothing(tmp_path: Path) -> None:
    tracker = Tracker(TrackingConfig(name="none", mode="online"))
    tracker.start(RunFolder(tmp_path), CONFIG)
    tracker.log_point(SyntheticRun(problems=4).add("none"))
    assert tracker.finish({}) == [] and list(tmp_path.iterdir()) == []


def test_the_tables_of_repeats_and_guards_are_mirrored_from_any_folder(tmp_path: Path) -> None:
    """`[1]` in a name is no pattern."""
    run = read_run(RunFolder(three_times().write(tmp_path / "sweep" / "x[1]")))
    for name, frame in (("points", run.frame_of_all), ("guards", run.guards), ("repeats", run.repeats)):
        run.folder.write_table(name, frame)
    tracker = Tracker(WANDB)
    tracker.start(run.folder, CONFIG)
    assert tracker.finish({}) == []
    (summary,) = read_back(run.folder.path).values()
    for name, frame in (("points", run.frame_of_all), ("guards", run.guards), ("repeats", run.repeats)):
        shown = "points_by_domain" if name == "points" else name
        assert summary["history"][f"{shown}.nrows"] == frame.height


def test_online_without_a_key_stops_before_anything_starts(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB") and k != "NETRC"}
    environment |= {"HOME": str(tmp_path), "NETRC": str(tmp_path / "netrc")}
    code = (
        "import sys; from pathlib import Path; from banpick_exp.report.tracking.config import TrackingConfig\n"
        "from banpick_exp.report.tracking.wandb import Tracker; from banpick_exp.run_folder import RunFolder\n"
        "from banpick_exp.errors import UserError\n"
        "try: Tracker(TrackingConfig(mode='online')).start(RunFolder(Path(sys.argv[1])), {})\n"
        "except UserError as error: print(error)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30, env=environment)
    assert "tracking.mode=online" in done.stdout and "no API key" in done.stdout
    assert "wandb login" in done.stdout and "tracking.mode=offline" in done.stdout
    assert not (tmp_path / "run").exists()


def test_cannot_start_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file, where W&B makes folders")
    with pytest.raises(UserError, match=r"W&B cannot start \(it cannot write .+\), so .* type tracking=none"):
        Tracker(WANDB).start(RunFolder(tmp_path / "run"), CONFIG)


MIRROR = """
import os, sys
from pathlib import Path
from synthetic_run import SyntheticRun, ladder
from banpick_exp.report.tracking.config import TrackingConfig
from banpick_exp.report.tracking.wandb import Tracker
from banpick_exp.run_folder import RunFolder
before = dict(os.environ)
tracker = Tracker(TrackingConfig(), at_once=True)
tracker.start(RunFolder(Path(sys.argv[1])), {})
for record in ladder(SyntheticRun(problems=4), ks=(4,)).records:
    tracker.log_point(record)
assert tracker.at_once and tracker.finish({"headline": "No gain"}) == []
assert dict(os.environ) == before, "what was set is set still"
assert "wandb" not in sys.modules, "W&B is called in a process of its own"
"""


def mirrored_under(environment: dict[str, str], run_dir: Path) -> dict[str, dict[str, Any]]:
    """What offline W&B has of stock and fixed_k, mirrored by a process with this environment."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB_", "NETRC"))}
    done = subprocess.run(
        [sys.executable, "-c", MIRROR, str(run_dir)],
        capture_output=True,
        text=True,
        timeout=120,
        env=clean | {"PYTHONPATH": os.pathsep.join(sys.path)} | environment,
    )
    assert done.returncode == 0 and done.stdout == done.stderr == "", done.stderr
    return read_back(run_dir)


def without_times(run: dict[str, Any]) -> dict[str, Any]:
    header = {key: value for key, value in run["header"].items() if key not in ("run_id", "start_time", "settings")}
    return {"header": header, "config": run["config"] | {"_wandb": None}, "exit_code": run["exit_code"]}


OF_ANOTHER_RUN = {
    "WANDB_RUN_ID": "fixed",
    "WANDB_RESUME": "must",
    "WANDB_RESUME_FROM": "other?_step=3",
    "WANDB_FORK_FROM": "other?_step=3",
    "WANDB_RUN_GROUP": "theirs",
    "WANDB_NAME": "theirs",
    "WANDB_RUN_NAME": "theirs",
    "WANDB_NOTES": "theirs",
    "WANDB_TAGS": "theirs,too",
    "WANDB_SWEEP_ID": "theirs",
    "WANDB_SWEEP_PARAM_PATH": "/nowhere.yaml",
    "WANDB_JOB_TYPE": "theirs",
    "WANDB_JOB_NAME": "theirs",
    "WANDB_PROJECT": "theirs",
    "WANDB_MODE": "disabled",
    "WANDB_DISABLED": "true",
    "WANDB_DIR": "/nowhere",
    "WANDB_SAVE_CODE": "true",
    "WANDB_PROGRAM": "theirs.py",
    "WANDB_NOTEBOOK_NAME": "theirs.ipynb",
    "WANDB_HOST": "theirs",
    "WANDB_USERNAME": "theirs",
    "WANDB_USER_EMAIL": "theirs@example.org",
    "WANDB_GIT_COMMIT": "0" * 40,
    "WANDB_GIT_REMOTE_URL": "https://example.org/theirs",
    "WANDB_DOCKER": "theirs",
    "WANDB_LAUNCH": "true",
    "WANDB_LAUNCH_QUEUE_NAME": "theirs",
    "WANDB_CONFIG": '{"policy": "theirs"}',
    "WANDB_ARTIFACTS": "{}",
    "WANDB_CONSOLE": "wrap",
    "WANDB_SILENT": "false",
    "WANDB_SERVICE": "2-99999-tcp-localhost-1",
    "WANDB_START_METHOD": "thread",
    "WANDB_REINIT": "return_previous",
    "WANDB_SYMLINK": "true",
    "WANDB_X_LABEL": "theirs",
    "WANDB__DISABLE_STATS": "false",
}
"""What agents, launchers and notebooks leave in an environment, and what a user sets for another program."""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    runs = mirrored_under({}, tmp_path_factory.mktemp("outputs") / "sweep" / "run")
    return {name: without_times(run) for name, run in runs.items()}


@pytest.mark.parametrize(
    "environment",
    [{name: value} for name, value in OF_ANOTHER_RUN.items() if name in ("WANDB_RUN_ID", "WANDB_RESUME", "WANDB_MODE")]
    + [
        OF_ANOTHER_RUN,
        {"TRAINING_JOB_NAME": "theirs", "SM_TRAINING_ENV": "{}", "SM_CURRENT_HOST": "x"},
        {name: "not one" for name in ("WANDB_REINIT", "WANDB_INIT_TIMEOUT", "WANDB_RESUME", "WANDB_ANONYMOUS")},
    ],
    ids=lambda environment: " ".join(environment)[:60],
)
def test_an_environment_of_another_run_does_not_reach_ours(
    environment: dict[str, str], undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    """I1: with WANDB_RUN_ID every point was 'in use', and nothing but the summary was mirrored."""
    runs = mirrored_under(environment, tmp_path / "sweep" / "run")
    assert {name: without_times(run) for name, run in runs.items()} == undisturbed
    assert len({run["header"]["run_id"] for run in runs.values()}) == 3 and "theirs" not in str(undisturbed)
    assert "theirs" not in "".join(run["text"] for run in runs.values())


def test_every_setting_of_wandb_is_kept_out_or_known() -> None:
    """Those of a newer W&B too: what is let in is listed."""
    every = {f"WANDB_{name.upper()}" for name in wandb.Settings.model_fields}
    let_in = {name.lower().removeprefix("wandb_") for name in KEPT & every}
    of_a_run = ("run", "resume", "fork", "sweep", "job", "launch", "mode", "git", "name", "project", "program", "label")
    assert not [name for name in let_in if any(word in name for word in of_a_run)]
    environment = dict.fromkeys([*every, "PATH"], "x")
    assert set(of_no_run(environment)) == {*(KEPT & every), "PATH"} and len(environment) == len(every) + 1


def test_who_and_where_we_are_still_reaches_wandb(tmp_path: Path) -> None:
    """The key, the server, the entity, the folders and the proxies are a machine's, not a run's."""
    kept = {
        "WANDB_API_KEY": "k" * 40,
        "WANDB_BASE_URL": "https://wandb.example.org",
        "WANDB_ENTITY": "ours",
        "WANDB_HTTPS_PROXY": "http://proxy.example.org:3128",
        "WANDB_CONFIG_DIR": str(tmp_path / "config"),
        "WANDB_CACHE_DIR": str(tmp_path / "cache"),
    }
    code = (
        "import wandb\n"
        "s = wandb.setup(wandb.Settings(mode='offline', silent=True)).settings\n"
        "print(s.api_key, s.base_url, s.entity, s.https_proxy, s.settings_system, sep='\\n')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, check=True, timeout=60,
        env=of_no_run(os.environ | kept | {"WANDB_RUN_ID": "fixed"}),
    )  # fmt: skip
    key, server, entity, proxy, settings = done.stdout.splitlines()
    assert [key, server, entity, proxy] == list(kept.values())[:4]
    assert settings.startswith(kept["WANDB_CONFIG_DIR"])
    runs = mirrored_under(kept, tmp_path / "sweep" / "run")
    assert {run["header"].get("entity") for run in runs.values()} == {"ours"}


def test_a_variable_that_is_let_in_and_wrong_is_said(tmp_path: Path) -> None:
    code = MIRROR.replace("tracker.start", "from banpick_exp.errors import UserError\ntry: tracker.start").partition(
        "\nfor "
    )[0]
    code += "\nexcept UserError as error: print(error)"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True, timeout=60,
        env=os.environ | {"WANDB_HTTP_TIMEOUT": "soon", "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert "timeout" in done.stdout and "valid" in done.stdout and "tracking=none" in done.stdout, done.stdout
    assert done.stdout.count("\n") == 1
