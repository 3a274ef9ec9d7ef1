"""What a run found, in sentences: only what its records and outcomes say."""

from __future__ import annotations

import polars as pl

from banpick_exp.analysis import EQUAL_BUDGET_TOLERANCE
from banpick_exp.analysis.finding import READ_FIRST
from banpick_exp.analysis.verdict import gains_in
from banpick_exp.records import OVERALL, STATUSES
from banpick_exp.report.equal_budget import NAMED, at_equal_budget, equal_budget_sentence, has_solved, is_near
from banpick_exp.report.repeats import repeats_sentence
from banpick_exp.report.rivals import rivals_command
from banpick_exp.report.run import Run
from banpick_exp.report.selected import selection_sentences
from banpick_exp.report.text import STOCK, Row, against, points, rival


def sentences(run: Run) -> list[str]:
    """What a reader should know after the headline, one fact a line."""
    lines = [f"Read this first: {alarm}" for alarm in alarms(run)]
    lines += [_extent(run), *made_from_sentences(run), _sampling(run), *_tally(run), hypervolume_sentence(run)]
    lines += [*_by_domain(run), *_speed(run), *_guards(run)]
    lines += [repeats_sentence(run), equal_budget_sentence(run.verdicts) if has_solved(run.frame) else ""]
    lines += selection_sentences(run)
    return [line for line in lines if line]


def closing(run: Run) -> str:
    """The headline, and of the point that it names, or that came nearest to a gain, the measured budget and speed."""
    best = foremost_row(run)
    if best is None:
        return run.headline
    if best["verdict"] == "beats":
        return f"{run.headline} It keeps {_kept_and_speed(run, best)}."
    said = f"{points(best, simultaneous=True)} points to {rival(best)}"
    nearest = f"Nearest to one by its lower bound: {best['label']}, {said}"
    return f"{run.headline} {nearest}, keeps {_kept_and_speed(run, best)}."


def foremost_row(run: Run) -> Row | None:
    """Of `verdicts`: the gain that the headline names, else the tie at equal budget that came nearest to one."""
    gains = gains_in(run.verdicts)
    if gains.height:
        return gains.row(0, named=True)
    return None if run.headline.startswith("No verdict") else nearest_to_a_gain(run)


def nearest_to_a_gain(run: Run) -> Row | None:
    """The row of `verdicts` of the tie at equal budget that is the least likely to be a loss; None without a tie."""
    ties = at_equal_budget(run.verdicts).filter(pl.col("verdict") == "ties")
    return next(ties.sort("lo_simultaneous", descending=True).head(1).iter_rows(named=True), None)


def _kept_and_speed(run: Run, verdict: Row) -> str:
    """`5.02 experts a token, at 1.08x the speed of stock [1.05, 1.11]`: of a row of `verdicts`, all domains."""
    (row,) = run.done_rows().filter(pl.col("fingerprint") == verdict["fingerprint"]).iter_rows(named=True)
    kept = f"{row['mean_kept']:.2f} experts a token"
    ratio, low, high = row["speedup"], row["speedup_lo"], row["speedup_hi"]
    if ratio is None:
        return f"{kept}; its speed was not timed beside that stock"
    if low is None or high is None or low == high:
        return f"{kept}, at {ratio:.2f}x the speed of stock"
    interval = f"[{low:.2f}, {high:.2f}]"
    if low <= 1 <= high:
        return f"{kept}, and its speed ties with stock's ({ratio:.2f}x {interval})"
    return f"{kept}, at {ratio:.2f}x the speed of stock {interval}"


def alarms(run: Run) -> list[str]:
    """What decides whether the comparisons mean anything: stock's own answers, points that were asked differently."""
    found = run.raised.filter(pl.col("guard").is_in(READ_FIRST))
    said = [f"{row['guard']} ({row['domain']}): {row['detail']}" for row in found.iter_rows(named=True)]
    return said + [f"on dev, {alarm}" for alarm in (alarms(run.on_dev) if run.dev else [])]


def made_from_sentences(run: Run) -> list[str]:
    """What is left of each checkpoint that was made from another, and how it is held against that; none without one."""
    made = {record.model.name: record.model for record in run.done if record.model.base is not None}
    lines = []
    for name, model in sorted(made.items()):
        assert model.base is not None
        left = "" if model.base.expert_bytes is None else f", {model.base.expert_bytes:.0%} of the bytes in experts"
        lines.append(
            f"{name} was made from another checkpoint: {model.num_experts} of {model.base.num_experts} experts a layer"
            f" are left{left}."
        )
    if lines:
        lines.append(
            "Such points are held against that checkpoint's stock and fixed_k, problem by problem. Their speed-up (in"
            " brackets) is over stock of their own checkpoint, as no clock ran in turn on both: with points of another"
            " checkpoint they compete in accuracy and experts kept alone."
        )
    return lines


def problems_a_point(run: Run) -> str:
    """`1,200 problems a point`, `24 to 36 problems a point` where set-ups ask different numbers."""
    asked = sorted({record.measured.overall.n_problems for record in run.done})
    return f"{' to '.join(f'{count:,}' for count in dict.fromkeys((asked[0], asked[-1])))} problems a point"


def _extent(run: Run) -> str:
    counts = {status: sum(record.status == status for record in run.records) for status in STATUSES}
    wrong = [f"{count} {status}" for status, count in counts.items() if status != "done" and count]
    wrong += [f"{len(run.left_out)} left out: not readable as written"] if run.left_out else []
    return (
        f"{counts['done']} of {run.recorded} points are done{' (' + ', '.join(wrong) + ')' if wrong else ''}: "
        f"model {run.models}, task {run.tasks}, {problems_a_point(run)}."
    )


