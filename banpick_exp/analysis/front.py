"""The Pareto front of accuracy, speed-up and, where it is there, the measured budget."""

from __future__ import annotations

import numpy as np
import polars as pl


def pareto_front(frame: pl.DataFrame) -> pl.DataFrame:
    """The frame with a column `on_front`: no other row is at least as good in everything and better in something.

    Higher `accuracy` and `speedup` are better, and a lower `mean_kept` where the frame has it. Rows compete within
    their `domain` where there is that column; rows that are not `done`, repeats of other points, or rows that lack a
    value, neither stand on the front nor push others off it. Equal rows share it.
    """
    columns = [pl.col("accuracy"), pl.col("speedup")]
    if "mean_kept" in frame.columns:
        columns.append(-pl.col("mean_kept"))
    values = frame.select(column.cast(pl.Float64).alias(str(i)) for i, column in enumerate(columns)).to_numpy()
    usable = np.isfinite(values).all(axis=1)
    if "status" in frame.columns:
        usable &= (frame["status"] == "done").to_numpy()
    if "repeat" in frame.columns and frame.height:
        usable &= (frame["repeat"] == frame["repeat"].min()).to_numpy()
    domains = frame["domain"].to_numpy() if "domain" in frame.columns else np.zeros(frame.height)
    front = np.zeros(frame.height, dtype=bool)
    for i in np.flatnonzero(usable):
        rivals = values[usable & (domains == domains[i])]
        front[i] = not ((rivals >= values[i]).all(axis=1) & (rivals > values[i]).any(axis=1)).any()
    return frame.with_columns(pl.Series("on_front", front, dtype=pl.Boolean))
