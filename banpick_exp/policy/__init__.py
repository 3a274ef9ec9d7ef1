"""Routing policies: a name and its knobs in, a filled router table out. Importing this imports no torch."""

from banpick_exp.policy.base import Calibration, MoeShape, Rule
from banpick_exp.policy.build import Policy, build_policy, fingerprint
from banpick_exp.policy.parse import POLICIES, parse_policy

__all__ = ["POLICIES", "Calibration", "MoeShape", "Policy", "Rule", "build_policy", "fingerprint", "parse_policy"]
