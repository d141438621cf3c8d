"""What the measures of several claims share: worlds of n-gram chains and of mixtures, exact figures, angles."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from pydantic import Field

from hydrometer.core.arguments import of_type
from hydrometer.core.array_types import Floats
from hydrometer.core.errors import FitError
from hydrometer.core.rng import Stream
from hydrometer.core.spec import Strict
from hydrometer.metrics.exact import expected_log_prob, judge_exact
from hydrometer.models.markov.law import Markov
from hydrometer.models.markov.ngram_fit import fit_markov
from hydrometer.models.markov.spec import MarkovTruth
from hydrometer.models.mixture.em import fit_mixture
from hydrometer.models.mixture.law import Mixture
from hydrometer.models.rows.sequences import Sequences

__all__ = ["ChainWorld", "degrees_between", "exact_figures", "fitted_mixture", "mixture_entropy", "mixture_figures"]

_STILL = 1e-6  # of quadratures: worlds differ by far more


class ChainWorld(Strict):
    """Truths drawn at random, and what is fitted to rows of them; all n-gram chains.

    Attributes
    ----------
    vocabulary, max_new_tokens, end, concentration : of the truth (`MarkovTruth`).
    smoothing : of counts.
    """

    vocabulary: int = Field(default=8, ge=2, le=32)
    max_new_tokens: int = Field(default=16, ge=1, le=64)
    end: float = Field(default=0.2, gt=0, lt=1)
    concentration: float = Field(default=0.5, gt=0)
    smoothing: float = Field(default=0.05, gt=0)

    def truth(self, order: int, seed: int, *, end: float | None = None) -> Markov:
        """Draw a truth; `end` takes the place of the world's own."""
        return MarkovTruth(
            order=order,
            vocabulary=self.vocabulary,
            max_new_tokens=self.max_new_tokens,
            end=self.end if end is None else end,
            concentration=self.concentration,
            seed=seed,
        ).law()

    def fitted(self, rows: Sequences, order: int) -> Markov:
        """Count rows."""
        sizes = {"vocabulary": self.vocabulary, "max_new_tokens": self.max_new_tokens}
        return fit_markov(rows, order, smoothing=self.smoothing, **sizes).model


def exact_figures(truth: Markov, law: Markov, names: Sequence[str]) -> dict[str, float]:
    """Return figures of `judge_exact`, nats a row.

    Raises
    ------
    FitError : one is infinite, so that no mean over worlds is finite.
    """
    found = judge_exact(truth, law, strings=0)
    out: dict[str, float] = {}
    for name in names:
        value = found[name].value
        if value is None:
            raise FitError("a figure is infinite in a world", got=name, fix="smooth more, or take a warmer teacher")
        out[name] = value
    return out


def fitted_mixture(
    points: Floats,
    components: int,
    seed: Stream,
    *,
    reg_covar: float = 1e-6,
    n_init: int = 1,
    tol: float = 1e-3,
    max_iter: int = 100,
) -> Mixture:
    """Fit a mixture of diagonal Gaussians by maximum likelihood; parameters as in `fit_mixture`."""
    fit = fit_mixture(
        points,
        components,
        covariance_type="diag",
        seed=seed,
        reg_covar=reg_covar,
        n_init=n_init,
        tol=tol,
        max_iter=max_iter,
    )
    return of_type(Mixture, fit.model)


def mixture_entropy(law: Mixture) -> float:
    """Entropy of a mixture on a line or in the plane by quadrature, nats a point.

    Examples
    --------
    >>> round(mixture_entropy(Mixture([1.0], [[0.0]], [1.0], covariance_type="spherical")), 6)
    1.418939
    """
    return -expected_log_prob(law, law, still=_STILL)[0]


def mixture_figures(truth: Mixture, law: Mixture) -> dict[str, float]:
    """Return precision, recall, entropy and KL(law, truth), nats a point, by quadrature.

    Examples
    --------
    >>> one, two = (Mixture([1.0], [[m]], [1.0], covariance_type="spherical") for m in (0.0, 2.0))
    >>> round(mixture_figures(one, two)["kl_student_truth"], 6)
    2.0
    """
    precision, recall = (expected_log_prob(p, q, still=_STILL)[0] for p, q in ((law, truth), (truth, law)))
    entropy = mixture_entropy(law)
    return {"precision": precision, "recall": recall, "entropy": entropy, "kl_student_truth": -entropy - precision}


def degrees_between(a: Floats, b: Floats) -> float:
    """Angle between two directions, right near 0 too.

    Examples
    --------
    >>> round(degrees_between(np.array([1.0, 0.0]), np.array([1.0, 1.0])), 9)
    45.0
    """
    a, b = a / np.linalg.norm(a), b / np.linalg.norm(b)
    return math.degrees(2 * math.atan2(float(np.linalg.norm(a - b)), float(np.linalg.norm(a + b))))
