"""A file of problems as rows, read from its bytes: what a value is, is what the file says, never what it looks like.

Text stays text, and a number keeps the digits it is written with. Nothing here knows what a problem is (`reading`).
"""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from banpick_exp.errors import UserError
from banpick_exp.tasks.file_kinds import TAB, plain_name, refuse_json, refuse_other_forms, text_of

if TYPE_CHECKING:
    import polars as pl

EXAMPLE = '{"prompt": "1+1=", "answer": "2"}'


class Number(str):
    """A number, as the file writes it."""

    __slots__ = ()


class NoValue(str):
    """What is neither text nor a number that can be written down: `NaN`, a date, a float of a Parquet column."""

    __slots__ = ()


Row = Mapping[str, object]
"""Field to value: str, Number, NoValue, bool, None, a list or an object of these."""
Numbered = Iterator[tuple[str, Row | str]]
"""(`line 5`, the row), or (`line 5`, why it is none)."""

NEEDED = 2
"""The question and the answer; ids and sub-tasks may be absent."""
SEPARATORS = (",", ";", TAB, "|")
"""What programs write between the columns of a table."""


def rows_of(path: Path, data: bytes, columns: tuple[str, ...]) -> Numbered:
    """The rows of a file whose content is `data`, by the ending of its name: .csv, .tsv, .parquet, else JSON lines.

    `columns`: what is read, of a Parquet file nothing else; a table must have the first two (`NEEDED`). Raises
    UserError where the file as a whole cannot be read.
    """
    kind = path.suffix.lower()
    if kind == ".parquet":
        return _parquet_rows(path, data, columns)
    text = text_of(path, data)
    if kind in (".csv", ".tsv"):
        return _csv_rows(path, text, "," if kind == ".csv" else "\t", columns[:NEEDED])
    refuse_other_forms(path, text, columns[:NEEDED])
    return _json_lines(text)


# ---------------------------------------------------------------- JSON lines


BYTE_ORDER_MARK = "\ufeff"
"""At the beginning of a file it is read over (`text_of`), elsewhere it is a character that nobody sees."""


class _DoubledKey(ValueError):
    pass


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _DoubledKey(next(key for key in keys if keys.count(key) > 1))
    return found


def _json_lines(text: str) -> Numbered:
    # Not str.splitlines: JSON text may hold U+2028 and its like, which end no line of a file.
    for number, line in enumerate(text.replace("\r\n", "\n").replace("\r", "\n").split("\n"), start=1):
        if not line.strip():
            continue
        name = f"line {number}"
        try:
            row = json.loads(
                line, object_pairs_hook=_object, parse_int=Number, parse_float=Number, parse_constant=NoValue
            )
        except _DoubledKey as doubled:
            yield name, f"has the key {str(doubled)!r} twice, and which one counts is not said"
        except json.JSONDecodeError as error:
            if line.startswith(BYTE_ORDER_MARK):
                yield name, "begins with a byte order mark (U+FEFF), as where files were joined by cat: delete it"
                continue
            whole = "" if line.lstrip().startswith("{") and line.rstrip() != "{" else f" such as {EXAMPLE}"
            yield name, f"is no JSON object{whole} ({error.msg}, column {error.colno})"
        except RecursionError:
            yield name, "is nested too deeply to be a problem"
        else:
            yield name, row if isinstance(row, dict) else f"is no JSON object such as {EXAMPLE}"


# ---------------------------------------------------------------- CSV and Parquet


def _csv_rows(path: Path, text: str, delimiter: str, needed: tuple[str, ...]) -> Numbered:
    previous = csv.field_size_limit(sys.maxsize)
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        lines, begin = [], 1
        for fields in reader:
            lines.append((begin, fields))
            begin = reader.line_num + 1
    except csv.Error as error:
        first = next(iter(text.strip().splitlines()), "")
        if wrong := _wrong_division(path, first, delimiter, needed):
            raise UserError(wrong) from None
        # A quote that is never closed takes the rest of the file into its cell: where that cell began is what to mend.
        number = f"{begin}" if reader.line_num <= begin else f"{begin} (read on to line {reader.line_num})"
        raise UserError(
            f"{path}, line {number}: {error}, so its columns cannot be told apart. Put texts that hold"
            f' {delimiter!r}, quotes or line breaks in double quotes, and write " inside them as "".'
        ) from None
    finally:
        csv.field_size_limit(previous)
    lines = [(number, fields) for number, fields in lines if fields]
    header = lines[0][1] if lines else []
    named = [name for name in header if name]  # spreadsheets write empty columns too, and nothing reads them
    if len(set(named)) < len(named):
        doubled = next(name for name in named if named.count(name) > 1)
        raise UserError(f"{path} has the column {doubled!r} twice, and which one counts is not said. Rename one.")
    if header and not set(needed) <= set(header):
        refuse_json(path, text)
        wrong = _wrong_division(path, delimiter.join(header), delimiter, needed)
        body = lines[1][0] if len(lines) > 1 else lines[0][0] + 1
        raise UserError(wrong or _wrong_names(path, header, body, delimiter, needed))
    return _csv_lines(lines, header)


def _wrong_division(path: Path, first: str, delimiter: str, needed: tuple[str, ...]) -> str | None:
    """What is wrong with how a first line is divided into columns; None where that can be as it should."""
    if first.lower().startswith("sep="):
        return (
            f"{path}: its first line {first!a} is a spreadsheet's note of what separates columns, not their names: no"
            f" problem could be read. Leave it out: type tail -n +2 {quote(str(path))} > NEW{path.suffix}."
        )
    other = _other_separator(first, delimiter, needed)
    if other is None:
        return None
    rewrite = (
        f"import csv; csv.writer(open('NEW.csv', 'w', newline='', encoding='utf-8')).writerows(csv.reader("
        f"open({str(path)!r}, newline='', encoding='utf-8-sig'), delimiter={other!r}, skipinitialspace=True))"
    )
    return (
        f"{path}: {_names_found([first], needed)}: they are separated by {'tabs' if other == TAB else repr(other)}, but"
        f" {path.suffix} means {'tabs' if delimiter == TAB else repr(delimiter)}, so no problem could be read. Write it"
        f" again: type python -c {quote(rewrite)}."
    )


