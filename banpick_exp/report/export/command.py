"""`python -m banpick_exp export RUN [POINT|best] OUT/`: a measured policy as a folder to keep, send and read."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from banpick_exp.disk import write_folder_atomically
from banpick_exp.errors import CannotWrite, UserError
from banpick_exp.options import Options
from banpick_exp.policy.exported_files import is_export

if TYPE_CHECKING:
    from banpick_exp.records import PointRecord
    from banpick_exp.report.run import Run

DESCRIPTION = """\
Writes one point of a run as a folder: the rule with its values, the part of the calibration that it reads, the identity
of the model it is for, what was measured of it, and a model card in Markdown. JSON, safetensors and text; no pickle, no
code. It is built again first and must be, bit for bit, the policy that was measured.

POINT is a fingerprint (or its first digits) or a label in quotes, as the report has them. best, which is also what
holds where none is typed, is the surest gain of the verdict: the point that beats fixed_k at equal measured budget,
allowing for all that were tried. Where there is none, nothing is exported and the message names the nearest.

Not exported: stock; points that failed, were stopped, or are invalid because their policy did not engage; points of the
dev split. The folder appears whole or not at all. The same point gives the same bytes, so to export it twice to one
place changes nothing; another one in its place needs --replace.
"""
EXAMPLES = """\
examples:
  python -m banpick_exp export outputs/pick_strength/20261122-101500 best OUT/
  python -m banpick_exp export RUN "pick boost=1 key_experts=4" OUT/
  python -m banpick_exp export RUN 9cd687fb OUT/ --replace
  python -m banpick_exp export RUN 9cd687fb OUT/ --calibration COPY/f37bce87fc2d0a6f
  python -m banpick_exp export RUN best --to hf            what to upload, and how; writes nothing
  python -m banpick_exp inspect OUT/                       what is in it, after its digests were checked

Exit code: 0 done, or there already; 2 it cannot be exported, and the message says why and what to type.
"""


def help_page() -> str:
    return _options().format_help()


def _options() -> Options:
    parser = Options(
        prog="python -m banpick_exp export",
        usage="python -m banpick_exp export RUN [POINT|best] OUT/ [options]",
        description=DESCRIPTION,
        epilog=EXAMPLES,
    )
    parser.add_argument("run", metavar="RUN", help="run folder, as a sweep printed it (holds points/)")
    parser.add_argument("words", nargs="*", metavar="[POINT|best] OUT/", help="which point, and the folder to write")
    parser.add_argument(
        "--calibration",
        type=Path,
        metavar="FOLDER",
        help="the calibration's artifact, where it no longer lies beside the run",
    )
    parser.add_argument("--replace", action="store_true", help="put it in the place of another exported policy")
    parser.add_argument("--to", choices=("hf",), help="hf: print what to upload to the Hugging Face Hub, write nothing")
    return parser


def run(arguments: list[str]) -> int:
    """Writes the folder, or prints what to upload; returns 0.

    Raises UserError for a point or a place that cannot be (`chosen`, `built`, `_checked`).
    """
    typed = _options().parse_args(arguments)
    if len(typed.words) > 2:
        raise UserError(
            f"{shlex.join(typed.words)} are {len(typed.words)} words where a point and a folder belong: nothing was"
            ' exported. Put a label in quotes: "pick boost=1 key_experts=4".'
        )
    # Imported here: --help and a mistyped option answer at once.
    from banpick_exp.report.export.chosen import BEST, chosen, names_a_point
    from banpick_exp.report.run import opened_run

    opened = opened_run(typed.run)
    words = list(typed.words)
    if typed.to is None:
        if not words or (len(words) == 1 and names_a_point(opened, words[0])):
            raise UserError(
                f"there is no folder to write to: nothing was exported. Type {_line(typed.run, *words[:1], 'OUT/')}"
            )
        out = _checked(Path(words.pop()).expanduser())
    else:
        out = Path(words.pop()) if len(words) == 2 else Path("OUT")
    record, how = chosen(opened, words[0] if words else BEST, typed.run)
    files = _files(opened, record, typed.calibration, how)
    if typed.to is not None:
        from banpick_exp.report.export.hub import upload_lines

        print("\n".join(upload_lines(record, files, _line(typed.run, record.fingerprint, f"{out}/"), str(out))))
        return 0
    print(_written(out, files, replace=typed.replace, line=_line(typed.run, record.fingerprint, f"{out}/")))
    print(f"{record.label} ({record.fingerprint}){f', {how}' if how else ''}. To look at it, type")
    print(f"python -m banpick_exp inspect {shlex.quote(f'{out}/')}")
    return 0


def _files(opened: Run, record: PointRecord, calibration: Path | None, how: str | None) -> dict[str, bytes]:
    from banpick_exp.report.export.built import built
    from banpick_exp.report.export.contents import contents

    return contents(opened, record, built(record, opened.folder, calibration), how)


def _checked(out: Path) -> Path:
    """UserError for a place that holds something that no export wrote: it is never replaced."""
    if not out.name:
        raise UserError(f"{out} is no folder to write to: nothing was exported. Type a name for it, such as OUT/.")
    empty = out.is_dir() and not any(out.iterdir())
    if (out.exists() or out.is_symlink()) and not empty and not is_export(out):
        raise UserError(
            f"{out} is there already and is no exported policy: it would be lost, so nothing was exported. Type another"
            " folder."
        )
    return out


def _written(out: Path, files: dict[str, bytes], *, replace: bool, line: str) -> str:
    """What to say after writing, where that was needed."""
    if is_export(out):
        there = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
        if there == files:
            return f"{out}/ holds this very policy already: nothing was changed."
        if not replace:
            differing = sorted(name for name in there.keys() | files.keys() if there.get(name) != files.get(name))
            raise UserError(
                f"{out} holds another export, or this one with changes ({', '.join(differing)}): it would be lost, so"
                f" nothing was exported. Type another folder, or {line} --replace"
            )
    try:
        write_folder_atomically(out, files)
    except CannotWrite as error:
        raise UserError(
            f"{out} cannot be written ({error}): nothing was exported, and nothing is left behind. Type a folder of"
            " yours."
        ) from None
    named = ", ".join(f"{name} ({_size(len(data))})" for name, data in files.items())
    return f"Wrote {out}/: {named}."


def _size(count: int) -> str:
    return f"{count:,} bytes" if count < 10_000 else f"{count / 1000:,.0f} kB"


def _line(*words: str) -> str:
    return shlex.join(["python", "-m", "banpick_exp", "export", *words])
