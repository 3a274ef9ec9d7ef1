"""Speed against stock, believed on a busy machine: the two take turns every few steps within the same running batch.

What else the machine does then slows both alike, and a figure is the ratio of neighbours. Turns go on until the
interval of their median is narrow enough (`task.speed_precision`) or the time is spent (`task.speed_seconds`). Decode
and prefill are timed apart, decode at several batch sizes: on nothing does a policy's speed depend more. At small batch
a step costs what its distinct experts weigh (memory), at large batch what its kept pairs compute.

Where the engine cannot be stepped (several processes, async scheduling), whole short runs take turns instead.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np

from banpick_exp.analysis import median_interval
from banpick_exp.engine.engine import Engine, EngineError
from banpick_exp.engine.stepping import Stepper, can_step
from banpick_exp.evaluation.answer import DomainPolicy, Problems
from banpick_exp.records import Counters, SpeedCell
from banpick_exp.tasks.config import TaskConfig

Phase = Literal["decode", "prefill"]
Side = Literal["stock", "policy"]
SIDES: tuple[Side, Side] = ("stock", "policy")

MIN_ROUNDS = 6
"""The fewest whose ends hold their median with 95 %."""
VISIT_ROUNDS = 2
"""Rounds in one domain before the next has its turn, where the domains share a cell; else `MIN_ROUNDS`."""
SLICE_SECONDS = 0.012
"""A side's turn lasts about so long: long beside a swap, short beside what else a machine does."""
MOST_STEPS = 4
"""Of one turn."""
RUN_STEPS = 16
"""Of a whole run, where the engine cannot be stepped."""
PREFILL_TOKENS = 512
"""Of one prefill, at most."""
MOST_PROMPTS = 1024
"""Of a domain, to draw batches from."""

Prompts = Sequence[Sequence[int]]
TurnTo = Callable[[Side], None]


@dataclass(frozen=True, slots=True)
class Cell:
    """What is timed: the decode of `batch` sequences, or a prefill of about `batch` tokens."""

    phase: Phase
    batch: int


@dataclass(slots=True)
class Rounds:
    """The turns of one cell: seconds of one step, stock's and the policy's side by side."""

    cell: Cell
    seconds: dict[Side, list[float]] = field(default_factory=lambda: {side: [] for side in SIDES})
    tokens: list[int] = field(default_factory=list)
    """Of one step, round by round."""
    counted: list[Counters] = field(default_factory=list)
    """Under the policy, round by round."""
    unique: dict[Side, list[float]] = field(default_factory=lambda: {side: [] for side in SIDES})
    """Distinct experts of a layer in a step; empty where steps cannot be told apart."""
    generated: int = 0
    """Tokens, stock's and the policy's together."""

    def __len__(self) -> int:
        return len(self.tokens)

    def add(self, took: Mapping[Side, float], tokens: int, steps: int, counted: Counters) -> None:
        """One round: seconds of a step under each side, its tokens, and how many steps each turn had."""
        for side in SIDES:
            self.seconds[side].append(took[side])
        self.tokens.append(tokens)
        self.counted.append(counted)
        self.generated += 2 * steps * tokens if self.cell.phase == "decode" else 0


@dataclass(frozen=True, slots=True)
class Timed:
    """The rounds of a trial."""

    at_accuracy_batch: dict[str, Rounds] = field(default_factory=dict)
    """Decode at the batch of the accuracy run, domain by domain."""
    others: list[Rounds] = field(default_factory=list)
    """Decode at smaller batches, then prefill; the domains take turns in each."""

    @property
    def generated(self) -> int:
        """Tokens, stock's and the policy's together."""
        return sum(rounds.generated for rounds in (*self.others, *self.at_accuracy_batch.values()))


class Clock(Protocol):
    """Lets the sides take turns in a cell."""

    def visit(self, rounds: Rounds, prompts: Prompts, turn_to: TurnTo) -> Iterator[None]:
        """One more round in `rounds` each time it is advanced, on fresh requests; ends when these have no room left.

        Raises: EngineError where the engine cannot hold the batch.
        """


