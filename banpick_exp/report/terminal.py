"""What a run found, printed: the table of its points, what did not finish, what is doubtful; then the verdict."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import polars as pl
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from banpick_exp.analysis import EQUAL_BUDGET_TOLERANCE, accuracy_name
from banpick_exp.analysis.finding import READ_FIRST
from banpick_exp.costs import Bill
from banpick_exp.records import OVERALL
from banpick_exp.report.bill import HEAD as COSTS
from banpick_exp.report.bill import bill_caption, bill_rows
from banpick_exp.report.equal_budget import equal_budget_sentence, has_solved, is_near, verdict_table
from banpick_exp.report.one_line import Line, fitted_table, lines_table
from banpick_exp.report.repeats import HEAD, overall_repeats, repeat_cells, repeats_sentence
from banpick_exp.report.rivals import rivals_command
from banpick_exp.report.run import Run
from banpick_exp.report.selected import dev_rows, result_rows, selection_sentences
from banpick_exp.report.sentences import alarms, closing, hypervolume_sentence, made_from_sentences
from banpick_exp.report.shown import MOST_LISTED, MOST_PRINTED
from banpick_exp.report.spelling import UNWRAPPED, fitting
from banpick_exp.report.text import MARKS, Row, in_words, span, speed_text, verdict_text

FRONT = {(True, True): "●", (True, False): "○", (False, False): ""}
"""(on_front, sure) -> its sign."""
COLUMNS_MEAN = (
    "● on the front for sure, ○ within noise: no other point is at least as good in accuracy, speed-up and kept experts"
    " and better in one beyond noise. ⚠ a guard was raised. At equal budget: same problems, interval right for all"
    " policies of the sweep at once."
)
LINES_MEAN = (
    "verdict: against the fixed_k point of the nearest measured budget, the interval right for all policies at once;"
    " stock and fixed_k: to stock. ● on the front for sure, ○ within noise, ⚠ a guard was raised."
)
WIDE = 160  # columns of a terminal, from which on all columns of the table are printed where they fit
LISTED = 12  # lines of one kind; the rest is in the run's guards.parquet
LISTED_NARROW = 3  # the same below WIDE columns, where each takes two lines
COLOURS = {"beats": "green", "loses": "red", "ties": "dim"}
STATUS_COLOURS = {"invalid": "yellow", "dropped": "dim", "failed": "red"}


def print_pareto(run: Run, console: Console, *, domain: str = OVERALL, everything: bool = False) -> None:
    """Print the points of one domain as a table, then invalid and failed points with reasons, and what the guards say
    of the others. The verdict is `print_verdict`'s.

    Of more than MOST_PRINTED points the foremost are printed (`report.shown`), on a terminal too narrow for all columns
    MOST_LISTED. `everything`: all of them, and what may be noise too.
    """
    console = fitting(console)
    done = run.done_rows(domain)
    if done.height:
        _print_points(run, done, domain, console, everything)
    else:
        console.print("No point finished: there is no front to show.")
    if said := hypervolume_sentence(run):
        console.print(escape(said))
    _print_equal_budgets(run, console)
    _print_unfinished(run, console, everything)
    if done.height:
        _print_guards(run, done, console, everything)


def print_verdict(run: Run, console: Console) -> None:
    """The last lines: what stock's own answers say against the task, then the verdict with its budget and its speed."""
    console = fitting(console)
    console.print()
    for alarm in alarms(run):
        console.print(f"[bold red]Read this first:[/] {escape(alarm)}", highlight=False)
    console.print(f"[bold]{escape(closing(run))}[/bold]", highlight=False)


def print_repeats(run: Run, console: Console) -> None:
    """How far scores move between repeats; nothing without any."""
    rows = overall_repeats(run)
    if rows.height == 0:
        return
    console = fitting(console)
    cells = [repeat_cells(row) for row in rows.iter_rows(named=True)]
    title = "Repeats: the same point in other batches and another order"
    console.print(fitted_table(title, HEAD, cells, console.width))
    console.print(f"[bold]{escape(repeats_sentence(run))}[/bold]")


def print_bill(bill: Bill | None, console: Console) -> None:
    """What was estimated and what was spent; nothing without a bill."""
    if bill is None:
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in COSTS:
        table.add_column(name, justify="right" if name else "left")
    for row in bill_rows(bill):
        table.add_row(*row)
    console = fitting(console)
    console.print(bill_caption(bill), highlight=False)
    console.print(table)


