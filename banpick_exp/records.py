"""What a finished point leaves behind, typed: its record, its metrics, and the outcome of every problem.

The names are those of the JSON on disk, which others read too: a field that changes its meaning is a new
`SCHEMA_VERSION`. `run_folder` writes and reads these; nothing else indexes a record by string. Imports nothing heavy.

Versions: 1 kept of an answer only what was extracted from it; 2 keeps the whole completion, so that a run can be graded
again; 3 is sealed: the JSON holds digests of itself and of its outcomes, so an edit of either is seen. All are read; a
record of any other version is refused, never guessed at.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, model_validator

if TYPE_CHECKING:
    import polars as pl  # at run time inside the functions: planning imports this module and must stay light

SCHEMA_VERSION = 3
"""Of what is written."""
READABLE_VERSIONS = (1, 2, 3)
OUTCOMES_VERSION = 2
"""The version that changed last what an outcome holds: answers kept elsewhere, as those of a race, are of it."""
SEALED_SINCE = 3
OUTCOMES_SEAL, RECORD_SEAL = "outcomes_sha256", "record_sha256"
"""Keys of the JSON that are no part of the record: SHA-256 of the outcomes' bytes (null of a failed point), and of the
rest of the JSON, canonically (sorted keys, no spaces)."""
ROUNDING = 1e-9
"""What two ways to add up the same numbers may differ by."""
LONGEST_REASON = 120
"""Characters of a reason that are told beside a problem; the record has all."""
ON = " on "
"""Between a policy and the name of a checkpoint."""
OVERALL = "overall"
"""Stands where the name of a domain would: all domains together."""

Status = Literal["done", "invalid", "dropped", "failed"]
STATUSES: tuple[Status, ...] = ("done", "invalid", "dropped", "failed")
"""`dropped`: stopped by a race after some of its problems; metrics and outcomes are of those, its speed is null."""
Interval = tuple[float, float]
"""(low, high), 95 % unless a field says otherwise."""


class CorruptRecord(ValueError):
    """A point record that cannot be trusted; the message says what is wrong with which file."""


class MissingOutcomes(FileNotFoundError):
    """A record whose outcomes file is not there: nothing is wrong with what it says, but nothing can be checked."""


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
    """0 to 1; avg@n where a problem has several answers, of the chosen one where `task.choose` says so."""
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
    measured_by_row: dict[str, tuple[float, ...]] = {}
    """The same of each row, where the policy holds several."""
    routing_table: dict[str, str] = {}
    """Digest of what the policy is: equal ones route alike by definition."""
    routing_counts: dict[str, str] = {}
    """Digest of what was counted: with other answers equal, equal ones cannot be told from a replay."""
    key_expert_share: KeyExpertShare | None = None
    key_experts: dict[str, dict[str, list[int]]] = {}
    """Which experts were reinforced, by layer; a domain without any had nothing to reinforce."""
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


class FailedProblem(Part):
    """A problem that was set aside because it breaks engines: it has no answer, and is neither right nor wrong."""

    domain: str
    problem_id: str
    reason: str
    """How the last engine died that was asked it alone."""

    @property
    def said(self) -> str:
        """`math 7 (ActorDiedError: killed)`, in a line of a report."""
        reason = self.reason if len(self.reason) <= LONGEST_REASON else f"{self.reason[: LONGEST_REASON - 3]}..."
        return f"{self.domain} {self.problem_id} ({reason})"


class BaseUsed(Part):
    """The checkpoint that a static method made another one from."""

    identity: str
    num_experts: int
    expert_bytes: float | None
    """Share of its bytes in routed experts that is left; None where that is not known."""


class ModelUsed(OpenPart):
    """The checkpoint, as its settings named it and as its files say."""

    name: str = ""
    path: str | None = None
    identity: str | None = None
    num_layers: int | None = None
    num_experts: int | None = None
    top_k: int | None = None
    base: BaseUsed | None = None
    """Of one with model.made_from."""


class TaskUsed(OpenPart):
    """What was asked; the defaults are those of records made before a setting was there."""

    name: str = ""
    split: str = ""
    identity: str | None = None
    samples: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    choose: str = "mean"
    reward_identity: str | None = None
    """Of the checkpoint that chose, under `task.choose=reward`."""
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
    score: str | None = None
    """Of that calibration, what ranked the key experts; None where none were read of it."""
    calibration_overlap: int = 0
    """Problems that were asked here and in the calibration too."""
    metrics: PointMetrics | None
    """None of a failed point."""
    engagement: Engagement
    timing: Timing
    budget: BudgetAccount | None = None
    """Of a point whose knob was solved."""
    failed_problems: tuple[FailedProblem, ...] = ()
    """Set aside because they, or stock's answers to them, broke engines: in no outcome, no number and no pair."""
    command: str | None

    @model_validator(mode="after")
    def _holds_together(self) -> PointRecord:
        if self.schema_version not in READABLE_VERSIONS:
            known = ", ".join(map(str, READABLE_VERSIONS))
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
    def series(self) -> str:
        """What it is in tables and figures: its policy, with the checkpoint where that was made from another one.

        `none on pruned` is not stock, which is the base's, and `fixed_k on pruned` is no rung of the base's ladder.
        """
        return self.policy_name if self.model.base is None else f"{self.policy_name}{ON}{self.model.name}"

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


