"""Identity: what can change an answer changes the fingerprint, what cannot does not, and old ones stay what they were.

Every setting stands in exactly one of the two lists here, so a new one fails until somebody has said which it is.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import shlex
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from checkpoint_folder import write_checkpoint
from reward_checkpoint import reward_folder

from banpick_exp.cluster.plan import plan_run
from banpick_exp.config import Section, fingerprint
from banpick_exp.engine.config import EngineConfig
from banpick_exp.errors import UserError
from banpick_exp.evaluation.calibration.artifact import METADATA, TENSORS, USAGE, score_file
from banpick_exp.evaluation.calibration.config import CalibrationConfig
from banpick_exp.models.checkpoint import IDENTITY_FILES
from banpick_exp.models.config import ModelConfig
from banpick_exp.models.inspect import inspect_checkpoint
from banpick_exp.policy.registry import RULES, parse_policy
from banpick_exp.policy.rule import Rule
from banpick_exp.run_folder import RunFolder
from banpick_exp.sweep import compose, identity, make_points
from banpick_exp.sweep.compose import POINT_KEYS, RUN_KEYS
from banpick_exp.sweep.plan import plan_sweep
from banpick_exp.tasks.config import TaskConfig
from banpick_exp.tasks.graders.exact_match import ExactMatch
from banpick_exp.tasks.graders.registry import GRADERS
from banpick_exp.tasks.registry import BENCHMARKS

BEFORE = Path(__file__).resolve().parents[1] / "records" / "data" / "run_v1"
"""Runs of the commit before the rooms, on the embedded checkpoint."""


@pytest.mark.parametrize("name", sorted(path.name for path in BEFORE.iterdir()))
def test_runs_from_before_the_move_are_still_planned_with_calibrations_of_their_own(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Points have new fingerprints: their speed is another clock's. So have calibrations since version 3, which keeps
    scores apart: one from before would be found, and refused.
    """
    (folder,) = [path for path in [BEFORE / name, *(BEFORE / name).iterdir()] if (path / "run.json").is_file()]
    records, set_aside = RunFolder(folder).load_points()
    assert records and not set_aside
    (identity,) = {str(record.model.identity) for record in records}

    def as_it_was(model: Any) -> Any:
        return dataclasses.replace(inspect_checkpoint(model), identity=identity)

    monkeypatch.setattr(compose, "inspect_checkpoint", as_it_was)
    typed = [word for word in shlex.split(RunFolder(folder).manifest().command)[3:] if "output_dir" not in word]
    typed = [word for word in typed if word.split("=")[0] != "tracking" and "throughput" not in word]
    engine = ["model.dtype=bfloat16", "engine.kv_cache_blocks=null"]  # the defaults of then
    plan = plan_sweep([*typed, *engine, f"output_dir={tmp_path}"])
    planned = {point.label: point.calibration_fingerprint for point in plan.points}
    recorded = {record.label: record.calibration for record in records}
    assert {label for label in planned if planned[label]} == {label for label in recorded if recorded[label]}
    assert not {*planned.values()} & {*recorded.values()} - {None}
    assert {point.label for point in plan.points} == {record.label for record in records}


# ---------------------------------------------------------------- settings