def print_selection(run: Run, console: Console) -> None:
    """What dev chose and what the split of the result says of it; nothing under any search but select."""
    if not run.picks:
        return
    console = fitting(console)
    head, rows = dev_rows(run)
    _print_rows("Dev chooses (the best of many looks better there than it is)", head, rows, console)
    _print_unfinished(run.on_dev, console, everything=False)
    head, rows = result_rows(run)
    _print_rows("The result: difference to stock (points, interval right for all rows at once)", head, rows, console)
    for line in selection_sentences(run):
        console.print(f"[bold]{escape(line)}[/bold]", soft_wrap=True, highlight=False)


def _print_rows(title: str, head: Sequence[str], rows: Sequence[Sequence[str]], console: Console) -> None:
    console.print(fitted_table(title, head, rows, console.width))


def _print_points(run: Run, done: pl.DataFrame, domain: str, console: Console, everything: bool) -> None:
    """The table and what its signs mean."""
    shown = _Shown(run, done, domain, len(run.done) if everything else MOST_PRINTED)
    table: Table = _points_table(shown, domain)
    in_lines = console.width < WIDE or _width(table, console) > console.width
    if in_lines:
        shown = _Shown(run, done, domain, len(run.done) if everything else MOST_LISTED)
        title = f"Against fixed_k at equal budget ({domain}{_asked(shown.rows)})"
        table = lines_table(shown.lines(), title, console.width, COLOURS)
    console.print(table)
    if shown.rows.height < done.height:
        typed = escape(f"python -m banpick_exp report {run.folder.path} --all")
        chosen = "the front, the references, the best of each rule at each budget, the largest differences"
        said = f"[dim]{shown.rows.height} of {done.height:,} points, {chosen} first; all of them: {typed}[/dim]"
        console.print(said, soft_wrap=True, highlight=False)
    console.print(f"[dim]{LINES_MEAN if in_lines else COLUMNS_MEAN}[/dim]", highlight=False)
    for line in made_from_sentences(run):
        console.print(f"[dim]{escape(line)}[/dim]", soft_wrap=True, highlight=False)
    if not all(map(is_near, shown.verdict_of.values())):
        far = f"its measured budget is more than {EQUAL_BUDGET_TOLERANCE} experts away from the nearest fixed_k point."
        console.print(f"[dim]* not at equal budget: {far}[/dim]", highlight=False)
        if typed := rivals_command(run):
            console.print(f"[dim]  rivals that keep as many: {escape(typed)}[/dim]", soft_wrap=True, highlight=False)
    noted = [] if in_lines else [row for row in shown.verdict_of.values() if row["note"] and is_near(row)]
    for row in noted if everything else noted[:LISTED]:
        console.print(f"[dim]{escape(row['label'])}: {escape(row['note'])}.[/dim]")
    if len(noted) > LISTED and not everything:
        console.print(f"[dim]... and {len(noted) - LISTED} more such notes[/dim]")


class _Shown:
    """The foremost points of a domain, those that keep most first."""

    def __init__(self, run: Run, done: pl.DataFrame, domain: str, most: int) -> None:
        told = run.foremost(most)
        rows = done.filter(pl.Series([name in told for name in done["fingerprint"]], dtype=pl.Boolean))
        self.rows = rows.sort("mean_kept", "accuracy", descending=True)
        self.verdict_of: Mapping[str, Row] = {
            row["fingerprint"]: row for (name, at), row in run.verdict_of.items() if at == domain and name in told
        }
        self._alarmed = set(run.raised["fingerprint"])

    def lines(self) -> list[Line]:
        """A point each."""
        return [
            Line(
                row=row,
                verdict=self.verdict_of.get(row["fingerprint"]),
                signs=FRONT[row["on_front"], row["sure"]] + ("⚠" if row["fingerprint"] in self._alarmed else ""),
            )
            for row in self.rows.iter_rows(named=True)
        ]


def _asked(rows: pl.DataFrame) -> str:
    """`, 1,200 problems`; nothing where points were asked different numbers."""
    asked = rows["n_problems"].unique().to_list()
    return f", {asked[0]:,} problems" if len(asked) == 1 else ""


def _width(table: Table, console: Console) -> int:
    """Columns of the terminal that it takes without a cell wrapped."""
    return Measurement.get(console, console.options.update_width(UNWRAPPED), table).maximum


