"""Where everything of one run lies: the only owner of the names in its folder. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

POINTS = "points"
REPORT = "report.html"


@dataclass(frozen=True, slots=True)
class RunPaths:
    """`<output_dir>/<sweep>/<run>`."""

    path: Path

    @property
    def name(self) -> str:
        """`<sweep>/<run>`."""
        return "/".join(self.path.resolve().parts[-2:])

    @property
    def points(self) -> Path:
        return self.path / POINTS

    @property
    def checked(self) -> Path:
        """Digests of records that were checked when they were written, a file a process that wrote some."""
        return self.path / "checked"

    @property
    def report(self) -> Path:
        return self.path / REPORT

    @property
    def calibrations(self) -> Path:
        """Shared by all sweeps of the output folder."""
        return self.path.parent.parent / "calibrations"

    def followed_path(self, fingerprint: str) -> Path:
        """What the figures read of a calibration, so that a run that was copied elsewhere keeps them."""
        return self.path / "followed" / f"{fingerprint}.safetensors"

    @property
    def solved(self) -> Path:
        """Knobs that were solved for a budget, shared like calibrations."""
        return self.path.parent.parent / "solved"

    @property
    def past(self) -> Path:
        """What engines did on this machine before, shared like calibrations (`sweep.past`)."""
        return self.path.parent.parent / "past.json"

    @property
    def progress(self) -> Path:
        """How far a calibration is: written by its engine, read by the driver."""
        return self.path / "progress.json"

    @property
    def bill_path(self) -> Path:
        """What the run cost beside what it was estimated to."""
        return self.path / "bill.json"

    @property
    def found_path(self) -> Path:
        """The verdict in a sentence."""
        return self.path / "found.json"

    @property
    def demand_path(self) -> Path:
        """Which experts policies demand at once: written by the command `demand`."""
        return self.path / "demand.json"

    @property
    def lock(self) -> Path:
        """Who computes this run now; there while a driver does."""
        return self.path / "driver.lock"

    @property
    def journal(self) -> Path:
        """The study of search=optuna."""
        return self.path / "optuna.log"

    @property
    def engine_log(self) -> Path:
        """What vLLM and torch wrote while an engine was loaded in the driver's process."""
        return self.path / "engine.log"

    @property
    def events(self) -> Path:
        """What happened in this run, a line a transition."""
        return self.path / "events.jsonl"

    @property
    def stop_request(self) -> Path:
        """There where somebody asked the driver to stop after what is running."""
        return self.path / "stop.request"

    @property
    def logs(self) -> Path:
        """What engines wrote in processes of their own."""
        return self.path / "logs"

    def log_path(self, engine: str) -> Path:
        return self.logs / f"{engine}.log"

    def record_path(self, fingerprint: str) -> Path:
        return self.points / f"{fingerprint}.json"

    def outcomes_path(self, fingerprint: str) -> Path:
        return self.points / f"{fingerprint}.outcomes.parquet"

    def block_path(self, fingerprint: str, number: int) -> Path:
        return self.path / "blocks" / f"{fingerprint}.{number}.json"

    @property
    def problems_aside(self) -> Path:
        """Problems of this run that break engines."""
        return self.path / "trouble" / "set_aside.json"

    def trouble_path(self, fingerprint: str, call: str) -> Path:
        """What is known of a call that engines died under: a folder, there where one did."""
        return self.path / "trouble" / f"{fingerprint}.{call}"

    def trace_path(self, name: str) -> Path:
        """The whole trace of what went wrong with a point or an engine."""
        return self.path / "errors" / f"{name}.txt"

    def pulse_path(self, engine: str) -> Path:
        """Signs of life of an engine's process (`cluster.pulse`)."""
        return self.path / "engines" / f"{engine}.json"

    def figure_path(self, name: str) -> Path:
        """A figure; the names are in `report.figures.names`."""
        return self.path / f"{name}.png"

    @property
    def paper(self) -> Path:
        """Figures and tables at the sizes of a paper: `report --paper`."""
        return self.path / "paper"

    @property
    def mirror(self) -> Path:
        """W&B's own files, the list of what was mirrored, and where to."""
        return self.path / "wandb"

    @property
    def mirrored(self) -> Path:
        """A line a point that W&B has: which record, and the folder of its W&B run; and one of the summary."""
        return self.mirror / "mirrored.txt"

    @property
    def mirror_place(self) -> Path:
        """The project and the group in W&B."""
        return self.mirror / "place.json"

    def table_path(self, name: str) -> Path:
        """`points`, `verdicts`, `guards` or `repeats`, as Parquet."""
        return self.path / f"{name}.parquet"