SECTIONS: dict[str, type[Section]] = {
    "model": ModelConfig, "engine": EngineConfig, "task": TaskConfig, "calibration": CalibrationConfig,
}  # fmt: skip
CHANGES: dict[str, list[str]] = {
    "model.path": ["model.path={other}"],
    "model.control": ["model=tiny_control", "model.path=null", "task=tiny", "task.data_files=null"],
    "model.made_from": ["model.made_from={other}"],  # with whom it is compared, as its record says
    "model.dtype": ["model.dtype=float32"],
    "model.trust_remote_code": ["model.trust_remote_code=true"],
    "engine.tensor_parallel_size": ["engine.tensor_parallel_size=2"],
    "engine.pipeline_parallel_size": ["engine.pipeline_parallel_size=2", "calibration.path={artifact}"],
    "engine.expert_parallel": ["engine.expert_parallel=true", "engine.tensor_parallel_size=2", "engine.gpus=2"],
    "engine.gpus": ["engine.gpus=1"],
    "engine.cpus": ["engine.cpus=3"],
    "engine.max_num_seqs": ["engine.max_num_seqs=7"],
    "engine.max_num_batched_tokens": ["engine.max_num_batched_tokens=4096"],
    "engine.max_model_len": ["engine.max_model_len=99"],
    "engine.compile": ["engine.compile=true"],
    "engine.extra_slots": ["engine.extra_slots=1"],
    "engine.moe_backend": ["engine.moe_backend=triton"],
    "engine.gpu_memory_utilization": ["engine.gpu_memory_utilization=0.5"],
    "engine.kv_cache_gib": ["engine.kv_cache_gib=2"],
    "engine.kv_cache_blocks": ["engine.kv_cache_blocks=9"],
    "engine.distributed_executor_backend": ["engine.distributed_executor_backend=mp"],
    "engine.model_runner": ["engine.model_runner=v2", "engine.gpus=1"],
    "engine.seed": ["engine.seed=1"],
    "task.source": ["task.source=lm_eval"],  # the same rows, graded by other rules
    "task.metric": ["task.metric=acc_norm", "task.source=lm_eval"],
    "task.domains": ["task.domains=[math,code]"],
    "task.split": ["task.split=dev"],
    "task.max_problems": ["task.max_problems=1"],
    "task.max_tokens": ["task.max_tokens=9"],
    "task.answer_separator": ["task.answer_separator='='"],
    "task.answer_pattern": ["task.answer_pattern='is (.+)'"],
    "task.grader": ["task.grader=math_verify"],
    "task.chat_template": ["task.chat_template=true"],
    "task.chat_template_kwargs": ["task.chat_template_kwargs={{enable_thinking: false}}", "task.chat_template=true"],
    "task.samples": ["task.samples=2", "task.temperature=0.5"],
    "task.choose": ["task.choose=majority", "task.samples=2", "task.temperature=0.5"],
    "task.reward_model": ["task.reward_model={reward}", "task.choose=reward", "task.samples=2", "task.temperature=0.5"],
    "task.temperature": ["task.temperature=0.5"],
    "task.top_p": ["task.top_p=0.9", "task.temperature=0.5"],
    "task.speed_batches": ["task.speed_batches=[2,4]"],
    "task.speed_precision": ["task.speed_precision=0.1"],
    "task.speed_seconds": ["task.speed_seconds=1"],
    "calibration.path": ["calibration.path={artifact}"],
    "calibration.score": ["calibration.score=removal_kl"],
    "calibration.sensitivity": ["calibration.sensitivity=gold"],
    "calibration.gain_samples": ["calibration.gain_samples=2"],
    "calibration.method": ["calibration.method=full"],
    "calibration.wanted": ["calibration.wanted=5"],
    "calibration.text": ['calibration.text="{data}/corpus.txt"', "calibration.samples=3"],
    "calibration.positions": ["calibration.positions=last"],
    "calibration.boost": ["calibration.boost=1"],
    "calibration.samples": ["calibration.samples=3"],
    "calibration.top_vocab": ["calibration.top_vocab=10"],
    "calibration.k_min": ["calibration.k_min=1"],
    "calibration.range_factor": ["calibration.range_factor=1.5"],
    "calibration.max_tokens": ["calibration.max_tokens=5"],
    "calibration.markers": ["calibration.markers=['=']"],
    "seed": ["seed=1"],
    "repeat": ["repeat=1"],
}
"""What changes an answer, or a speed, which is a result too -> how to type a change of it."""
NO_CHANGES: dict[str, list[str]] = {
    "model.name": ["model.name=mine"],  # a label
    "engine.data_parallel_size": ["engine.data_parallel_size=1"],  # all others are refused
    "model.revision": ["model.revision=abc"],  # of a folder; for a Hub id it counts, see below
    "model.num_layers": ["model.num_layers=2"],  # the checkpoint's own sizes, typed once more
    "model.num_experts": ["model.num_experts=16"],
    "model.top_k": ["model.top_k=4"],
    "model.suggested_tasks": ["model.suggested_tasks=[tiny]"],  # what is asked counts, not where its name came from
    "engine.policies_per_batch": ["engine.policies_per_batch=1"],  # with whom a point shares its batch
    "engine.parity_check": ["engine.parity_check=false"],  # whether to look, not what is seen
    "engine.start_timeout_seconds": ["engine.start_timeout_seconds=5"],  # how long somebody waits
    "task.name": ["task.name=mine"],  # labels: the content of the files is what counts
    "task.data_files": ['task.data_files="{data}/copy of {{domain}} {{split}}.jsonl"'],
    "task.prompt_tokens": ["task.prompt_tokens=120"],  # with max_tokens=8 the length that the engine has anyway
    "task.allow_code": ["task.allow_code=true"],  # a permission
    "task.allow_zero": ["task.allow_zero=true"],  # whether to go on, not what is asked
    "task.block_problems": ["task.block_problems=2"],  # in which pieces it is asked
    "calibration.block_layers": ["calibration.block_layers=2"],  # in which pieces it is measured
    "task.max_failed_problems": ["task.max_failed_problems=0"],  # what a point may be left without
    "output_dir": ["output_dir={data}"],
    "resume": [],  # needs a run
    "run": ["run=mine"],
    "study": [],  # stands for settings, each of which is told here
    "scale": [],
    "dry_run": ["dry_run=false"],
    "repeats": ["repeats=2"],
    "sweep": ["sweep.name=mine"],
    "search": ["search=racing"],
    "cluster": ["cluster.engines=2"],
    "tracking": ["tracking=none"],
    "hardware": ["hardware=a100_80gb"],  # prices alone
    "budget": ["budget.cpu_hours=3"],  # how much of it is run
}
"""What is left out of a fingerprint, and why."""
TYPED = ["model.path={model}", "task=jsonl", "task.domains=[math]", "task.chat_template=false", "task.max_tokens=8",
         'task.data_files="{data}/{{domain}}_{{split}}.jsonl"', "tracking=none"]  # fmt: skip
