"""How a calibration divides: a range of layers is a block, measured by whichever engine is free.

A part of a calibration (the artifact itself, or one score) has stages in every domain, one after the other: the model's
answers, then its layers; or the rounds of a race. A stage divides into ranges of layers. What the changes of a layer do
does not depend on which other layers are measured with them (each is a rerun of its own, of the same sequences in the
same engine steps), so the sum is that of one long call, to the bit where the engine repeats itself to the bit.

Light: the driver of a run reads this too, and tells what is next from which blocks are there (`stored`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from banpick_exp.errors import UserError
from banpick_exp.evaluation.calibration.artifact import METADATA, TENSORS, array_shapes, read_artifact
from banpick_exp.evaluation.calibration.config import CalibrationConfig
from banpick_exp.evaluation.calibration.race import changes_of_round, rounds
from banpick_exp.evaluation.calibration.scores import BUDGETS, PARTS, Part
from banpick_exp.evaluation.calibration.stored import ANSWERS, LAYERS, Block, Blocks, Found, Stage
from banpick_exp.models.shape import MoeShape

LAYERS_AT_ONCE = 8
"""What is kept of the unchanged model during one pass: the hidden states of a step before so many layers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Division:
    """One part of a calibration in blocks, and what of it is there."""

    blocks: Blocks
    part: Part | None
    shape: MoeShape
    settings: CalibrationConfig
    samples: Mapping[str, int]
    """Per domain, how many sequences its layers or experts are judged on."""
    base: str
    """Digest of what the part stands on."""
    width: int | None = None
    """Layers of a block; None: all."""

    @property
    def domains(self) -> list[str]:
        return list(self.samples)

    def stages(self, domain: str) -> int:
        """How many the domain has."""
        if self.part is None:
            return len((ANSWERS, LAYERS))
        return len(rounds(self.samples[domain], self.settings.first_share(self.part)))

    def walk(self, domain: str) -> tuple[list[list[Found]], list[Block]]:
        """The stages that are whole, each its blocks by layer; and what is missing of the next, nothing at the end."""
        after, whole = self.base, list[list[Found]]()
        for number in range(self.stages(domain)):
            stage = Stage(part=self.part, domain=domain, number=number, after=after)
            found = _covering(self.blocks.of(stage))
            if missing := self._missing(stage, found):
                return whole, missing
            whole.append(found)
            after = hashlib.sha256(" ".join([after, *(each.digest for each in found)]).encode()).hexdigest()
        return whole, []

    def _missing(self, stage: Stage, found: Sequence[Found]) -> list[Block]:
        layers, at, missing = self.shape.num_layers, 0, list[Block]()
        single = self.part is None and stage.number == ANSWERS
        width = layers if single or self.width is None else self.width
        # Blocks of another width may be there: what they leave is divided anew.
        for begin, end in [*((each.first, each.end) for each in found), (layers, layers)]:
            missing += [
                Block(stage=stage, first=first, end=min(first + width, begin)) for first in range(at, begin, width)
            ]
            at = end
        return missing

    def changes(self, block: Block) -> float:
        """How many times a problem passes under one change in a block; of a later round, on average."""
        stage, share = block.stage, (block.end - block.first) / self.shape.num_layers
        samples = self.samples[stage.domain]
        if self.part is None:
            return 0.0 if stage.number == ANSWERS else 2 * (block.end - block.first) * samples
        return share * changes_of_round(
            candidates_of(self.shape, self.part), samples, stage.number,
            first_share=self.settings.first_share(self.part), wanted=self.settings.wanted,
        )  # fmt: skip

    def most_changes(self, block: Block) -> float:
        """The same where all that a race leaves is in the block."""
        if self.part is None:
            return self.changes(block)
        layers = self.shape.num_layers
        of_all = self.changes(Block(stage=block.stage, first=0, end=layers))
        of_one = candidates_of(self.shape, self.part) / layers * len(self._round(block.stage))
        return min(of_all, (block.end - block.first) * of_one)

    def _round(self, stage: Stage) -> range:
        assert self.part is not None
        return rounds(self.samples[stage.domain], self.settings.first_share(self.part))[stage.number]

    def planned(self) -> float:
        """The same of the whole part."""
        total, layers = 0.0, self.shape.num_layers
        for domain in self.domains:
            for number in range(self.stages(domain)):
                stage = Stage(part=self.part, domain=domain, number=number, after="")
                total += self.changes(Block(stage=stage, first=0, end=layers))
        return total

    def left(self) -> float:
        """Of it, what is not there yet."""
        total, layers = 0.0, self.shape.num_layers
        for domain in self.domains:
            whole, missing = self.walk(domain)
            total += sum(map(self.changes, missing))
            for number in range(len(whole) + 1, self.stages(domain)):
                stage = Stage(part=self.part, domain=domain, number=number, after="")
                total += self.changes(Block(stage=stage, first=0, end=layers))
        return total

    def seconds(self) -> float:
        """What all that is there took."""
        stages = [stage for domain in self.domains for stage in self.walk(domain)[0]]
        return sum(found.told["seconds"] for stage in stages for found in stage)

    def clear(self) -> None:
        """The part is in the artifact: its blocks are not needed any more."""
        self.blocks.clear(self.part)


def _covering(found: Iterable[Found]) -> list[Found]:
    """Blocks that follow each other; of those that overlap, the first and longest."""
    chosen: list[Found] = []
    for each in sorted(found, key=lambda block: (block.first, -block.end)):
        if each.first < each.end and (not chosen or each.first >= chosen[-1].end):
            chosen.append(each)
    return chosen


def candidates_of(shape: MoeShape, part: Part) -> int:
    """How many changes a score tries."""
    return shape.num_layers * (shape.top_k - 1 if part in BUDGETS else shape.num_experts)


def division_of_artifact(
    shape: MoeShape,
    settings: CalibrationConfig,
    domains: Sequence[str],
    fingerprint: str,
    blocks: Blocks,
    width: int | None = None,
) -> Division:
    """The artifact itself, without scores. `fingerprint`: of the calibration."""
    samples = dict.fromkeys(domains, settings.samples)
    return Division(
        blocks=blocks, part=None, shape=shape, settings=settings, samples=samples, base=fingerprint, width=width
    )


def division_of_score(
    shape: MoeShape, settings: CalibrationConfig, part: Part, artifact: Path, blocks: Blocks, width: int | None = None
) -> Division:
    """A score of an artifact that is there. Raises UserError where it cannot be read."""
    header, sizes = read_artifact(artifact), array_shapes(artifact / TENSORS)
    marks = "right_marks" if PARTS[part].labelled else "own_marks"
    if lacking := [domain for domain in header.domains if f"{domain}.{marks}" not in sizes]:
        raise UserError(
            f"{artifact / TENSORS} lacks {marks} of {', '.join(lacking)}: the calibration is damaged. Copy the folder"
            " again, or leave calibration.path out to make one."
        )
    samples = {domain: sizes[f"{domain}.{marks}"][0] for domain in header.domains}
    base = hashlib.sha256((artifact / METADATA).read_bytes()).hexdigest()
    return Division(blocks=blocks, part=part, shape=shape, settings=settings, samples=samples, base=base, width=width)
