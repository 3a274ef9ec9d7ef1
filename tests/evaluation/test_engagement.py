"""Whether a rule beyond the table took effect, told from what was counted: runs made by hand, no engine."""

from __future__ import annotations

import json
from typing import Any

import pytest

from banpick_exp.evaluation.answer import DomainPolicy, DomainRun, joined_runs
from banpick_exp.evaluation.engagement import check_engagement
from banpick_exp.evaluation.stored_runs import run_as_json, run_from_json
from banpick_exp.policy import Calibration, MoeShape, parse_policy
from banpick_exp.records import Counters, FailedProblem, Outcome, added_counters

SHAPE = MoeShape(num_layers=2, num_experts=8, top_k=4)
TOKENS = 100
CALIBRATION = Calibration.of(
    {
        "contrast": [[0.5] + [0.0] * 7, [-0.5] + [0.0] * 7],
        "similarity": [[[1.0] * 8] * 8] * 2,
        "ratio_median": [0.5, 0.5],
    }
)


def run(first: int = 50, *, kept: int = 400, swap: int = 0) -> DomainRun:
    """Both layers kept `kept`; `first` of layer 0's went to expert 0; `swap` went from expert 6 to 7 in layer 1."""
    usage = [[first, kept - first, *[0] * 6], [kept - 60, 0, 0, 0, 0, 0, 60 - swap, swap]]
    return DomainRun([], Counters([TOKENS] * 2, [kept] * 2, usage))


def policies(name: str, **params: Any) -> dict[str, DomainPolicy]:
    rule = parse_policy(name, params, SHAPE)
    return {"math": DomainPolicy(rule=rule, calibration_key="", calibration=CALIBRATION)}


def reason(measured: DomainRun, name: str, **params: Any) -> str | None:
    return check_engagement(policies(name, **params), {"math": measured}, {"math": run()}, SHAPE)[1]


ENGAGED: list[tuple[str, dict[str, Any], DomainRun]] = [
    ("steer", {"on": {0: [0]}}, run(100)),
    ("steer", {"off": {0: [0]}}, run(0)),
    ("steer", {"on": {0: [0]}, "off": {1: [6]}}, run(100, swap=60)),
    ("steer", {"count": 1}, run(100)),
    ("rice", {"experts": {0: [0]}, "multiplier": 2}, run(swap=1)),
    ("expert_sample", {}, run(swap=1)),
    ("expert_sample", {"k": 3}, run(kept=300)),
    ("diep", {"beta": 0.5}, run(kept=350)),
    ("mask", {"experts": {0: [0]}}, run(0)),
    ("pick", {"mode": "force_add", "experts": {0: [0], 1: [0]}, "k": 3}, run(100, kept=400, swap=1)),
]


@pytest.mark.parametrize(("name", "params", "measured"), ENGAGED)
def test_a_rule_that_left_its_trace(name: str, params: dict[str, Any], measured: DomainRun) -> None:
    assert reason(measured, name, **params) is None


@pytest.mark.parametrize(
    ("name", "params", "measured", "words"),
    [
        ("steer", {"on": {0: [0]}}, run(50, swap=1), "no more than stock's"),
        ("steer", {"off": {0: [0]}}, run(50, swap=1), "no less than stock's"),
        ("steer", {"on": {0: [0]}, "off": {1: [6]}}, run(50, swap=0), "no more than stock's"),
        ("steer", {"on": {0: [0]}, "k": 3}, run(100), "measured 4.000 experts a token, the policy implies 3 to 3"),
        ("rice", {"experts": {0: [0]}, "multiplier": 2}, run(), "exactly as often as under stock"),
        ("expert_sample", {}, run(), "exactly as often as under stock"),
        ("diep", {"beta": 0.5}, run(), "native K: it did not engage"),
        ("diep", {"beta": 0.5}, run(kept=200), "its floor everywhere"),
        ("mask", {"experts": {0: [7]}}, run(), "exactly as often as under stock"),
    ],
)
def test_a_rule_that_left_none(name: str, params: dict[str, Any], measured: DomainRun, words: str) -> None:
    found = reason(measured, name, **params)
    assert found is not None and found.startswith("the policy did not engage: ") and words in found


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("none", {}),
        ("fixed_k", {"k": 4}),
        ("naee", {"beta": 0}),
        ("naee", {"beta": 0.5, "k_min": 4}),
        ("top_p", {"p": 1}),
        ("diep", {"beta": 0}),
        ("diep", {"beta": 0.5, "k_min": 4}),
        ("rice", {"experts": {0: [0]}, "multiplier": 1}),
        ("expert_sample", {"temperature": 0}),
        ("expert_sample", {"pool_factor": 1}),
    ],
)
def test_a_neutral_knob_may_equal_stock(name: str, params: dict[str, Any]) -> None:
    assert reason(run(), name, **params) is None


@pytest.mark.parametrize(("k", "kept"), [(3.5, 350), (3.5, 340), (3.04, 304), (3.97, 397), (3.999, 400)])
def test_a_mixed_k_engaged_where_chance_explains_what_was_counted(k: float, kept: int) -> None:
    """Of 100 tokens x 2 layers; of k=3.999 no token may have kept 3."""
    assert reason(run(kept=kept), "fixed_k", k=k) is None


