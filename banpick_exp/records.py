"""What a finished point leaves behind, typed: its record, its metrics, and the outcome of every problem.

The names are those of the JSON on disk, which others read too: a field that changes its meaning is a new
`SCHEMA_VERSION`. `run_folder` writes and reads these; nothing else indexes a record by string. Imports nothing heavy.

Versions: 1 kept of an answer only what was extracted from it; 2 keeps the whole completion, so that a run can be graded
again. Both are read; a record of any other version is refused, never guessed at.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, model_validator

if TYPE_CHECKING:
    import polars as pl  # at run time inside the functions: planning imports this module and must stay light

SCHEMA_VERSION = 2
"""Of what is written."""
READABLE_VERSIONS = (1, 2)
OVERALL = "overall"
"""Stands where the name of a domain would: all domains together."""

Status = Literal["done", "invalid", "dropped", "failed"]
STATUSES: tuple[Status, ...] = ("done", "invalid", "dropped", "failed")
"""`dropped`: stopped by a race after some of its problems; metrics and outcomes are of those, its speed is null."""
Interval = tuple[float, float]
"""(low, high), 95 % unless a field says otherwise."""


class CorruptRecord(ValueError):
    """A point record that cannot be trusted; the message says what is wrong with which file."""


class Part(BaseModel):
    """A frozen part of a record: a key that it does not know is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


class OpenPart(BaseModel):
    """A frozen part whose other keys are kept and read back as they are: settings grow with the program."""

    model_config = ConfigDict(frozen=True, extra="allow", protected_namespaces=())

    def plain(self) -> dict[str, Any]:
        """As it stands in the JSON: what was set, nothing more."""
        return self.model_dump(mode="json", exclude_unset=True)


@dataclass(frozen=True, slots=True)
class Counters:
    """What was routed since the last reset, per MoE layer. Padding rows and dummy runs are left out."""

    tokens: list[int]
    """[L]."""
    kept: list[int]
    """[L]: (token, expert) pairs that were kept."""
    usage: list[list[int]]
    """[L][E]: tokens that kept each expert."""

    @property
    def mean_kept(self) -> float:
        """The measured budget: experts kept a token and layer."""
        return sum(self.kept) / max(sum(self.tokens), 1)


def added_counters(counters: Sequence[Counters]) -> Counters:
    """The sum of counters of one engine, layer by layer and expert by expert."""
    return Counters(
        tokens=[sum(layer) for layer in zip(*(c.tokens for c in counters), strict=True)],
        kept=[sum(layer) for layer in zip(*(c.kept for c in counters), strict=True)],
        usage=[
            [sum(expert) for expert in zip(*layers, strict=True)]
            for layers in zip(*(c.usage for c in counters), strict=True)
        ],
    )


class SpeedCell(Part):
    """A policy's speed beside stock's in one phase at one batch size."""

    phase: Literal["decode", "prefill"]
    batch: int = Field(ge=1)
    """Sequences that decode at once; of a prefill, its tokens."""
    speedup: float = Field(gt=0)
    """Over stock: the median of the rounds, in each of which the two take turns."""
    ci95: Interval
    rounds: int = Field(ge=1)
    tokens_per_second: float
    """The policy's."""
    mean_kept: float
    """In the timed steps."""
    unique_experts: float | None
    """Distinct experts that a step uses, a layer: what decides a decode's speed at small batch. null where the engine
    cannot be stepped, and of a prefill."""
    stock_unique_experts: float | None


class Metrics(Part):
    """The numbers of one domain, or of all together."""

    accuracy: float = Field(ge=0, le=1)
    """0 to 1; avg@n where a problem has several answers."""
    accuracy_ci95: Interval
    delta: float | None
    """Accuracy less stock's on the same problems; null for stock itself in records of old."""
    delta_ci95: Interval | None
    n_problems: NonNegativeInt
    tokens_per_second: float | None
    """Generated, at the batch of the accuracy run; null where nothing was timed."""
    speedup: float | None
    """Over stock there, the median of paired turns."""
    speedup_ci95: Interval | None = None
    """Of that median; records of old have `speedup_spread` instead."""
    speedup_spread: Interval | None = None
    """Lowest and highest of the paired runs, of records of old."""
    speed: tuple[SpeedCell, ...] = ()
    """Every phase and batch size that was timed."""
    mean_kept: float
    """The measured budget: experts kept a token and layer."""
    mean_kept_by_layer: tuple[float, ...]
    """[L]."""
    truncated_fraction: float
    """Share of answers that hit the token cap, 0 to 1."""


class PointMetrics(Part):
    """`overall`, and each domain."""

    overall: Metrics
    domains: dict[str, Metrics]

    def of(self, domain: str) -> Metrics:
        """Those of a domain; `overall` is all of them."""
        return self.overall if domain == OVERALL else self.domains[domain]

    def all(self) -> dict[str, Metrics]:
        """`overall` first, then domain by domain."""
        return {OVERALL: self.overall, **self.domains}


