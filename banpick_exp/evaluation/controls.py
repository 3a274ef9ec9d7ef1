"""Measure the controls end to end: does the real calibration find the planted experts, does Pick bring them back?

On the real engine, with the calibration split for the key experts and the test split for the accuracy. The same rows on
the healthy model show what is left when nothing was planted.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from banpick_exp.analysis import paired_bootstrap
from banpick_exp.engine.config import EngineConfig
from banpick_exp.engine.engine import Engine
from banpick_exp.evaluation.calibration.arrays import DomainCalibration, Scores
from banpick_exp.evaluation.calibration.config import CALIBRATION_WORKER, CalibrationConfig
from banpick_exp.evaluation.calibration.measure import calibrate, score
from banpick_exp.evaluation.calibration.scores import SCORES, Name
from banpick_exp.evaluation.calibration.views import order, policy_view
from banpick_exp.models.config import ControlKind, ModelConfig
from banpick_exp.models.tiny import ASSETS, DOMAINS
from banpick_exp.models.tiny.control import control_folder
from banpick_exp.models.tiny.kinds import PLANTED
from banpick_exp.models.tiny.model import tiny_config
from banpick_exp.policy import MoeShape
from banpick_exp.policy.calibration import most_influential
from banpick_exp.tasks.config import TaskConfig
from banpick_exp.tasks.load import load_problems
from banpick_exp.tasks.problem import Problem
from banpick_exp.tasks.registry import grader_of

BOOSTS = (0.25, 0.5, 1.0, 2.0)
RANDOM_DRAWS = 3
LADDER = (8, 7, 6, 5, 4, 3, 2, 1)

Experts = dict[int, list[int]]
Row = dict[str, Any]
"""label, accuracy (percent), delta and its 95 % interval [low, high] (points, paired)."""


def tiny_shape() -> MoeShape:
    config = tiny_config()
    return MoeShape(
        num_layers=config.num_hidden_layers, num_experts=config.num_experts, top_k=config.num_experts_per_tok
    )


def open_engine(folder: Path, rows: int = 1) -> Engine:
    # One thread, as conf/engine/tiny.yaml: torch is loaded already, so the environment variable would come too late.
    torch.set_num_threads(1)
    layers, settings = tiny_shape().num_layers, EngineConfig(cpus=1)
    engine = Engine(ModelConfig(name="tiny"), str(folder), settings, layers, worker=CALIBRATION_WORKER, rows=rows)
    engine.start()
    engine.verify()
    return engine


def correct(
    engine: Engine, problems: Sequence[Problem], name: str = "none", params: Mapping[str, Any] | None = None
) -> Any:
    """Which of N problems are answered exactly under a policy: int8 [N]."""
    engine.set_policy(name, params or {})
    task = tiny_task(problems[0].domain)
    answers = engine.generate([p.prompt for p in problems], max_tokens=task.max_tokens)
    given = [(answer.text, problem) for answer, problem in zip(answers, problems, strict=True)]
    return np.array([grade.correct for grade in grader_of(task).grade_all(given, task)], dtype=np.int8)


def tiny_task(*domains: str) -> TaskConfig:
    return TaskConfig(name="tiny", domains=domains)


def row(label: str, right: Any, reference: Any) -> Row:
    delta, low, high = paired_bootstrap(right - reference)
    return {
        "label": label,
        "accuracy": 100 * float(right.mean()),
        "delta": 100 * delta,
        "ci95": [100 * low, 100 * high],
        "n": len(right),
    }


def place(scores: Scores, layer: int, expert: int) -> int:
    """Place of one expert in the order Pick follows; 1 is the first."""
    experts = scores.value.shape[1]
    return 1 + order(scores.value, scores.samples).tolist().index(layer * experts + expert)


def chosen_by(domain: DomainCalibration, name: Name, count: int) -> Experts:
    """The key experts that Pick takes for `key_experts=count`; fewer, or none, by a score that says what helps."""
    keys = most_influential(policy_view(domain, name), tiny_shape(), count, "pick")
    return {layer: list(experts) for layer, experts in keys.items()}


def random_experts(count: int, seed: int) -> Experts:
    """`count` experts that no control has planted, as many per draw as this one has."""
    shape = tiny_shape()
    planted = {pair for control in PLANTED.values() for pair in control.planted}
    pool = [(lay, e) for lay in range(shape.num_layers) for e in range(shape.num_experts) if (lay, e) not in planted]
    return by_layer(random.Random(seed).sample(pool, count))


def by_layer(pairs: Iterable[tuple[int, int]]) -> Experts:
    found: Experts = {}
    for layer, expert in sorted(pairs):
        found.setdefault(layer, []).append(expert)
    return found


def wrong_layer(planted: Mapping[int, list[int]]) -> Experts:
    """The same ids one layer on."""
    return {(layer + 1) % tiny_shape().num_layers: experts for layer, experts in planted.items()}


MODES: dict[str, dict[str, Any]] = {
    "boost 0.5": {"mode": "boost", "boost": 0.5},
    "range_replace": {"mode": "range_replace"},
    "range_add": {"mode": "range_add"},
}
"""How key experts are reinforced in the tables."""


def measure_control(kind: ControlKind, healthy: Mapping[str, Any], report: Callable[[str], None]) -> dict[str, Any]:
    """One control: what each score finds and what comes of it. `healthy`: per domain, correct [N]."""
    control = PLANTED[kind]
    domain, count = control.domain, len(control.planted)
    problems = load_problems(tiny_task(domain), "test")[domain]
    engine = open_engine(control_folder(kind))
    report(f"{kind} control: calibrating")
    settings = CalibrationConfig()
    calibrated = calibrate(engine, tiny_shape(), tiny_task(domain), settings)
    for name in SCORES:
        report(f"{kind} control: {name}")
        calibrated[domain].scores[name] = score(engine, tiny_shape(), calibrated, settings, name)[0][domain]
    found = calibrated[domain]
    stock = correct(engine, problems)
    known: dict[str, Row] = {}

    def pick(keys: Experts, mode: str, params: Mapping[str, Any]) -> Row | None:
        """None where there is nothing to reinforce. What was answered before is not asked again."""
        if not keys:
            return None
        label = f"{keys} {mode}"
        if label not in known:
            report(f"{kind} control: {mode}, {keys}")
            known[label] = row(mode, correct(engine, problems, "pick", {**params, "experts": keys}), stock)
        return known[label]

    def picked(keys: Experts) -> dict[str, Row | None]:
        return {mode: pick(keys, mode, params) for mode, params in MODES.items()}

    planted = by_layer(control.planted)
    scores = {}
    for name in SCORES:
        keys = chosen_by(found, name, count)
        scores[name] = {
            "places": [place(found.scores[name], *pair) for pair in control.planted],
            "keys": {str(layer): experts for layer, experts in keys.items()},
            "picked": picked(keys),
        }
    others = {
        "the planted experts by name": picked(planted),
        **{f"random experts, draw {n + 1}": picked(random_experts(count, n)) for n in range(RANDOM_DRAWS)},
        "the same ids one layer on": picked(wrong_layer(planted)),
    }
    strengths = [pick(planted, f"boost {b:g}", {"mode": "boost", "boost": b}) for b in BOOSTS]
    engine.close()
    return {
        "domain": domain,
        "planted": control.planted,
        "control": row("control against the healthy model", stock, healthy[domain]),
        "scores": scores,
        "others": others,
        "strengths": strengths,
    }


def measure(output: Path | None, report: Callable[[str], None]) -> dict[str, Any]:
    """Everything docs/tiny-model.md states about accuracy; also written to `output`/measurement.json."""
    problems = load_problems(tiny_task(*DOMAINS), "test")
    report("healthy model: loading")
    engine = open_engine(ASSETS / "checkpoint")
    settings = CalibrationConfig()
    found = calibrate(engine, tiny_shape(), tiny_task(*DOMAINS), settings)
    helping: dict[str, dict[str, int]] = {}
    for name in [name for name in SCORES if SCORES[name].labelled]:
        report(f"healthy model: {name}")
        scored = score(engine, tiny_shape(), found, settings, name)[0]
        helping[name] = {domain: int((scores.lower > 0).sum()) for domain, scores in scored.items()}
    healthy = {domain: correct(engine, items) for domain, items in problems.items()}
    ladder = []
    for k in LADDER:
        report(f"healthy model: fixed_k {k}")
        right = {domain: correct(engine, items, "fixed_k", {"k": k}) for domain, items in problems.items()}
        overall = row(f"fixed_k {k}", np.concatenate(list(right.values())), np.concatenate(list(healthy.values())))
        ladder.append(overall | {"by_domain": {domain: 100 * float(x.mean()) for domain, x in right.items()}})
    same_keys = {}
    for kind, control in PLANTED.items():
        report(f"healthy model: experts of the {kind} control")
        items, reference = problems[control.domain], healthy[control.domain]
        keys = {"experts": by_layer(control.planted)}
        same_keys[kind] = {
            mode: row(mode, correct(engine, items, "pick", params | keys), reference) for mode, params in MODES.items()
        }
    tasks = {}
    for domain, items in problems.items():
        names = np.array([p.task for p in items])
        tasks[domain] = {
            name: [int((names == name).sum()), 100 * float(healthy[domain][names == name].mean())]
            for name in sorted(set(names.tolist()))
        }
    engine.close()
    result = {
        "ladder": ladder,
        "tasks": tasks,
        "helping_in_healthy": helping,
        "same_experts_healthy": same_keys,
        "controls": {kind: measure_control(kind, healthy, report) for kind in PLANTED},
    }
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        (output / "measurement.json").write_text(json.dumps(result, indent=1) + "\n")
    return result


def as_markdown(result: Mapping[str, Any]) -> str:
    """The tables of docs/tiny-model.md."""
    lines = ["| k | math | code | knowledge | difference over all |", "|---|---|---|---|---|"]
    for point in result["ladder"]:
        by_domain = " | ".join(f"{point['by_domain'][d]:.1f}" for d in DOMAINS)
        lines.append(f"| {point['label']} | {by_domain} | {_difference(point)} |")
    lines += ["", "| domain | sub-task | problems | accuracy |", "|---|---|---|---|"]
    for domain, tasks in result["tasks"].items():
        lines += [f"| {domain} | {name} | {n} | {accuracy:.1f} |" for name, (n, accuracy) in tasks.items()]
    counts = (
        f"{name} {', '.join(f'{d} {n}' for d, n in each.items())}"
        for name, each in result["helping_in_healthy"].items()
    )
    lines += ["", f"Experts of the healthy model that help for sure: {'; '.join(counts)}"]
    for kind, control in result["controls"].items():
        planted = ", ".join(f"L{layer}E{expert}" for layer, expert in control["planted"])
        lines += ["", f"{kind} control ({control['domain']}): {planted}; {control['control']['accuracy']:.1f} %,"
                  f" {_difference(control['control'])} to the healthy model", ""]  # fmt: skip
        lines += [
            f"| key experts by | places of the planted | {' | '.join(MODES)} |",
            "|---|---|" + "---|" * len(MODES),
        ]
        for name, found in control["scores"].items():
            places = " / ".join(map(str, found["places"]))
            lines.append(f"| {name} | {places} | {_cells(found['picked'])} |")
        lines += [f"| {name} | | {_cells(found)} |" for name, found in control["others"].items()]
        lines.append(f"| the same ids in the healthy model | | {_cells(result['same_experts_healthy'][kind])} |")
        strengths = ", ".join(f"{each['label']} {_difference(each)}" for each in control["strengths"])
        lines += ["", f"The planted experts by name: {strengths}"]
    return "\n".join(lines)


def _cells(picked: Mapping[str, Row | None]) -> str:
    return " | ".join("nothing to reinforce" if each is None else _difference(each) for each in picked.values())


def _difference(point: Row) -> str:
    low, high = point["ci95"]
    return f"{point['delta']:+.1f} [{low:+.1f}, {high:+.1f}]"
