"""An exported policy in a loaded Hugging Face model, without vLLM. Public; importing it loads neither torch nor
Transformers.

    from banpick_exp.transformers import apply

    handle = apply(model, "OUT", "math")
"""

from banpick_exp.transformers.applied import Applied, apply

__all__ = ["Applied", "apply"]
