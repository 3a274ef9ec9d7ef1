"""`python -m banpick_exp bench`: how fast is the router, and do banned experts cost nothing?"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from banpick_exp.errors import UserError
from banpick_exp.options import Options

DESCRIPTION = """\
Benchmarks. Variants alternate in one process; every figure is a ratio with its quartiles. JSON lines go to stdout.

  python -m banpick_exp bench moe       one layer of Qwen3-30B's shape on CPU, tokens 1 to 1024: stock, dup, ours,
                                        fixed_k 5, and the bound (about 2 minutes, 2 GB)
  python -m banpick_exp bench engine    a vLLM engine of four such layers with random weights: decode at batch 1, 8 and
                                        32, prefill of 2,048 tokens, under five policies (about 8 minutes, 10 GB)
  python -m banpick_exp bench profile   where the time of a decode step goes, stock and banned (about 1 minute, 10 GB)

Close other programs first: the ratios bear a busy machine, their quartiles show it.
"""


def _options() -> Options:
    arguments = Options(prog="python -m banpick_exp bench", description=DESCRIPTION)
    arguments.add_argument("what", choices=("moe", "engine", "profile"))
    arguments.add_argument("--rounds", type=int, default=15, help="rounds of every variant (default: 15)")
    arguments.add_argument("--mean-kept", type=float, default=4.8, help="budget of Ban, of 8 experts (default: 4.8)")
    arguments.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    arguments.add_argument("--sizes", type=_numbers, help="tokens (moe) or batch sizes (engine, profile), as 1,8,32")
    arguments.add_argument("--layers", type=int, default=4, help="layers of the engine, 1.2 GB each (default: 4)")
    arguments.add_argument("--output", type=Path, metavar="FILE", help="append the JSON lines to FILE too")
    arguments.add_argument("--picture", type=Path, metavar="PNG", help="draw the speed-ups of `engine`")
    arguments.add_argument("--dry-run", action="store_true", help="say what would run")
    return arguments


def help_page() -> str:
    return _options().format_help()


def run(arguments: list[str]) -> int:
    """Returns 0."""
    options = _options().parse_args(arguments)
    sizes = options.sizes or {"moe": (1, 4, 16, 64, 256, 1024), "engine": (1, 8, 32), "profile": (8,)}[options.what]
    problem = _problem(options, sizes)
    if problem:
        raise UserError(problem)
    if options.dry_run:
        print(f"{options.what}: sizes {list(sizes)}, {options.rounds} rounds, {options.threads} threads")
        return 0
    common = (sizes, options.rounds, options.mean_kept, options.threads)
    if options.what == "moe":
        from banpick_exp.evaluation.bench.moe import bench_moe

        bench_moe(*common, options.output)
    elif options.what == "engine":
        from banpick_exp.evaluation.bench.engine import bench_engine
        from banpick_exp.report.figures.bench import speedup_png

        rows = bench_engine(*common, options.layers, options.output)
        if options.picture:
            print(speedup_png(rows, options.picture), file=sys.stderr)
    else:
        from banpick_exp.evaluation.bench.profile import bench_profile

        bench_profile(*common, options.layers, options.output)
    return 0


def _problem(options: argparse.Namespace, sizes: tuple[int, ...]) -> str | None:
    """What would make the run meaningless, said before it starts."""
    if not 3 < options.mean_kept < 8:
        return f"--mean-kept={options.mean_kept} cannot be reached by Ban between k_min 3 and 8. Use e.g. 4.8."
    if options.rounds < 2:
        return f"--rounds={options.rounds} gives no spread. Use 2 or more; 15 is the default."
    if min(sizes) < 1 or options.threads < 1 or options.layers < 1:
        return "--sizes, --threads and --layers count things: each must be 1 or more."
    if options.what != "moe" and max(sizes) > 64:
        return f"--sizes={max(sizes)} exceeds the 64 sequences of the engine. Use at most 64."
    return None


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of whole numbers such as 1,8,32") from None
