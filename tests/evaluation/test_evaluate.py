"""What a point's numbers mean, and when a policy counts as engaged: runs made by hand, no engine."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest

from banpick_exp.analysis import wilson
from banpick_exp.engine.types import Generation
from banpick_exp.evaluation.answer import DomainPolicy, DomainRun, answer_problems
from banpick_exp.evaluation.engagement import check_engagement
from banpick_exp.evaluation.metrics import domain_metrics, point_metrics
from banpick_exp.evaluation.speed import Cell, Rounds, Timed
from banpick_exp.policy import Calibration, MoeShape, parse_policy
from banpick_exp.records import Counters, Outcome, SpeedCell
from banpick_exp.tasks.config import TaskConfig
from banpick_exp.tasks.problem import Problem

SHAPE = MoeShape(num_layers=2, num_experts=8, top_k=4)
CALIBRATION = Calibration.of(
    {
        "influence": [[layer, expert, 1.0] for layer in range(2) for expert in range(8)],
        "layer_sensitivity": [0.0, 1.0],
        "r_min": 0.5,
        "r_max": 0.9,
        "usage": [[1] * 8] * 2,
    }
)


def outcomes(correct: str, truncated: str = "", domain: str = "math") -> list[Outcome]:
    """One outcome a letter: `1` is right; `truncated` alike."""
    return [
        Outcome(
            problem_id=f"{domain}-{i}",
            domain=domain,
            task=domain,
            correct=letter == "1",
            truncated=truncated[i : i + 1] == "1",
            tokens=3,
            answer="x",
        )
        for i, letter in enumerate(correct)
    ]


def run(kept: list[int], correct: str = "10", *, tokens: int = 100, keys: int = 0, **more: Any) -> DomainRun:
    """`kept` experts in all per layer over `tokens` tokens; `keys` of layer 0's selections went to expert 0."""
    usage = [[0] * 8, [0] * 8]
    usage[0][0], usage[0][1], usage[1][1] = keys, kept[0] - keys, kept[1]
    return DomainRun(outcomes(correct, **more), Counters([tokens] * 2, kept, usage))


def policy(name: str, calibration: Any = None, **params: Any) -> dict[str, DomainPolicy]:
    return {"math": DomainPolicy(rule=parse_policy(name, params, SHAPE), calibration_key="", calibration=calibration)}


STOCK = run([400, 400], keys=50)


# ---------------------------------------------------------------- metrics


def cell(speedup: float, phase: Literal["decode", "prefill"] = "decode") -> SpeedCell:
    return SpeedCell(
        phase=phase, batch=4, speedup=speedup, ci95=(speedup - 0.1, speedup + 0.1), rounds=9, tokens_per_second=700,
        mean_kept=2, unique_experts=None, stock_unique_experts=None,
    )  # fmt: skip


def rounds(stock: float, policy: float, tokens: int) -> Rounds:
    found = Rounds(Cell("decode", tokens))
    found.add({"stock": stock, "policy": policy}, tokens, 1, Counters(tokens=[1], kept=[2], usage=[[1, 1]]))
    return found


def test_metrics_of_one_domain() -> None:
    found = domain_metrics(
        [run([300, 100], "1101", truncated="0010")],
        [run([400, 400], "1010")],
        [cell(1.25, "prefill"), cell(1.5)],
    )
    assert found.accuracy == 0.75 and found.n_problems == 4
    assert found.accuracy_ci95 == wilson(3, 4)
    assert found.delta == 0.25
    assert found.delta_ci95 is not None and found.delta_ci95[0] <= 0.25 <= found.delta_ci95[1]
    assert (found.speedup, found.speedup_ci95, found.tokens_per_second) == (1.5, (1.4, 1.6), 700)
    assert [each.phase for each in found.speed] == ["prefill", "decode"]
    assert found.mean_kept == 2.0 and found.mean_kept_by_layer == (3.0, 1.0)
    assert found.truncated_fraction == 0.25


