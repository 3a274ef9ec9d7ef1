"""What search=select found: what dev chose, and what the split of the result says of it, by domain."""

from __future__ import annotations

from collections.abc import Mapping

from banpick_exp.analysis import verdicts
from banpick_exp.records import OVERALL, PointRecord
from banpick_exp.report.run import Run, resume_command
from banpick_exp.report.text import MARKS, Row, against, points, signed_points
from banpick_exp.sweep.search.selection import Pick

Cells = dict[str, Row]
"""Domain (`overall` first) -> row of `verdicts`, against stock."""
CHOSEN = "chosen"
"""The last cell of what dev chose."""


def against_stock(run: Run) -> dict[str, Cells]:
    """Group -> what its chosen point gains over stock; intervals are right for all groups (and domains) at once.

    Groups where dev chose stock, or whose point did not finish on the split of the result, are not there.
    """
    chosen = {pick.chosen.test: pick.group for pick in run.picks if pick.chosen}
    asked = [record for record in run.done if record.is_stock or record.fingerprint in chosen]
    found: dict[str, Cells] = {}
    for row in verdicts(asked, run.outcomes, against=("stock",)).iter_rows(named=True):
        found.setdefault(chosen[row["fingerprint"]], {})[row["domain"]] = row
    return found


def dev_rows(run: Run) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table of dev: a row a candidate, in the order of the space, with what was chosen."""
    records = {record.fingerprint: record for record in run.dev}
    chosen = {pick.chosen.dev for pick in run.picks if pick.chosen}
    stock = next((record for record in run.dev if record.is_stock and record.status == "done"), None)
    several = len(run.picks) > 1
    rows = []
    for each in run.manifest.candidates:
        cells = _dev_cells(records.get(each.dev), stock)
        mark = CHOSEN if each.dev in chosen else ""
        rows.append([*([each.group] if several else []), each.label, *cells, mark])
    return [*(["group"] if several else []), "candidate", "accuracy on dev %", "vs stock, points", ""], rows


def _dev_cells(record: PointRecord | None, stock: PointRecord | None) -> list[str]:
    if record is None or record.status != "done":
        return ["not asked" if record is None else record.status, "-"]
    accuracy = record.measured.overall.accuracy
    difference = None if stock is None else accuracy - stock.measured.overall.accuracy
    return [f"{100 * accuracy:.1f}", signed_points(difference)]


def result_rows(run: Run) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table of the result: a row a group, a column a domain; of scopes it is the paper's
    interference table (arXiv 2509.06346): key experts of one domain, and those of all, in every domain.
    """
    found = against_stock(run)
    domains = [OVERALL, *dict.fromkeys(name for r in run.records if r.metrics for name in r.metrics.domains)]
    rows = []
    for pick in run.picks:
        cells, none = found.get(pick.group, {}), without_keys(run, pick)
        label = pick.chosen.label if pick.chosen else "stock"
        said = (_result_cell(pick, cells.get(name)) + (", no key experts" if name in none else "") for name in domains)
        rows.append([pick.group, label, *said])
    return ["", "chosen on dev", *domains], rows


def _result_cell(pick: Pick, row: Row | None) -> str:
    if row is None or row["difference"] is None:
        return "not measured" if pick.chosen else "is stock"
    return f"{MARKS[row['verdict']]} {points(row, simultaneous=True)}".strip()


def selection_sentences(run: Run) -> list[str]:
    """What dev is, then one a group: what dev chose of how many, and what the result says of it, by domain too."""
    if not run.picks:
        return []
    found = against_stock(run)
    apart = f"Dev holds {len(run.dev)} more points: their scores choose, and {_split(run)} alone holds the result."
    return [apart, *(_sentence(run, pick, found.get(pick.group, {})) for pick in run.picks)]


def without_keys(run: Run, pick: Pick) -> list[str]:
    """Domains in which the best candidate of dev found no expert to reinforce, by its own record."""
    best = next((record for record in run.dev if pick.best and record.fingerprint == pick.best.dev), None)
    found: Mapping[str, object] = (getattr(best.engagement, "key_experts", None) or {}) if best else {}
    return [domain for domain, keys in found.items() if not keys]


def _sentence(run: Run, pick: Pick, rows: Mapping[str, Row]) -> str:
    start = "" if len(run.picks) == 1 else f"{pick.group}: "
    of = f"{pick.candidates} candidates" if pick.candidates > 1 else "1 candidate"
    if pick.finished < pick.candidates:
        of += f" ({pick.candidates - pick.finished} of them did not finish there)"
    if pick.stock_accuracy is None:
        return f"{start}dev chose nothing of {of}, because stock did not finish there. Type {resume_command(run)}."
    none = ", ".join(without_keys(run, pick))
    keys = f" Nothing to reinforce in {none}: the calibration names no expert there." if none else ""
    scores = f"{_percent(pick.best_accuracy)} on dev, stock {_percent(pick.stock_accuracy)}"
    if pick.chosen is None:
        best = "" if pick.best is None else f": the best is {pick.best.label} ({scores})"
        return (
            f"{start}dev chose stock, because none of {of} is better there{best}. That is the result: nothing to gain"
            f" here that dev could see, and none of them was asked on {_split(run)}.{keys}"
        )
    begun = f"{start}dev chose {pick.chosen.label} of {of} ({scores})"
    overall = rows.get(OVERALL)
    if overall is None or overall["verdict"] == "unmatched":
        return f"{begun}; it has no finished pair with stock on {_split(run)}. Type {resume_command(run)}."
    by_domain = ", ".join(
        f"{domain} {points(row, simultaneous=True)}" for domain, row in rows.items() if domain != OVERALL
    )
    found = f"on {_split(run)} it {against(overall)}, {points(overall, simultaneous=True)} points; {by_domain}."
    return f"{begun}; {found}{keys}"


def _percent(accuracy: float | None) -> str:
    return "-" if accuracy is None else f"{100 * accuracy:.1f} %"


def _split(run: Run) -> str:
    return ", ".join(sorted({record.task.split for record in run.records})) or "the other split"
