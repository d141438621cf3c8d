"""What would spoil a chain of n-grams. The tables alone say it; nothing is drawn."""

from __future__ import annotations

import numpy as np

from hydrometer.core.findings import Finding, warning
from hydrometer.models.markov.law import END
from hydrometer.models.markov.spec import MarkovChain

__all__ = ["examine"]


def examine(chain: MarkovChain) -> list[Finding]:
    """Return what is found in one chain."""
    return [*_orders(chain), *_ends(chain), *_smoothing(chain)]


def _orders(chain: MarkovChain) -> list[Finding]:
    teacher = chain.teacher
    if teacher == "truth" or chain.student.order <= teacher.order:
        return []
    return [
        warning(
            "student-larger",
            f"the student has order {chain.student.order}, the teacher {teacher.order}",
            "a student that can hold more than its teacher is not the compression that distilling is about",
            "give the student no higher order than the teacher",
        )
    ]


def _ends(chain: MarkovChain) -> list[Finding]:
    if np.isfinite(chain.truth.law().log_table[:, END]).any():
        return []
    return [
        warning(
            "stop-unreachable",
            "the truth never ends a sequence",
            "every row is cut at max_new_tokens: lengths and eos_rate say nothing",
            "give the truth's text lines shorter than max_new_tokens, or smoothing above 0",
        )
    ]


def _smoothing(chain: MarkovChain) -> list[Finding]:
    bare = [role for role, level in (("teacher", chain.teacher), ("student", chain.student))
            if level != "truth" and level.smoothing == 0]  # fmt: skip
    if not bare:
        return []
    return [
        warning(
            "no-smoothing",
            f"smoothing is 0 for the {' and the '.join(bare)}",
            "what was not counted has probability 0: recall is minus infinity at the first unseen n-gram of the truth",
            "set smoothing to a small number such as 0.01",
        )
    ]
