"""How far scores move when nothing that should matter changes: rows of a table, a sentence, numbers for W&B."""

from __future__ import annotations

import polars as pl

from banpick_exp.records import OVERALL
from banpick_exp.report.run import Run
from banpick_exp.report.text import Row

HEAD = (
    "policy",
    "repeats",
    "accuracy % (mean)",
    "sd, points",
    "range",
    "problems not all score alike, %",
    "sampling error of one run, points",
)


def overall_repeats(run: Run) -> pl.DataFrame:
    """Rows of `repeat_spread` over all domains, the best accuracy first; none without repeats."""
    rows = run.repeats.filter(pl.col("domain") == OVERALL)
    return rows.sort("accuracy_mean", "label", descending=[True, False])


def repeat_cells(row: Row) -> list[str]:
    """The columns of HEAD as text."""
    return [
        row["label"],
        str(row["repeats"]),
        f"{100 * row['accuracy_mean']:.1f}",
        f"{100 * row['accuracy_sd']:.2f}",
        f"{100 * row['accuracy_min']:.1f} to {100 * row['accuracy_max']:.1f}",
        "-" if row["unstable"] is None else f"{100 * row['unstable']:.1f}",
        f"{100 * row['sampling_error']:.2f}",
    ]


def repeats_sentence(run: Run) -> str:
    """The spread of all repeated points in one sentence, empty without any."""
    rows = overall_repeats(run)
    if rows.height == 0:
        return ""
    worst = rows.row(int(rows["accuracy_sd"].arg_max() or 0), named=True)
    times = "/".join(str(n) for n in sorted(set(rows["repeats"])))
    if (rows["unstable"] == 0).all():
        return (
            f"Repeats: {rows.height} points ran {times} times in other batches and another order, and every problem"
            " scored alike each time."
        )
    return (
        f"Repeats: {rows.height} points ran {times} times; accuracy has an sd of {_median_points(rows, 'accuracy_sd')} "
        f"points (median) and of {100 * worst['accuracy_sd']:.2f} at most ({worst['label']}), where the choice of "
        f"problems alone gives {_median_points(rows, 'sampling_error')}."
    )


def repeats_summary(run: Run) -> dict[str, float]:
    """For W&B: the spread over all repeated points, accuracies 0..1; empty without any."""
    rows = overall_repeats(run)
    if rows.height == 0:
        return {}
    columns = ("accuracy_sd", "sampling_error", "unstable")
    values = {f"repeat/{key}_median": rows[key].median() for key in columns}
    values |= {f"repeat/{key}_max": rows[key].max() for key in columns}
    return {"repeat/points": rows.height} | {key: float(v) for key, v in values.items() if isinstance(v, int | float)}


def _median_points(rows: pl.DataFrame, column: str) -> str:
    return f"{100 * float(rows[column].median() or 0):.2f}"  # type: ignore[arg-type]
