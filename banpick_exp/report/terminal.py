"""What a run found, printed: the table of its points, the conclusion below, and what did not finish."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import polars as pl
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from banpick_exp.analysis import EQUAL_BUDGET_TOLERANCE, accuracy_name
from banpick_exp.analysis.finding import READ_FIRST
from banpick_exp.costs import Bill
from banpick_exp.records import OVERALL
from banpick_exp.report.bill import HEAD as COSTS
from banpick_exp.report.bill import bill_caption, bill_rows
from banpick_exp.report.equal_budget import equal_budget_sentence, has_solved, is_near, verdict_table
from banpick_exp.report.repeats import HEAD, overall_repeats, repeat_cells, repeats_sentence
from banpick_exp.report.rivals import rivals_command
from banpick_exp.report.run import Run
from banpick_exp.report.selected import dev_rows, result_rows, selection_sentences
from banpick_exp.report.sentences import alarms, hypervolume_sentence, made_from_sentences
from banpick_exp.report.shown import MOST_PRINTED
from banpick_exp.report.text import MARKS, Row, in_words, span, speed_text, verdict_text

FRONT = {(True, True): "●", (True, False): "○", (False, False): ""}
"""(on_front, sure) -> its sign."""
WIDE = 220  # columns, where the output is no terminal: a log wraps nothing
LISTED = 12  # lines of one kind; the rest is in the run's guards.parquet
COLOURS = {"beats": "green", "loses": "red", "ties": "dim"}
STATUS_COLOURS = {"invalid": "yellow", "dropped": "dim", "failed": "red"}


def unwrapped(console: Console) -> Console:
    """The console itself, or where it is no terminal one that is WIDE."""
    return console if console.is_terminal else Console(file=console.file, width=max(WIDE, console.width))


def print_pareto(run: Run, console: Console, *, domain: str = OVERALL, everything: bool = False) -> None:
    """Print the points of one domain as a table, the conclusion below, then invalid and failed points with reasons, and
    what the guards say of the others.

    What stock's own answers say against the task stands before the conclusion. Of more than MOST_PRINTED points the
    foremost are printed (`report.shown`). `everything`: all of them, and what may be noise too.
    """
    console = unwrapped(console)
    done = run.done_rows(domain)
    if done.height:
        _print_points(run, done, domain, console, everything)
    else:
        console.print("No point finished: there is no front to show.")
    for alarm in alarms(run):
        console.print(f"[bold red]Read this first:[/] {escape(alarm)}", soft_wrap=True, highlight=False)
    console.print(f"\n[bold]{escape(run.headline)}[/bold]")
    if said := hypervolume_sentence(run):
        console.print(escape(said))
    _print_equal_budgets(run, console)
    _print_unfinished(run, console, everything)
    if done.height:
        _print_guards(run, done, console, everything)


def print_repeats(run: Run, console: Console) -> None:
    """How far scores move between repeats; nothing without any."""
    rows = overall_repeats(run)
    if rows.height == 0:
        return
    console = unwrapped(console)
    table = Table(title="Repeats: the same point in other batches and another order", title_justify="left")
    for name in HEAD:
        table.add_column(name, justify="left" if name == "policy" else "right")
    for row in rows.iter_rows(named=True):
        table.add_row(*map(escape, repeat_cells(row)))
    console.print(table)
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
    console = unwrapped(console)
    console.print(bill_caption(bill), highlight=False)
    console.print(table)


def print_selection(run: Run, console: Console) -> None:
    """What dev chose and what the split of the result says of it; nothing under any search but select."""
    if not run.picks:
        return
    console = unwrapped(console)
    head, rows = dev_rows(run)
    _print_rows("Dev chooses (the best of many looks better there than it is)", head, rows, console)
    _print_unfinished(run.on_dev, console, everything=False)
    head, rows = result_rows(run)
    _print_rows("The result: difference to stock (points, interval right for all rows at once)", head, rows, console)
    for line in selection_sentences(run):
        console.print(f"[bold]{escape(line)}[/bold]", soft_wrap=True, highlight=False)


def _print_rows(title: str, head: Sequence[str], rows: Sequence[Sequence[str]], console: Console) -> None:
    table = Table(title=title, title_justify="left")
    for name in head:
        table.add_column(escape(name))
    for row in rows:
        table.add_row(*map(escape, row))
    console.print(table)


def _print_points(run: Run, done: pl.DataFrame, domain: str, console: Console, everything: bool) -> None:
    """The table and what its signs mean."""
    told = run.foremost(len(run.done) if everything else MOST_PRINTED)
    verdict_of = {
        row["fingerprint"]: row for (name, at), row in run.verdict_of.items() if at == domain and name in told
    }
    count = done.height
    done = done.filter(pl.Series([name in told for name in done["fingerprint"]], dtype=pl.Boolean))
    alarmed = set(run.raised["fingerprint"])
    console.print(_points_table(done, verdict_of, domain, alarmed, narrow=console.width < WIDE))
    if done.height < count:
        typed = escape(f"python -m banpick_exp report {run.folder.path} --all")
        chosen = "the front, the references, the best of each rule at each budget, the largest differences"
        said = f"[dim]{done.height} of {count:,} points, {chosen} first; all of them: {typed}[/dim]"
        console.print(said, soft_wrap=True, highlight=False)
    console.print(
        "[dim]● on the front for sure, ○ within noise: no other point is at least as good in accuracy, speed-up and "
        "kept experts and better in one beyond noise. ⚠ a guard was raised. At equal budget: same problems, interval "
        "right for all policies of the sweep at once.[/dim]"
    )
    for line in made_from_sentences(run):
        console.print(f"[dim]{escape(line)}[/dim]", soft_wrap=True, highlight=False)
    if not all(map(is_near, verdict_of.values())):
        far = f"its measured budget is more than {EQUAL_BUDGET_TOLERANCE} experts away from the nearest fixed_k point."
        console.print(f"[dim]* not at equal budget: {far}[/dim]")
        if typed := rivals_command(run):
            console.print(f"[dim]  rivals that keep as many: {escape(typed)}[/dim]", soft_wrap=True, highlight=False)
    noted = [row for row in verdict_of.values() if row["note"] and is_near(row)]
    for row in noted if everything else noted[:LISTED]:
        console.print(f"[dim]{escape(row['label'])}: {escape(row['note'])}.[/dim]")
    if len(noted) > LISTED and not everything:
        console.print(f"[dim]... and {len(noted) - LISTED} more such notes[/dim]")


def _points_table(
    done: pl.DataFrame, verdict_of: Mapping[str, Row], domain: str, alarmed: set[str], *, narrow: bool
) -> Table:
    asked = done["n_problems"].unique().to_list()
    of_all = f", {asked[0]:,} problems" if len(asked) == 1 else ""
    table = Table(title=f"Pareto table ({domain}{of_all})", title_justify="left")
    table.add_column("", no_wrap=True)
    table.add_column("policy", no_wrap=not narrow)
    columns = ((f"{accuracy_name(done)} % [95 %]", 18), ("vs stock [95 %]", 20), ("speed-up [95 %]", 22), ("kept", 5))
    for name, width in (*columns, ("truncated %", 5), ("gap", 5)):
        table.add_column(name, justify="right", min_width=width)
    if not of_all:
        table.add_column("n", justify="right")
    table.add_column("at equal budget [points]", no_wrap=not narrow)
    for row in done.sort("mean_kept", "accuracy", descending=True).iter_rows(named=True):
        verdict = verdict_of.get(row["fingerprint"])
        table.add_row(
            FRONT[row["on_front"], row["sure"]] + ("⚠" if row["fingerprint"] in alarmed else ""),
            escape(row["label"]) + (f" [dim]{escape(row['solved_knob'])}[/dim]" if row["solved_knob"] else ""),
            escape(span(row, "accuracy", ".1f", 100)),
            escape(span(row, "delta", "+.1f", 100)),
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
    listed = rows.height if everything else LISTED
    for row in rows.head(listed).iter_rows(named=True):
        where = "" if row["domain"] == OVERALL else f" ({row['domain']})"
        said = escape(f"{row['label']}{where}: {row['detail']}")
        console.print(f"[{colour(row)}]guard {row['guard']}[/] {said}", style=style)
    if rows.height > listed:
        console.print(f"[dim]... and {rows.height - listed} more like these[/dim]")
