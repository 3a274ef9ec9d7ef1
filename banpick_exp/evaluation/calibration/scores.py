"""The scores by which a calibration ranks experts: what is changed, and how the change is judged.

Reinforcing an expert may help or harm, and how far a prediction moves says nothing of which. So there are two kinds:

    *_kl    how far the predictions move, nats a position. Without labels, without a sign.
    gain*   how much likelier the right answer becomes, nats an answer, each answer counted for at most GAIN_CAP either
            way. Needs labels; below 0 the change does harm.

`gain` stands for that of the mode by which a policy reinforces. Light: planning reads this.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Name = Literal[
    "insertion_kl",
    "replace_kl",
    "boost_kl",
    "removal_kl",
    "removal_kl_per_use",
    "gain_add",
    "gain_replace",
    "gain_boost",
    "gain_removal",
]
"""What ranks experts."""
Budget = Literal["limit_kl", "limit_gain"]
"""What a layer does with fewer experts, 1 to K - 1 of them: which of its slots can go."""
Part = Name | Budget
"""What may be added to an artifact once it is there, each a file of its own."""
Asked = Literal["auto", "gain"] | Name
"""What `calibration.score` may say."""


@dataclass(frozen=True, slots=True)
class Score:
    """One way to rank experts, or the budgets of a layer."""

    change: str
    """A candidate of the probe: add, replace, boost, remove; limit."""
    labelled: bool
    """Judged by the right answers: it has a sign, and bounds for it."""
    unit: str
    says: str

    @property
    def first_share(self) -> float:
        """Of the samples, how many the first round of a race takes: more where a few answers make most of it."""
        return 1 / 4 if self.labelled else 1 / 8


GAIN_CAP = 2.0
"""Nats an answer. Ours: an answer 7 times as likely as before is as good as right, and no single one is to decide over
an expert; without the cap a few answers make half of the mean and most of its error."""

SCORES: dict[Name, Score] = {
    "insertion_kl": Score("add", False, "nats a position", "KL when the expert is added by range_add; nobody leaves"),
    "replace_kl": Score("replace", False, "nats a position", "KL when it comes in by range_replace; the K-th leaves"),
    "boost_kl": Score("boost", False, "nats a position", "KL when its logit is raised by calibration.boost"),
    "removal_kl": Score("remove", False, "nats a position", "KL when it cannot be selected (the paper)"),
    "removal_kl_per_use": Score("remove", False, "nats a position", "the same over its share of tokens"),
    "gain_add": Score("add", True, "nats an answer", "likelier right answers by range_add"),
    "gain_replace": Score("replace", True, "nats an answer", "likelier right answers by range_replace"),
    "gain_boost": Score("boost", True, "nats an answer", "likelier right answers by a boost of calibration.boost"),
    "gain_removal": Score("remove", True, "nats an answer", "likelier right answers without the expert"),
}
assert set(SCORES) == set(get_args(Name))

BUDGETS: dict[Budget, Score] = {
    "limit_kl": Score("limit", False, "nats a position", "KL when one layer alone keeps 1 to K - 1 experts"),
    "limit_gain": Score("limit", True, "nats an answer", "likelier right answers by it"),
}
PARTS: dict[Part, Score] = dict([*SCORES.items(), *BUDGETS.items()])

GAIN_OF_MODE: dict[str, Name] = {
    "boost": "gain_boost",
    "force_add": "gain_add",
    "range_add": "gain_add",
    "force_replace": "gain_replace",
    "range_replace": "gain_replace",
}
"""By the mode that reinforces; the forced ones are judged as the ranged ones are."""


def score_of(asked: str, mode: str | None, *, labelled: bool) -> Name:
    """The score that is measured where `asked` is typed. `mode`: of the policy, None for one that has none.

    `auto` is the gain where the calibration has right answers, else insertion_kl.
    """
    if asked == "auto":
        asked = "gain" if labelled else "insertion_kl"
    if asked == "gain":
        return GAIN_OF_MODE.get(mode or "", "gain_add")
    found: Name = next(name for name in SCORES if name == asked)
    return found
