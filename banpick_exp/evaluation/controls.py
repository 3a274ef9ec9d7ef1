"""Measure the controls end to end: does the real calibration find the planted experts, does Pick bring them back?

On the real engine, with the calibration split for the key experts and the test split for the accuracy. The same rows on
the healthy model show what is left when nothing was planted.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from banpick_exp.analysis import paired_bootstrap
from banpick_exp.engine.config import EngineConfig
from banpick_exp.engine.engine import Engine
from banpick_exp.evaluation.calibration.arrays import SCORES, DomainCalibration, policy_view
from banpick_exp.evaluation.calibration.config import CALIBRATION_WORKER, CalibrationConfig
from banpick_exp.evaluation.calibration.measure import calibrate
from banpick_exp.models.config import ModelConfig
from banpick_exp.models.tiny import ASSETS, DOMAINS
from banpick_exp.models.tiny.control import PLANTED, control_folder
from banpick_exp.models.tiny.model import tiny_config
from banpick_exp.policy import MoeShape
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


def open_engine(folder: Path) -> Engine:
    # One thread, as conf/engine/tiny.yaml: torch is loaded already, so the environment variable would come too late.
    torch.set_num_threads(1)
    engine = Engine(
        ModelConfig(name="tiny"), str(folder), EngineConfig(cpus=1), tiny_shape().num_layers, worker=CALIBRATION_WORKER
    )
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
    right = [grader_of(task).grade(a.text, p, task).correct for a, p in zip(answers, problems, strict=True)]
    return np.array(right, dtype=np.int8)


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


def rank(domain: DomainCalibration, score: str, layer: int, expert: int) -> int:
    """Place of one expert in the order Pick follows; 1 is the first."""
    influence = policy_view(domain, score).influence or ()
    return 1 + [(entry.layer, entry.expert) for entry in influence].index((layer, expert))


def most_influential(domain: DomainCalibration, score: str, count: int) -> Experts:
    chosen: Experts = {}
    for layer, expert, _ in (policy_view(domain, score).influence or ())[:count]:
        chosen.setdefault(layer, []).append(expert)
    return chosen


def random_experts(count: int, seed: int) -> Experts:
    """`count` experts that are not planted, as many per draw as the control has."""
    shape = tiny_shape()
    planted = {pair for pairs in PLANTED.values() for pair in pairs}
    pool = [(lay, e) for lay in range(shape.num_layers) for e in range(shape.num_experts) if (lay, e) not in planted]
    chosen: Experts = {}
    for layer, expert in random.Random(seed).sample(pool, count):
        chosen.setdefault(layer, []).append(expert)
    return chosen


def wrong_layer(planted: Mapping[int, list[int]]) -> Experts:
    """The same ids one layer on."""
    return {(layer + 1) % tiny_shape().num_layers: experts for layer, experts in planted.items()}


def replace_with(experts: Experts) -> dict[str, Any]:
    return {"mode": "range_replace", "experts": experts}


def boosted(experts: Experts, boost: float) -> dict[str, Any]:
    return {"mode": "boost", "boost": boost, "experts": experts}


def measure_control(domain: str, healthy: Mapping[str, Any], report: Callable[[str], None]) -> dict[str, Any]:
    """One control: ranks of its planted experts and the rows of its table. `healthy`: per domain, correct [N]."""
    problems = load_problems(tiny_task(domain), "test")[domain]
    count = len(PLANTED[domain])
    engine = open_engine(control_folder(domain))
    report(f"{domain} control: calibrating")
    found = calibrate(engine, tiny_shape(), tiny_task(domain), CalibrationConfig())[domain]
    keys = most_influential(found, "insertion_kl", count)
    top4 = most_influential(found, "removal_kl", 4)
    stock = correct(engine, problems)
    rows = [row("control against the healthy model", stock, healthy[domain])]

    def pick(label: str, params: dict[str, Any]) -> None:
        report(f"{domain} control: {label}")
        rows.append(row(label, correct(engine, problems, "pick", params), stock))

    counts = sorted({1, count})
    for n in counts:
        chosen = most_influential(found, "insertion_kl", n)
        pick(f"range_replace, insertion_kl, key_experts={n}", replace_with(chosen))
        for boost in BOOSTS:
            pick(f"boost {boost:g}, insertion_kl, key_experts={n}", boosted(chosen, boost))
    pick(f"range_replace, removal_kl_per_use, key_experts={count}",
         replace_with(most_influential(found, "removal_kl_per_use", count)))  # fmt: skip
    pick("range_replace, removal_kl, key_experts=4", replace_with(top4))
    for seed in range(RANDOM_DRAWS):
        pick(f"range_replace, random experts, draw {seed + 1}", replace_with(random_experts(count, seed)))
    pick("range_replace, wrong layer", replace_with(wrong_layer(keys)))
    pick("boost 0.5, wrong layer", boosted(wrong_layer(keys), 0.5))
    engine.close()
    largest = np.sort(found.insertion_kl.ravel())[::-1]
    return {
        "planted": PLANTED[domain],
        "ranks": {score: [rank(found, score, *pair) for pair in PLANTED[domain]] for score in SCORES},
        "insertion_kl": {
            "planted": [float(found.insertion_kl[pair]) for pair in PLANTED[domain]],
            "largest": [float(x) for x in largest[: count + 1]],
        },
        "key_experts": {str(layer): experts for layer, experts in keys.items()},
        "rows": rows,
    }


def measure(output: Path | None, report: Callable[[str], None]) -> dict[str, Any]:
    """Everything docs/tiny-model.md states about accuracy; also written to `output`/measurement.json."""
    problems = load_problems(tiny_task(*DOMAINS), "test")
    report("healthy model: loading")
    engine = open_engine(ASSETS / "checkpoint")
    found = calibrate(engine, tiny_shape(), tiny_task(*DOMAINS), CalibrationConfig())
    healthy = {domain: correct(engine, items) for domain, items in problems.items()}
    ladder = []
    for k in LADDER:
        report(f"healthy model: fixed_k {k}")
        right = {domain: correct(engine, items, "fixed_k", {"k": k}) for domain, items in problems.items()}
        overall = row(f"fixed_k {k}", np.concatenate(list(right.values())), np.concatenate(list(healthy.values())))
        ladder.append(overall | {"by_domain": {domain: 100 * float(x.mean()) for domain, x in right.items()}})
    same_keys = {}
    for domain, planted in PLANTED.items():
        experts: Experts = {}
        for layer, expert in planted:
            experts.setdefault(layer, []).append(expert)
        rules = {"range_replace": replace_with(experts), "boost 0.5": boosted(experts, 0.5)}
        same_keys[domain] = [
            row(f"{name}, planted ids, healthy model", correct(engine, problems[domain], "pick", rule), healthy[domain])
            for name, rule in rules.items()
        ]
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
        "healthy_insertion_kl": {d: float(c.insertion_kl.max()) for d, c in found.items()},
        "same_experts_healthy": same_keys,
        "controls": {domain: measure_control(domain, healthy, report) for domain in PLANTED},
    }
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        (output / "measurement.json").write_text(json.dumps(result, indent=1) + "\n")
    return result


def as_markdown(result: Mapping[str, Any]) -> str:
    """The tables of docs/tiny-model.md."""
    lines = ["| policy | math | code | knowledge | difference over all |", "|---|---|---|---|---|"]
    for point in result["ladder"]:
        by_domain = " | ".join(f"{point['by_domain'][d]:.1f}" for d in DOMAINS)
        lines.append(f"| {point['label']} | {by_domain} | {_difference(point)} |")
    lines += ["", "| domain | sub-task | problems | accuracy |", "|---|---|---|---|"]
    for domain, tasks in result["tasks"].items():
        lines += [f"| {domain} | {name} | {n} | {accuracy:.1f} |" for name, (n, accuracy) in tasks.items()]
    for domain, control in result["controls"].items():
        lines += ["", f"{domain} control, planted {control['planted']}, ranks {control['ranks']}, insertion_kl of the "
                  f"planted {[round(x, 4) for x in control['insertion_kl']['planted']]}, largest "
                  f"{[round(x, 4) for x in control['insertion_kl']['largest']]}; healthy model at most "
                  f"{result['healthy_insertion_kl'][domain]:.4f}", ""]  # fmt: skip
        lines += ["| what | accuracy | difference |", "|---|---|---|"]
        for point in [*control["rows"], *result["same_experts_healthy"][domain]]:
            lines.append(f"| {point['label']} | {point['accuracy']:.1f} | {_difference(point)} |")
    return "\n".join(lines)


def _difference(point: Row) -> str:
    low, high = point["ci95"]
    return f"{point['delta']:+.1f} [{low:+.1f}, {high:+.1f}]"
