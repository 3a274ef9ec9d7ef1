"""Routing policies: a name and its knobs in, a filled router table out. Importing this imports no torch."""

from banpick_exp.models.shape import MoeShape
from banpick_exp.policy.build import Policy, build_policy
from banpick_exp.policy.calibration import Calibration
from banpick_exp.policy.registry import POLICIES, parse_policy
from banpick_exp.policy.rule import Rule

__all__ = ["POLICIES", "Calibration", "MoeShape", "Policy", "Rule", "build_policy", "parse_policy"]