def sealed(plain: Mapping[str, Any], outcomes: bytes | None) -> dict[str, Any]:
    """A record's JSON with its seal. `outcomes`: the bytes of its Parquet file, None of a failed point."""
    bound = {**plain, OUTCOMES_SEAL: None if outcomes is None else digest(outcomes)}
    return {**bound, RECORD_SEAL: digest_of_json(bound)}


def read_record(content: bytes) -> tuple[PointRecord, str | None]:
    """A record from its JSON, and the digest of its outcomes (None of a failed point, and before version 3).

    Raises ValueError for what does not hold together, in one line.
    """
    from pydantic import ValidationError
    from pydantic_core import from_json

    try:
        plain = from_json(content)
    except ValueError as error:
        raise ValueError(f"not readable as JSON ({error})") from None
    version = plain.get("schema_version") if isinstance(plain, dict) else None
    is_sealed = isinstance(version, int) and version >= SEALED_SINCE
    seal = {key: plain.pop(key) for key in (OUTCOMES_SEAL, RECORD_SEAL) if key in plain} if is_sealed else {}
    try:
        record = PointRecord.model_validate(plain)
    except ValidationError as error:
        raise ValueError(_first_problem(error)) from None
    if is_sealed:
        for key in (OUTCOMES_SEAL, RECORD_SEAL):
            if key not in seal:
                raise ValueError(f"edited or damaged: the record lacks {key}")
        if seal[RECORD_SEAL] != digest_of_json({**plain, OUTCOMES_SEAL: seal[OUTCOMES_SEAL]}):
            raise ValueError(f"edited or damaged: its content is not that of its {RECORD_SEAL}")
    return record, seal.get(OUTCOMES_SEAL)


def read_checked_record(content: bytes) -> tuple[PointRecord, str | None]:
    """As `read_record`, of content that was checked already: its seal is not looked at. ValueError, LookupError."""
    from pydantic_core import from_json

    plain = from_json(content)
    del plain[RECORD_SEAL]
    outcomes = plain.pop(OUTCOMES_SEAL)
    return PointRecord.model_validate(plain), outcomes


def digest(content: bytes) -> str:
    """SHA-256, as a seal holds it."""
    return hashlib.sha256(content).hexdigest()


def digest_of_json(plain: Mapping[str, Any]) -> str:
    """SHA-256 of a JSON object, canonically: sorted keys, no spaces. Raises ValueError for NaN, which is no JSON."""
    return digest(json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False).encode())


def _first_problem(error: Any) -> str:
    details = error.errors()[0]
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
    tokens: Annotated[int, Field(ge=0, lt=2**31)]
    """Generated."""
    answer: str
    """What the grader took for the answer; empty where it found none (`found` tells that from an empty one)."""
    repetitive: bool | None = None
    """It ends in a loop; None where that was not looked for (as every field below: records of old lack them)."""
    sample: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    """Number of the answer where a problem has several."""
    found: bool | None = None
    """The separator or pattern that marks an answer stood in the completion."""
    completion: str | None = None
    """The whole generated text."""
    finish_reason: str | None = None
    """vLLM's: `stop` or `length`."""
    gold: str | None = None
    """The right answer, normalised as the given one was; several are one JSON list."""
    pattern_timeout: bool | None = None
    """True where the search for the answer was ended at its time limit, so that none was found; None elsewhere."""
    grader_timeout: bool | None = None
    """True where judging the answer was ended at a limit of the grader's own, or had no sandbox, so that it counts as
    wrong."""
    chosen: bool | None = None
    """Whether it is the one of several answers that counts; None where none is chosen, and all count alike."""
    score: float | None = None
    """The reward model's (`task.choose=reward`), finite: the highest of a problem is the one that counts."""
    score_cut: bool | None = None
    """True where the reward model could not read the whole of question and answer, and the beginning was left out."""


