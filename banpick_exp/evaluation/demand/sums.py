"""Which experts are demanded at once: sums over windows of consecutive tokens and over steps of a batch.

Of one layer, c_e(w) is how many tokens of a window w keep expert e. A window is m consecutive tokens of one sequence
that end at a token of its answer, so what is summed is what decoding sees. Summed over windows, and then over layers:

    experts    |{e: c_e > 0}|: the distinct experts of a window
    SRP(m)     max over t of F1(t), where each window's group is {e: c_e >= t}, with hits H = sum of c_e over the group,
               F1 = 2 H / (D + m |group|) and D = sum of all c_e: the best agreement of one fixed group a window with
               what its tokens keep. Groups may differ in size; no others have a higher F1 (`srp`).
    SCH(m, C)  sum of the C largest c_e / sum of all c_e: the hit rate of the best cache of C experts a layer that stays
               as it is for m tokens.

Source of both: "Not All Models Suit Expert Offloading: On Local Routing Consistency of Mixture-of-Expert Models"
(arXiv 2505.16056) and its authors' code (github.com/ljcleo/moe-lrc, whose first commit computes SCH so). Ours beyond
that: windows end in an answer, C is a number of experts a layer and the same for stock and policy, each layer has its
own cache (the authors' figure of a whole model shares one among the layers). Versions of the paper from the third on
call SCH another thing, a cache that is changed at each token with foresight of m tokens: that is not summed here.

A step is the t-th token of the answers of B different sequences side by side, as in a batch that began together. Of N
sequences that still go on, n_e of which keep e, all choices of B of them touch on average

    sum over e of 1 - C(N - n_e, B) / C(N, B)

experts of a layer: no choice is drawn, and what it would be without one sequence follows in the same way. Summed over
the steps t at which N > B.

Shapes: T tokens, E experts, N sequences, W windows, M window lengths, C cache sizes, B batch sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """What is summed."""

    windows: tuple[int, ...]
    """[M]: tokens of a window."""
    caches: tuple[int, ...]
    """[C]: experts of a layer that a cache holds."""
    batches: tuple[int, ...]
    """[B]: sequences of a step."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sums:
    """Of some layers. Every number is a sum over layers, so sums of other layers are added to them."""

    layers: int
    tokens: np.ndarray
    """[N]: tokens of each answer, times layers."""
    kept: np.ndarray
    """[N]: (token, expert) pairs that were kept in answers."""
    all_tokens: np.ndarray
    """[N]: as `tokens`, the prompt's among them."""
    all_kept: np.ndarray
    """[N]."""
    windows: np.ndarray
    """[N, M]: windows, times layers."""
    experts: np.ndarray
    """[N, M]: their distinct experts."""
    histogram: np.ndarray
    """[N, M, largest m + 1]: how many (window, expert) have each count c; those of 0 are left out."""
    hits: np.ndarray
    """[N, M, C]: the sum of the C largest counts."""
    steps: np.ndarray
    """[B]: steps, times layers."""
    touched: np.ndarray
    """[B]: their experts."""
    touched_without: np.ndarray
    """[N, B]: the same over the same steps, had the sequence not been there."""

    def __add__(self, other: Sums) -> Sums:
        added: dict[str, Any] = {
            each.name: getattr(self, each.name) + getattr(other, each.name) for each in fields(self)
        }
        return Sums(**added)

    def plain(self) -> dict[str, Any]:
        """As plain values, which alone travel between processes."""
        named = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in named.items()}

    @staticmethod
    def of(plain: dict[str, Any]) -> Sums:
        """What `plain` told. An axis of length 0 comes back as no axis."""
        arrays: dict[str, Any] = {
            name: np.asarray(value) if isinstance(value, list) else value for name, value in plain.items()
        }
        return Sums(**arrays)


def layer_sums(kept_TE: np.ndarray, lengths: Sequence[int], begins: Sequence[int], asked: Asked) -> Sums:
    """Of one layer. `kept_TE`: the tokens of all sequences, one after the other.

    Args:
        lengths: [N] tokens of each sequence.
        begins: [N] where its answer begins; 0 <= begin <= length.
    """
    ends = np.cumsum(lengths)
    if len(kept_TE) != (ends[-1] if len(ends) else 0):
        raise ValueError(f"{len(kept_TE)} tokens for sequences of {sum(lengths)}")
    kept_N = [kept_TE[end - length : end] for end, length in zip(ends, lengths, strict=True)]
    answers_N = [kept[begin:] for kept, begin in zip(kept_N, begins, strict=True)]
    steps_B, touched_B, without_NB = step_sums(answers_N, asked.batches)
    by_window = [window_sums(kept, begin, asked) for kept, begin in zip(kept_N, begins, strict=True)]
    windows, experts, histogram, hits = (np.array(each) for each in zip(*by_window, strict=True))
    return Sums(
        layers=1,
        tokens=np.array([len(each) for each in answers_N]),
        kept=np.array([int(each.sum()) for each in answers_N]),
        all_tokens=np.array([len(each) for each in kept_N]),
        all_kept=np.array([int(each.sum()) for each in kept_N]),
        windows=windows,
        experts=experts,
        histogram=histogram,
        hits=hits,
        steps=steps_B,
        touched=touched_B,
        touched_without=without_NB,
    )


