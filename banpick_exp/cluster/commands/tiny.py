"""`python -m banpick_exp tiny`: train the embedded model, build its controls, or measure both."""

from __future__ import annotations

import tempfile
from pathlib import Path

from rich.console import Console

from banpick_exp.errors import UserError
from banpick_exp.models.tiny import ASSETS
from banpick_exp.models.tiny.kinds import PLANTED
from banpick_exp.options import Options

DEFAULT_OUTPUT = Path("tiny-out")
GROUPS = {"all": tuple(PLANTED), "both": ("math", "knowledge")}
"""What `--control` takes beside the kinds; `both` is what it meant when there were two."""

KINDS = "\n".join(f"  {kind:<13} {control.domain + ':':<10} {control.line}" for kind, control in PLANTED.items())
DESCRIPTION = f"""\
Make the small MoE that ships with this package, and what belongs to it.

  python -m banpick_exp tiny                    train it from nothing (about 13 minutes on 2 cores): checkpoint,
                                                tokenizer and the problems of every domain and split
  python -m banpick_exp tiny --control          build every control from the shipped checkpoint (seconds each)
  python -m banpick_exp tiny --control KIND     only that one: experts are planted, of which Pick's effect is known
  python -m banpick_exp tiny --measure          measure the checkpoint and its controls in the real engine (minutes)

The same seed and steps give the same files, byte for byte, on the same machine and library versions. Nothing replaces
the shipped files unless --output names their folder: models/{ASSETS.parent.name}/{ASSETS.name} of the package.

Kinds of control, with the domain that shows them:
{KINDS}
A sweep on one needs none of this: python -m banpick_exp +sweep=pick_strength model=tiny_control model.control=math
"""


def _options() -> Options:
    arguments = Options(prog="python -m banpick_exp tiny", description=DESCRIPTION)
    what = arguments.add_mutually_exclusive_group()
    what.add_argument(
        "--control",
        nargs="?",
        const="all",
        choices=(*GROUPS, *PLANTED),
        help="build the control of this kind instead of training; without a kind, all of them",
    )
    what.add_argument("--measure", action="store_true", help="print the tables of docs/tiny-model.md, measured anew")
    arguments.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help=f"folder to write: checkpoint/ and data/, or control-<kind>/ (default: ./{DEFAULT_OUTPUT}, which must "
        "not hold an earlier result; a folder named here is overwritten)",
    )
    arguments.add_argument("--seed", type=int, default=0, help="of weights, batches and problems (default: 0)")
    arguments.add_argument("--steps", type=int, default=1800, help="optimiser steps of 96 examples (default: 1800)")
    return arguments


def help_page() -> str:
    return _options().format_help()


def run(arguments: list[str]) -> int:
    """Returns 0."""
    options = _options().parse_args(arguments)
    if options.measure:
        _measure(options.output)
    elif options.control:
        _controls(options.control, options.output)
    else:
        _train(options.seed, options.steps, options.output)
    return 0


def _train(seed: int, steps: int, output: Path | None) -> None:
    if steps < 1:
        raise UserError(f"--steps={steps} trains nothing: there would be no checkpoint. Use 1 or more, e.g. 1800.")
    folder = _writable(output, "checkpoint", "data")
    from safetensors.torch import load_file

    from banpick_exp.models.tiny.checkpoint import write_checkpoint, write_data, write_training
    from banpick_exp.models.tiny.train import TrainingConfig, train

    config = TrainingConfig(seed=seed, steps=steps)
    with tempfile.TemporaryDirectory() as scratch:
        weights_file = Path(scratch) / "weights.safetensors"
        train(config, weights_file)
        write_checkpoint(folder / "checkpoint", load_file(weights_file))
    write_data(folder / "data", seed)
    losses = write_training(folder / "checkpoint", config)["dev_loss"]
    print(f"wrote {folder}/checkpoint and {folder}/data")
    print("loss on the dev split, nats a token: " + ", ".join(f"{domain} {loss}" for domain, loss in losses.items()))
    print(f"Try it: python -m banpick_exp +sweep=pick_strength model.path={folder}/checkpoint")


def _controls(which: str, output: Path | None) -> None:
    kinds = GROUPS.get(which, (which,))
    folder = _writable(output, *(f"control-{kind}" for kind in kinds))
    from banpick_exp.models.tiny.control import build_control

    for kind in kinds:
        built = build_control(kind, folder / f"control-{kind}")
        planted = ", ".join(f"layer {layer} expert {expert}" for layer, expert in built["planted"])
        print(f"wrote {folder}/control-{kind}: planted {planted} ({built['domain']})")


def _measure(output: Path | None) -> None:
    if output is not None:
        _writable(output, "measurement.json")
    from banpick_exp.evaluation.controls import as_markdown, measure

    console = Console(stderr=True)
    print(as_markdown(measure(output, lambda text: console.print(text))))


def _writable(output: Path | None, *names: str) -> Path:
    """The folder to write into, made and tried before the work starts.

    Raises UserError where it cannot be written, or where the default folder holds an earlier result.
    """
    folder = DEFAULT_OUTPUT if output is None else output
    if output is None and (found := [name for name in names if (folder / name).exists()]):
        raise UserError(
            f"./{folder}/{found[0]} exists: an earlier result would be lost. Move it away, or name the folder to "
            f"overwrite: --output {folder}"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f"--output={folder} cannot be written ({error.strerror}): the result would be lost. Name another folder, "
            f"for example --output ~/tiny-out"
        ) from None
    return folder
