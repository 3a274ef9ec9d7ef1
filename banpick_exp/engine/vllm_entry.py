"""Entry point of the vLLM plugin, loaded by vLLM in every process it starts.

Kept trivial on purpose: vLLM only logs an exception raised while *importing* a plugin and goes on unpatched,
but one raised inside `register()` stops the engine.
"""

import os


def register() -> None:
    """Install the hook, but only where VLLM_PLUGINS names it; with BANPICK_POLICY, what a server needs too.

    Unnamed, stock and hooked engines would share one compile-cache key, and installing this package would touch
    every vLLM process of the machine.
    """
    named = "banpick" in os.environ.get("VLLM_PLUGINS", "").split(",")
    if named:
        from banpick_exp.engine.plugin.hook import install

        install()
    if os.environ.get("BANPICK_POLICY"):
        if not named:
            raise RuntimeError(
                "BANPICK_POLICY is set and VLLM_PLUGINS does not name banpick: answers would be stock's. Start vLLM"
                " with VLLM_PLUGINS=banpick, or without BANPICK_POLICY."
            )
        from banpick_exp.engine.serving.hooks import install_serving

        install_serving()
