"""Writes the job files and READMEs of sweeps/ from its templates and each study.yaml, so that they cannot drift.

    .venv/bin/python .ci/job_files.py            writes what differs, and names it
    .venv/bin/python .ci/job_files.py --check    writes nothing; 1 where something differs

A template is `sweeps/<file>.template`; `@word@` stands for what the study says. `sweeps/README.md` is the list of them.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]  # this very checkout, whatever is installed

from banpick_exp.sweep.study import Study, read_study, studies, studies_dir  # noqa: E402

SUFFIX = ".template"
DATA_FILES = """ 'task.data_files="/outputs/data/{domain}.{split}.jsonl"'"""
"""Where a job in a container has files of one's own; fetched benchmarks lie where BANPICK_DATA says."""
WORD = re.compile(r"@([a-z_]+)@")


def words_of(name: str, study: Study) -> dict[str, str]:
    """What a template may name."""
    told = {key: getattr(study, key) for key in ("purpose", "published", "expected", "cost", "data", "model")}
    return told | {
        "study": name,
        "files": DATA_FILES if any(word.startswith("task.data_files=") for word in study.full) else "",
        "name": name.replace("_", "-"),  # Kubernetes allows no underscore
        "node_count": str(study.nodes),
        "nodes": _count(study.nodes, "node"),
        "pods": _count(study.nodes, "worker pod"),
        "gpus": str(study.gpus_per_node),
        "hours": str(study.hours),
        "seconds": str(study.hours * 3600),
        "points": str(study.points.full),
        "tiny_points": str(study.points.tiny),
    }


def _count(number: int, word: str) -> str:
    return f"{number} {word}" + ("" if number == 1 else "s")


def filled(template: str, words: dict[str, str]) -> str:
    """`template` with every `@word@` replaced. Raises KeyError for one that no study has."""
    return WORD.sub(lambda found: words[found[1]], template)


def files() -> Iterator[tuple[Path, str]]:
    """Every file that is written, with its text."""
    folder = studies_dir()
    templates = {path.name.removesuffix(SUFFIX): path.read_text(encoding="utf-8") for path in folder.glob(f"*{SUFFIX}")}
    lines = ["| study | question | model | points |", "|---|---|---|---|"]
    for name in studies():
        study = read_study(name)
        words = words_of(name, study)
        for file, template in templates.items():
            yield folder / name / file, filled(template, words)
        lines.append(f"| [{name}]({name}/README.md) | {study.purpose} | {study.model} | {study.points.full} |")
    yield folder / "README.md", INDEX.format(table="\n".join(lines))


INDEX = """\
# Studies

A study is a question with all that it takes to ask it: `python -m banpick_exp study=NAME` runs one, `scale=tiny` on the
embedded model in minutes, `dry_run=true` not at all. Each folder has its study.yaml, a job for Slurm, for KubeRay and
for SkyPilot, and a page on what is known and what to expect. A study of your own is a folder with a study.yaml;
`.ci/job_files.py` writes the rest.

{table}

Where answers are programs (main_deepseek_v2_lite asks HumanEval+), they run in a sandbox, and a study permits it by
`task.allow_code=true`: [docs/sandbox.md](../docs/sandbox.md).
"""


def main(arguments: list[str]) -> int:
    """0, or with --check 1 where a file is not what its template and study make of it."""
    differing = [(path, text) for path, text in files() if not path.is_file() or path.read_text("utf-8") != text]
    for path, text in differing:
        print(path.relative_to(ROOT))
        if "--check" not in arguments:
            path.write_text(text, encoding="utf-8")
    return int(bool(differing) and "--check" in arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
