"""A rerun of a model from one decoder layer on: the layers before it hand back what they answered the first time.

A change in one layer leaves the layers before it as they were. Half of the work on average, and equal to the bit.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor


class Suffix:
    """What the layers of one step answered, and reruns that begin at a layer."""

    def __init__(self, model: Any, changed: Mapping[int, str]) -> None:
        """`changed`: the layers that may differ, with a name of each such as `model.layers.3.mlp.experts`."""
        self._before = {layer: _layers_before(model, name) for layer, name in changed.items()}
        self._answers: dict[int, Any] = {}

    def record(self, run: Callable[[], Tensor]) -> Tensor:
        """`run`, and what is before each changed layer in it. A compiled model calls no layer: nothing is kept."""
        self._answers = {}
        handles = [
            before[-1].register_forward_hook(self._keeper(layer)) for layer, before in self._before.items() if before
        ]
        try:
            return run()
        finally:
            for handle in handles:
                handle.remove()

    def _keeper(self, layer: int) -> Callable[[Any, Any, Any], None]:
        def keep(module: Any, args: Any, output: Any) -> None:
            self._answers[layer] = _copied(output)

        return keep

    def begins_at(self, layer: int) -> bool:
        """Whether a rerun of this layer leaves out those before it."""
        return layer in self._answers

    def run(self, layer: int, run: Callable[[], Tensor]) -> Tensor:
        """`run`, in which the layers before `layer` compute nothing."""
        if not self.begins_at(layer):
            return run()
        answer, before = self._answers[layer], self._before[layer]
        replaced = [(each, each.__dict__.get("forward")) for each in before]
        for each in before[:-1]:
            each.forward = lambda *args, **kwargs: answer
        # Norms write into what they are given.
        before[-1].forward = lambda *args, **kwargs: _copied(answer)
        try:
            return run()
        finally:
            for each, own in replaced:
                if own is None:
                    del each.forward
                else:
                    each.forward = own

    def forget(self) -> None:
        """Free what was kept: [T,H] twice a layer."""
        self._answers = {}


def _layers_before(model: Any, name: str) -> list[Any]:
    """The decoder layers before a part of one; none where they cannot be told, and the whole is rerun."""
    found = re.match(r"(.*?)\.(\d+)(?:\.|$)", name)
    if found is None:
        return []
    try:
        return [model.get_submodule(f"{found[1]}.{index}") for index in range(int(found[2]))]
    except AttributeError:
        return []  # named otherwise than it is built, or on another pipeline rank


def _copied(output: Any) -> Any:
    if isinstance(output, tuple):
        return tuple(_copied(part) for part in output)
    return output.clone() if isinstance(output, Tensor) else output