@pytest.mark.parametrize(
    ("k", "kept", "words"),
    [
        (3.5, 400, "measured 4.000 experts a token, the policy implies 3.13787 to 3.86213"),
        (3.5, 300, "measured 3.000 experts a token"),
        (3.8, 400, "measured 4.000 experts a token, the policy implies"),
        (3.2, 300, "measured 3.000 experts a token, the policy implies"),
        (2.5, 400, "measured 4.000 experts a token"),
    ],
)
def test_a_mixed_k_that_mixed_nothing(k: float, kept: int, words: str) -> None:
    found = reason(run(kept=kept), "fixed_k", k=k)
    assert found is not None and words in found


def test_one_domain_that_differs_is_trace_enough() -> None:
    both = {domain: policies("expert_sample")["math"] for domain in ("math", "code")}
    stock = {"math": run(), "code": run()}
    assert check_engagement(both, {"math": run(), "code": run(swap=1)}, stock, SHAPE)[1] is None
    found = check_engagement(both, dict(stock), stock, SHAPE)[1]
    assert found is not None and "exactly as often" in found


def test_the_evidence_tells_edits_apart() -> None:
    def table(name: str, **params: Any) -> str:
        evidence, _ = check_engagement(policies(name, **params), {"math": run()}, {"math": run()}, SHAPE)
        return evidence.routing_table["math"]

    assert table("expert_sample", seed=0) != table("expert_sample", seed=1)
    assert table("expert_sample", temperature=0) == table("none") == table("diep", beta=0)
    assert table("steer", on={0: [0]}) != table("steer", on={0: [1]})


class TestNothingToReinforce:
    """Key experts that help for sure: a domain that has none is stock routing, and engaged as such."""

    HELPS = ((0, 0, 0.5, 0.1),)
    UNSURE = ((0, 0, 0.5, -0.1),)

    def found(self, measured: dict[str, DomainRun], **influence: Any) -> tuple[Any, str | None]:
        rule = parse_policy("pick", {"mode": "range_add", "experts": "auto"}, SHAPE)
        asked = {
            domain: DomainPolicy(rule=rule, calibration_key="", calibration=Calibration.of({"influence": ranked}))
            for domain, ranked in influence.items()
        }
        return check_engagement(asked, measured, {domain: run() for domain in measured}, SHAPE)

    def test_a_domain_without_any_runs_as_stock_does(self) -> None:
        evidence, problem = self.found({"math": run()}, math=self.UNSURE)
        assert problem is None and evidence.key_experts == {"math": {}} and evidence.implied == {"math": (4, 4)}

    def test_one_that_has_some_must_still_show_them(self) -> None:
        both = {"math": self.HELPS, "code": self.UNSURE}
        evidence, problem = self.found({"math": run(100, kept=410), "code": run()}, **both)
        assert problem is None and evidence.key_experts == {"math": {"0": [0]}, "code": {}}
        _, problem = self.found({"math": run(), "code": run()}, **both)
        assert problem is not None and "it never took effect" in problem


class TestSeveralRows:
    """Each row is held against what was counted of it alone, and together they are all that was counted."""

    def counted(self, *kept: int, tokens: int = TOKENS) -> tuple[Counters, ...]:
        return tuple(Counters([tokens] * 2, [k * tokens] * 2, [[k * tokens] + [0] * 7] * 2) for k in kept)

    def found(self, rows: tuple[Counters, ...], total: Counters | None = None) -> tuple[Any, str | None]:
        outcome = Outcome(
            problem_id="p", domain="math", task="math", correct=True, truncated=False, tokens=1, answer="", sample=0
        )
        measured = DomainRun([outcome], total or added_counters(rows), rows=rows)
        rule = policies("dynamic_experts", ks=[2, 6])
        return check_engagement(rule, {"math": measured}, {"math": run()}, SHAPE)

    def test_each_counted_its_own_k(self) -> None:
        evidence, problem = self.found(self.counted(6, 2))
        assert problem is None and evidence.measured_by_row == {"math": (6, 2)}
        assert evidence.measured == {"math": 4} and evidence.implied == {"math": (4, 4)}
        longer = (*self.counted(6), *self.counted(2, tokens=300))
        evidence, problem = self.found(longer)
        assert problem is None and evidence.measured == {"math": 3} and evidence.implied == {"math": (3, 3)}

    @pytest.mark.parametrize(
        ("kept", "words"),
        [
            ((2, 6), "row 0 (fixed_k k=6): measured 2.000 experts a token, the policy implies 6 to 6; math: row 1"),
            ((4, 4), "row 1 (fixed_k k=2): measured 4.000 experts a token, the policy implies 2 to 2"),
        ],
    )
    def test_rows_that_did_not(self, kept: tuple[int, int], words: str) -> None:
        """The mean over both is what the rule implies, and hides nothing."""
        problem = self.found(self.counted(*kept))[1]
        assert problem is not None and words in problem

    def test_a_row_that_routed_nothing_and_tokens_of_no_row(self) -> None:
        problem = self.found((*self.counted(6), *self.counted(2, tokens=0)))[1]
        assert problem is not None and "row 1 (fixed_k k=2): no token was routed by it" in problem
        problem = self.found(self.counted(6, 2), added_counters(self.counted(6, 2, 4)))[1]
        assert problem is not None and "its rows do not add up to what was counted" in problem

    def test_they_are_kept_with_a_block_and_added_up(self) -> None:
        first = DomainRun([], added_counters(self.counted(6, 2)), rows=self.counted(6, 2))
        read = run_from_json(json.loads(json.dumps(run_as_json(first))))
        assert read == first and "rows" not in run_as_json(run())
        both = joined_runs([{"math": read}, {"math": first}])["math"]
        assert both.rows == tuple(added_counters([each, each]) for each in self.counted(6, 2))
        assert both.without([FailedProblem(domain="math", problem_id="p", reason="")]).rows == both.rows
