"""What a selectivity does to a finite law given by log-weights.

The data type `Selectivity` lives in `core.spec`, since specifications are made of it; its action on next-token logits
lives with the language models, where the tensors are.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from hydrometer.core.arguments import one_of
from hydrometer.core.errors import InputError
from hydrometer.core.spec import Selectivity

__all__ = ["NO_TILT", "Selectivity", "canonical", "power_log_weights", "refuse_choice"]

NO_TILT = (
    "a language model has no exact tilt; best_of: N with rank_by is near one, at most log N - (N - 1)/N nats from the "
    "model, and accept keeps the rows above a reward"
)


def canonical(s: Selectivity | None) -> Selectivity | None:
    """Return None for a selectivity that changes nothing, so that equal laws have equal identities."""
    return None if s is None or s.is_neutral else s


def refuse_choice(s: Selectivity) -> None:
    """Refuse a choice among candidates, which has no normalised law, and what is no selectivity. Raises InputError."""
    one_of(s, Selectivity, "what a law is selected by", "for example Selectivity(temperature=0.8)")
    if s.chooses:
        raise InputError(
            "best_of and accept choose rows and make no law that can be scored",
            got=s.label,
            fix="use hydrometer.choose(law, selectivity)",
        )


def power_log_weights(log_weights: NDArray[np.float64], beta: float) -> NDArray[np.float64]:
    """Weight power in log space: ``log a_k(beta) = beta log a_k - log sum_j exp(beta log a_j)``.

    Source: Cha and Cho (2025), the teacher of the mixture experiment; docs, Theory.

    Parameters
    ----------
    log_weights : (K,) normalised log-weights, -inf allowed.
    beta : in [1, inf]. Infinity is uniform over the heaviest components, ties kept.

    Returns
    -------
    (K,) normalised log-weights, nats.

    Examples
    --------
    >>> np.exp(power_log_weights(np.log(np.array([0.4, 0.4, 0.2])), math.inf)).round(3).tolist()
    [0.5, 0.5, 0.0]
    """
    if not beta >= 1:
        raise InputError(
            "weight_power (beta) must be at least 1", got=beta, fix="1 keeps the weights, .inf the heaviest"
        )
    if math.isinf(beta):
        heaviest = log_weights == log_weights.max()
        return np.where(heaviest, -math.log(int(heaviest.sum())), -np.inf)
    from scipy.special import logsumexp  # pyright: ignore[reportUnknownVariableType]

    # Shifted first, so that 0 * -inf never occurs and large beta cannot overflow.
    raised = beta * (log_weights - log_weights.max())
    return raised - logsumexp(raised)
