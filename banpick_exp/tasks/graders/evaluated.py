"""What of a model's text may be evaluated: numbers, lists of them, arithmetic, elementary functions of a variable.

Some verifiers hand an answer to Python's `eval`, or to sympy's `parse_expr`, which is `eval` too: an answer such as
`__import__('os').system(...)` would run. So both are guarded where they stand: what is evaluated is a tree of nodes
that are named here, and anything else is an error, which makes a wrong answer.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Container, Mapping
from typing import Any

ARITHMETIC = (
    ast.Expression, ast.Constant, ast.Load, ast.BinOp, ast.UnaryOp, ast.operator, ast.unaryop, ast.List, ast.Tuple,
)  # fmt: skip
MADE_BY_SYMPY = frozenset({"Integer", "Float", "Rational", "Symbol"})
"""What sympy's parser writes around numbers and names before it evaluates."""
FUNCTIONS = frozenset({
    "abs", "Abs", "sign", "sqrt", "cbrt", "root", "exp", "log", "ln", "sin", "cos", "tan", "cot", "sec", "csc",
    "asin", "acos", "atan", "acot", "asec", "acsc", "sinh", "cosh", "tanh", "coth", "sech", "csch", "asinh",
    "acosh", "atanh", "acoth", "erf", "erfc", "erfi", "gamma", "factorial", "floor", "ceiling", "Ei", "Si", "Ci",
    "Shi", "Chi", "li", "Min", "Max",
})  # fmt: skip
CONSTANTS = frozenset({"pi", "E", "I", "oo"})


class NotEvaluated(ValueError):
    """A text that is more than arithmetic."""


def checked(text: str, names: Container[str] = (), functions: Container[str] = ()) -> str:
    """The text itself, where it holds nothing but arithmetic, these names, and calls of these functions.

    Raises NotEvaluated, SyntaxError (of what is no expression), RecursionError, MemoryError (of one too deep).
    """
    called: set[int] = set()
    for node in ast.walk(ast.parse(text.strip(), mode="eval")):
        match node:
            case ast.Call(func=ast.Name(id=function), keywords=[]) if function in functions:
                called.add(id(node.func))
            case ast.Name(id=name) if id(node) in called or name in names:
                pass
            case _ if not isinstance(node, ARITHMETIC):
                raise NotEvaluated(f"{type(node).__name__} is no arithmetic")
    return text


def guarded_eval(text: Any, *_: Any) -> Any:
    """In place of `eval`: the value of numbers, texts, lists and arithmetic. Raises as `checked`."""
    return eval(checked(str(text)).strip(), {"__builtins__": {}}, {})


def refused_exec(*_: Any) -> None:
    """In place of `exec`."""
    raise NotEvaluated("no answer is a program")


def guarded_sympy(evaluate: Callable[..., Any]) -> Callable[..., Any]:
    """sympy's `eval_expr`, for what its parser has made of elementary functions and of names that it was given."""

    def guarded(code: Any, local_dict: Mapping[str, Any], global_dict: Mapping[str, Any]) -> Any:
        names = CONSTANTS | {name for name, value in local_dict.items() if not callable(value)}
        return evaluate(checked(str(code), names, FUNCTIONS | MADE_BY_SYMPY), local_dict, global_dict)

    return guarded