def _points_table(shown: _Shown, domain: str) -> Table:
    """All columns, nothing wrapped."""
    of_all = _asked(shown.rows)
    table = Table(title=f"Pareto table ({domain}{of_all})", title_justify="left")
    table.add_column("", no_wrap=True)
    table.add_column("policy", no_wrap=True)
    accuracy = f"{accuracy_name(shown.rows)} % [95 %]"
    for name in (accuracy, "vs stock [95 %]", "speed-up [95 %]", "kept", "truncated %", "gap"):
        table.add_column(name, justify="right", no_wrap=True)
    if not of_all:
        table.add_column("n", justify="right", no_wrap=True)
    table.add_column("at equal budget [points]", no_wrap=True)
    for line in shown.lines():
        row, verdict = line.row, line.verdict
        table.add_row(
            line.signs,
            escape(row["label"]) + (f" [dim]{escape(row['solved_knob'])}[/dim]" if row["solved_knob"] else ""),
            escape(span(row, "accuracy", ".1f", 100)),
            escape(span(row, "delta", "+z.1f", 100)),
            speed_text(row),
            f"{row['mean_kept']:.2f}",
            f"{100 * row['truncated_fraction']:.1f}",
            "" if verdict is None or verdict["budget_gap"] is None else f"{verdict['budget_gap']:+.2f}",
            *([] if of_all else [f"{row['n_problems']:,}"]),
            "" if verdict is None else _verdict(verdict),
        )
    return table


def _verdict(row: Row) -> str:
    text = escape(verdict_text(row)) + ("" if is_near(row) else " *")
    return f"[{COLOURS.get(row['verdict'], 'default')}]{text}[/]"


def _print_equal_budgets(run: Run, console: Console) -> None:
    """Which rule beats fixed_k at which budget, where a knob was solved for any of the points."""
    found = verdict_table(run.verdicts)
    if not has_solved(run.frame) or not found.cells:
        return
    table = Table(title="Against fixed_k at equal budget (points, simultaneous interval)", title_justify="left")
    for name in ("policy", *map(in_words, found.references)):
        table.add_column(escape(name))
    colours = {MARKS[verdict]: COLOURS[verdict] for verdict in ("beats", "loses")}
    for policy, cells in found.cells:
        coloured = [f"[{colours.get(cell[:1], 'default')}]{escape(cell)}[/]" for cell in cells]
        table.add_row(escape(policy), *coloured)
    if _width(table, console) <= console.width:
        console.print(table)
    console.print(escape(equal_budget_sentence(run.verdicts)))


def _print_unfinished(run: Run, console: Console, everything: bool) -> None:
    rows = run.frame.filter((pl.col("status") != "done") & (pl.col("domain") == OVERALL))
    told = rows if everything else rows.head(MOST_PRINTED)
    for row in told.iter_rows(named=True):
        reason = row["reason"] or "no reason recorded"
        status = f"[{STATUS_COLOURS[row['status']]}]{row['status']}[/]"
        console.print(f"{status} {escape(row['label'])}: {escape(reason)}")
    if told.height < rows.height:
        console.print(f"[dim]... and {rows.height - told.height} more without a result[/dim]")


def _print_guards(run: Run, done: pl.DataFrame, console: Console, everything: bool) -> None:
    """What the guards raised on finished points, and in one line how much more there is to look at."""
    points = done["fingerprint"].n_unique()
    raised = run.raised.filter(pl.col("fingerprint").is_in(done["fingerprint"].implode()))
    noise = run.may_be_noise
    listed = raised.filter(~pl.col("guard").is_in(READ_FIRST))  # those stand before the verdict
    _print_findings(listed, lambda row: "red" if row["level"] == "invalid" else "yellow", None, console, everything)
    if everything:
        _print_findings(noise, lambda row: "dim", "dim", console, everything)
    said = f"{raised.height} raised on {raised['fingerprint'].n_unique()} of" if raised.height else "none raised on"
    more = ""
    if noise.height and not everything:
        more = f"; {noise.height} changes that may be noise: python -m banpick_exp report {run.folder.path} --all"
    console.print(f"[dim]Guards: {said} {points} points{escape(more)}.[/dim]", soft_wrap=True)


def _print_findings(
    rows: pl.DataFrame, colour: Callable[[Row], str], style: str | None, console: Console, everything: bool
) -> None:
    """A line each, the first of them unless `everything` is to be seen."""
    listed = rows.height if everything else LISTED if console.width >= WIDE else LISTED_NARROW
    for row in rows.head(listed).iter_rows(named=True):
        where = "" if row["domain"] == OVERALL else f" ({row['domain']})"
        said = escape(f"{row['label']}{where}: {row['detail']}")
        console.print(f"[{colour(row)}]guard {row['guard']}[/] {said}", style=style)
    if rows.height > listed:
        console.print(f"[dim]... and {rows.height - listed} more like these[/dim]")
