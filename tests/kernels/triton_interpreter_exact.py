"""Cases at a boundary whose arithmetic is exact, so nothing is skipped. Imported only by triton_interpreter.py."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from triton_interpreter_cases import Case, Inputs

from banpick_kernels.table import RouterTable


def given_by(case: Case, logits_TE: torch.Tensor, rows: list[dict[str, float]], keys: tuple[int, ...] = ()) -> Inputs:
    """A policy row per dict; token t reads row t."""
    table = RouterTable.neutral(1, case.num_experts, case.top_k, rows=len(rows))
    table.key_PLE[..., list(keys)] = True
    for row, values in enumerate(rows):
        for name, value in values.items():
            getattr(table, name)[row] = value
    row_T = torch.arange(len(rows), dtype=torch.int64)
    return Inputs(logits_TE, table.layer(0), None, row_T, None, None, torch.zeros(len(rows), dtype=torch.bool))


def exact_cases() -> Iterator[tuple[str, Case, Inputs]]:
    """Name, case and inputs."""
    rows: list[dict[str, float]] = [{"ban": 1, "ban_k_min": k_min, "sensitivity": 1} for k_min in range(1, 9)]
    case = Case(num_tokens=8, num_experts=16, top_k=8, slots=8, padding=False)
    yield "ban counts of x.5 round to even", case, given_by(case, torch.arange(16.0).expand(8, 16), rows)

    rows = [{"ban": 1, "ban_k_min": 1, "ratio_min": 0.5, "ratio_max": ratio_max} for ratio_max in (0.75, 1, 1.25)]
    rows += [{"ban": 1, "ban_k_min": 1, "ratio_min": 0.875, "ratio_max": 1}]
    rows += [
        {"ban": 1, "keep": 2, "ban_k_min": 1, "ban_lambda": 2, "sensitivity": 1, "ratio_min": 0.75, "ratio_max": 1}
    ]
    case = Case(num_tokens=5, num_experts=8, top_k=4, slots=4, padding=False)
    yield "R = 3/4 of equal scores", case, given_by(case, torch.zeros(5, 8), rows)

    # Of one signal alone the other is 0 and lambda doubled: k_min + (K - k_min) * sensitivity, then 1 + 3 * Tn.
    rows = [{"ban": 1, "ban_k_min": 1, "ban_lambda": 2, "sensitivity": each / 6} for each in range(7)]
    rows += [{"ban": 1, "ban_k_min": 1, "ban_lambda": lam, "ratio_min": 0.5, "ratio_max": 1} for lam in (1, 2, 3, 4)]
    case = Case(num_tokens=11, num_experts=8, top_k=4, slots=4, padding=False)
    yield "ban by the layer or the token alone", case, given_by(case, torch.zeros(11, 8), rows)

    rows = [{"min_ratio": 1}, {"mass": 0.5}, {"mass": 0.75}, {"mass": 1}, {"min_weight": 0.25}]
    rows += [{"tail_square": 0.125}, {"tail_square": 0.25}, {"min_weight": 0.5, "floor": 3}]
    rows += [{"mass": mass, "raw_mass": 1} for mass in (0.125, 0.25, 0.375, 0.5, 0.625)]  # each of the 8 has 1/8
    case = Case(num_tokens=13, num_experts=8, top_k=4, slots=4, padding=False)
    yield "thresholds met exactly", case, given_by(case, torch.zeros(13, 8), rows)

    values = torch.tensor([0.0, float("-inf"), float("nan"), float("inf")])
    rows = [
        {"insert_window": window, "insert_replaces": float(replaces)} for window in range(9) for replaces in (0, 1)
    ] * 4
    case = Case(num_tokens=72, num_experts=9, top_k=3, slots=6, padding=False, scoring="sigmoid")
    given = given_by(case, values.repeat_interleave(18)[:, None].expand(72, 9), rows, keys=(1, 5, 6, 7))
    yield "a window among equal logits", case, given

    rows = [{"keep": 4, "insert_window": window} for window in range(17)]
    case = Case(num_tokens=17, num_experts=16, top_k=4, slots=5, padding=False, scoring="sigmoid", correction=True)
    given = given_by(case, torch.zeros(17, 16), rows, keys=(3, 8))
    correction_E = (torch.arange(16) % 4) / 8
    given = Inputs(given.logits_TE, given.layer, correction_E, given.row_T, None, None, given.neutral_P)
    yield "equal score + correction", case, given

    # Every fraction over the same token, then tokens that differ in the last bit, in rank order and in a sign of zero.
    rows = [{"keep": 1 + step / 32} for step in range(65)]
    case = Case(num_tokens=65, num_experts=8, top_k=3, slots=3, padding=False)
    yield "a fraction is rounded by one number", case, given_by(case, torch.arange(8.0).expand(65, 8), rows)
    logits_TE = torch.stack([torch.nextafter(torch.arange(8.0), torch.tensor(9.0)), *torch.eye(8), *(-torch.eye(8))])
    case = Case(num_tokens=17, num_experts=8, top_k=3, slots=3, padding=False)
    yield "a fraction among near and equal logits", case, given_by(case, logits_TE * -1.0, [{"keep": 2.5}] * 17)

    case = Case(num_tokens=2, num_experts=8, top_k=3, slots=3, padding=False)
    given = given_by(case, torch.tensor([[-0.0, 0.0] * 4, [0.0, -0.0] * 4]), [{}, {}])
    given.layer.logit_bias_PE.fill_(-0.0)
    yield "zeros of both signs are equal", case, given
