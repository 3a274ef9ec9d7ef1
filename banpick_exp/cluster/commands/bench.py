"""`python -m banpick_exp bench`: how fast is the router, and do banned experts cost nothing?"""

from __future__ import annotations

import argparse
import sys

from banpick_exp.cluster.commands.bench_options import numbers, path_of, unwritable_problem
from banpick_exp.errors import UserError
from banpick_exp.evaluation.bench.layer import (
    DTYPES,
    MEAN_KEPT,
    STORED,
    WORKING_GIB,
    BenchDtype,
    dtypes_of,
    on_gpu,
    weights_gib,
)
from banpick_exp.models.dtype import this_machine
from banpick_exp.options import Options
from banpick_exp.sweep.overrides import MOST_POINTS

MOST_PROBLEMS = 2400
"""Of the embedded task's three domains."""

DESCRIPTION = """\
Benchmarks. Variants alternate in one process; every figure is a ratio with its quartiles. JSON lines go to stdout.

  python -m banpick_exp bench moe       one layer of Qwen3-30B's shape on CPU, tokens 1 to 1024: stock, dup, ours,
                                        fixed_k 5, and the bound (about 6 minutes, 6 GB)
  python -m banpick_exp bench engine    a vLLM engine of four such layers with random weights: decode at batch 1, 8 and
                                        32, prefill of 2,048 tokens, under five policies (about 25 minutes, 15 GB)
  python -m banpick_exp bench rows      the same engine decoding under 16 policies at once, one for each request, over
                                        one policy (--sizes 16,64)
  python -m banpick_exp bench together  the embedded model under 4 and 16 policies, one after the other and in one
                                        batch, on 3 to 300 problems: when `engine.policies_per_batch` pays
                                        (--rounds 6 --threads 1: 8 minutes)
  python -m banpick_exp bench profile   where the time of a decode step goes, by policy (about 3 minutes, 15 GB)
  python -m banpick_exp bench calibration  work and time to find key experts by method, on the embedded model and its
                                        controls, and whether all find the same (about 2 minutes, --rounds 1)
  python -m banpick_exp bench sweep     what the driver of a sweep costs a point, in time and memory, and how long
                                        planning, resuming and the report take; engines answer by themselves at once,
                                        without vLLM and Ray, so what is measured is the driver (--points 100,1000)
  python -m banpick_exp bench serve     tokens a second of a real server at 1, 8 and 32 clients, stock against a policy;
                                        options of its own: bench serve --help

On a CPU each runs in bfloat16 and in float32, one after the other, and compares within a dtype. --dtype bfloat16 takes
half the time and memory. Close other programs first: the ratios bear a busy machine, their quartiles show it.
"""


def _options() -> Options:
    arguments = Options(prog="python -m banpick_exp bench", description=DESCRIPTION)
    arguments.add_argument("what", choices=("moe", "engine", "rows", "together", "profile", "calibration", "sweep"))
    arguments.add_argument("--rounds", type=int, default=15, help="rounds of every variant (default: 15)")
    arguments.add_argument(
        "--mean-kept", type=float, default=MEAN_KEPT, help="budget of Ban, of 8 experts (default: 4.8)"
    )
    arguments.add_argument(
        "--dtype",
        choices=("both", *DTYPES),
        help=f"what to compute in (default: both on a CPU, the checkpoint's {STORED} on a GPU)",
    )
    arguments.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    arguments.add_argument(
        "--sizes",
        type=numbers,
        help="tokens (moe), batch sizes (engine, rows, profile) or problems (together), as 1,8,32",
    )
    layers = "layers of the engine, 1.2 GB each in bfloat16, 2.4 in float32 (default: 4)"
    arguments.add_argument("--layers", type=int, default=4, help=layers)
    arguments.add_argument("--output", type=path_of, metavar="FILE", help="append the JSON lines to FILE too")
    arguments.add_argument("--picture", type=path_of, metavar="PNG", help="draw the speed-ups of `engine`")
    points = "points of the sweep, as 100,1000,10000 (default: 1000)"
    arguments.add_argument("--points", type=numbers, default=(1000,), help=points)
    arguments.add_argument("--engines", type=int, default=64, help="engines of the sweep (default: 64)")
    seconds = "that an engine of the sweep takes for a point (default: 0)"
    arguments.add_argument("--answer-seconds", type=float, default=0.0, metavar="SECONDS", help=seconds)
    arguments.add_argument("--no-report", action="store_true", help="leave the end of the sweep out")
    arguments.add_argument("--wandb", action="store_true", help="mirror the sweep in W&B, offline, and time that too")
    arguments.add_argument("--dry-run", action="store_true", help="say what would run")
    return arguments


def help_page() -> str:
    return _options().format_help()