PICK = ["policy=pick", "policy.mode=boost", "policy.boost=1", "policy.key_experts=2"]
"""It reads a calibration, so what that is made from counts as well."""


@pytest.fixture
def places(tmp_path: Path) -> dict[str, str]:
    data = tmp_path / "data"
    data.mkdir()
    material = json.dumps({"metrics": ["acc/none", "acc_norm/none"]})  # as a task of lm-eval has it
    for domain, split in itertools.product(["math", "code"], ["test", "calibration", "dev"]):
        rows = ({"prompt": f"{split} {n}=", "answer": str(n), "material": material} for n in range(4))
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (data / f"{domain}_{split}.jsonl").write_text(lines)
        (data / f"copy of {domain} {split}.jsonl").write_text(lines)
    (data / "corpus.txt").write_text("one\ntwo\nthree\nfour\n")
    model, other = tmp_path / "model", tmp_path / "other"
    for folder, weights in ((model, b"weights"), (other, b"others!")):
        write_checkpoint(folder, weights)
        (folder / "chat_template.jinja").write_text("{{ messages }}")
    reward_folder(tmp_path / "reward")
    artifact = tmp_path / "artifact"
    write_artifact(artifact, inspect_checkpoint(ModelConfig(name="local", path=str(model))).identity, "0" * 16)
    return {name: str(tmp_path / name) for name in ("data", "model", "other", "reward", "artifact")} | {
        "out": str(tmp_path)
    }


def write_artifact(folder: Path, model: str, name: str) -> None:
    """As much of an artifact as a plan reads."""
    folder.mkdir(exist_ok=True)
    settings = CalibrationConfig().measured()
    header = {"schema_version": 3, "fingerprint": name, "model": {"name": "m", "identity": model}}
    (folder / METADATA).write_text(json.dumps(header | {"domains": ["math"], "settings": settings}))
    tensors = json.dumps({f"math.{USAGE}": {"dtype": "U8", "shape": [2, 16], "data_offsets": [0, 32]}}).encode()
    (folder / TENSORS).write_bytes(struct.pack("<Q", len(tensors)) + tensors + bytes(32))
    for score in ("gain_boost", "removal_kl"):
        (folder / score_file(score)).touch()


def fingerprints(places: Mapping[str, str], *more: str, policy: list[str] | None = None) -> tuple[str, str]:
    """Of stock and of the policy, under what is typed; the typed word of a key takes the place of the usual one."""
    words = [f"output_dir={places['out']}", "dry_run=true", *TYPED, *(PICK if policy is None else policy), *more]
    last = {word.split("=")[0]: word.format(**places) for word in words}
    points = plan_run(list(last.values())).sweep.points
    stock = next(point for point in points if point.rule.is_stock)
    return stock.fingerprint, points[-1].fingerprint


def test_every_setting_is_said_to_count_or_not() -> None:
    names = {f"{group}.{field}" for group, section in SECTIONS.items() for field in section.model_fields}
    names |= {key for key in (*POINT_KEYS, *RUN_KEYS) if key not in SECTIONS and key != "policy"}
    assert names == set(CHANGES) | set(NO_CHANGES), "a setting is in neither list, or is none any more"
    assert not set(CHANGES) & set(NO_CHANGES)