COUNTS = {
    "mean": "Accuracy is their mean",
    "majority": "Of each problem the answer counts that most of them gave (task.choose=majority)",
    "grader": "A problem counts as solved where any of them is right (task.choose=grader): an oracle chose, so accuracy"
    " is an upper bound of what any verifier reaches, and no result to deploy",
    "reward": "Of each problem the answer counts that a reward model scored highest (task.choose=reward)",
}
"""What became of several answers, by `task.choose`."""


def _sampling(run: Run) -> str:
    """How answers were drawn, where they were; the greedy case needs no sentence."""
    drawn = {(record.task.samples, record.task.temperature, record.task.top_p) for record in run.done}
    said = [
        f"{samples} a problem at temperature {temperature:g}, top-p {top_p:g}"
        for samples, temperature, top_p in sorted(drawn)
        if temperature
    ]
    if not said:
        return ""
    counts = "; ".join(COUNTS[choose] for choose in dict.fromkeys(record.task.choose for record in run.done))
    return (
        f"Answers were sampled: {'; '.join(said)}. {counts}, intervals are over problems, and every policy had the same"
        " seeds."
    )


def _tally(run: Run) -> list[str]:
    overall = run.verdicts.filter(pl.col("domain") == OVERALL)
    compared = overall.filter(pl.col("verdict") != "unmatched")
    if compared.height == 0:
        return []
    near = compared.filter(pl.col("budget_gap").abs() <= EQUAL_BUDGET_TOLERANCE)
    count = {verdict: int((near["verdict"] == verdict).sum()) for verdict in ("beats", "ties", "loses")}
    lines = [
        f"Against fixed_k at equal measured budget, all domains together: of {near.height} policies {count['beats']} "
        f"beat it, {count['ties']} tie, {count['loses']} lose."
    ]
    if far := overall.height - near.height:
        typed = rivals_command(run)
        lines.append(
            f"Without a fixed_k point within {EQUAL_BUDGET_TOLERANCE} experts per token: {far} more; what is said of"
            " them is not at equal budget." + (f" For rivals that keep as many, type: {typed}" if typed else "")
        )
    half = (compared["hi_simultaneous"] - compared["lo_simultaneous"]).median()
    assert isinstance(half, float)
    lines.append(
        f"Resolution: with {max(compared['n_pairs']):,} paired problems, differences under about {50 * half:.1f} "
        "points cannot be told from chance (half the median simultaneous interval). A tie is no proof of equality."
    )
    return lines


def _by_domain(run: Run) -> list[str]:
    rows = run.verdicts.filter((pl.col("domain") != OVERALL) & pl.col("verdict").is_in(["beats", "loses"]))
    rows = rows.sort(pl.col("difference").abs(), descending=True)
    named = [
        f"{row['label']} {against(row)} on {row['domain']}, {points(row, simultaneous=True)} points"
        + ("" if is_near(row) else " (not at equal budget)")
        for row in rows.head(NAMED).iter_rows(named=True)
    ]
    if not named:
        return []
    more = f"; and {rows.height - NAMED} more in the table below" if rows.height > NAMED else ""
    return ["Single domains apart from fixed_k: " + "; ".join(named) + more + "."]


def _speed(run: Run) -> list[str]:
    """How well the clock tells stock from itself, and how many policies it tells from stock."""
    timed = [row for row in run.done_rows().iter_rows(named=True) if row["speedup_lo"] is not None]
    stock = [row for row in timed if row["policy"] == STOCK]
    if not stock:
        return []
    ends = min(row["speedup_lo"] for row in stock), max(row["speedup_hi"] for row in stock)
    others = [row for row in timed if row["policy"] != STOCK]
    faster, slower = sum(row["speedup_lo"] > 1 for row in others), sum(row["speedup_hi"] < 1 for row in others)
    at = {record.measured.overall.speed[-1].batch for record in run.done if record.measured.overall.speed}
    batch = f" (decoding {', '.join(map(str, sorted(at)))} sequences at once)" if at else ""
    return [
        f"Speed{batch}: stock timed against itself gives {ends[0]:.2f}x to {ends[1]:.2f}x. Of {len(others)} other"
        f" points, each by its own interval: {faster} faster than stock, {slower} slower,"
        f" {len(others) - faster - slower} tied."
    ]


def hypervolume_sentence(run: Run) -> str:
    """The one number of a sweep; empty where there is none."""
    said = []
    for gain in run.hypervolume:
        by_budget = gain.axis == "mean_kept"
        over = f"budgets {gain.low:.4g} to {gain.high:.4g}" if by_budget else f"speed-ups 1 to {gain.high:.2f}"
        verdict = "" if gain.decided else ", no difference shown"
        said.append(f"{gain.points:+.2f} [{gain.ci95[0]:+.2f}, {gain.ci95[1]:+.2f}] over {over}{verdict}")
    if not said:
        return ""
    return f"Pareto hypervolume over the fixed_k ladder alone, in points of accuracy: {'; '.join(said)}."


def _guards(run: Run) -> list[str]:
    raised = run.raised
    if raised.height == 0:
        return []
    count = raised["fingerprint"].n_unique()
    names = ", ".join(sorted(set(raised["guard"])))
    return [
        f"Guards: {raised.height} raised on {count} point{'s' if count > 1 else ''} ({names}); listed under Guards."
    ]
