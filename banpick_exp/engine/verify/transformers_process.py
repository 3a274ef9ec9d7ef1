"""The model of a checkpoint as Transformers computes it: log-probabilities of token ids, in a process of its own.

Run by `transformers_parity` as a file of its own (`python -P transformers_process.py`), so it imports nothing of the
package. One object of JSON comes in on stdin ({folder, dtype, trust_remote_code, sequences, seconds}) and one goes out
on stdout: {scores, rounded}, each [sequence][token after the first] in nats, or {problem}, one line in words.

`scores` are computed in float32 whatever `dtype` is; `rounded` in `dtype`, null where that is float32.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any


def scores_of(asked: dict[str, Any], dtype: str) -> list[list[float]]:
    """Log-probability of each token but the first, in nats. Raises ValueError where weights are left unset."""
    import torch
    from transformers import AutoModelForCausalLM

    trusted = asked["trust_remote_code"]
    # The plain loop over the experts: other ways to compute them are kernels again. Code from a checkpoint knows none.
    plain = {} if trusted else {"experts_implementation": "eager"}
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        asked["folder"],
        dtype=getattr(torch, dtype),
        trust_remote_code=trusted,
        use_safetensors=True,
        local_files_only=True,
        output_loading_info=True,
        attn_implementation="eager",
        **plain,
    )
    model, information = loaded
    if unset := sorted(information["missing_keys"]):
        raise ValueError(f"it leaves {len(unset)} weights unset, {unset[0]} for one")
    scores = []
    with torch.inference_mode():
        for sequence in asked["sequences"]:
            ids = torch.tensor([sequence])
            logits = model.eval()(ids, use_cache=False).logits[0, :-1]
            scores.append(logits.float().log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0].tolist())
    return scores


def answer(asked: dict[str, Any]) -> dict[str, Any]:
    try:
        scores = scores_of(asked, "float32")
        rounded = None if asked["dtype"] == "float32" else scores_of(asked, asked["dtype"])
    except Exception as error:  # whatever it is: without its answer nothing is compared, and the engine goes on
        said = str(error).strip().splitlines() or [""]
        return {"problem": f"{type(error).__name__}: {said[0]}"}
    return {"scores": scores, "rounded": rounded}


def main() -> None:
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    asked = json.load(sys.stdin)
    signal.alarm(asked["seconds"])  # should nobody be left to end it
    print(json.dumps(answer(asked)), file=out, flush=True)


if __name__ == "__main__":
    main()
