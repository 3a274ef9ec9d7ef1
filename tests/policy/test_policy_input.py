"""Bad input: one readable UserError that names the value, the consequence and the remedy, never a pydantic message."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from banpick_exp.errors import UserError
from banpick_exp.policy import POLICIES, MoeShape, Rule, build_policy, parse_policy

SHAPE = MoeShape(num_layers=4, num_experts=32, top_k=8)
BAN = {"lambda": 0.8, "k_min": 3}
NAMED = {"experts": {0: [3]}}


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("bann", {}, "policy=bann is unknown: there is no such routing rule. Did you mean ban? "
                     "Use one of none, fixed_k, pick, ban, ban_pick, naee, top_p, modes, adapmoe, diep, mask, "),
        ("zzz", {}, "policy=zzz is unknown: there is no such routing rule. Use one of none"),
        (None, {}, "policy=None is unknown"),
        ("none", {"k": 4}, "policy.k is unknown: policy=none has no knobs"),
        ("fixed_k", [4], "policy=fixed_k with [4] is no mapping"),
        ("fixed_k", {}, "policy.k is missing: policy=fixed_k cannot work without it. Type for example policy.k=4."),
        ("fixed_k", {"k": None}, "policy.k is missing"),
        ("fixed_k", {"k": 99}, "policy.k=99 exceeds the 32 experts that a token of this checkpoint can keep: no more"),
        ("fixed_k", {"k": 0}, "policy.k=0 is below 1: a token would keep no expert. Use 1..8."),
        ("fixed_k", {"k": 8.5}, "policy.k=8.5 has a fraction above top_k=8 of this checkpoint: who keeps one more"),
        ("fixed_k", {"k": float("nan")}, "policy.k=nan is not finite"),
        ("fixed_k", {"k": True}, "policy.k=true is not a number: experts cannot be counted with it"),
        ("fixed_k", {"k": "4"}, "policy.k='4' is not a number: experts cannot be counted with it"),
        ("pick", {"boost": 1, "k": 2.5, **NAMED}, "policy.k=2.5 is not a whole number"),
        ("pick", {"boots": 1, **NAMED}, "policy.boots is unknown: it would have no effect. Did you mean policy.boost?"),
        ("pick", {"boost": "big", **NAMED}, "policy.boost='big' is not a number"),
        ("pick", {"boost": True, **NAMED}, "policy.boost=true is not a number"),
        ("pick", {"boost": float("nan"), **NAMED}, "policy.boost=nan is not finite: every weight would become"),
        ("pick", {"boost": 10**400, **NAMED}, "is not finite"),
        ("pick", {"boost": 21, **NAMED}, "policy.boost=21 is outside [-20, 20]"),
        ("pick", NAMED, "policy.boost is missing: mode=boost adds it"),
        ("pick", {"mode": "range_ad", **NAMED},
         "policy.mode='range_ad' is unknown. Did you mean range_add? "
         "Use one of boost, force_add, force_replace, range_replace, range_add."),
        ("pick", {"mode": 3, **NAMED}, "policy.mode=3 is unknown. Use one of boost"),
        ("pick", {"boost": 1}, "policy=pick has no key experts: nothing would change. Type policy.key_experts=4"),
        ("pick", {"boost": 1, "key_experts": 0},
         "policy.key_experts=0 is below 1: nothing would change. Use 1..128."),
        ("pick", {"boost": 1, "key_experts": 129},
         "policy.key_experts=129 exceeds the 128 experts over all layers of this checkpoint: "
         "there are not so many to pick. Use 1..128."),
        ("pick", {"boost": 1, "key_experts": 33, "per_layer": True}, "exceeds the 32 experts a layer"),
        ("pick", {"boost": 1, "key_experts": 3, "per_layer": 1}, "policy.per_layer=1 is neither true nor false"),
        ("pick", {"mode": "range_add", "range_factor": 4.5, **NAMED}, "policy.range_factor=4.5 is outside [1, 4]"),
        ("pick", {"mode": "range_add", "range_factor": 0.5, **NAMED}, "policy.range_factor=0.5 is outside [1, 4]"),
        ("pick", {"boost": 1, "experts": {4: [0]}},
         "names layer 4, but this checkpoint has 4 MoE layers: nothing would change there. Use layers 0..3."),
        ("pick", {"boost": 1, "experts": {"0": [32]}},
         "names expert 32 of layer 0, but a layer of this checkpoint has 32 experts: it does not exist. Use ids 0"),
        ("pick", {"boost": 1, "experts": {0: [3, 3]}}, "names expert 3 of layer 0 twice"),
        ("pick", {"boost": 1, "experts": {0: [3], "0": [4]}}, "names layer 0 twice"),
        ("pick", {"boost": 1, "experts": {-1: [3]}}, "has the layer -1, below 0"),
        ("pick", {"boost": 1, "experts": {0: [-3]}}, "has the expert id -3, below 0"),
        ("pick", {"boost": 1, "experts": {"first": [3]}}, "has the layer 'first', which is not a whole number"),
        ("pick", {"boost": 1, "experts": {0: [True]}}, "has the expert id True, which is not a whole number"),
        ("pick", {"boost": 1, "experts": {0: 3}}, "gives layer 0 the value 3, which is no list"),
        ("pick", {"boost": 1, "experts": {0: "3"}}, "gives layer 0 the value '3', which is no list"),
        ("pick", {"boost": 1, "experts": [[0, 3]]}, "is no mapping of layers to expert ids. Write for example {0: ["),
        ("pick", {"boost": 1, "experts": {0: []}}, "names no expert: nothing would change"),
        ("ban", {"k_min": 3}, "policy.lambda is missing"),
        ("ban", {"lamda": 1, "k_min": 3},
         "policy.lamda is unknown: it would have no effect. Did you mean policy.lambda? Use one of lambda, k_min, "),
        ("ban", {"lambda": 1, "k_min": 3, "use": "tokens"},
         "policy.use='tokens' is unknown. Did you mean token? Use one of layer, token, both."),
        ("ban", {"lambda": 0, "k_min": 3}, "policy.lambda=0 is outside (0, 2]"),
        ("ban", {"lambda": 2.01, "k_min": 3}, "policy.lambda=2.01 is outside (0, 2]"),
        ("ban", {"lambda": False, "k_min": 3}, "policy.lambda=false is not a number"),
        ("ban", {"lambda": 1, "k_min": 9},
         "policy.k_min=9 exceeds top_k=8 of this checkpoint: nothing would be pruned. Use 1..8."),
        ("ban", {"lambda": 1, "k_min": 0}, "policy.k_min=0 is below 1"),
        ("ban_pick", {**BAN, "k_min": 9, **NAMED}, "policy.k_min=9 exceeds top_k=8"),
        ("ban_pick", {**BAN, "mode": "boost", **NAMED}, "policy.boost is missing"),
        ("ban_pick", BAN, "policy=ban_pick has no key experts"),
        ("naee", {}, "policy.beta is missing: policy=naee cannot work without it. Type for example policy.beta=0.5."),
        ("naee", {"beta": 1.5}, "policy.beta=1.5 is outside [0, 1]: not even the best would stay. Use for ex"),
        ("naee", {"beta": "mean"}, "policy.beta='mean' is neither a number nor median. Write policy.beta=0.5, or"),
        ("naee", {"beta": True}, "policy.beta=true is not a number"),
        ("naee", {"beta": 0.5, "k_min": 9}, "policy.k_min=9 exceeds top_k=8"),
        ("top_p", {}, "policy.p is missing: policy=top_p cannot work without it. Type for example policy.p=0.8."),
        ("top_p", {"p": -0.1}, "policy.p=-0.1 is outside [0, 1]: 0 keeps k_min experts already"),
        ("top_p", {"p": 0.5, "k_min": 0}, "policy.k_min=0 is below 1"),
        ("modes", {"alpha_min": 1}, "policy.tau is missing"),
        ("modes", {"tau": 2}, "policy.tau=2 is outside [0, 1]: no weight could reach it"),
        ("modes", {"tau": 0.1, "alpha_min": -1}, "policy.alpha_min=-1 is outside [0, 1]"),
        ("mask", {}, "policy.experts is missing: policy=mask cannot work without it. Type for example 'policy"),
        ("mask", {"experts": {}}, "policy.experts={} names no expert: nothing would change"),
        ("mask", {"experts": {4: [0]}}, "policy.experts names layer 4, but this checkpoint has 4 MoE layers"),
        ("mask", {"experts": {0: [32]}}, "policy.experts names expert 32 of layer 0"),
        ("mask", {"experts": {1: list(range(25))}},
         "policy.experts masks 25 of the 32 experts of layer 1: fewer than top_k=8 would stay, and masked ones "
         "would fill the slots. Name at most 24 there."),
        ("logit_offset", {}, "policy.path is missing"),
        ("logit_offset", {"path": 3}, "policy.path=3 is no text"),
        ("logit_offset", {"path": "/no/such/file"}, "policy.path='/no/such/file' does not exist"),
        ("logit_offset", {"path": "/no/such/file", "sha256": 3}, "policy.path="),
    ],
)  # fmt: skip
def test_the_message(name: Any, params: Any, message: str) -> None:
    with pytest.raises(UserError) as raised:
        parse_policy(name, params, SHAPE)
    assert message in str(raised.value)
    assert "pydantic" not in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "params", "calibration", "message"),
    [
        ("pick", {"boost": 1, "key_experts": 2}, None,
         "policy=pick cannot start: it needs a calibration. Run `python -m banpick_exp calibrate` for this model "
         "first. Or name the key experts yourself: experts={0: [3]}."),
        ("ban", BAN, None, "policy=ban cannot start: it needs a calibration. Run `python -m banpick_exp calibrate`"),
        ("ban", BAN, {"r_min": 0.5, "r_max": 0.9}, "the calibration has no layer_sensitivity. Run `python -m"),
        ("ban", BAN, {"r_min": 0.5, "r_max": 0.9, "layer_sensitivity": [1.0]},
         "of another model: layer_sensitivity has 1 values, this model has 4 MoE layers"),
        ("ban", BAN, {"r_min": 0.9, "r_max": 0.5, "layer_sensitivity": [1.0] * 4}, "Ban needs finite values and r_"),
        ("ban", BAN, {"r_min": 0.1, "r_max": 0.5, "layer_sensitivity": [float("nan")] * 4}, "Ban needs finite values"),
        ("pick", {"boost": 1, "key_experts": 2}, {"influence": [[4, 0, 1.0]]},
         "of another model: influence names expert 0 of layer 4"),
        ("pick", {"boost": 1, "key_experts": 2}, {"influence": [[0, 32, 1.0]]}, "influence names expert 32 of layer 0"),
        ("pick", {"boost": 1, "key_experts": 2}, {"influence": [[0, 0, 1.0]]},
         "policy.key_experts=2, but the calibration ranks only 1 experts"),
        ("pick", {"boost": 1, "key_experts": 1, "per_layer": True}, {"influence": [[0, 0, 1.0]]},
         "ranks only 0 experts in one layer"),
        ("modes", {"tau": 0.1}, None, "policy=modes cannot start: it needs a calibration. Run `python -m"),
        ("modes", {"tau": 0.1}, {"skip_kl": [1.0]}, "of another model: skip_kl has 1 values"),
        ("modes", {"tau": 0.1}, {"skip_kl": [float("nan")] * 4}, "the calibration has skip_kl=[nan, nan, nan,"),
        ("naee", {"beta": "median"}, {"ratio_median": [1.0]}, "of another model: ratio_median has 1 values"),
    ],
)  # fmt: skip
def test_the_calibration(name: str, params: dict, calibration: dict | None, message: str) -> None:
    rule = parse_policy(name, params, SHAPE)
    assert rule.needs_calibration()
    with pytest.raises(UserError) as raised:
        build_policy(name, params, num_layers=4, num_experts=32, top_k=8, calibration=calibration)
    assert message in str(raised.value)


@pytest.mark.parametrize(("layers", "experts", "top_k"), [(0, 4, 2), (1, 4, 0), (1, 4, 5)])
def test_a_shape_that_is_no_router(layers: int, experts: int, top_k: int) -> None:
    with pytest.raises(UserError, match="describe no router"):
        MoeShape(num_layers=layers, num_experts=experts, top_k=top_k)


def test_null_knobs_are_absent_even_where_the_policy_has_none() -> None:
    assert parse_policy("none", {"k": None, "lambda": None}, SHAPE).canonical() == {"name": "none"}
    assert parse_policy("none", None).canonical() == {"name": "none"}


KNOBS = ["k", "mode", "boost", "range_factor", "key_experts", "per_layer", "experts", "lambda", "k_min", "lambda_", "x"]
KNOBS += ["beta", "p", "tau", "alpha_min", "path", "sha256", "on", "off", "count", "direction", "multiplier"]
KNOBS += ["alpha", "temperature", "pool_factor", "seed", "renormalize_after", "epsilon"]
JUNK = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-3, 40), st.floats(), st.text(max_size=4), st.sampled_from(["boost"])
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=2),
        st.dictionaries(st.one_of(st.text(max_size=2), st.integers(-1, 5)), inner, max_size=2),
    ),
    max_leaves=4,
)


@given(name=st.sampled_from(list(POLICIES)), params=st.dictionaries(st.sampled_from(KNOBS), JUNK, max_size=5))
@settings(max_examples=150, deadline=None, derandomize=True, database=None)
def test_whatever_is_typed_gives_a_rule_or_a_user_error(name: str, params: dict[str, Any]) -> None:
    try:
        rule = parse_policy(name, params, SHAPE)
    except UserError as error:
        assert str(error).startswith(("policy.", f"policy={name} "))
    else:
        assert isinstance(rule, Rule) and rule.label().startswith(name)
        assert rule.budget(SHAPE)[0] <= rule.budget(SHAPE)[1] <= SHAPE.num_experts
