"""`python -m banpick_exp calibrate`: make the calibration of a model and task alone, and look at it.

Usage: python -m banpick_exp calibrate [--all] [model=NAME] [task=NAME] [calibration.samples=N] [KEY=VALUE ...]

Runs on one engine, writes the artifact that sweeps of the same model, data and settings find, prints the experts that
score highest in each domain, where scores disagree, and layers by sensitivity, and draws heat maps (layer x expert)
beside the artifact. What exists is shown, not repeated; a long one that was ended goes on from its last block.

  --all                    every score, to compare them; otherwise the one that is asked for
  calibration.sensitivity=gold   layers by what right answers lose
  calibration.score=NAME   gain (gain_add, gain_replace, gain_boost: likelier right answers; gain_removal: without the
                           expert), insertion_kl, replace_kl, boost_kl, removal_kl, removal_kl_per_use (how far
                           predictions move, without a sign)
  calibration.method=full  every expert on all samples, in place of a race for the highest calibration.wanted

All keys of `python -m banpick_exp --help` apply; dry_run=true starts nothing and says what it costs.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from banpick_exp.errors import UserError
from banpick_exp.evaluation.calibration.arrays import DomainCalibration, Scores, load, score_header
from banpick_exp.evaluation.calibration.artifact import artifact_folder, parts_in
from banpick_exp.evaluation.calibration.race import rank_correlation
from banpick_exp.evaluation.calibration.scores import PARTS, SCORES, Part
from banpick_exp.evaluation.calibration.views import (
    ONE_PASS,
    agreement,
    contrast,
    layer_sensitivity,
    loss_of_right_answers,
    npmi,
    order,
    policy_view,
)
from banpick_exp.models.shape import MoeShape
from banpick_exp.sweep.estimate import part_tokens, speed_of
from banpick_exp.sweep.overrides import key_of
from banpick_exp.sweep.point import Point

TOP = 5
ALL = "--all"
PLANNED_POLICY = ["policy=pick", "policy.mode=range_add", "policy.key_experts=1"]
"""Any policy that needs a calibration: it makes the planner check the data and name the artifact."""


def help_page() -> str:
    return str(__doc__)


def run(arguments: list[str]) -> int:
    """Returns 0."""
    from banpick_exp.cluster.plan import plan_run

    every, arguments = ALL in arguments, [text for text in arguments if text != ALL]
    for text in arguments:
        if key_of(text).split(".")[0] in ("policy", "sweep"):
            raise UserError(
                f"{text} chooses a policy, but a calibration is made before any: it would change nothing. Leave it out."
            )
    plan = plan_run([*arguments, *PLANNED_POLICY]).sweep
    (fingerprint, point), *_ = plan.calibrations().items()
    folder = artifact_folder(point.calibration, plan.folder.calibrations, fingerprint)
    console = Console()
    given = point.calibration.path is not None
    assert point.score is not None
    known = [name for name in PARTS if point.calibration.labelled or not PARTS[name].labelled]
    wanted: list[Part] = parts_in(folder) if given and every else known if every else [*point.calibration_parts]
    console.print(
        f"Calibration {fingerprint}: {point.model.name}, {', '.join(point.task.domains)}; scores"
        f" {', '.join(wanted)}. Artifact: {folder}",
        soft_wrap=True,
        markup=False,
    )
    _price(point, wanted, console)
    if plan.dry_run:
        return 0
    missing = [name for name in wanted if name not in parts_in(folder)]
    if missing or load(folder, fingerprint) is None:
        _measure(point, missing, plan.folder.path, console)
    else:
        console.print("The artifact exists; it is shown, not made again.")
    domains = load(folder, fingerprint)
    assert domains is not None
    for domain, found in domains.items():
        others = [other for name, other in domains.items() if name != domain]
        console.print(_shown(domain, found, others, wanted), soft_wrap=True, highlight=False, markup=False)
    for name in wanted:
        how = score_header(folder, name)
        console.print(_how(name, how, point.calibration.wanted, point.checkpoint.shape), soft_wrap=True, markup=False)
    for path in draw(domains, folder, wanted):
        console.print(f"  {path}", soft_wrap=True, markup=False)
    return 0


def _price(point: Point, wanted: Sequence[Part], console: Console) -> None:
    """What it takes: passes of the whole model over one answer, and time."""
    speed = speed_of(point)
    for name in wanted:
        tokens = part_tokens(point, name)
        seconds = tokens / speed.prefill
        console.print(f"  {name}: {PARTS[name].says}; {tokens:.3g} tokens through the model, {seconds:.0f} s")


def _measure(point: Point, missing: Sequence[Part], run_dir: Path, console: Console) -> None:
    from banpick_exp.cluster.actor import EngineActor

    begin = time.perf_counter()
    actor = EngineActor(point, str(run_dir))
    started = actor.start()
    console.print(f"Engine loaded in {started.load_seconds:.1f} s, {started.layers} MoE layers hooked.")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        for parts in [[], *([name] for name in missing)]:
            task = progress.add_task("calibrating", total=None)

            def show(done: int, total: int, of: str, task: TaskID = task) -> None:
                progress.update(task, completed=done, total=total, description=f"calibrating {of}")

            actor.calibrate(point, show, parts)
    actor.close()
    console.print(f"Calibrated in {time.perf_counter() - begin:.1f} s, the engine's start included.")


def _shown(domain: str, found: DomainCalibration, others: Sequence[DomainCalibration], wanted: Sequence[Part]) -> str:
    """The highest of one domain: by usage, and by every score asked for; below them what the rival rules read."""
    lines = [f"[bold]{domain}[/]: experts that score highest (L0E2: layer 0, expert 2; bold: it helps for sure)"]
    lines.append(f"  {'share of tokens':<20} {', '.join(_top(found.share, TOP, '.2f'))}")
    scores = [name for name in wanted if name in SCORES]
    for name in scores:
        lines.append(f"  {name:<20} {', '.join(_top_scores(found.scores[name], TOP))} {PARTS[name].unit}")
    nothing = [name for name in scores if PARTS[name].labelled and not (found.scores[name].lower > 0).any()]
    if nothing:
        lines.append(f"  nothing to reinforce by {', '.join(nothing)}: no gain is above 0 beyond chance")
    lines += _scores_compared(found)
    view = policy_view(found)
    by_kl, fisher = (_numbers(values or ()) for values in (view.layer_sensitivity, view.fisher))
    lines.append(f"  layers: sensitivity {by_kl}; fisher {fisher}")
    if "limit_gain" in found.scores:
        agree = rank_correlation(found.layer_kl, loss_of_right_answers(found))
        by_gold = _numbers(layer_sensitivity(found, "gold"))
        lines.append(f"  sensitivity by right answers {by_gold}, rank correlation {agree:+.2f} with the above;")
        lines.append(f"  alone, a layer can do with {', '.join(_spare_slots(found))} experts before right answers lose")
    lines.append(f"  R from {view.r_min:.3f} to {view.r_max:.3f}; most alike: {', '.join(_most_alike(found))}")
    if others:
        lines.append(f"  more used here than elsewhere (share): {', '.join(_top(contrast(found, others), 3, '+.2f'))}")
    if marker_tokens := int(found.marker_tokens.max()):
        lines.append(f"  with the {marker_tokens} markers (nPMI): {', '.join(_top(npmi(found), 3, '+.2f'))}")
    return "\n".join(lines)


def _top_scores(scores: Scores, count: int) -> list[str]:
    """The highest with their errors, such as `L0E2 0.1234 ±0.0100`."""
    experts = scores.value.shape[1]
    found = []
    for index in order(scores.value, scores.samples)[:count]:
        place = divmod(int(index), experts)
        text = f"L{place[0]}E{place[1]} {scores.value[place]:.4f} ±{1.96 * scores.error[place]:.4f}"
        found.append(f"[bold]{text}[/]" if scores.lower[place] > 0 else text)
    return found


def _numbers(values: Iterable[float]) -> str:
    return ", ".join(f"{value:.2f}" for value in values)


def _spare_slots(found: DomainCalibration) -> list[str]:
    """Per layer, the fewest experts that right answers stand: no loss beyond the noise (1.96 errors) from there on."""
    gain = found.scores["limit_gain"]
    hurts_LK = gain.value < -1.96 * gain.error
    return [str(int(np.flatnonzero(hurts_K)[-1]) + 2 if hurts_K.any() else 1) for hurts_K in hurts_LK]


def _scores_compared(found: DomainCalibration) -> list[str]:
    """Rank correlations, where there are two scores or more, and how many of the highest they share."""
    table = agreement(found)
    measured = [name for name in found.scores if name in SCORES]
    correlated = [
        f"    {name:<20} "
        + ", ".join(f"{other} {value:+.2f}" for other, value in table[name].items() if not math.isnan(value))
        for name in [*measured, *ONE_PASS]
        if measured != [name]
    ]
    lines = ["  rank correlation (Spearman), over the experts that both scored on most samples:", *correlated]
    first = {name: set(order(s.value, s.samples)[:TOP].tolist()) for name, s in found.scores.items() if name in SCORES}
    apart = [
        f"{one} and {other} share {len(first[one] & first[other])}"
        for one, other in itertools.combinations(measured, 2)
        if len(first[one] & first[other]) < TOP
    ]
    return [*lines, f"  of their {TOP} highest {'; '.join(apart)}"] if apart else lines


def _how(name: Part, how: Mapping[str, Any], wanted: int, shape: MoeShape) -> str:
    """How a score was measured, and how sure its ranking is."""
    sure = ", ".join(f"{domain} {count}" for domain, count in how["sure"].items())
    return (
        f"{name}: {how['method']}, {how['changes']} changes of an answer, {how['layer_tokens']:.3g} layer-tokens,"
        f" {how['seconds']:.1f} s; above rank {wanted + 1} beyond noise: {sure} of {min(wanted, shape.num_experts)}"
    )


def _top(values_LE: np.ndarray, count: int, form: str) -> list[str]:
    """The largest values with their experts, such as `L0E2 0.1234`."""
    experts = values_LE.shape[1]
    order = np.argsort(-values_LE.ravel(), kind="stable")[:count]
    return [f"L{i // experts}E{i % experts} {values_LE.ravel()[i]:{form}}" for i in order]


def _most_alike(found: DomainCalibration) -> list[str]:
    """The two pairs of experts with the largest CKA."""
    pairs_LEE = np.triu(found.similarity, 1)
    order = np.argsort(-pairs_LEE.ravel(), kind="stable")[:2]
    places = [(*map(int, np.unravel_index(i, pairs_LEE.shape)),) for i in order]
    return [f"L{layer}E{one} and E{two} {pairs_LEE[layer, one, two]:.2f}" for layer, one, two in places]


def draw(domains: dict[str, DomainCalibration], folder: Path, names: Sequence[Part]) -> list[Path]:
    """One heat map a domain and quantity (usage, each score, contrast), layer x expert, as PNG in `folder`."""
    from banpick_exp.report.figures.heat_map import heat_map

    files = []
    for domain, found in domains.items():
        maps = [("usage", found.share, "share of tokens")]
        maps += [(name, found.scores[name].value, PARTS[name].unit) for name in names if name in SCORES]
        if others := [other for name, other in domains.items() if name != domain]:
            maps.append(("contrast", contrast(found, others), "share of tokens, less elsewhere"))
        for name, values_LE, unit in maps:
            path = folder / f"{domain}_{name}.png"
            heat_map(values_LE, path, f"{name} per expert, {domain}", unit)
            files.append(path)
    return files
