"""Scores of rows, for best of n and rejection: one that works, and two that fail as a user's own might."""

from collections.abc import Sequence


def count_b(prompts: Sequence[str], answers: Sequence[str], ids: Sequence[Sequence[int]]) -> list[float]:
    """Count the letter b in each answer."""
    return [float(answer.count("b")) for answer in answers]


def broken(prompts: Sequence[str], answers: Sequence[str], ids: Sequence[Sequence[int]]) -> list[float]:
    """Fail."""
    return [1 / 0 for _ in answers]


def nan(prompts: Sequence[str], answers: Sequence[str], ids: Sequence[Sequence[int]]) -> list[float]:
    """Give what cannot be ranked."""
    return [float("nan") for _ in answers]