def _other_separator(first: str, delimiter: str, needed: tuple[str, ...]) -> str | None:
    """What stands between the columns of a first line instead of `delimiter`; None where nothing seems to."""
    found = [other for other in SEPARATORS if other != delimiter and other in first]
    wanted = {plain_name(name) for name in needed}
    whole = [other for other in found if wanted <= {plain_name(name) for name in first.split(other)}]
    return next(iter(whole or ([] if delimiter in first else found)), None)


def _names_found(header: list[str], needed: tuple[str, ...]) -> str:
    return (
        f"its first line names the columns {', '.join(map(ascii, header))}, and {' and '.join(map(repr, needed))} are"
        " wanted"
    )


def _wrong_names(path: Path, header: list[str], body: int, delimiter: str, needed: tuple[str, ...]) -> str:
    """What is wrong with the names of a first line: their spelling, or all of them. `body`: the line after it."""
    says = f"{path}: {_names_found(header, needed)}"
    plain = {plain_name(name): name for name in needed}
    mended = [plain.get(plain_name(name), name) for name in header]
    if set(needed) <= set(mended) and len(set(mended)) == len(mended):
        line = io.StringIO()
        csv.writer(line, delimiter=delimiter, lineterminator="").writerow(mended)
        return (
            f"{says}, spelled exactly so: no problem could be read. Type (printf '%s\\n' {quote(line.getvalue())};"
            f" tail -n +{body} {quote(str(path))}) > NEW{path.suffix}."
        )
    return (
        f"{says}: no problem could be read. Begin the file with the line {delimiter.join(needed)}, or rename columns."
    )


def _csv_lines(lines: list[tuple[int, list[str]]], header: list[str]) -> Numbered:
    for number, fields in lines[1:]:
        if len(fields) != len(header):
            yield f"line {number}", f"has {len(fields)} columns, the first line {len(header)}"
        else:
            yield f"line {number}", dict(zip(header, fields, strict=True))


def _parquet_rows(path: Path, data: bytes, columns: tuple[str, ...]) -> Numbered:
    import polars as pl  # here alone: planning with JSON lines stays light

    try:
        there = pl.read_parquet_schema(io.BytesIO(data))
        frame = pl.read_parquet(io.BytesIO(data), columns=[name for name in columns if name in there], glob=False)
    # Damage makes Polars panic too, and a panic is no Exception.
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        raise UserError(
            f"{path} cannot be read as Parquet ({str(error).splitlines()[0]}): nothing could be asked. Write it again."
        ) from None
    if absent := [name for name in columns[:NEEDED] if name not in there]:
        raise UserError(
            f"{path} has no column {' and no '.join(map(repr, absent))} (it has {', '.join(map(ascii, [*there][:8]))}):"
            f" no problem could be read. {_renaming(path, [*there], absent)}"
        )
    for name, kind in frame.schema.items():
        if remedy := _cast(path, name, kind, frame[name]):
            raise UserError(remedy)
    rows = frame.iter_rows(named=True)
    return ((f"row {n}", {key: _plain(value) for key, value in row.items()}) for n, row in enumerate(rows, start=1))


def _renaming(path: Path, there: list[str], absent: list[str]) -> str:
    """How to rename columns of a Parquet file, where only their spelling is another."""
    alike = {name: [other for other in there if plain_name(other) == plain_name(name)] for name in absent}
    if not all(len(others) == 1 for others in alike.values()):
        return "Rename its columns and write it again."
    names = {others[0]: name for name, others in alike.items()}
    return f"Rename them: type {_rewriting(path, f'rename({names!a})')}."


def _rewriting(path: Path, change: str) -> str:
    """A command that writes a Parquet file again, changed by a method of a frame."""
    script = f"import polars as pl; pl.read_parquet({str(path)!r}, glob=False).{change}.write_parquet('NEW.parquet')"
    return f"python -c {quote(script)}"


def _cast(path: Path, name: str, kind: pl.DataType, column: pl.Series) -> str | None:
    """What to say of a column whose values have no text of their own, and how to write it as text; None for others."""
    import polars as pl

    inner = pl.Series(dtype=kind.inner).dtype if isinstance(kind, pl.List | pl.Array) else kind
    if not (inner.is_float() or inner.is_temporal() or inner.is_decimal() or inner == pl.Binary):
        return None
    plain = inner == kind
    numbers = column.fill_nan(None) if inner.is_float() and plain else None
    whole = numbers is not None and bool(((numbers % 1 == 0) & (numbers.abs() < 2**53)).all())
    to = ("pl.Int64" if whole else "pl.String") if plain else "pl.List(pl.String)"
    no_nan = ".fill_nan(None)" if numbers is not None and numbers.null_count() > column.null_count() else ""
    why = (
        "a float does not say how it was written (116 becomes 116.0)"
        if inner.is_float()
        else "such a value can be written in several ways"
    )
    return (
        f"{path}: its column {name!r} is {kind}, and {why}, so it would be read as something else. Write it as"
        f" {'whole numbers' if whole else 'text'}, then look at it: type"
        f" {_rewriting(path, f'with_columns(pl.col({name!r}){no_nan}.cast({to}))')}."
    )


def _plain(value: object) -> object:
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return Number(str(value)) if isinstance(value, int) else NoValue(f"a {type(value).__name__}")
