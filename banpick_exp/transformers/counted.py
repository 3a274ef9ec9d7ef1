"""Which tokens of a forward pass count towards the budget: not padding, and not rows that have ended.

`generate` pads a batch on the left and says so by `attention_mask`; a row that has ended goes on with its end and then
with padding, at mask 1, until the longest has ended. vLLM computes neither, so neither is counted.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


class Unpadded:
    """Which tokens of the pass that is running count, bool [T] in the order the routers see them; None: all of them."""

    def __init__(self, model: Any) -> None:
        self.mask_T: Tensor | None = None
        self.signature = inspect.signature(model.forward)
        generation = getattr(model, "generation_config", None)
        self.ends = _ids(generation, "eos_token_id") | _ids(generation, "pad_token_id")
        self.hooks = (
            model.register_forward_pre_hook(self._before, with_kwargs=True),
            model.register_forward_hook(self._after, always_call=True),
        )

    def remove(self) -> None:
        for hook in self.hooks:
            hook.remove()

    def _before(self, module: Any, args: Any, kwargs: Any) -> None:
        import torch

        self.mask_T = None
        given = self.signature.bind_partial(*args, **kwargs).arguments
        given = {**given, **given.get("kwargs", {})}
        ids_BT, mask = given.get("input_ids"), given.get("attention_mask")
        tokens = ids_BT if ids_BT is not None else given.get("inputs_embeds")
        if tokens is None or not isinstance(mask, torch.Tensor) or mask.ndim != 2 or mask.shape[1] < tokens.shape[1]:
            return
        now_BT = mask[:, -tokens.shape[1] :] != 0
        if ids_BT is not None and ids_BT.shape[1] == 1 < mask.shape[1] and self.ends:
            ends = torch.tensor(sorted(self.ends), device=ids_BT.device)
            now_BT = now_BT & ~torch.isin(ids_BT, ends)
        self.mask_T = now_BT.flatten()

    def _after(self, module: Any, args: Any, output: Any) -> None:
        self.mask_T = None


def _ids(config: Any, key: str) -> set[int]:
    value = getattr(config, key, None)
    values = value if isinstance(value, (list, tuple)) else [value]
    return {int(each) for each in values if each is not None}
