"""The controls: the embedded checkpoint with experts planted on purpose, so that it is known what Pick must do there.

Pick changes nothing on the healthy tiny model, so a Pick that never worked would look the same. Where an influential
expert lost its place or its weight (`kinds.OUTSIDE`, `kinds.WEAK`), `range_replace` and a small `boost` must bring it
back; where an expert does harm once it is selected (`kinds.HARMFUL`), a score without a sign finds it all the same.

They prove the machinery, not the paper's claim.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import platformdirs

from banpick_exp.errors import UserError
from banpick_exp.models.checkpoint import CONTROL_RECIPE
from banpick_exp.models.tiny import ASSETS
from banpick_exp.models.tiny.checkpoint import WEIGHTS, load_weights, write_checkpoint
from banpick_exp.models.tiny.kinds import PLANTED, PLANTED_IN, Control
from banpick_exp.models.tiny.planting import plant, router_inputs

DESCRIPTION = "control.json"


def build_control(kind: str, output: Path) -> dict[str, Any]:
    """Write the control of one kind to `output`: a complete checkpoint folder, and `control.json`.

    Returns what `control.json` holds: domain, planted [[layer, expert]], the factor of each down_proj, the fingerprint
    of the healthy weights and the recipe's version. About 10 seconds, the same bytes every time.
    Raises UserError for an unknown kind, and for weights other than those the experts were chosen on.
    """
    control, source = _control(kind), _source()
    weights = load_weights(source)
    inputs_LTH = router_inputs(weights, control.domain)
    scales = [plant(weights, inputs_LTH[layer], layer, expert, control.how) for layer, expert in control.planted]
    write_checkpoint(output, weights)
    description = {
        "domain": control.domain,
        "planted": [list(pair) for pair in control.planted],
        "down_proj_scale": scales,
        "source": fingerprint_of(source),
        "recipe": CONTROL_RECIPE,
    }
    (output / DESCRIPTION).write_text(json.dumps(description, indent=1) + "\n")
    return description


def control_folder(kind: str) -> Path:
    """The control's checkpoint folder in the user's cache, built on the first call; several processes may call it.

    Raises UserError as `build_control` does, and where the cache cannot be written.
    """
    identity = json.dumps([CONTROL_RECIPE, kind, _control(kind).planted, fingerprint_of(_source())])
    name = f"{kind}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
    folder = Path(platformdirs.user_cache_dir("banpick_exp")) / "controls" / name
    if (folder / DESCRIPTION).is_file():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".building-", dir=folder.parent))
    except OSError as error:
        raise UserError(
            f"the control model cannot be kept in {folder.parent} ({error.strerror}), so it cannot be loaded. Make the "
            f"folder writable, or name another cache: XDG_CACHE_HOME=/tmp/cache."
        ) from None
    try:
        build_control(kind, staging)
        os.replace(staging, folder)
    except OSError:
        # A folder that is there already came from another process in the meantime, byte for byte the same.
        if not (folder / DESCRIPTION).is_file():
            raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return folder


def fingerprint_of(folder: Path) -> str:
    """16 hex digits of the SHA-256 over a checkpoint's weights."""
    return hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()[:16]


def _control(kind: str) -> Control:
    for name, control in PLANTED.items():
        if name == kind:
            return control
    raise UserError(
        f"there is no control {kind!r}: no expert was chosen to plant. Use {', '.join(PLANTED)}: "
        f"python -m banpick_exp tiny --help says what each is."
    )


def _source() -> Path:
    folder = ASSETS / "checkpoint"
    if not (folder / WEIGHTS).is_file():
        raise UserError(
            "the embedded model is not in this installation: there is nothing to build a control from. "
            "Type python -m banpick_exp tiny to train it (15 minutes)."
        )
    found = fingerprint_of(folder)
    if found != PLANTED_IN:
        raise UserError(
            f"the embedded weights are {found}, the planted experts were chosen on {PLANTED_IN}: planting the same ids "
            f"here would plant experts that mean nothing. Restore the shipped checkpoint, or choose experts for this "
            f"one (docs/tiny-model.md says how): PLANTED and PLANTED_IN in banpick_exp/models/tiny/kinds.py."
        )
    return folder