def time_against_stock(
    engine: Engine, policies: Mapping[str, DomainPolicy], task: TaskConfig, problems: Problems
) -> Timed:
    """Every cell timed; nothing where task.speed_seconds is 0. Whose turn it was last is left on.

    A cell has its share of what is left of the time, and at least `MIN_ROUNDS`; what it does not need goes to the next.
    A batch that the engine cannot hold is left out.
    """
    timed = Timed()
    if task.speed_seconds == 0:
        return timed
    end = time.perf_counter() + task.speed_seconds
    clock: Clock = Stepped(engine) if can_step(engine) else Whole(engine)
    sides = {
        domain: (
            engine.tokenize([problem.asked for problem in items[:MOST_PROMPTS]], chat=task.chat),
            _turns(engine, policies[domain]),
        )
        for domain, items in problems.items()
    }
    cells = timed_cells(task, problems, engine.settings.max_num_seqs)
    for number, cell in enumerate(cells, start=1):
        last = number == len(cells)
        found = {domain: Rounds(cell) for domain in problems} if last else dict.fromkeys(problems, Rounds(cell))
        parts = list({id(rounds): rounds for rounds in found.values()}.values())
        now = time.perf_counter()
        deadline = now + (end - now) / (len(cells) - number + 1)
        visits = (clock.visit(found[domain], *sides[domain]) for domain in itertools.cycle(problems))
        try:
            _go_on(
                visits,
                MIN_ROUNDS if last else VISIT_ROUNDS,
                lambda p=parts, d=deadline: _is_enough(p, task.speed_precision, d),  # type: ignore[misc]
            )
        except EngineError:
            continue
        if last:
            timed.at_accuracy_batch.update(found)
        else:
            timed.others.extend(parts)
    return timed


def timed_cells(task: TaskConfig, problems: Problems, max_num_seqs: int) -> list[Cell]:
    """Decode at `task.speed_batches`, prefill, and last the decode at the batch of the accuracy run."""
    asked = min(len(items) for items in problems.values()) * task.samples
    accuracy = min(max_num_seqs, asked)
    batches = [batch for batch in sorted(set(task.speed_batches)) if batch < accuracy]
    return [*(Cell("decode", b) for b in batches), Cell("prefill", PREFILL_TOKENS), Cell("decode", accuracy)]


def _turns(engine: Engine, policy: DomainPolicy) -> TurnTo:
    def turn_to(side: Side) -> None:
        if side == "stock":
            engine.set_policy("none", {})
        else:
            policy.activate(engine)
        engine.counters(reset=True)

    return turn_to


def _go_on(visits: Iterator[Iterator[None]], rounds: int, enough: Callable[[], bool]) -> None:
    """Visit after visit, each of so many rounds at most, until it is enough."""
    for visit in visits:
        with closing(visit):  # type: ignore[type-var]
            for _ in itertools.islice(visit, rounds):
                if enough():
                    return


def _is_enough(parts: Sequence[Rounds], precision: float, deadline: float) -> bool:
    """Whether the rounds of a cell, or of a cell in each domain, are as many as they must be and need be."""
    if min(map(len, parts)) < MIN_ROUNDS:
        return False
    if time.perf_counter() >= deadline:
        return True
    middle, low, high = median_interval(_ratios(parts))
    return high - low <= precision * middle


def _ratios(parts: Sequence[Rounds]) -> np.ndarray:
    """Stock's time over the policy's, round by round; several domains are added up."""
    number = min(map(len, parts))
    stock, policy = (np.sum([part.seconds[side][:number] for part in parts], axis=0) for side in SIDES)
    return np.asarray(stock / policy)


def _order(number: int) -> tuple[Side, Side]:
    """Stock first, then policy first, and so on."""
    return SIDES if number % 2 == 0 else (SIDES[1], SIDES[0])


def _batch(cell: Cell, prompts: Prompts, engine: Engine) -> Prompts:
    """As many prompts as decode at once, from the first on again where there are fewer; or as fill one prefill."""
    if cell.phase == "decode":
        return list(itertools.islice(itertools.cycle(prompts), cell.batch))
    settings = engine.settings
    sums = itertools.accumulate(map(len, prompts[: settings.max_num_seqs]))
    limit = min(cell.batch, settings.max_num_batched_tokens)
    return prompts[: max(1, sum(total <= limit for total in sums))]


