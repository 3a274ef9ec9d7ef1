"""A worker extension whose second rank takes over another policy than it was told, when asked for fixed_k at k=4."""

from __future__ import annotations

import json

from banpick_exp.evaluation.calibration.worker import CalibrationExtension

BROKEN = ("fixed_k", {"k": 4})


class Disagreeing(CalibrationExtension):
    def banpick_set_policies(self, policies: list[list[str]]) -> tuple[list[str], float]:
        if self.rank == 1:
            policies = [
                [name, json.dumps({"k": 5}) if (name, json.loads(params)) == BROKEN else params, key]
                for name, params, key in policies
            ]
        return super().banpick_set_policies(policies)