@pytest.mark.parametrize("key", CHANGES)
def test_what_changes_an_answer_changes_the_fingerprint(key: str, places: dict[str, str]) -> None:
    stock, pick = fingerprints(places)
    other_stock, other_pick = fingerprints(places, *CHANGES[key])
    assert other_pick != pick
    assert (other_stock != stock) == (not key.startswith("calibration.")), "stock reads no calibration"


def test_each_of_several_settings_at_once_counts(places: dict[str, str]) -> None:
    """Sampling is switched on by its temperature: the others count beside it."""
    base = fingerprints(places, "task.temperature=0.5")
    for word in ("task.samples=2", "task.top_p=0.9", "task.temperature=0.6", "seed=3", "repeat=1", "repeat=2"):
        assert fingerprints(places, "task.temperature=0.5", word) != base, word
    chat = fingerprints(places, "task.chat_template=true")
    assert fingerprints(places, *CHANGES["task.chat_template_kwargs"]) != chat


@pytest.mark.parametrize("key", [key for key, words in NO_CHANGES.items() if words])
def test_what_changes_no_answer_changes_no_fingerprint(key: str, places: dict[str, str]) -> None:
    base, (stock, pick) = fingerprints(places), fingerprints(places, *NO_CHANGES[key])
    assert stock == base[0]
    assert pick == base[1] or key == "repeats", "the last point is a repeat there"


def test_a_copy_of_a_checkpoint_is_the_same_one(places: dict[str, str]) -> None:
    base = fingerprints(places)
    Path(places["model"]).rename(Path(places["out"]) / "moved [1]")
    assert fingerprints(places, "model.path='{out}/moved [1]'") == base


def test_the_revision_of_a_hub_model_counts(places: dict[str, str]) -> None:
    hub = ["model=qwen3_30b_a3b", "model.path=Qwen/Qwen3-30B-A3B", "engine=cpu"]
    policy = ["policy=fixed_k", "policy.k=4"]
    seen = {
        fingerprints(places, *hub, *more, policy=policy) for more in ([], ["model.revision=a"], ["model.revision=b"])
    }
    seen.add(fingerprints(places, *hub, "model.path=Qwen/Other", policy=policy))
    assert len(seen) == 4


# ---------------------------------------------------------------- files


def example_of(pattern: str) -> str:
    return pattern.replace("*", "x")


@pytest.mark.parametrize("pattern", [*IDENTITY_FILES, "*.safetensors"])
def test_every_file_that_is_read_beside_the_weights_counts(pattern: str, places: dict[str, str]) -> None:
    path = Path(places["model"]) / example_of(pattern)
    path.parent.mkdir(exist_ok=True)
    before = path.read_bytes() if path.exists() else None
    seen = {fingerprints(places)}
    weights = (Path(places["other"]) / "model.safetensors").read_bytes()
    for number in (1, 2):
        if pattern == "config.json":
            content = json.dumps(json.loads(before or b"{}") | {"rope_theta": number}).encode()
        elif pattern == "*.safetensors":
            content = weights.replace(b"others!", b"others%d" % number)
        elif pattern.endswith("index.json"):
            content = json.dumps({"weight_map": {f"w{number}": "model.safetensors"}}).encode()
        else:
            content = b"{}" + b" " * number
        path.write_bytes(content)
        seen.add(fingerprints(places))
    assert len(seen) == 3
    (Path(places["model"]) / "README.md").write_text("nothing reads this")
    assert fingerprints(places) in seen


def test_two_folders_that_differ_in_a_template_are_two_points(places: dict[str, str]) -> None:
    """D1: the second was dropped as the same point, and resume would have reused the first."""
    twin = Path(places["out"]) / "twin"
    write_checkpoint(twin, b"weights")
    (twin / "chat_template.jinja").write_text("{{ messages }} in other words")
    words = [word.format(**places) for word in TYPED[1:]]
    models = f'model.path=choice("{places["model"]}","{twin}")'
    plan = plan_sweep([models, *words, "policy=fixed_k", "policy.k=2", f"output_dir={places['out']}"])
    assert len(plan.points) == 4 and len(plan.by_engine()) == 2
    assert not [note for note in plan.notes if "dropped" in note or "same point" in note]


