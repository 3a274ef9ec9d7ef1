"""When an answer ends in a loop."""

from __future__ import annotations

import numpy as np
import pytest

from banpick_exp.evaluation.repetition import is_repetitive


@pytest.mark.parametrize(
    ("ids", "stopped", "expected"),
    [
        ([5, 1, 2] + [7, 8] * 8, False, True),  # the docstring's example
        ([5, 1, 2] + [7, 8] * 7, False, False),
        ([0] * 16, False, True), ([0] * 15, False, False), ([0] * 16 + [2], True, True), ([0] * 16 + [2], False, False),
        (list(range(64)) * 4, False, True), (list(range(64)) * 3, False, False), (list(range(65)) * 4, False, False),
        (list(range(200)), False, False), ([], False, False), ([2], True, False),
        ([1] * 40 + list(range(30)), False, False),  # it came out of the loop
    ],
)  # fmt: skip
def test_what_counts_as_a_loop(ids: list[int], stopped: bool, expected: bool) -> None:
    assert is_repetitive(ids, stopped=stopped) is expected


def test_loops_against_a_plain_search() -> None:
    rng = np.random.default_rng(0)

    def slow(ids: list[int]) -> bool:
        for p in range(1, 65):
            length = max(16, 4 * p)
            if len(ids) >= length and all(ids[i] == ids[i - p] for i in range(len(ids) - length + p, len(ids))):
                return True
        return False

    results = set()
    for _ in range(400):
        ids = [*rng.integers(0, 3, rng.integers(0, 20)).tolist(), *rng.integers(0, 2, rng.integers(1, 5)).tolist() * 8]
        assert is_repetitive(ids, stopped=False) == slow(ids)
        results.add(slow(ids))
    assert results == {True, False}
