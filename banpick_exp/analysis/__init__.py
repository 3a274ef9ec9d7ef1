"""Is a difference real, what does it cost, and can it be trusted: frames in, frames out; nothing is read or written.

From a notebook: `RunFolder.load_points` and `RunFolder.all_outcomes` give what these functions take.
"""

from banpick_exp.analysis.avg_at_n import accuracy_name, average_at_n, difference_at_n
from banpick_exp.analysis.compare import compare_counts, holm, mcnemar_exact_p, paired_bootstrap, sign_flip_p
from banpick_exp.analysis.finding import GUARDS
from banpick_exp.analysis.frame import points_frame
from banpick_exp.analysis.front import pareto_front
from banpick_exp.analysis.guards import guards
from banpick_exp.analysis.hypervolume import Gain, hypervolume_gain
from banpick_exp.analysis.intervals import average_interval, median_interval, ratio_of_means, wilson
from banpick_exp.analysis.pairing import without_repeats
from banpick_exp.analysis.repeats import repeat_spread
from banpick_exp.analysis.selection import Chosen, choose, report_on_test
from banpick_exp.analysis.subtasks import subtasks
from banpick_exp.analysis.verdict import EQUAL_BUDGET_TOLERANCE, headline, verdicts

__all__ = [
    "EQUAL_BUDGET_TOLERANCE",
    "GUARDS",
    "Chosen",
    "Gain",
    "accuracy_name",
    "average_at_n",
    "average_interval",
    "choose",
    "compare_counts",
    "difference_at_n",
    "guards",
    "headline",
    "holm",
    "hypervolume_gain",
    "mcnemar_exact_p",
    "median_interval",
    "paired_bootstrap",
    "pareto_front",
    "points_frame",
    "ratio_of_means",
    "repeat_spread",
    "report_on_test",
    "sign_flip_p",
    "subtasks",
    "verdicts",
    "wilson",
    "without_repeats",
]
