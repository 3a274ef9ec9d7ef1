"""Inside: one program out of what a prompt began and a model wrote."""

from __future__ import annotations

import ast

STOP_AT_LEAST = 1
"""Line of a continuation that is kept in any case."""


def defines(source: str, name: str) -> bool:
    """Whether a source, which must be whole, binds a name at its top level."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.name == name:
            return True
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
            return True
        if isinstance(node, ast.ImportFrom) and any((each.asname or each.name) == name for each in node.names):
            return True
    return False


def whole(source: str) -> bool:
    try:
        ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return False
    return True


def assembled(code: str, prefix: str, entry_point: str | None) -> str:
    """The program that `code` is, or that it makes of `prefix` where it goes on with it.

    A program of its own runs after all that the prefix has whole: its imports, the functions that it gives, and its
    own stub, which the program defines again. What is only a body is put behind the prefix as it stands, indented where
    its first line is not. Either is cut where a raw completion goes on with something that is no Python.
    """
    if not prefix.strip():
        return code if entry_point is None or whole(code) else _beginning(code, entry_point) or code
    if whole(code) and (entry_point is None or defines(code, entry_point)):
        return f"{given(prefix)}\n\n{code}"
    for continued in (prefix + code, prefix + _indented_first(code), prefix + _indented(code)):
        if whole(continued) and _has_body(continued, prefix):
            return continued
    if entry_point is not None and (program := _beginning(code, entry_point)) is not None:
        return f"{given(prefix)}\n\n{program}"
    for continuation in (code, _indented_first(code)):
        lines = continuation.splitlines()
        for end in range(len(lines) - 1, STOP_AT_LEAST - 1, -1):
            shorter = prefix + "\n".join(lines[:end])
            if whole(shorter) and _has_body(shorter, prefix):
                return shorter
    return prefix + code  # whose error is told


def _beginning(code: str, entry_point: str) -> str | None:
    """The lines of a program before something that is no Python; None where they do not define `entry_point`."""
    lines = code.splitlines()
    for end in range(len(lines) - 1, 0, -1):
        shorter = "\n".join(lines[:end])
        if whole(shorter):
            return shorter if defines(shorter, entry_point) else None
    return None


def given(prefix: str) -> str:
    """What of a prompt runs by itself: all of it, with a body for a function that has none, else its imports."""
    for source in (prefix, f"{prefix.rstrip()}\n    pass\n"):
        if whole(source):
            return source
    lines = [line for line in prefix.splitlines() if line.startswith(("import ", "from ")) and whole(line)]
    return "\n".join(lines)


def _has_body(continued: str, prefix: str) -> bool:
    """Whether the last function that the prompt begins has got something to do by what follows."""
    if not whole(prefix):
        return True
    before, after = ast.parse(prefix).body, ast.parse(continued).body
    if not before or not isinstance(before[-1], ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return True
    last = after[len(before) - 1] if len(after) >= len(before) else None
    return last is not None and ast.dump(last) != ast.dump(before[-1])


def _indented_first(code: str) -> str:
    """The first line indented as a body: models leave out the white space that they begin with."""
    return f"    {code.lstrip()}"


def _indented(code: str) -> str:
    return "\n".join(f"    {line}" if line.strip() else line for line in code.strip("\n").splitlines()) + "\n"