@pytest.mark.parametrize("split", ["test", "calibration"])
def test_the_bytes_of_the_problems_count(split: str, places: dict[str, str]) -> None:
    stock, pick = fingerprints(places)
    path = Path(places["data"]) / f"math_{split}.jsonl"
    path.write_bytes(path.read_bytes() + b"\n")
    other_stock, other_pick = fingerprints(places)
    assert other_pick != pick and (other_stock != stock) == (split == "test")


def test_the_fingerprint_of_a_calibration_that_was_made_counts(places: dict[str, str]) -> None:
    seen = {fingerprints(places, "calibration.path={artifact}")}
    artifact = Path(places["artifact"]) / METADATA
    artifact.write_text(artifact.read_text().replace("0" * 16, "1" * 16))
    seen.add(fingerprints(places, "calibration.path={artifact}"))
    seen.add(fingerprints(places, "calibration.path={artifact}", "calibration.score=removal_kl"))
    assert len({pick for _, pick in seen}) == 3 and len({stock for stock, _ in seen}) == 1


def calibrated(places: Mapping[str, str], *more: str) -> tuple[str | None, tuple[str, ...], str]:
    """The calibration of Pick, what it reads there, and the point."""
    words = [f"output_dir={places['out']}", "dry_run=true", *TYPED, *PICK, *more]
    last = {word.split("=")[0]: word.format(**places) for word in words}
    point = plan_run(list(last.values())).sweep.points[-1]
    return point.calibration_fingerprint, point.calibration_parts, point.fingerprint


def test_another_score_is_another_point_of_the_same_calibration(places: dict[str, str]) -> None:
    """And so is another sensitivity. `gain` is what `auto` comes to: the same point."""
    artifact, parts, point = calibrated(places)
    assert parts == ("gain_boost",)
    assert calibrated(places, "calibration.score=gain") == (artifact, parts, point)
    assert calibrated(places, "calibration.score=gain_boost") == (artifact, parts, point)
    by_kl, gold = (
        calibrated(places, word) for word in ("calibration.score=removal_kl", "calibration.sensitivity=gold")
    )
    assert by_kl[:2] == (artifact, ("removal_kl",)) and gold[:2] == (artifact, ("gain_boost", "limit_gain"))
    assert len({point, by_kl[2], gold[2]}) == 3


@pytest.mark.parametrize(
    "word", ["boost=1", "gain_samples=2", "method=full", "wanted=5", "positions=last", "samples=3"]
)
def test_how_scores_are_measured_is_another_calibration(word: str, places: dict[str, str]) -> None:
    assert calibrated(places, f"calibration.{word}")[0] != calibrated(places)[0]


def test_the_documents_of_a_corpus_count_and_not_its_place(places: dict[str, str]) -> None:
    corpus, copy = Path(places["data"]) / "corpus.txt", Path(places["out"]) / "copy.txt"
    typed = ['calibration.text="{data}/corpus.txt"', "calibration.samples=3"]
    before = calibrated(places, *typed)
    assert before[1] == ("insertion_kl",), "no right answers, no gain"
    assert before[0] != calibrated(places, "calibration.samples=3")[0]
    copy.write_bytes(corpus.read_bytes())
    assert calibrated(places, "calibration.text={out}/copy.txt", typed[1]) == before
    corpus.write_text("one\ntwo\nthree\nis not read\n")
    assert calibrated(places, *typed) == before, "three documents are read, and they are the same"
    corpus.write_text("one\ntwo\nTHREE\nfour\n")
    after = calibrated(places, *typed)
    assert after[0] != before[0] and after[2] != before[2]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["calibration.text={data}/corpus.txt"], r"has 4 documents, calibration.samples=64.*calibration.samples=4"),
        (["calibration.text={data}/none.txt"], r"none.txt cannot be read.*leave calibration.text out"),
        (["calibration.text={data}/corpus.txt", "calibration.score=gain"], r"calibration.score=gain is told by right"),
        (
            ["calibration.text={data}/corpus.txt", "calibration.sensitivity=gold"],
            r"calibration.sensitivity=gold is told by right answers, and calibration.text has none.*Leave",
        ),
    ],
)
def test_a_corpus_that_cannot_say_what_is_asked(words: list[str], message: str, places: dict[str, str]) -> None:
    with pytest.raises(UserError, match=message):
        calibrated(places, *words)


