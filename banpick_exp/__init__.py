"""banpick_exp: can this MoE checkpoint route smarter, and what does it cost?

From Python (docs/python.md): `import banpick_exp as bp`, then `bp.Run(folder)`, `bp.runs(folder)`, `bp.sweep([...])`.
Importing the package loads nothing heavy: each of these is loaded when it is asked for.
"""

from importlib import import_module as _import_module
from pathlib import Path as _Path
from types import ModuleType as _ModuleType
from typing import TYPE_CHECKING, Any

from banpick_exp.versions import VERSION as __version__

if TYPE_CHECKING:
    from banpick_exp.api.run import Run
    from banpick_exp.api.runs import Runs, runs
    from banpick_exp.api.sweeping import sweep
    from banpick_exp.errors import UserError
else:
    import banpick_exp.sweep as _room

    class _CallableRoom(_ModuleType):
        """`bp.sweep` is the room of that name, whose modules are imported as ever, and `bp.sweep([...])` runs one."""

        def __call__(self, words: list[str]) -> Any:
            return _import_module("banpick_exp.api.sweeping").sweep(words)

    _room.__class__ = _CallableRoom

__all__ = ["Run", "Runs", "UserError", "__version__", "runs", "sweep"]

_LATER = {"Run": "api.run", "Runs": "api.runs", "runs": "api.runs", "UserError": "errors"}
"""Name -> the module that has it."""


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(_import_module(f"banpick_exp.{_LATER[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


__path__.append(str(_Path(__file__).parent / "former"))  # old commands: see there
