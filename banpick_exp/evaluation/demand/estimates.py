"""What a policy demands beside stock, from sums by sequence, each figure with an interval.

The two answer the same problems, so a figure is paired: its interval comes from leaving out one problem after the
other, from both alike (the delete-one jackknife, domain by domain where there are several; Efron and Stein 1981). The
bootstrap would draw a problem twice into one step, where a batch holds it once.

Shapes: N problems, F features (numbers that are summed, see `Features`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from banpick_exp.evaluation.demand.found import Cached, Compared, Demand, Number, Step, Window
from banpick_exp.evaluation.demand.sums import Asked, Sums, srp

FEWEST = 2
"""Problems with which anything can be left out."""
Z = NormalDist().inv_cdf(0.975)
Statistic = Callable[[np.ndarray], np.ndarray]
"""From features [..., F] to a figure [...]; NaN where it is of nothing."""


class Features:
    """Where each number of `Sums` stands in one row: so every figure is a function of a row, or of many at once."""

    def __init__(self, asked: Asked) -> None:
        self.asked, self.width = asked, max(asked.windows, default=0) + 1
        sizes = {
            "tokens": (), "kept": (), "all_tokens": (), "all_kept": (),
            "windows": (len(asked.windows),), "experts": (len(asked.windows),),
            "histogram": (len(asked.windows), self.width), "hits": (len(asked.windows), len(asked.caches)),
            "steps": (len(asked.batches),), "touched": (len(asked.batches),),
        }  # fmt: skip
        self._sizes: dict[str, tuple[int, ...]] = sizes
        self._places: dict[str, slice] = {}
        self.count = 0
        for name, size in sizes.items():
            self._places[name] = slice(self.count, self.count + int(np.prod(size)))
            self.count = self._places[name].stop

    def get(self, rows: np.ndarray, name: str) -> np.ndarray:
        """One of the fields of `Sums`, summed over sequences, of each row."""
        return rows[..., self._places[name]].reshape((*rows.shape[:-1], *self._sizes[name]))

    def rows(self, sums: Sums) -> tuple[np.ndarray, np.ndarray]:
        """The row of all sequences [F], and those without each of them [N, F]."""
        number = len(sums.tokens)
        own_NF = np.zeros((number, self.count))
        for name, place in self._places.items():
            if name not in ("steps", "touched"):
                own_NF[:, place] = np.asarray(getattr(sums, name), dtype=np.float64).reshape(number, -1)
        whole_F = own_NF.sum(axis=0)
        without_NF = whole_F - own_NF
        whole_F[self._places["steps"]] = without_NF[:, self._places["steps"]] = sums.steps
        whole_F[self._places["touched"]] = sums.touched
        without_NF[:, self._places["touched"]] = sums.touched_without
        return whole_F, without_NF


@dataclass(frozen=True, slots=True)
class Rows:
    """The features of one or several domains under one policy."""

    whole: np.ndarray
    """[F]."""
    without: tuple[np.ndarray, ...]
    """Of each domain [N, F]: all of the domains without one problem of this one."""


def rows_of(features: Features, sums: Sequence[Sums]) -> Rows:
    """`sums`: of each domain."""
    found = [features.rows(each) for each in sums]
    whole_F = np.sum([whole for whole, _ in found], axis=0)
    return Rows(whole_F, tuple(whole_F - own_F + without_NF for own_F, without_NF in found))


def compared(stock: Mapping[str, Sums], policy: Mapping[str, Sums], asked: Asked) -> Demand:
    """A policy beside stock over the domains of both, whose sequences answer the same problems in the same order.

    Raises: ValueError for domains or numbers of sequences that differ, or a domain of fewer than two.
    """
    if {name: len(each.tokens) for name, each in stock.items()} != {n: len(each.tokens) for n, each in policy.items()}:
        raise ValueError("stock and policy were not recorded on the same problems")
    if min(len(each.tokens) for each in stock.values()) < FEWEST:
        raise ValueError("an interval needs two problems a domain")
    features = Features(asked)
    sides = [rows_of(features, [side[name] for name in stock]) for side in (stock, policy)]

    def of(statistic: Statistic) -> Compared | None:
        return _compared(sides[0], sides[1], statistic)

    def ratio(part: str, whole: str, at: int | None = None) -> Statistic:
        def divided(rows: np.ndarray) -> np.ndarray:
            values, parts = features.get(rows, part), features.get(rows, whole)
            return _divided(values, parts) if at is None else _divided(values[..., at], parts[..., at])

        return divided

    windows = []
    for place, size in enumerate(asked.windows):
        experts = of(ratio("experts", "windows", place))
        best = of(_srp(features, place))
        if experts is None or best is None:
            continue  # no answer is so long
        caches = tuple(
            Cached(experts=cache, hit_rate=rate, misses=misses)
            for number, cache in enumerate(asked.caches)
            if (rate := of(_hit_rate(features, place, number))) and (misses := of(_misses(features, place, number)))
        )
        windows.append(Window(tokens=size, experts=experts, srp=best, caches=caches))
    steps = tuple(
        Step(sequences=batch, experts=touched)
        for place, batch in enumerate(asked.batches)
        if (touched := of(ratio("touched", "steps", place)))
    )
    kept, all_kept = of(ratio("kept", "tokens")), of(ratio("all_kept", "all_tokens"))
    if kept is None or all_kept is None:
        raise ValueError("no answer has a token")
    return Demand(
        problems=sum(len(each.tokens) for each in stock.values()),
        tokens=_answer_tokens(policy),
        stock_tokens=_answer_tokens(stock),
        kept=kept,
        all_kept=all_kept,
        steps=steps,
        windows=tuple(windows),
    )


def _answer_tokens(sums: Mapping[str, Sums]) -> int:
    return sum(int(each.tokens.sum()) // each.layers for each in sums.values())


def _srp(features: Features, place: int) -> Statistic:
    sizes = np.array(features.asked.windows)
    return lambda rows: srp(features.get(rows, "histogram"), sizes)[..., place]


def _hit_rate(features: Features, place: int, cache: int) -> Statistic:
    counts = np.arange(features.width)

    def hit_rate(rows: np.ndarray) -> np.ndarray:
        demanded = features.get(rows, "histogram")[..., place, :] @ counts
        return _divided(features.get(rows, "hits")[..., place, cache], demanded)

    return hit_rate


def _misses(features: Features, place: int, cache: int) -> Statistic:
    """A token and layer."""
    counts, size = np.arange(features.width), features.asked.windows[place]

    def misses(rows: np.ndarray) -> np.ndarray:
        demanded = features.get(rows, "histogram")[..., place, :] @ counts
        missed = demanded - features.get(rows, "hits")[..., place, cache]
        return _divided(missed, size * features.get(rows, "windows")[..., place])

    return misses


def _compared(stock: Rows, policy: Rows, statistic: Statistic) -> Compared | None:
    """None where it is of nothing, or would be without some problem."""
    theirs, ours = statistic(stock.whole), statistic(policy.whole)
    pairs = [(statistic(a), statistic(b)) for a, b in zip(stock.without, policy.without, strict=True)]
    if not np.isfinite([theirs, ours]).all() or not all(np.isfinite(each).all() for pair in pairs for each in pair):
        return None
    ratio = None
    if theirs > 0 and all((their > 0).all() for their, _ in pairs):
        ratio = _number(ours / theirs, [our / their for their, our in pairs])
    return Compared(
        stock=_number(theirs, [their for their, _ in pairs]),
        policy=_number(ours, [our for _, our in pairs]),
        difference=_number(ours - theirs, [our - their for their, our in pairs]),
        ratio=ratio,
    )


def _number(value: np.ndarray | float, without: Sequence[np.ndarray]) -> Number:
    error = jackknife_error(without)
    return Number(value=float(value), ci95=(float(value) - Z * error, float(value) + Z * error))


def jackknife_error(without: Sequence[np.ndarray]) -> float:
    """The standard error of a figure from its values without each problem, domain by domain.

    The root of the sum over domains of (n - 1) / n * the sum of squares about the domain's mean.
    """
    parts = [(len(each) - 1) / len(each) * float(((each - each.mean()) ** 2).sum()) for each in without]
    return float(np.sqrt(sum(parts)))


def _divided(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(part / whole)
