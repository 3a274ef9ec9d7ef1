"""What a file of problems is, where its bytes or its form are of another kind than its name says: refused, with how to
write it again."""

from __future__ import annotations

import json
from pathlib import Path
from shlex import quote

from banpick_exp.errors import UserError
from banpick_exp.models.folder import LFS_POINTER
from banpick_exp.tasks.invisible import invisible

FEW_ZEROS = 8
"""Plain letters in UTF-16 have a zero byte of two, so a file with less than one of 8 is damaged."""
TAB = "\t"
COMPRESSED = {b"\x1f\x8b": "gunzip", b"PK\x03\x04": "unzip", b"\x28\xb5\x2f\xfd": "unzstd", b"BZh": "bunzip2"}
COMPRESSED |= {b"\xfd7zXZ": "unxz"}
"""How compressed files begin, and what unpacks them."""
SPREADSHEETS = (".xlsx", ".xls", ".xlsm", ".ods")


def text_of(path: Path, data: bytes) -> str:
    """UserError for anything but UTF-8, with or without a byte order mark."""
    if path.suffix.lower() in SPREADSHEETS:
        raise UserError(
            f"{path} is a spreadsheet, so its problems cannot be read. Save it as CSV in UTF-8, in the program"
            " that made it or by: type soffice --convert-to csv:'Text - txt - csv (StarCalc)':44,34,76"
            f" {quote(str(path))}."
        )
    for begin, program in COMPRESSED.items():
        if data.startswith(begin):
            raise UserError(
                f"{path} is compressed, so its problems cannot be read. Unpack it: type {program} {quote(str(path))}."
            )
    if data.startswith(b"PAR1"):
        raise UserError(f"{path} is a Parquet file under another name. Rename it so that it ends in .parquet.")
    if data.startswith(LFS_POINTER):
        raise UserError(
            f"{path} is a Git LFS pointer, not the file itself: there are no problems in it. Type git -C"
            f" {quote(str(path.parent))} lfs pull."
        )
    if data.startswith((b"\xff\xfe", b"\xfe\xff")) or data.count(0) > len(data) // FEW_ZEROS:
        encoding = _wide_encoding(data)
        raise UserError(
            f"{path} is not UTF-8 but, as it seems, {encoding}: its problems would be read as something else. Save it"
            f" as UTF-8: type iconv -f {encoding} -t UTF-8 {quote(str(path))} > NEW."
        )
    if b"\0" in data:
        line = data[: data.index(b"\0")].count(b"\n") + 1
        raise UserError(
            f"{path}, line {line} holds a zero byte, which no text has: the file is damaged. Copy it again, or delete"
            f" it: type tr -d '\\000' < {quote(str(path))} > NEW."
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UserError(
            f"{path}, line {line}: byte 0x{data[error.start]:02x} is not UTF-8, so its text would be guessed. Save the"
            f" file as UTF-8, e.g. from Latin-1: type iconv -f LATIN1 -t UTF-8 {quote(str(path))} > NEW."
        ) from None


def _wide_encoding(data: bytes) -> str:
    """By its byte order mark, else by where the zeros of plain letters stand."""
    if data.startswith((b"\xff\xfe\0\0", b"\0\0\xfe\xff")):
        return "UTF-32"
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "UTF-16"
    return "UTF-16BE" if data.index(b"\0") % 2 == 0 else "UTF-16LE"


def refuse_other_forms(path: Path, text: str, needed: tuple[str, ...]) -> None:
    """UserError for a text that should be JSON lines and is one list, objects of several lines, or a table with the
    columns `needed`."""
    if text.lstrip().startswith("["):
        raise UserError(
            f"{path} is one JSON list, not one object a line: no problem could be read. Type"
            f" {_as_lines(path)} > NEW.jsonl."
        )
    if _spread_out(text):
        raise UserError(
            f"{path} holds JSON objects of several lines each, not one object a line: no problem could be read. Type"
            f" jq -c . {quote(str(path))} > NEW.jsonl."
        )
    first = next((line for line in text.splitlines() if line.strip()), "")
    for separator, ending in ((",", ".csv"), (TAB, ".tsv")):
        if set(needed) <= {plain_name(name) for name in first.split(separator)}:
            raise UserError(
                f"{path} is a table with the columns {first!a}, and only a name that ends in {ending} is read as"
                f" one: no problem could be read. Type mv {quote(str(path))} {quote(str(path.with_suffix(ending)))},"
                " and the new name in task.data_files."
            )


def _as_lines(path: Path) -> str:
    opened = f"open({str(path)!r}, encoding='utf-8-sig')"
    script = f"import json; file = {opened}; [print(json.dumps(row)) for row in json.load(file)]"
    return f"python -c {quote(script)}"


def _spread_out(text: str) -> bool:
    """Whether a text is one JSON object after another, none of them on a line of its own."""
    if text.lstrip()[:1] != "{" or text.strip().split("\n", 1)[0].rstrip().endswith("}"):
        return False
    try:
        json.JSONDecoder().raw_decode(text.lstrip())
    except (ValueError, RecursionError):
        return False
    return True


def refuse_json(path: Path, text: str) -> None:
    """UserError for JSON in a file whose name says that it is a table."""
    if text.lstrip().startswith(("{", "[")):
        raise UserError(
            f"{path} holds JSON, and its name ends in {path.suffix}, so no problem could be read. Type mv"
            f" {quote(str(path))} {quote(str(path.with_suffix('.jsonl')))}, and the new name in task.data_files."
        )


def plain_name(name: str) -> str:
    """A column's name without case, quotes, white space around it and what nobody sees."""
    return "".join(char for char in name if not invisible(char)).strip().strip('"').strip().casefold()
