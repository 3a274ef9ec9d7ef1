"""Flips: problems that stock solved and the policy lost, and the other way round, with what both wrote.

Completions are written by a model: everything here is escaped, and the script only shows and hides what stands here.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import polars as pl

from banpick_exp.analysis.flips import flips
from banpick_exp.report.asked import Questions, questions_of
from banpick_exp.report.maps import Maps
from banpick_exp.report.page.beside_stock import BesideStock, beside_stock, policy_menu
from banpick_exp.report.page.section import Section, run_letter
from banpick_exp.report.run import Run
from banpick_exp.report.text import Row, in_words

MOST_BYTES = 800_000
"""Of all flips of a page, as HTML: shared by the policies of all runs alike."""
MOST_EACH_WAY = 40
"""Of one policy, lost or won."""
HEAD, TAIL = 900, 500
"""Characters of a long completion that are told from its beginning, and from its end, where the answer stands."""
LONGEST_ANSWER = 200
"""Characters of a gold or an extracted answer."""
INTRODUCTION = (
    "<p>Problems that stock solved and the policy lost, and the other way round: what the wins and losses of a verdict"
    " are made of. Both wrote the text in grey alike; from the mark on they differ. Of several samples a problem those"
    " that show it stand here.</p>"
)
NOTHING = '<p class="small">No policy was compared beside stock in this run, so there are no flips to show.</p>'


def flips_html(runs: Sequence[Run], maps: Sequence[Maps]) -> str:
    """For each run a search box, a menu of policies, and the flips of each, folded."""
    chosen = [beside_stock(run) for run in runs]
    room = MOST_BYTES // max(sum(map(len, chosen)), 1)
    parts = []
    for run, policies in zip(runs, chosen, strict=True):
        heading = f"<h3>{run_letter(runs, run)}: {escape(run.name)}</h3>" if len(runs) > 1 else ""
        parts.append(f"{heading}{_run_html(run, policies, room, f'flips-{run_letter(runs, run)}')}")
    return (INTRODUCTION if any(chosen) else "") + "".join(parts)


SECTION = Section(key="flips", title="Flips", html=flips_html)


def _run_html(run: Run, policies: Sequence[BesideStock], room: int, key: str) -> str:
    if not policies:
        return NOTHING
    search = (
        f'<p class="controls"><label>search <input type="search" data-searches="{key}"'
        ' placeholder="problem, answer or completion"></label>'
        f'<span class="small" data-counts="{key}" role="status"></span></p>'
    )
    blocks = "".join(f'<div data-of="{key}">{_policy_html(run, each, room)}</div>' for each in policies)
    return f'<div class="flips">{policy_menu(policies, key)}{search}{blocks}</div>'


def _policy_html(run: Run, beside: BesideStock, room: int) -> str:
    """The flips of one policy against stock, in at most `room` bytes."""
    label = in_words(beside.record.label)
    found = flips(run.outcomes[beside.record.fingerprint], run.outcomes[beside.stock.fingerprint])
    counts = {side: found.filter(pl.col("solved_by") == side).height for side in "ba"}
    said = (
        f"<p><b>{escape(label)}</b> ({escape(beside.why)}): {counts['b']:,} problems that stock solved are lost,"
        f" {counts['a']:,} that it lost are solved.</p>"
    )
    if found.height and found["completion_a"].is_null().all() and found["completion_b"].is_null().all():
        said += (
            '<p class="small">These records are of an older version: they hold the extracted answers, not the'
            " completions.</p>"
        )
    asked = questions_of(beside.record.task)
    if found.height and not asked:
        said += (
            '<p class="small">The questions are not shown: the files of the task are not here, or are no longer those'
            " that were asked.</p>"
        )
    titles = {"b": "Stock solved, the policy lost", "a": "The policy solved, stock lost"}
    groups = "".join(_group(titles[side], _spread(found, side), counts[side], room // 2, label, asked) for side in "ba")
    where = f"bp.Run({str(run.folder.path)!r}).flips({beside.record.label!r})"
    cut = any(count > MOST_EACH_WAY for count in counts.values()) or "<!-- cut -->" in groups
    more = f'<p class="small">All of them, whole: <code>{escape(where)}</code> in Python.</p>' if cut else ""
    return f"{said}{groups}{more}"


def _spread(found: pl.DataFrame, side: str) -> pl.DataFrame:
    """Those of one side, a problem of each domain in turn: where they are cut, no domain is missing."""
    some = found.filter(pl.col("solved_by") == side)
    return some.sort(pl.int_range(pl.len()).over("domain"), maintain_order=True).head(MOST_EACH_WAY)


def _group(title: str, rows: pl.DataFrame, count: int, room: int, label: str, asked: Questions) -> str:
    if not count:
        return f'<h4>{title}</h4><p class="small">None.</p>'
    told: list[str] = []
    for row in rows.iter_rows(named=True):
        html = _flip(row, label, asked.get((row["domain"], row["problem_id"])))
        room -= len(html.encode())
        if room < 0:
            break
        told.append(html)
    cut = f": {len(told):,} of {count:,} are here<!-- cut -->" if len(told) < count else f" ({count:,})"
    return (
        f'<h4>{title}{cut}</h4><div class="list" tabindex="0" role="group" aria-label="{title}">{"".join(told)}</div>'
    )


def _flip(row: Row, label: str, question: str | None) -> str:
    """One problem, folded: what was right, what each took for the answer; inside what was asked and each wrote."""
    task = f", {row['task']}" if row["task"] not in (None, row["domain"]) else ""
    shares = (row["share_a"], row["share_b"])
    several = any(share not in (0, 1) for share in shares)
    right = f" of the answers {100 * shares[0]:.0f} % (policy) and {100 * shares[1]:.0f} % (stock) are right" * several
    facts = [
        ("right is", _answer(row["gold"])),
        ("stock", _answer(row["answer_b"]) + _ended(row["truncated_b"])),
        ("policy", _answer(row["answer_a"]) + _ended(row["truncated_a"])),
    ]
    shown = "".join(f"<span>{name} {value}</span>" for name, value in facts)
    name = row["problem_id"] if row["problem_id"].startswith(row["domain"]) else f"{row['domain']} {row['problem_id']}"
    summary = f"<summary><b>{escape(name)}</b>{escape(task + right)} {shown}</summary>"
    stock, policy = row["completion_b"], row["completion_a"]
    alike = _alike(stock or "", policy or "")
    texts = [("stock", stock, row["truncated_b"]), (label, policy, row["truncated_a"])]
    both = "".join(
        f"<div><h5>{escape(name)}{_ended(cut)}</h5>{_completion(text, alike)}</div>" for name, text, cut in texts
    )
    prompt = "" if question is None else f'<div class="sides"><div><h5>asked</h5>{_completion(question, 0)}</div></div>'
    return f'<details class="flip">{summary}{prompt}<div class="sides">{both}</div></details>'


def _alike(one: str, other: str) -> int:
    """How many characters both begin with. Example: _alike("2+2=4", "2+3") = 2."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _answer(text: str | None) -> str:
    if text is None:
        return "<i>not recorded</i>"
    if not text.strip():
        return "<i>none found</i>"
    cut = text if len(text) <= LONGEST_ANSWER else f"{text[:LONGEST_ANSWER]}..."
    return f"<code>{escape(cut)}</code>"


def _ended(truncated: bool | None) -> str:
    return ' <b class="warning">cut off</b>' if truncated else ""


def _completion(text: str | None, alike: int) -> str:
    """A completion or a question as text, its first `alike` characters in grey; a long one says what is left out."""
    if text is None:
        return '<p class="small">Not recorded.</p>'
    if not text:
        return '<p class="small">Nothing was written.</p>'
    long = len(text) > HEAD + TAIL
    head, tail = (text[:HEAD], text[-TAIL:]) if long else (text, "")
    same, other = head[:alike], head[alike:]
    parts = [f'<span class="same">{escape(same)}</span><mark></mark>' if same else "", escape(other)]
    if long:
        left = len(text) - HEAD - TAIL
        parts.append(f'<span class="left">[{left:,} characters left out]</span>{escape(tail)}')
    return f"<pre>{''.join(parts)}</pre>"