def test_a_compiled_engine_needs_room_for_what_a_score_adds(places: dict[str, str]) -> None:
    compiled = ["engine.compile=true"]
    assert calibrated(places, *compiled)[1] == ("gain_boost",), "a boost adds nobody"
    with pytest.raises(
        UserError, match=r"score=gain_add adds an expert.*engine.extra_slots=0. Type engine.extra_slots=1"
    ):
        calibrated(places, *compiled, "calibration.score=gain_add")
    assert calibrated(places, *compiled, "calibration.score=gain_add", "engine.extra_slots=1")[1] == ("gain_add",)


def test_the_content_of_an_offset_file_counts(places: dict[str, str]) -> None:
    path = Path(places["out"]) / "offset.safetensors"
    seen = set()
    for value in (0.5, 1.5):
        header = json.dumps({"logit_offset": {"dtype": "F32", "shape": [2, 16], "data_offsets": [0, 128]}}).encode()
        path.write_bytes(struct.pack("<Q", len(header)) + header + struct.pack("<32f", *[value] * 16, *[0.0] * 16))
        seen.add(fingerprints(places, policy=["policy=logit_offset", f"policy.path={path}"])[1])
    assert len(seen) == 2


# ---------------------------------------------------------------- code


class Lenient(ExactMatch):
    """Another grader, of the same name until a test says otherwise."""


@pytest.mark.parametrize(
    ("name", "version", "same"), [("exact_match", 1, True), ("exact_match", 2, False), ("x", 1, False)]
)
def test_who_grades_counts(
    name: str, version: int, same: bool, places: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And points of the first grader keep the fingerprints that they had before there was another."""
    base = fingerprints(places)
    grader = type("Other", (Lenient,), {"name": name, "version": version})()
    monkeypatch.setitem(GRADERS, name, grader)
    monkeypatch.setitem(BENCHMARKS, "jsonl", dataclasses.replace(BENCHMARKS["jsonl"], grader=name))
    assert (fingerprints(places) == base) == same


def test_how_a_benchmark_asks_counts(places: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {fingerprints(places)}
    for version in (1, 2):
        monkeypatch.setitem(BENCHMARKS, "jsonl", dataclasses.replace(BENCHMARKS["jsonl"], version=version))
        seen.add(fingerprints(places))
    assert len(seen) == 3


@pytest.mark.parametrize(
    ("module", "version", "stock_too"),
    [
        (identity, "ROUTING_VERSION", True),
        (identity, "FINGERPRINT_SCHEMA", True),
        (make_points, "CALIBRATION_VERSION", False),
    ],
)
def test_versions_of_code_count(
    module: Any, version: str, stock_too: bool, places: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stock, pick = fingerprints(places)
    monkeypatch.setattr(module, version, 99)
    other_stock, other_pick = fingerprints(places)
    assert other_pick != pick and (other_stock != stock) == stock_too


# ---------------------------------------------------------------- rules


LISTS = ([2, 4], [2, 5, 6])
POOL: tuple[Any, ...] = ({0: [3]}, 1, 2, 0.25, 0.5, 1.5, True, False, 3, {0: [3], 1: [7]})


def knobs_of(rule: type[Rule]) -> dict[str, list[Any]]:
    """Every knob of a rule -> values to try: those of its Literal, or lists where it is one, and the pool."""
    return {
        field.alias or name: [*(LISTS if args[-1:] == (...,) else args), *POOL]
        for name, field in rule.model_fields.items()
        for args in [getattr(field.annotation, "__args__", ())]
    }


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule.name != "logit_offset"], ids=lambda rule: rule.name)
def test_every_knob_of_a_rule_can_change_its_canonical_form(rule: type[Rule]) -> None:
    """A knob that nothing routes by would change a label alone, and one that is left out would hide a difference."""
    knobs = knobs_of(rule)
    counts: set[str] = set()
    required = [
        name for name in knobs if any(f.is_required() for n, f in rule.model_fields.items() if name in (n, f.alias))
    ]
    modes = [name for name in knobs if name not in required]
    for chosen in itertools.islice(
        itertools.product(*([None, *knobs[name]][:9] for name in [*required, *modes][:4])), 3000
    ):
        base = {name: value for name, value in zip([*required, *modes], chosen, strict=False) if value is not None}
        try:
            before = parse_policy(rule.name, base).canonical()
        except (UserError, TypeError):
            continue
        for name in set(knobs) - counts:
            for value in knobs[name]:
                try:
                    after = parse_policy(rule.name, base | {name: value}).canonical()
                except (UserError, TypeError):
                    continue
                if after != before:
                    assert fingerprint(after) != fingerprint(before)
                    counts.add(name)
                    break
        if counts == set(knobs):
            return
    assert counts == set(knobs)
