"""Blocks of a calibration: what was measured of a range of layers, in memory or a file each, until it is added up.

Blocks lie beside the artifact. Each says what it belongs to, and which blocks of the stage before it follows: what does
not fit is measured again. Light: the driver of a run reads this too.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import struct
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from banpick_exp.disk import create_folder, write_atomically
from banpick_exp.evaluation.calibration.scores import Part

BLOCK_VERSION = 1
ANSWERS, LAYERS = range(2)
"""The stages of the artifact itself."""
LOOK = ".look-"
"""Before the name of a file that is there for a moment."""
BLOCKS = ".blocks"
"""Behind the name of an artifact's folder."""

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """What can be measured side by side: one domain and stage of one part."""

    part: Part | None
    """None: the artifact itself."""
    domain: str
    number: int
    """ANSWERS or LAYERS; of a score, the round."""
    after: str
    """Digest of what was measured before: the stage before, or what the first one stands on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """A range of layers of a stage."""

    stage: Stage
    first: int
    end: int
    """The layer after its last."""

    def words(self) -> str:
        """Such as `gain_add math round 2, layers 0 to 7`."""
        stage = self.stage
        if stage.part is None:
            what = "answers" if stage.number == ANSWERS else "limits"
            return f"{what} {stage.domain}, layers {self.first} to {self.end - 1}"
        return f"{stage.part} {stage.domain} round {stage.number + 1}, layers {self.first} to {self.end - 1}"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Found:
    """A block that was measured."""

    first: int
    end: int
    arrays: Arrays
    told: Mapping[str, float]
    """How it was measured: changes, layer_tokens, out_of_reach, itself, seconds."""
    digest: str
    """Of the arrays."""


class Blocks(Protocol):
    """Where measured blocks are kept."""

    def of(self, stage: Stage) -> list[Found]:
        """The blocks of a stage that are there and whole, in any order."""

    def add(self, block: Block, arrays: Arrays, told: Mapping[str, float]) -> None:
        """Keep one."""

    def refresh(self) -> None:
        """Look again at what others have written."""

    def clear(self, part: Part | None) -> None:
        """Forget those of a part: they are added up."""


class BlocksInMemory:
    """For a calibration that is so short that nobody divides it."""

    def __init__(self) -> None:
        self._found: dict[Stage, list[Found]] = {}

    def of(self, stage: Stage) -> list[Found]:
        return self._found.get(stage, [])

    def add(self, block: Block, arrays: Arrays, told: Mapping[str, float]) -> None:
        found = Found(first=block.first, end=block.end, arrays=arrays, told=told, digest="")
        self._found.setdefault(block.stage, []).append(found)

    def refresh(self) -> None:
        """Nobody else writes here."""

    def clear(self, part: Part | None) -> None:
        self._found = {stage: found for stage, found in self._found.items() if stage.part != part}


def blocks_folder(artifact: Path) -> Path:
    """Where the blocks of an artifact lie, beside its folder."""
    return artifact.with_name(artifact.name + BLOCKS)


class BlocksInFiles:
    """A file a block, whole or absent; one that is damaged or of something else is none."""

    def __init__(self, artifact: Path, fingerprint: str) -> None:
        """`artifact`: the folder that it all is added up in; `fingerprint`: of the calibration."""
        self.folder = blocks_folder(artifact)
        self._fingerprint = fingerprint

    def of(self, stage: Stage) -> list[Found]:
        prefix = f"{_name(stage)}."
        try:
            paths = [path for path in self.folder.iterdir() if path.name.startswith(prefix)]
        except OSError:
            return []
        return [found for path in sorted(paths) if (found := self._read(path, stage)) is not None]

    def _read(self, path: Path, stage: Stage) -> Found | None:
        try:
            data = path.read_bytes()
            (length,) = struct.unpack("<Q", data[:8])
            header = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["header"])
            if any(header[key] != value for key, value in self._belongs(stage).items()):
                return None
            found = Found(
                first=int(header["first"]),
                end=int(header["end"]),
                arrays=load(data),
                told={str(key): float(value) for key, value in header["told"].items()},
                digest=str(header["digest"]),
            )
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return None
        except (struct.error, SafetensorError):
            return None
        return found if found.digest == _digest_of(found.arrays) else None

    def _belongs(self, stage: Stage) -> dict[str, Any]:
        """What a file must say to be of this stage."""
        return {
            "version": BLOCK_VERSION,
            "calibration": self._fingerprint,
            "part": stage.part,
            "domain": stage.domain,
            "number": stage.number,
            "after": stage.after,
        }

    def add(self, block: Block, arrays: Arrays, told: Mapping[str, float]) -> None:
        whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        header = self._belongs(block.stage) | {
            "first": block.first,
            "end": block.end,
            "told": dict(told),
            "digest": _digest_of(whole),
        }
        create_folder(self.folder)
        path = self.folder / f"{_name(block.stage)}.{block.first}-{block.end}.safetensors"
        write_atomically(path, save(whole, {"header": json.dumps(header)}))

    def refresh(self) -> None:
        """A disk that machines share may list a folder as it was a minute ago, until one changes it oneself."""
        with contextlib.suppress(OSError):
            create_folder(self.folder)
            file, name = tempfile.mkstemp(prefix=LOOK, dir=self.folder)
            os.close(file)
            os.unlink(name)

    def clear(self, part: Part | None) -> None:
        """Those that a writer left half are forgotten too, and the folder where it is empty then."""
        prefixes = (f"{_part(part)}.", LOOK.removeprefix("."))
        with contextlib.suppress(OSError):  # nothing reads them any more
            for path in list(self.folder.iterdir()):
                if path.name.removeprefix(".").startswith(prefixes):
                    path.unlink(missing_ok=True)
            self.folder.rmdir()


def _part(part: Part | None) -> str:
    return "artifact" if part is None else part


def _name(stage: Stage) -> str:
    """Of a stage's files: a domain may be called anything."""
    return f"{_part(stage.part)}.{quote(stage.domain, safe='')}.{stage.number}"


def _digest_of(arrays: Arrays) -> str:
    found = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        found.update(f"{name} {array.dtype} {array.shape} ".encode())
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()
