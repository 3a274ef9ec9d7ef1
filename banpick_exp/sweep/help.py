"""The short hint and the help page of the sweep command."""

from __future__ import annotations

from pathlib import Path

import yaml

from banpick_exp.sweep.compose import POINT_KEYS, RUN_KEYS, choices, conf_dir
from banpick_exp.sweep.study import read_study, studies

WELCOME = """\
banpick measures what a routing policy gains and costs on a mixture-of-experts checkpoint, on real vLLM engines.

  python -m banpick_exp +sweep=pick_strength                 the first sweep: embedded model, minutes on a laptop
  python -m banpick_exp +sweep=pick_strength dry_run=true    what it would do, starting nothing
  python -m banpick_exp --help                               every sweep, policy and setting
"""

HELP = """\
Usage: python -m banpick_exp +sweep=NAME [KEY=VALUE ...]      run a shipped search space
       python -m banpick_exp policy=NAME [KEY=VALUE ...]      run one policy, or axes of your own, next to stock
       python -m banpick_exp study=NAME [KEY=VALUE ...]       run a study: a question with its model, data and settings

{groups}

Settings
  output_dir=outputs      results go to <output_dir>/<sweep>/<run>/
  resume=RUN              go on with a run (folder or name): finished points are not repeated
  run=NAME                the run's own name: begun where there is none of it, gone on with where there is
  study=NAME              a study's settings; what is typed beside it wins, and scale=tiny asks the embedded model
  dry_run=true            print the points, the engines they share and the price, and start nothing
  hardware=h200           what a GPU is taken for in prices: h100 (default), h200, a100_80gb, hardware.memory_tb_s=...
  budget.gpu_hours=100    stop in order when engines have held GPUs for so long, all drivers of the run together
  seed=0                  of sampling and bootstrap
  calibration.score=...   what ranks key experts: insertion_kl, removal_kl, removal_kl_per_use
  calibration.path=FOLDER an artifact made before, instead of making one (python -m banpick_exp calibrate makes one)
  model.path=FOLDER       a checkpoint of your own; its config.json gives the sizes. A real checkpoint needs a task: a
                          +sweep takes the first of model.suggested_tasks, a line of your own must name one
  GROUP.KEY=VALUE         any key of the YAML files in conf/, e.g. engine.max_num_seqs=64 task.max_problems=200
  cluster.engines=2       engines loaded side by side; auto (default): as many as fit
  search=racing           stop points that can no longer reach the front; search=optuna samples 'KEY=interval(a,b)'
  search=select           dev chooses, and only what it chose runs on test; search.by=policy.KNOB chooses one a value
  repeats=3               every point twice more in other batches and order (repeat=1: the first of them alone)
  task.samples=4          answers a problem, drawn with task.temperature=0.6 (and task.top_p=0.95): accuracy is avg@4
                          (task.choose=majority: the most frequent answer of each problem counts; task.choose=reward
                          task.reward_model=FOLDER: the one that a reward model scores highest)
  sweep.reference='[["policy=fixed_k","policy.k=range(1,K)"]]'   points beside your own; stock is always there

Axes
  KEY=choice(a,b)  KEY=a,b  KEY=range(start,stop,step) make an axis; several axes make their product. The end of a range
  is not part of it. Inside them K, E and L stand for the checkpoint's top_k, experts and MoE layers. Every engine,
  model, policy, task and calibration key can be an axis. Put quotes around parentheses, for the shell.

  On a shipped sweep, an axis that is there is replaced, and one that is not is added:
    python -m banpick_exp +sweep=pick_strength 'policy.boost=choice(0.5,1)' policy.key_experts=4
    python -m banpick_exp +sweep=pick_strength sweep.params='["policy.boost=choice(0.5,1)","policy.key_experts=4"]'
    python -m banpick_exp +sweep=pick_strength 'engine.max_num_seqs=choice(64,256)'

Examples
  python -m banpick_exp +sweep=pick_strength model=tiny_control           the positive control: here Pick must help
  python -m banpick_exp +sweep=ban_threshold task.max_problems=200        fewer problems, wider intervals
  python -m banpick_exp policy=fixed_k 'policy.k=range(1,K)'              the ladder that claims are held against
  python -m banpick_exp policy=naee 'policy.budget=choice(4,5)'           its knob solved for measured budgets
  python -m banpick_exp policy=pick 'policy.experts={{0: [3, 7]}}'          key experts by name, no calibration
  python -m banpick_exp +sweep=ban_pick model=qwen3_30b_a3b task=jsonl ... dry_run=true    what a real one would cost
  python -m banpick_exp +sweep=ban_pick resume=20260131-093000            the same command, where it stopped
  python -m banpick_exp +sweep=pick_auto                                  does Pick help here: keys, strength, verdict
  python -m banpick_exp +sweep=ban_pick task.split=dev                    to choose from: python -m banpick_exp choose

A run folder holds
  run.json                            the sweep, its models and data
  points/<fingerprint>.json           one record a point: accuracy, speed, measured budget, intervals
  points/<fingerprint>.outcomes.parquet   every problem and its answer
  points.parquet, report.html, *.png   the table, the report and its figures, at the end
  bill.json                           what was estimated and what was spent

Exit codes: 0 done, 1 a point failed or is invalid, 2 nothing was started because of what was typed.
"""

GROUP_TITLES = {
    "sweep": "Sweeps: +sweep=",
    "policy": "Policies: policy=",
    "model": "Models: model=",
    "engine": "Engines: engine=",
    "task": "Tasks: task=",
    "cluster": "Clusters: cluster=",
    "tracking": "Tracking: tracking=",
    "search": "Searches: search=",
    "hardware": "What a GPU is taken for in prices: hardware=",
}


def help_page() -> str:
    """The help text, with every choice in conf/ and the comment that its file begins with."""
    defaults = {group: name for entry in _defaults() for group, name in entry.items()}
    parts = []
    for group, title in GROUP_TITLES.items():
        lines, width = [title], max(24, *(len(name) + 2 for name in choices(group)))
        for name in choices(group):
            mark = " (default)" if defaults.get(group) == name else ""
            lines.append(f"  {name + mark:<{width}}{_first_comment(conf_dir() / group / f'{name}.yaml')}")
        parts.append("\n".join(lines))
    told = [f"  {name:<24}{read_study(name).purpose}" for name in studies()]
    parts.append("\n".join(["Studies: study=", *told]))
    return HELP.format(groups="\n\n".join(parts))


def _defaults() -> list[dict[str, str]]:
    root = yaml.safe_load((conf_dir() / "config.yaml").read_text(encoding="utf-8"))
    return [entry for entry in root["defaults"] if isinstance(entry, dict)]


def _first_comment(path: Path) -> str:
    comments = (line[1:].strip() for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#"))
    return next((text for text in comments if not text.startswith("@")), "")


def completion_keys() -> list[str]:
    """Keys that a shell may offer: groups, settings of the whole run, and the keys of the groups' default files."""
    keys = dict.fromkeys([*POINT_KEYS, *RUN_KEYS])
    for entry in _defaults():
        for group, name in entry.items():
            settings = yaml.safe_load((conf_dir() / group / f"{name}.yaml").read_text(encoding="utf-8")) or {}
            keys |= dict.fromkeys(f"{group}.{key}" for key in settings if key not in ("name", "defaults"))
    return list(keys)