def test_overall_weighs_problems_and_tokens_not_domains() -> None:
    runs = {"math": run([400, 400], "1"), "code": run([100, 100], "000", tokens=50, domain="code")}
    stock = {"math": run([400, 400], "1"), "code": run([200, 200], "111", tokens=50, domain="code")}
    timed = Timed({"math": rounds(1.0, 1.0, 10), "code": rounds(3.0, 1.0, 30)})
    found = point_metrics(runs, stock, timed)
    assert list(found.domains) == ["math", "code"]
    assert found.domains["code"].delta == -1.0 and found.domains["code"].delta_ci95 == (-1.0, -1.0)
    overall = found.overall
    assert overall.accuracy == 0.25 and overall.delta == -0.75
    assert overall.mean_kept == pytest.approx((800 + 200) / 300)
    assert overall.speedup == 2.0, "four seconds against two, not the mean of 1 and 3"
    assert [found.domains[domain].speedup for domain in ("math", "code")] == [1.0, 3.0]


def test_stock_against_itself_differs_by_nothing() -> None:
    found = domain_metrics([STOCK], [STOCK], [])
    assert (found.delta, found.delta_ci95, found.speedup) == (0.0, (0.0, 0.0), None)
    only_prefill = domain_metrics([STOCK], [STOCK], [cell(1.25, "prefill")])
    assert only_prefill.speedup is None, "the speed of a point is that of decoding at its own batch"


def test_samples_of_a_problem_are_one_unit() -> None:
    def sampled(*counts: int) -> DomainRun:
        rows = [
            replace(outcome, sample=n, correct=n < c)
            for outcome, c in zip(outcomes("0" * 4), counts, strict=True)
            for n in range(4)
        ]
        return DomainRun(rows, Counters([100] * 2, [400] * 2, [[0] * 8] * 2))

    found = domain_metrics([sampled(4, 4, 2, 0)], [sampled(4, 2, 0, 0)], [cell(1.0)])
    assert found.n_problems == 4 and found.accuracy == 10 / 16 and found.delta == 4 / 16
    low, high = found.accuracy_ci95
    assert high - low > 1.5 * (wilson(10, 16)[1] - wilson(10, 16)[0]), "16 answers are not 16 problems"


def test_answers_are_looked_at_for_loops() -> None:
    class Loaded:
        """An engine's answers: one that loops at the token cap, one that stops, one that loops and then stops."""

        def set_policy(self, *_: object) -> float:
            return 0.0

        def counters(self, *, reset: bool) -> Counters:
            return Counters([1], [1], [[1]])

        def generate(self, prompts: list[str], **_: object) -> list[Generation]:
            ids = [((5, 6) * 12, "length"), ((1, 2, 3, 0), "stop"), ((7,) * 16 + (0,), "stop")]
            return [Generation("s;4", tokens, (), reason) for tokens, reason in ids]

    problems = [Problem(str(i), "math", "add", "2+2=", "4") for i in range(3)]
    task = TaskConfig(name="tiny", domains=("math",))
    engine: Any = Loaded()
    outcomes = answer_problems(engine, policy("none"), task, {"math": problems}).runs["math"].outcomes
    assert [outcome.repetitive for outcome in outcomes] == [True, False, True]
    assert [outcome.correct for outcome in outcomes] == [True] * 3
    assert [outcome.completion for outcome in outcomes] == ["s;4"] * 3, "the whole text, to be graded again"
    assert [outcome.finish_reason for outcome in outcomes] == ["length", "stop", "stop"]


def test_other_problems_are_no_pair() -> None:
    with pytest.raises(ValueError, match="would not be paired"):
        domain_metrics([run([1, 1], "10")], [run([1, 1], "101")], [cell(1.0)])


# ---------------------------------------------------------------- engagement