class Stepped:
    """Turns of a few engine steps within one running batch."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._stepper = engine, Stepper(engine)

    def visit(self, rounds: Rounds, prompts: Prompts, turn_to: TurnTo) -> Iterator[None]:
        """See `Clock`."""
        batch = _batch(rounds.cell, prompts, self._engine)
        if rounds.cell.phase == "prefill":
            return self._prefill(batch, rounds, turn_to)
        return self._decode(batch, rounds, turn_to)

    def _decode(self, batch: Prompts, rounds: Rounds, turn_to: TurnTo) -> Iterator[None]:
        room = self._engine.settings.max_model_len - max(map(len, batch)) - 4
        if room < 6:
            raise EngineError(f"engine.max_model_len leaves {room} tokens to decode: too few to take turns in")
        left = min(room, MIN_ROUNDS * 2 * (MOST_STEPS + 1) + 2)
        turn_to("stock")
        with self._stepper.decoding(batch, steps=left):
            looked = [self._look(side, rounds, turn_to) for side in SIDES]
            # A step that is long beside a swap needs no company, and none before it to warm up.
            steps = max(1, min(MOST_STEPS, (left - 2) // 2 - 1, int(SLICE_SECONDS / min(looked))))
            warm = steps > 1
            left -= 2
            while left >= 2 * (steps + warm):
                took: dict[Side, float] = {}
                for side in _order(len(rounds)):
                    turn_to(side)
                    if warm:
                        self._stepper.step()
                    # The median: a step in which something else had the core is none of the policy's.
                    took[side] = statistics.median(self._stepper.step() for _ in range(steps))
                    if side == "policy":
                        counted = self._engine.counters(reset=True)
                left -= 2 * (steps + warm)
                rounds.add(took, len(batch), steps, counted)
                yield

    def _look(self, side: Side, rounds: Rounds, turn_to: TurnTo) -> float:
        """One step, to see which experts of a layer some token of it uses; returns its seconds."""
        turn_to(side)
        seconds = self._stepper.step()
        used_L = np.count_nonzero(self._engine.counters(reset=True).usage, axis=1)
        rounds.unique[side].append(float(used_L.mean()))
        return seconds

    def _prefill(self, batch: Prompts, rounds: Rounds, turn_to: TurnTo) -> Iterator[None]:
        if not len(rounds):
            self._prefilled(batch)  # warms up
        while True:
            took: dict[Side, float] = {}
            for side in _order(len(rounds)):
                turn_to(side)
                took[side] = self._prefilled(batch)
                if side == "policy":
                    counted = self._engine.counters(reset=True)
            rounds.add(took, sum(map(len, batch)), 1, counted)
            yield

    def _prefilled(self, batch: Prompts) -> float:
        names = self._stepper.add(batch, max_tokens=1)
        seconds = self._stepper.step()
        self._stepper.abort(names)
        return seconds


class Whole:
    """Turns of whole short runs: all requests in at once, answers of one length."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._numbers = engine, itertools.count()

    def visit(self, rounds: Rounds, prompts: Prompts, turn_to: TurnTo) -> Iterator[None]:
        """See `Clock`. A decode's run holds its own prefill."""
        decode, batch = rounds.cell.phase == "decode", _batch(rounds.cell, prompts, self._engine)
        room = self._engine.settings.max_model_len - max(map(len, batch)) - 1
        steps = max(1, min(RUN_STEPS, room)) if decode else 1
        if not len(rounds):
            self._run(batch, steps)  # warms up
        while True:
            took: dict[Side, float] = {}
            for side in _order(len(rounds)):
                turn_to(side)
                took[side] = self._run(batch, steps)
                if side == "policy":
                    counted = self._engine.counters(reset=True)
            rounds.add(took, len(batch) if decode else sum(map(len, batch)), steps, counted)
            yield

    def _run(self, batch: Prompts, steps: int) -> float:
        salt = f"timed {next(self._numbers)} {time.time_ns()}"  # of its own: no run finds another's prefixes
        begin = time.perf_counter()
        self._engine.generate_ids(batch, max_tokens=steps, salt=salt, ignore_eos=True)
        return (time.perf_counter() - begin) / steps


def speed_cells(timed: Timed, domain: str | None = None) -> list[SpeedCell]:
    """What the rounds say, the decode at the accuracy run's batch last: of one domain that alone, of all by default."""
    if domain is not None:
        return [_cell([timed.at_accuracy_batch[domain]])] if domain in timed.at_accuracy_batch else []
    groups = [[rounds] for rounds in timed.others]
    if timed.at_accuracy_batch:
        groups.append(list(timed.at_accuracy_batch.values()))
    return [_cell(parts) for parts in groups]


def _cell(parts: Sequence[Rounds]) -> SpeedCell:
    middle, low, high = median_interval(_ratios(parts))
    cell, number = parts[0].cell, min(map(len, parts))
    per_second = [np.divide(part.tokens, part.seconds["policy"]) for part in parts]
    counted = [counters for part in parts for counters in part.counted]
    unique = {side: [number for part in parts for number in part.unique[side]] for side in SIDES}
    return SpeedCell(
        phase=cell.phase,
        batch=cell.batch if cell.phase == "decode" else round(float(np.mean(parts[0].tokens))),
        speedup=middle,
        ci95=(low, high),
        rounds=number,
        tokens_per_second=float(np.median(np.concatenate(per_second))),
        mean_kept=sum(sum(c.kept) for c in counted) / max(1, sum(sum(c.tokens) for c in counted)),
        unique_experts=float(np.mean(unique["policy"])) if unique["policy"] else None,
        stock_unique_experts=float(np.mean(unique["stock"])) if unique["stock"] else None,
    )
