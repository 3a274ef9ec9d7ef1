"""A worker extension whose second rank takes over another policy than it was told, when asked for fixed_k at k=4."""

from __future__ import annotations

import json

from banpick_exp.evaluation.calibration.worker import CalibrationExtension

BROKEN = ("fixed_k", {"k": 4})


class Disagreeing(CalibrationExtension):
    def banpick_set_policy(self, name: str, params_json: str, calibration_key: str) -> tuple[str, float]:
        if self.rank == 1 and (name, json.loads(params_json)) == BROKEN:
            params_json = json.dumps({"k": 5})
        return super().banpick_set_policy(name, params_json, calibration_key)
