"""What the fuzz tests share: how many examples, how long one may take, and values that have broken programs."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

SECONDS = 60
"""For one example on a busy machine: most plans take a hundredth of it."""


class Hang(BaseException):
    """No Exception, so that no `except Exception` on the way takes it for an answer."""


@contextmanager
def in_time(seconds: int = SECONDS) -> Iterator[None]:
    """Raises Hang in the main thread when the time is over."""

    def ring(*_: object) -> None:
        raise Hang(f"no answer after {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def examples(count: int) -> settings:
    """`count` of them, the same ones every time in CI. FUZZ=10 in the environment tries ten times as many."""
    return settings(
        max_examples=count * int(os.environ.get("FUZZ", "1")),
        deadline=None,
        derandomize="CI" in os.environ,
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )


NASTY = [
    "", " ", "null", "~", "true", "off", "nan", "-inf", "inf", "1e999", "-0", "0x10", "1_000", "007", "1.", ".5",
    "-1", "0", "2", "???", "99999999999999999999", "-" + "9" * 400, "1e308", "[]", "{}", "[1,2]", "[[1],[2]]",
    "{a:1}", "{0:[1,2]}", "[null]", "['']", "'", '"', "''", '""', "'a", '"a b"', "a,b", "1,2,3", ",", "choice()",
    "choice(1,2)", "choice(a)", "choice([1],[2])", "choice(K,E)", "range(1,3)", "range(1,4,0)", "range(3,1)",
    "range(1,K)", "range(0,1,0.3)", "interval(0,1)", "interval(1,1)", "glob(*)", "sort(1,2)", "shuffle(1,2)",
    "int(1)", "float(x)", "str(1)", "bool(x)", "json_str(1)", "extend_list(1)", "choice(1,choice(2,3))",
    "tag(a,choice(1))", "${seed}", "${nothing}", "${oc.env:HOME}", "${", "\\", "\\\\", "a\\", "/", "//", ".", "..",
    "../x", "a/b", "a*b", "[a]", "p [1]", "q::x", "é", "ß", "日本", "😀", "\u202e", "\ufeff", "\udcff", "\u2028", "\t",
    "a\nb", "\r", "\x1b[31m", "%s", "{0}", "{domain}", "{split}", "{domain}_{split}", "[bold]", "[/]", "[red",
    ":smile:", "<b>", "&amp;", "K", "E", "L", "K/0", "2*K", "choice(K/2,K//0)", "choice(K**9)", "-", "--", "=", "a=b",
    "==", "@", "#", "a#b", "a:b", ":", ";", "?", "!", "|", "x" * 300, "(" * 50, "[" * 50, "{" * 50, "'" * 51,
    "1e400", "1e-400", "choice(0.5,1e400)", "choice(K*1e400)", "choice(K*" + "9" * 400 + ")", "{0:[1],0:[2]}", "'4",
    "４", "٤", "−4", "4\n", "\u00a04", "9" * 5000, "9 " * 2000, "h:99999", "::1", "ray://h:1", "local", "'1e400'",
]  # fmt: skip
ALPHABET = "aKEL019.-+*/ ,;:=()[]{}<>'\"\\$&|~^#@!?%_\t\n\ré😀\u202e\udcff"
TEXTS = st.sampled_from(NASTY) | st.text(alphabet=ALPHABET, max_size=24) | st.text(max_size=8)


def without_nul(text: str) -> bool:
    """No program can be given a NUL among its words."""
    return "\0" not in text


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.integers(-3, 9) | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=8,
)
