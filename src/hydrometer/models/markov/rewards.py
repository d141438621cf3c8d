"""Rewards that add up along a row: those by which a chain of n-grams is tilted exactly and stays one."""

from __future__ import annotations

import numpy as np

from hydrometer.core.array_types import Floats
from hydrometer.core.errors import InputError
from hydrometer.core.tilt import Tilt

__all__ = ["in_nats", "reward_table"]

_MOST_NATS = 1e5
"""Of a row's tilt: beyond, what tells ids apart would be lost to rounding."""


def reward_table(tilt: Tilt, vocabulary: int, max_new_tokens: int) -> Floats:
    """Return what each id adds to a row's reward at each step, (L, V).

    Raises
    ------
    InputError : a reward of points, an id beyond the vocabulary.

    Examples
    --------
    >>> reward_table(Tilt(reward="-length", strength=1), 2, 3).tolist()
    [[-1.0, -1.0], [-1.0, -1.0], [-1.0, -1.0]]
    """
    out = np.zeros((max_new_tokens, vocabulary))
    if isinstance(tilt.reward, str):
        return out + (-1.0 if tilt.reward.startswith("-") else 1.0)
    tokens, first = tilt.reward.tokens or (), tilt.reward.starts_with
    if not tokens and first is None:
        raise InputError("a chain has no such reward", got=tilt.by, fix="use length, -length, tokens or starts_with")
    named = [i for i, _ in tokens] if first is None else [first]
    if max(named) >= vocabulary:
        raise InputError(f"a reward names an id of the {vocabulary}, 0 the end of sequence", got=max(named))
    for i, value in tokens:
        out[:, i] = value
    if first is not None:
        out[0, first] = 1.0
    return out


def in_nats(reward_LV: Floats, strength: float) -> Floats:
    """Return r / b, what a tilt adds to each id's log-probability at each step; InputError beyond rounding."""
    with np.errstate(over="ignore"):
        nats_LV = reward_LV / strength
    if not (most := float(np.abs(nats_LV).max(axis=1).sum())) <= _MOST_NATS:
        raise InputError(f"a tilt is at most {_MOST_NATS:g} nats of a row", got=most, fix="raise strength")
    return nats_LV
