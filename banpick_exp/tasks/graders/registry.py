"""Every grader by its name. A new one: one file, one line here."""

from __future__ import annotations

from banpick_exp.config import suggestion
from banpick_exp.errors import UserError
from banpick_exp.tasks.graders.choice import Choice
from banpick_exp.tasks.graders.code import Code
from banpick_exp.tasks.graders.exact_match import ExactMatch
from banpick_exp.tasks.graders.grader import Grader
from banpick_exp.tasks.graders.lm_eval import LmEval
from banpick_exp.tasks.graders.math_verify import MathVerify
from banpick_exp.tasks.graders.numeric import Numeric
from banpick_exp.tasks.graders.own import own_grader
from banpick_exp.tasks.graders.reasoning_gym import ReasoningGym

GRADERS: dict[str, Grader] = {
    grader.name: grader
    for grader in (ExactMatch(), MathVerify(), Choice(), Numeric(), ReasoningGym(), LmEval(), Code())
}


def grader_named(name: str) -> Grader:
    """A grader by its name, or the user's own by its dotted path. Raises UserError for a name that is none."""
    if name in GRADERS:
        return GRADERS[name]
    if ":" in name:
        return own_grader(name)
    near = suggestion(name, GRADERS)
    if not near and all(part.isidentifier() for part in name.split(".")) and "." in name:
        near = f"Did you mean task.grader={':'.join(name.rsplit('.', 1))}? "
    raise UserError(
        f"task.grader={name} is no grader, so no answer could be judged. {near}"
        f"Choices: {', '.join(GRADERS)}, or a function of your own as my_module:my_function."
    )
