"""The error types that become words in place of a trace, and how a line ends that was interrupted."""

from __future__ import annotations

import errno
from pathlib import Path

INTERRUPTED = 130
"""The exit code that a shell reports after Ctrl-C: 128 + SIGINT."""


class UserError(ValueError):
    """What a user typed cannot work. The message names the value, the consequence, the remedy and the text to type.

    `__main__` prints it without a traceback and exits with code 2; it is raised before anything expensive starts.
    """


LOST_FOLDER = {
    errno.ENOSPC: ("is full", "Free some space"),
    errno.EDQUOT: ("is over its quota", "Free some space, or have the quota raised"),
    errno.EROFS: ("is read-only", "Have it mounted for writing again"),
    errno.EACCES: ("may not be written", "Give this user the right to write there"),
    errno.EPERM: ("may not be written", "Give this user the right to write there"),
    errno.EIO: ("fails (input/output error)", "Have its disk looked at"),
    errno.ESTALE: ("is gone", "Mount it again"),
    errno.ENOTCONN: ("is gone", "Mount it again"),
    errno.ENOENT: ("is gone", "Bring it back"),
}
"""What is wrong with a folder that takes no more files, and what to do, by the error of the system call."""


class CannotWrite(OSError):
    """The output folder takes no more: what is computed from now on would be lost, so the run ends.

    One error among all OSErrors that is surely about the disk; Ray's GetTimeoutError is an OSError too.
    """

    @classmethod
    def of(cls, error: OSError, path: Path, lost: str = "") -> CannotWrite:
        """`lost`: what is not kept, where that can be said."""
        what, remedy = LOST_FOLDER.get(error.errno or 0, ("cannot be written", "Mend it"))
        system = error.strerror or str(error)
        return cls(error.errno, f"the output folder {what} ({system}){lost and f': {lost}'}. {remedy}", str(path))

    def __str__(self) -> str:
        return f"{self.strerror} ({self.filename})" if self.filename else str(self.strerror)