def window_sums(kept_TE: np.ndarray, begin: int, asked: Asked) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Of one sequence: windows [M], distinct experts [M], histogram [M, largest m + 1], hits [M, C]."""
    sizes, most = asked.windows, max(asked.windows, default=0)
    windows_M, experts_M = np.zeros(len(sizes), dtype=np.int64), np.zeros(len(sizes), dtype=np.int64)
    histogram_MX = np.zeros((len(sizes), most + 1), dtype=np.int64)
    hits_MC = np.zeros((len(sizes), len(asked.caches)), dtype=np.int64)
    so_far_TE = np.concatenate([np.zeros((1, kept_TE.shape[1]), np.int32), np.cumsum(kept_TE, axis=0, dtype=np.int32)])
    for place, size in enumerate(sizes):
        first = max(begin, size - 1)
        if first >= len(kept_TE):
            continue
        counts_WE = so_far_TE[first + 1 :] - so_far_TE[first + 1 - size : len(so_far_TE) - size]
        windows_M[place], experts_M[place] = len(counts_WE), np.count_nonzero(counts_WE)
        histogram_MX[place] = np.bincount(counts_WE.ravel(), minlength=most + 1)
        largest_WE = np.sort(counts_WE.astype(np.int16), axis=1)[:, ::-1]
        by_rank_E = largest_WE.sum(axis=0, dtype=np.int64)
        hits_MC[place] = [by_rank_E[:cache].sum() for cache in asked.caches]
    histogram_MX[:, 0] = 0
    return windows_M, experts_M, histogram_MX, hits_MC


def step_sums(answers_N: Sequence[np.ndarray], batches: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Steps [B], experts that they touch [B], and the same without each sequence [N, B]. `answers_N`: [tokens, E]."""
    longest = max(map(len, answers_N), default=0)
    steps_B, touched_B = np.zeros(len(batches), dtype=np.int64), np.zeros(len(batches))
    without_NB = np.zeros((len(answers_N), len(batches)))
    if not longest:
        return steps_B, touched_B, without_NB
    keep_TE = np.zeros((longest, answers_N[0].shape[1]), dtype=np.int64)
    going_T = np.zeros(longest, dtype=np.int64)
    for answer_TE in answers_N:
        keep_TE[: len(answer_TE)] += answer_TE
        going_T[: len(answer_TE)] += 1
    for place, batch in enumerate(batches):
        last = int(np.searchsorted(-going_T, -batch))  # the steps before it have more than `batch` sequences
        if not last:
            continue
        some_NX = touch_probability(len(answers_N), batch)
        all_T = some_NX[going_T[:last, None], keep_TE[:last]].sum(axis=1)
        fewer_T1, n_TE = going_T[:last, None] - 1, keep_TE[:last]
        # Of a sequence that keeps none of the experts, n stays; each that it keeps has one fewer.
        stays_TE = some_NX[fewer_T1, np.minimum(n_TE, fewer_T1)]
        goes_TE = some_NX[fewer_T1, np.maximum(n_TE - 1, 0)]
        steps_B[place], touched_B[place] = last, all_T.sum()
        for number, answer_TE in enumerate(answers_N):
            own = min(len(answer_TE), last)
            left_T = np.where(answer_TE[:own], goes_TE[:own], stays_TE[:own]).sum(axis=1)
            without_NB[number, place] = touched_B[place] + (left_T - all_T[:own]).sum()
    return steps_B, touched_B, without_NB


def touch_probability(most: int, batch: int) -> np.ndarray:
    """[most + 1, most + 1]: at [N, n] the probability that `batch` of N sequences hold one of n; NaN where N < batch.

    1 - C(N - n, B) / C(N, B) = 1 - the product over i < B of (N - n - i) / (N - i).
    """
    of_N1, n_1X = np.arange(most + 1)[:, None], np.arange(most + 1)[None]
    none_NX = np.ones((most + 1, most + 1))
    with np.errstate(divide="ignore", invalid="ignore"):
        for i in range(batch):
            none_NX *= np.clip(of_N1 - n_1X - i, 0, None) / (of_N1 - i)
    none_NX[:batch] = np.nan
    return 1 - none_NX


def srp(histogram: np.ndarray, windows_of: np.ndarray) -> np.ndarray:
    """SRP of histograms [..., M, largest m + 1], for windows of `windows_of` [M] tokens: [..., M]; NaN without tokens.

    A threshold is enough: of groups that take as many (window, expert) in all, those with the largest counts hit most,
    and where two have the same count, to take both or none of them is no worse than one (F1 has its largest value at an
    end of the way between).
    """
    counts_X = np.arange(histogram.shape[-1])
    # From the largest count down: what a group of all that have at least t holds.
    pairs = np.cumsum(histogram[..., ::-1], axis=-1)[..., ::-1]
    hits = np.cumsum((histogram * counts_X)[..., ::-1], axis=-1)[..., ::-1]
    demanded = hits[..., :1]
    with np.errstate(divide="ignore", invalid="ignore"):
        score = 2 * hits / (demanded + windows_of[:, None] * pairs)
    return np.asarray(score[..., 1:].max(axis=-1))