def run(arguments: list[str]) -> int:
    """Returns 0."""
    options = _options().parse_args(arguments)
    sizes = options.sizes or {
        "moe": (1, 4, 16, 64, 256, 1024),
        "engine": (1, 8, 32),
        "rows": (16, 64),
        "together": (3, 15, 60, 300),
        "profile": (8,),
    }.get(options.what, (1,))
    dtypes = dtypes_of(options.dtype)
    problem = _problem(options, sizes, dtypes)
    if problem:
        raise UserError(problem)
    if options.what == "sweep":
        return _sweep(options)
    if options.what == "together":
        return _together(options, sizes)
    if options.dry_run:
        formats = " and ".join(dtypes)
        print(f"{options.what}: {formats}, sizes {list(sizes)}, {options.rounds} rounds, {options.threads} threads")
        return 0
    if options.what == "calibration":
        from banpick_exp.evaluation.bench.calibration import bench_calibration

        bench_calibration(options.rounds, options.output, lambda text: print(text, file=sys.stderr))
        return 0
    common = (sizes, options.rounds, options.mean_kept, options.threads, dtypes)
    if options.what == "moe":
        from banpick_exp.evaluation.bench.moe import bench_moe

        bench_moe(*common, options.output)
    elif options.what == "engine":
        from banpick_exp.evaluation.bench.engine import bench_engine
        from banpick_exp.report.figures.bench import speedup_png

        rows = bench_engine(*common, options.layers, options.output)
        if options.picture:
            print(speedup_png(rows, options.picture), file=sys.stderr)
    elif options.what == "rows":
        from banpick_exp.evaluation.bench.rows import bench_rows

        bench_rows(sizes, options.rounds, options.threads, dtypes, options.layers, options.output)
    else:
        from banpick_exp.evaluation.bench.profile import bench_profile

        bench_profile(*common, options.layers, options.output)
    return 0


def _together(options: argparse.Namespace, sizes: tuple[int, ...]) -> int:
    if options.dry_run:
        print(f"together: {list(sizes)} problems, {options.rounds} rounds, {options.threads} threads")
        return 0
    from banpick_exp.evaluation.bench.together import bench_together

    bench_together(sizes, options.rounds, options.threads, options.output)
    return 0


def _sweep(options: argparse.Namespace) -> int:
    sizes = ", ".join(f"{points:,}" for points in options.points)
    if options.dry_run:
        end = "without a report" if options.no_report else "with its report"
        print(f"sweep: {sizes} points on {options.engines} engines that answer by themselves, {end}")
        return 0
    from banpick_exp.cluster.bench_sweep import bench_sweep

    bench_sweep(
        options.points,
        options.engines,
        options.answer_seconds,
        report=not options.no_report,
        wandb=options.wandb,
        output=options.output,
        say=lambda text: print(text, file=sys.stderr),
    )
    return 0


def _problem(options: argparse.Namespace, sizes: tuple[int, ...], dtypes: tuple[BenchDtype, ...]) -> str | None:
    """What would make the run meaningless, said before it starts."""
    if not 3 < options.mean_kept < 8:
        return f"--mean-kept={options.mean_kept} cannot be reached by Ban between k_min 3 and 8. Use e.g. 4.8."
    if options.rounds < 1 or (options.rounds < 2 and options.what != "calibration"):
        return f"--rounds={options.rounds} gives no spread. Use 2 or more; 15 is the default."
    if min(sizes) < 1 or options.threads < 1 or options.layers < 1:
        return "--sizes, --threads and --layers count things: each must be 1 or more."
    if options.what not in ("moe", "together") and max(sizes) > 64:
        return f"--sizes={max(sizes)} exceeds the 64 sequences of the engine. Use at most 64."
    if options.what == "together" and max(sizes) > MOST_PROBLEMS:
        return f"--sizes={max(sizes)} exceeds the {MOST_PROBLEMS} problems of the embedded task. Use at most that many."
    if options.wandb and options.what != "sweep":
        return f"--wandb mirrors the sweep of `bench sweep`: `bench {options.what}` has none. Leave it out."
    if options.picture and options.what != "engine":
        return f"--picture draws what `bench engine` measures: `bench {options.what}` has no picture. Leave it out."
    if min(options.points) < 1 or options.engines < 1 or options.answer_seconds < 0:
        return "--points and --engines count things: each must be 1 or more. --answer-seconds is no less than 0."
    if max(options.points) > MOST_POINTS:
        return f"--points={max(options.points)} is more than one sweep may have. Use at most {MOST_POINTS}."
    files = (("--output", options.output, "bench.jsonl"), ("--picture", options.picture, "bench.png"))
    unwritable = (unwritable_problem(name, path, example) for name, path, example in files if path is not None)
    return next(filter(None, unwritable), None) or _too_large(options, dtypes)


def _too_large(options: argparse.Namespace, dtypes: tuple[BenchDtype, ...]) -> str | None:
    """An engine that the machine cannot hold would be killed without a word."""
    if options.what in ("moe", "calibration", "sweep") or on_gpu():
        return None
    memory = this_machine().memory_bytes / 2**30
    for dtype in dtypes:
        needed = weights_gib(options.layers, dtype) + WORKING_GIB
        if needed > memory:
            layers = int((memory - WORKING_GIB) / weights_gib(1, dtype))
            remedy = f"--layers {layers}" if layers >= 1 else "--dtype bfloat16 --layers 1, or find a larger machine"
            return (
                f"--layers={options.layers} in {dtype} takes about {needed:.0f} GiB and this machine has {memory:.0f}:"
                f" the engine would be killed. Type {remedy}"
            )
    return None