@pytest.mark.parametrize(
    ("chosen", "measured"),
    [
        (policy("none"), run([400, 400], keys=50)),
        (policy("fixed_k", k=2), run([200, 200])),
        (policy("ban", CALIBRATION, **{"lambda": 1.0, "k_min": 2}), run([250, 380])),
        (policy("pick", mode="boost", boost=1.0, experts={0: [0]}), run([400, 400], keys=51)),
        (policy("pick", mode="boost", boost=-1.0, experts={0: [0]}), run([400, 400], keys=49)),
        (policy("pick", mode="range_replace", experts={0: [0]}), run([400, 400], keys=90)),
        (policy("pick", mode="force_add", experts={0: [0]}), run([450, 400], keys=100)),
    ],
    ids=lambda value: value["math"].rule.label() if isinstance(value, dict) else "",
)
def test_a_policy_that_did_what_it_says_is_engaged(chosen: Any, measured: DomainRun) -> None:
    evidence, reason = check_engagement(chosen, {"math": measured}, {"math": STOCK}, SHAPE)
    assert reason is None
    low, high = evidence.implied["math"]
    assert low <= evidence.measured["math"] <= high
    assert evidence.measured["math"] == np.sum(measured.counters.kept) / 200


@pytest.mark.parametrize(
    ("chosen", "measured", "words"),
    [
        (policy("none"), run([400, 399]), ["measured 3.995", "implies 4 to 4"]),
        (policy("fixed_k", k=2), run([400, 400]), ["measured 4.000", "implies 2 to 2"]),
        (policy("fixed_k", k=2), run([200, 201]), ["measured 2.005"]),
        (policy("ban", CALIBRATION, **{"lambda": 1.0, "k_min": 2}), run([400, 400]), ["native K", "did not engage"]),
        (policy("ban", CALIBRATION, **{"lambda": 1.0, "k_min": 2}), run([200, 200]), ["its floor everywhere"]),
        (policy("ban", CALIBRATION, **{"lambda": 1.0, "k_min": 2}), run([100, 200]), ["implies 2 to 4"]),
        (policy("pick", mode="boost", boost=1.0, experts={0: [0]}), run([400, 400], keys=50), ["no more than stock's"]),
        (
            policy("pick", mode="boost", boost=-1.0, experts={0: [0]}),
            run([400, 400], keys=50),
            ["no less than stock's"],
        ),
        (policy("pick", mode="boost", boost=0, experts={0: [0]}), run([400, 400], keys=50), ["boost=0 adds nothing"]),
        (policy("pick", mode="force_add", experts={0: [0]}), run([400, 400], keys=50), ["no more than stock's"]),
        (policy("pick", mode="range_replace", experts={0: [0]}), run([401, 400], keys=60), ["implies 4 to 4"]),
    ],
)
def test_a_policy_that_did_not_is_named_with_the_numbers(chosen: Any, measured: DomainRun, words: list[str]) -> None:
    _, reason = check_engagement(chosen, {"math": measured}, {"math": STOCK}, SHAPE)
    assert reason is not None and reason.startswith("the policy did not engage: ")
    for word in words:
        assert word in reason


def test_the_evidence_tells_equal_policies_and_equal_routing() -> None:
    """What the replay guard compares: the router's table, and what was counted."""

    def evidence(chosen: Any, measured: DomainRun) -> tuple[str, str]:
        found, _ = check_engagement(chosen, {"math": measured}, {"math": STOCK}, SHAPE)
        return found.routing_table["math"], found.routing_counts["math"]

    stock = evidence(policy("none"), run([400, 400], keys=50))
    assert evidence(policy("fixed_k", k=4), run([400, 400], keys=50)) == stock
    other = evidence(policy("fixed_k", k=3), run([300, 300], keys=50))
    assert other[0] != stock[0] and other[1] != stock[1]
    assert evidence(policy("none"), run([400, 400], keys=51))[1] != stock[1]


def test_one_domain_is_enough_to_be_invalid() -> None:
    both = policy("fixed_k", k=2) | {"code": policy("fixed_k", k=2)["math"]}
    runs = {"math": run([200, 200]), "code": run([400, 400])}
    _, reason = check_engagement(both, runs, {"math": STOCK, "code": STOCK}, SHAPE)
    assert reason is not None and "code: measured 4.000" in reason and "math" not in reason
