"""Entry point of the vLLM plugin, loaded by vLLM in every process it starts.

Kept trivial on purpose: vLLM only logs an exception raised while *importing* a plugin and goes on unpatched,
but one raised inside `register()` stops the engine.
"""

import os


def register() -> None:
    """Install the hook, but only where VLLM_PLUGINS names it.

    Unnamed, stock and hooked engines would share one compile-cache key, and installing this package would touch
    every vLLM process of the machine.
    """
    if "banpick" in os.environ.get("VLLM_PLUGINS", "").split(","):
        from banpick_exp.engine.plugin.hook import install

        install()