REQUIRED_COLUMNS = ("problem_id", "domain", "task", "correct", "truncated", "tokens", "answer")
OUTCOME_COLUMNS = tuple(field.name for field in fields(Outcome))
COLUMNS_OF_2 = ("found", "completion", "finish_reason", "gold")
"""Which outcomes of version 1 never have; `completion` is what makes version 2."""


def outcomes_frame(outcomes: Sequence[Outcome]) -> pl.DataFrame:
    """One row an outcome; columns that no outcome tells are left out."""
    import polars as pl

    types: dict[str, Any] = {"tokens": pl.Int32, "sample": pl.Int32, "score": pl.Float64}
    types |= dict.fromkeys(("correct", "truncated", "repetitive", "found", "chosen"), pl.Boolean)
    types |= dict.fromkeys(("pattern_timeout", "grader_timeout", "score_cut"), pl.Boolean)
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


def that_count(outcomes: pl.DataFrame) -> pl.DataFrame:
    """The answers that decide: where a verifier chose, the chosen one of each problem, else all."""
    return outcomes.filter(outcomes["chosen"]) if "chosen" in outcomes.columns else outcomes


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
    if version > 1 and ("completion" not in newer or outcomes["completion"].has_nulls()):
        return f"schema_version is {version}, but its outcomes lack the completions, as those of version 1 do"
    return None


def wrong_numbers(metrics: PointMetrics, outcomes: pl.DataFrame) -> str | None:
    """Which number of a point its own outcomes or its own interval contradict, in words; None where all agree."""
    return next((wrong for wrong in (*_wrong_counts(metrics, outcomes), *_outside(metrics))), None)


def _wrong_counts(metrics: PointMetrics, outcomes: pl.DataFrame) -> Iterator[str]:
    """Problems and accuracy, counted again: the mean over problems of the mean over each one's samples."""
    import polars as pl

    if outcomes.schema["correct"] != pl.Boolean or outcomes["correct"].has_nulls():
        yield "its outcomes do not say of every answer whether it is correct"
        return
    if (wrong := _wrong_choice(outcomes)) is not None:
        yield wrong
        return
    problems = that_count(outcomes).group_by("domain", "problem_id").agg(pl.col("correct").mean())
    parts = problems.group_by("domain").agg(pl.len(), pl.col("correct").sum()).rows()
    counted = {domain: (count, right) for domain, count, right in parts}
    counted[OVERALL] = sum(count for _, count, _ in parts), sum(right for *_, right in parts)
    for domain, told in metrics.all().items():
        count, right = counted.get(domain, (0, 0.0))
        if count != told.n_problems:
            yield f"outcomes of {count} problems for n_problems={told.n_problems} ({domain})"
        elif count and abs(right / count - told.accuracy) > ROUNDING:
            yield f"accuracy is {told.accuracy:.6g} ({domain}), its outcomes say {right / count:.6g}"


def _wrong_choice(outcomes: pl.DataFrame) -> str | None:
    """What is wrong where not just one answer of each problem is chosen; None where none is, or all is well."""
    if "chosen" not in outcomes.columns:
        return None
    import polars as pl

    count = outcomes.group_by("domain", "problem_id").agg(pl.col("chosen").sum().alias("count"))["count"]
    if outcomes["chosen"].has_nulls() or not (count == 1).all():
        return "its outcomes do not choose one answer of each problem"
    if "score" not in outcomes.columns:
        return None
    if outcomes["score"].has_nulls() or not outcomes["score"].is_finite().all():
        return "its outcomes do not say of every answer how the reward model scores it"
    best = outcomes.sort("score", "sample", descending=[True, False]).group_by(
        "domain", "problem_id", maintain_order=True
    )
    if not best.first()["chosen"].all():
        return "its outcomes choose an answer that the reward model does not score highest"
    return None


def _outside(metrics: PointMetrics) -> Iterator[str]:
    """Estimates that lie outside their own interval."""
    for domain, told in metrics.all().items():
        speeds = [("speedup", cell.speedup, cell.ci95) for cell in told.speed]
        for name, value, interval in (
            ("accuracy", told.accuracy, told.accuracy_ci95),
            ("delta", told.delta, told.delta_ci95),
            ("speedup", told.speedup, told.speedup_ci95 or told.speedup_spread),
            *speeds,
        ):
            if value is None or interval is None:
                continue
            low, high = interval
            if not low - ROUNDING <= value <= high + ROUNDING:
                yield f"{name} is {value:.6g} ({domain}), outside its own interval {low:.6g} to {high:.6g}"
