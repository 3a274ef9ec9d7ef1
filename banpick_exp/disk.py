"""Files of ours on the disk: whole or absent, for their owner to write, and never named by a pattern.

There is one atomic write. Imports nothing heavy.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from banpick_exp.errors import CannotWrite, UserError

if TYPE_CHECKING:
    import polars as pl  # at run time inside the functions: planning imports this module and must stay light

ASIDE = ".corrupt"
"""Behind the name of a file that was set aside."""
HALF = ".tmp"
"""Behind the name of a file that is being written; it begins with a dot."""
PROBED_BYTES = 4096
FILE_MODE, FOLDER_MODE = 0o664, 0o775
"""Before the umask, which takes more away: also where it takes nothing (0, in some containers), nobody else writes."""


def write_atomically(path: Path, data: bytes, lost: str = "") -> None:
    """Put `data` at `path` so that the path never shows half of it, and so that it survives a power cut.

    Raises CannotWrite, and leaves nothing behind. `lost`: what the error says that is then not kept.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}{HALF}")
    try:
        with open(temporary, "xb", opener=opener) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):  # a folder that became read-only keeps it: `remove_half_written`
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise CannotWrite.of(error, path, lost) from None
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself lives in the folder
    finally:
        os.close(folder)


def write_folder_atomically(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Put files into `folder`, which is seen whole or not at all. One that is there is replaced: for its owner to know.

    Raises CannotWrite, and leaves what was there, and nothing beside it.
    """
    mark = f"{uuid.uuid4().hex}{HALF}"
    staging, aside = (folder.with_name(f".{folder.name}.{part}.{mark}") for part in ("new", "old"))
    try:
        create_folder(folder.parent)
        staging.mkdir(FOLDER_MODE)
        for name, data in contents.items():
            write_atomically(staging / name, data)
        if folder.exists():
            os.replace(folder, aside)
        try:
            os.replace(staging, folder)
        except OSError:
            if aside.exists():
                os.replace(aside, folder)
            raise
    except BaseException as error:
        shutil.rmtree(staging, ignore_errors=True)
        if isinstance(error, OSError) and not isinstance(error, CannotWrite):
            raise CannotWrite.of(error, folder) from None
        raise
    shutil.rmtree(aside, ignore_errors=True)


def opener(name: str, flags: int) -> int:
    """For `open`: what is made is not for everybody to write, whatever the umask."""
    return os.open(name, flags, FILE_MODE)


@contextlib.contextmanager
def reading(typed: str | Path) -> Iterator[None]:
    """What is read of the run `typed`: a file or folder that cannot be opened is a UserError that names it."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{typed}: {error.filename} cannot be opened ({error.strerror or error}), so nobody can say what is in it."
            " Mount the disk or mend the permission, then type the same again."
        ) from None


def create_folder(path: Path) -> None:
    """A folder with those above it, each for its owner; one that is there stays as it is."""
    for folder in reversed([path, *path.parents]):
        if not folder.is_dir():
            folder.mkdir(FOLDER_MODE, exist_ok=True)  # `parents=True` would give those above the widest mode


def read_table(path: Path) -> pl.DataFrame:
    """One Parquet file, by its very name: Polars would take brackets and stars in a path for a pattern.

    Raises OSError where it cannot be opened, ValueError where it is not Parquet.
    """
    return table_in(path.read_bytes(), path.name)


def table_in(data: bytes, name: str) -> pl.DataFrame:
    """The table in the bytes of a Parquet file; `name` is what an error calls it. ValueError where they are none."""
    import polars as pl

    try:
        return pl.read_parquet(io.BytesIO(data))
    # Damage makes Polars panic too, and a panic is no Exception.
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise ValueError(f"{name} is not readable as Parquet ({error})") from error


def parquet_bytes(frame: pl.DataFrame) -> bytes:
    """A table as the bytes of a Parquet file."""
    buffer = io.BytesIO()  # and not a file: polars would turn a full disk into an error of its own
    frame.write_parquet(buffer)
    return buffer.getvalue()


def unwritable(folder: Path) -> CannotWrite | None:
    """Why nothing can be kept in this folder now; None where a small file can. Leaves nothing behind."""
    probe = folder / f".probe.{uuid.uuid4().hex}{HALF}"
    try:
        write_atomically(probe, bytes(PROBED_BYTES))
        probe.unlink()
    except CannotWrite as error:
        error.filename = str(folder)
        return error
    except OSError as error:
        return CannotWrite.of(error, folder)
    return None


def check_writable(folder: Path) -> None:
    """UserError unless a file can be written in `folder`; what had to be created for the try is removed again."""
    created = []
    try:
        for path in [*reversed(folder.parents), folder]:
            if not path.is_dir():
                path.mkdir(FOLDER_MODE)
                created.append(path)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"banpick")
    except OSError as error:
        raise UserError(
            f"output_dir: {folder} cannot be written ({error.strerror or error}): every result would be lost."
            " Type output_dir=FOLDER with a folder of yours."
        ) from None
    finally:
        for path in reversed(created):
            with contextlib.suppress(OSError):  # another run began to write there meanwhile
                path.rmdir()
