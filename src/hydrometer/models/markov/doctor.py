"""Findings about a chain of n-grams."""

from __future__ import annotations

from collections.abc import Iterator

from hydrometer.core.findings import Finding, warning
from hydrometer.core.rng import Stream
from hydrometer.models.markov.spec import MarkovChain

__all__ = ["examine"]

_PROBE = 256


def examine(chain: MarkovChain) -> list[Finding]:
    """Return what is found in one chain."""
    return [*_orders(chain), *_ends(chain), *_smoothing(chain)]


def _orders(chain: MarkovChain) -> Iterator[Finding]:
    teacher = chain.teacher
    if teacher == "truth" or chain.student.order <= teacher.order:
        return
    yield warning(
        "student-larger",
        f"the student has order {chain.student.order}, the teacher {teacher.order}",
        "a student that can hold more than its teacher is not the compression that distilling is about",
        "give the student no higher order than the teacher",
    )


def _ends(chain: MarkovChain) -> Iterator[Finding]:
    # The table cannot tell: contexts that never occur have rows, too. Drawing is cheap.
    if chain.truth.law().sample(_PROBE, seed=Stream(0, ("doctor",))).stopped.any():
        return
    yield warning(
        "stop-unreachable",
        f"none of {_PROBE} sequences of the truth ends",
        "rows are cut at max_new_tokens: lengths and eos_rate say nothing",
        "raise max_new_tokens, or give the truth's text shorter lines",
    )


def _smoothing(chain: MarkovChain) -> Iterator[Finding]:
    levels = {"student": chain.student} | ({} if chain.teacher == "truth" else {"teacher": chain.teacher})
    bare = sorted(role for role, level in levels.items() if level.smoothing == 0)
    if bare:
        yield warning(
            "no-smoothing",
            f"smoothing is 0 for the {' and the '.join(bare)}",
            "what was not counted has probability 0: recall is minus infinity at the first unseen n-gram of the truth",
            "set smoothing to a small number such as 0.01",
        )