class KeyExpertShare(Part):
    """Share of all selections that key experts take, 0 to 1, mean over domains."""

    policy: float
    stock: float


class Engagement(OpenPart):
    """Evidence that a policy took effect, by domain."""

    implied: dict[str, Interval] = {}
    """Lowest and highest mean_kept that the policy implies."""
    measured: dict[str, float] = {}
    """mean_kept."""
    routing_table: dict[str, str] = {}
    """Digest of what the policy is: equal ones route alike by definition."""
    routing_counts: dict[str, str] = {}
    """Digest of what was counted: with other answers equal, equal ones cannot be told from a replay."""
    key_expert_share: KeyExpertShare | None = None
    counters: dict[str, Counters] = {}
    stock_counters: dict[str, Counters] = {}
    """Of the stock point alone, for those that pair with it on another engine."""


class Timing(OpenPart):
    """Seconds that a point took, part by part."""

    swap_seconds: float = 0.0
    """The slowest swap of a policy."""
    stock_seconds: float = 0.0
    solve_seconds: float = 0.0
    accuracy_seconds: float = 0.0
    block_seconds: float | None = None
    """Of blocks answered before, where a race did."""
    throughput_seconds: float = 0.0
    timed_tokens: int | None = None
    """Generated in the timed runs, stock's and the policy's together; records of old lack it."""
    overhead_seconds: float = 0.0
    """Outside of generation."""


class BudgetAccount(Part):
    """How a knob was solved for a wanted budget; the record's `policy` holds the value found."""

    target: float
    knob: str
    """As typed."""
    value: float
    measured: float
    """mean_kept on all problems."""
    probes: tuple[tuple[float, float], ...]
    """(knob, mean_kept on the sample), in order."""
    sample_problems: int
    cached: bool
    """Found by an earlier run, confirmed by this one."""
    corrected: bool
    """Solved again after all problems showed what the sample did not."""


class ModelUsed(OpenPart):
    """The checkpoint, as its settings named it and as its files say."""

    name: str = ""
    path: str | None = None
    identity: str | None = None
    num_layers: int | None = None
    num_experts: int | None = None
    top_k: int | None = None


class TaskUsed(OpenPart):
    """What was asked; the defaults are those of records made before a setting was there."""

    name: str = ""
    split: str = ""
    identity: str | None = None
    samples: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int = 0
    throughput_prompts: int = 0
    throughput_repeats: int = 0
    throughput_tokens: int | None = None


class PointRecord(Part):
    """One finished point: what it was, what was measured, and what to type to have it again."""

    schema_version: int
    finished_at: str
    """UTC, ISO 8601."""
    fingerprint: str = Field(pattern=r"^[0-9A-Za-z_-]{1,128}$")
    """Identity of everything that decides the result, and the name of the file."""
    status: Status
    reason: str | None
    """Why it is not `done`."""
    label: str
    seed: int | None = None
    repeat: int = 0
    """0 is the point itself, 1 its first repeat."""
    policy: dict[str, Any]
    """`name` and the knobs that matter, with the value found for a solved one."""
    model: ModelUsed
    engine: dict[str, Any]
    task: TaskUsed
    versions: dict[str, str]
    calibration: str | None
    """Fingerprint of the calibration that was read."""
    calibration_overlap: int = 0
    """Problems that were asked here and in the calibration too."""
    metrics: PointMetrics | None
    """None of a failed point."""
    engagement: Engagement
    timing: Timing
    budget: BudgetAccount | None = None
    """Of a point whose knob was solved."""
    command: str | None

    @model_validator(mode="after")
    def _holds_together(self) -> PointRecord:
        if self.schema_version not in READABLE_VERSIONS:
            known = " and ".join(map(str, READABLE_VERSIONS))
            raise ValueError(f"schema_version is {self.schema_version}, this version reads {known}")
        if not self.policy.get("name"):
            raise ValueError("the policy has no name")
        k = self.policy.get("k")
        if self.policy_name == "fixed_k" and (isinstance(k, bool) or not isinstance(k, int | float)):
            raise ValueError(f"fixed_k has no number of experts ({k!r})")
        if self.status == "failed" and self.metrics is not None:
            raise ValueError("a failed point has metrics")
        if self.status != "failed" and self.metrics is None:
            raise ValueError(f"a point with status {self.status} has no metrics")
        return self

    @property
    def policy_name(self) -> str:
        return str(self.policy["name"])

    @property
    def knobs(self) -> dict[str, Any]:
        return {knob: value for knob, value in self.policy.items() if knob != "name"}

    @property
    def measured(self) -> PointMetrics:
        """The metrics of a point that has them; AssertionError for one that failed."""
        assert self.metrics is not None, f"{self.label} failed: it has no metrics"
        return self.metrics

    @property
    def mean_kept(self) -> float:
        """The measured budget over all domains, in experts a token and layer; AssertionError where the point failed."""
        return self.measured.overall.mean_kept

    @property
    def is_stock(self) -> bool:
        """Of the model as it is, unpruned."""
        return self.policy_name == "none"

    @property
    def budget_target(self) -> float | None:
        """What its knob was, or was to be, solved for."""
        return self.budget.target if self.budget is not None else self.policy.get("budget")

    @property
    def solved_knob(self) -> str | None:
        """`beta=0.334`."""
        return None if self.budget is None else f"{self.budget.knob}={self.budget.value:g}"

    def asked_policy(self) -> dict[str, Any]:
        """The policy as it was asked for: a solved knob gives way to the budget that it was solved for."""
        if self.budget is None:
            return dict(self.policy)
        kept = {name: value for name, value in self.policy.items() if name != self.budget.knob}
        return kept | {"budget": self.budget.target}

    def settings(self) -> dict[str, dict[str, Any]]:
        """Versions, model, engine and task as they stand in the JSON."""
        return {
            "versions": dict(self.versions),
            "model": self.model.plain(),
            "engine": dict(self.engine),
            "task": self.task.plain(),
        }

    def plain(self) -> dict[str, Any]:
        """As it stands on disk: what was set, nothing more."""
        return self.model_dump(mode="json", exclude_unset=True)


