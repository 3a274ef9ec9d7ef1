"""The W&B report of a run that was mirrored before: `report RUN --wandb`, after `wandb sync`.

What is refused is refused before anything is drawn: no key, a run that was not mirrored, one that W&B does not have.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from banpick_exp.errors import UserError
from banpick_exp.report.run import Run
from banpick_exp.report.tracking.found import FoundOut
from banpick_exp.report.tracking.key import has_key
from banpick_exp.report.tracking.mirroring import Order
from banpick_exp.report.tracking.place import (
    SUMMARY,
    Place,
    id_of,
    mirrored_runs,
    place_of,
    publish_command,
    sync_command,
)
from banpick_exp.report.tracking.process import MirrorProcess, Trouble
from banpick_exp.report.tracking.wandb import completions, publication, told_of
from banpick_exp.run_folder import RunFolder

LOOK_SECONDS = 0.2


class Publishing:
    """A run in W&B, asked for when this is made; `publish` then makes its report, `close` ends W&B's process."""

    def __init__(self, folder: RunFolder, environment: Mapping[str, str]) -> None:
        """Raises UserError where the report could not be made: nobody's key, or no such run in W&B."""
        self._folder, self._place, self._runs = folder, _place(folder), mirrored_runs(folder)
        if SUMMARY not in self._runs:
            raise UserError(_not_mirrored(folder))
        if not has_key(environment, "no report was made"):
            raise UserError(
                f"--wandb needs a W&B key, and there is none: no report was made. Type wandb login (or set"
                f" WANDB_API_KEY), then\n  {sync_command(folder)}\n  {publish_command(folder)}"
            )
        self._process = MirrorProcess(folder.mirror, self._place.timeout_seconds)
        try:
            asked = {"entity": self._place.entity, "project": self._place.project}
            whose, missing = self._call(Order("look", asked | {"runs": [id_of(self._runs[SUMMARY])]}))
            if missing:
                raise UserError(
                    f"W&B has no run {missing[0]} in {whose}/{self._place.project}, which holds the tables and figures"
                    f" of {folder.path}: its report would be empty, and none was made. Type\n"
                    f"  {sync_command(folder)}\nand then\n  {publish_command(folder)}"
                )
        except BaseException:
            self.close()
            raise

    def publish(self, run: Run) -> str:
        """Complete the points' summaries and make the report. Returns where it is; says how many points are not there.

        Raises UserError where W&B does not answer or refuses.
        """
        found = FoundOut(run)
        missing: list[str] = []
        for order in completions(self._place, self._runs, found, told_of(found)):
            missing += self._call(order)
        address = self._call(publication(self._place, self._runs, found.shown()))
        return f"W&B report: {address}" + _said(missing, self._folder)

    def close(self) -> None:
        self._process.close(seconds=1)

    def _call(self, order: Order) -> Any:
        limit, begun = self._place.timeout_seconds, time.monotonic()
        try:
            self._process.send(order.call, order.arguments)
            while (answer := self._process.answer(LOOK_SECONDS)) is None:
                if time.monotonic() - begun > limit:
                    raise Trouble(f"no answer within {limit:g} s")
        except Trouble as trouble:
            raise UserError(
                f"W&B did not make the report of {self._folder.path} ({trouble}): what is in the run's folder is whole."
                f" Type {publish_command(self._folder)} again when W&B answers."
            ) from None
        return answer[0]


def _place(folder: RunFolder) -> Place:
    if (place := place_of(folder)) is None:
        raise UserError(_not_mirrored(folder))
    return place


def _not_mirrored(folder: RunFolder) -> str:
    from banpick_exp.report.run import read_run, resume_command

    return (
        f"{folder.path} is not mirrored to W&B (tracking=none, no end yet, or an older version): there is nothing to"
        f" make a report of, and none was made. Type {resume_command(read_run(folder))} tracking=wandb: no point that"
        " is finished runs again."
    )


def _said(missing: Sequence[str], folder: RunFolder) -> str:
    if not missing:
        return ""
    return f"\nW&B has not got {len(missing)} of its points; to upload them too, type {sync_command(folder)}"