def read_record(content: bytes) -> PointRecord:
    """A record from its JSON. Raises ValueError for what does not hold together, in one line."""
    from pydantic import ValidationError

    try:
        return PointRecord.model_validate_json(content)
    except ValidationError as error:
        raise ValueError(_first_problem(error)) from None


def _first_problem(error: Any) -> str:
    details = error.errors()[0]
    if details["type"] == "json_invalid":
        return f"not readable as JSON ({details['ctx']['error']})"
    place = ".".join(map(str, details["loc"]))
    if details["type"] == "missing":
        return f"the record lacks {place}"
    if details["type"] == "value_error":
        return str(details["ctx"]["error"])
    return f"{place or 'the record'}: {details['msg']}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What came of one answer to one problem."""

    problem_id: str
    """Unique within its domain."""
    domain: str
    task: str
    """Sub-task inside the domain."""
    correct: bool
    truncated: bool
    """It hit the token cap instead of stopping by itself."""
    tokens: int
    """Generated."""
    answer: str
    """What the grader took for the answer; empty where it found none (`found` tells that from an empty one)."""
    repetitive: bool | None = None
    """It ends in a loop; None where that was not looked for (as every field below: records of old lack them)."""
    sample: int | None = None
    """Number of the answer where a problem has several."""
    found: bool | None = None
    """The separator or pattern that marks an answer stood in the completion."""
    completion: str | None = None
    """The whole generated text."""
    finish_reason: str | None = None
    """vLLM's: `stop` or `length`."""
    gold: str | None = None
    """The right answer, normalised as the given one was; several are one JSON list."""


REQUIRED_COLUMNS = ("problem_id", "domain", "task", "correct", "truncated", "tokens", "answer")
OUTCOME_COLUMNS = tuple(field.name for field in fields(Outcome))
COLUMNS_OF_2 = ("found", "completion", "finish_reason", "gold")
"""Which outcomes of version 1 never have; `completion` is what makes version 2."""


def outcomes_frame(outcomes: Sequence[Outcome]) -> pl.DataFrame:
    """One row an outcome; columns that no outcome tells are left out."""
    import polars as pl

    types: dict[str, Any] = {"tokens": pl.Int32, "sample": pl.Int32}
    types |= dict.fromkeys(("correct", "truncated", "repetitive", "found"), pl.Boolean)
    told = [
        name
        for name in OUTCOME_COLUMNS
        if name in REQUIRED_COLUMNS or any(getattr(outcome, name) is not None for outcome in outcomes)
    ]
    columns: Mapping[str, Any] = {
        name: pl.Series(name, [getattr(outcome, name) for outcome in outcomes], dtype=types.get(name, pl.String))
        for name in told
    }
    return pl.DataFrame(columns)


def outcomes_of(frame: pl.DataFrame) -> list[Outcome]:
    """The outcomes that `outcomes_frame` made a frame of."""
    return [Outcome(**row) for row in frame.iter_rows(named=True)]


def count_problems(outcomes: pl.DataFrame) -> int:
    """How many problems were answered; ValueError where one was answered twice under the same number."""
    problem = ["domain", "problem_id"]
    answer = [*problem, "sample"] if "sample" in outcomes.columns else problem
    if not outcomes.select(answer).is_unique().all():
        raise ValueError(f"outcomes repeat a problem: ({', '.join(answer)}) must be unique")
    return outcomes.select(problem).n_unique()


def wrong_version(version: int, outcomes: pl.DataFrame) -> str | None:
    """Why these are no outcomes of a record of that version, None where they are: half of each is neither."""
    newer = [name for name in COLUMNS_OF_2 if name in outcomes.columns]
    if version == 1 and newer:
        return f"schema_version is 1, but its outcomes have {', '.join(newer)}, which only version 2 has"
    if version == 2 and ("completion" not in newer or outcomes["completion"].has_nulls()):
        return "schema_version is 2, but its outcomes lack the completions, as those of version 1 do"
    return None
