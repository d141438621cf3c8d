"""MAUVE of embedded points, and of the laws that they are drawn from.

    r_w = w p + (1 - w) q:   the area under ( exp(-C KL(q || r_w)), exp(-C KL(p || r_w)) ),  C = 5

MAUVE (Pillutla et al. 2021, arXiv 2102.01454) takes for p and q shares of points: those that fall into each of the
clusters that k-means finds in both sets together. Of the laws themselves the same integral is a sum over a fine grid,
or, where rows have probabilities under both, its divergences are means over rows:

    KL(q || r_w) = -E_q log(w p/q + 1 - w)     KL(p || r_w) = -E_p log(w + (1 - w) q/p)

Weights are those of the package mauve-text 0.3, which before it clusters also scales points to unit length and keeps
nine tenths of their variance; here points are taken as they are.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
from scipy.cluster import vq
from scipy.special import rel_entr  # pyright: ignore[reportUnknownVariableType]

from hydrometer.core.array_types import Floats
from hydrometer.metrics.frontiers.curves import area_of

__all__ = ["cluster_shares", "mauve", "mauve_of_rows", "mauve_of_shift"]

WEIGHTS = np.linspace(1e-6, 1 - 1e-6, 25)
_ITERATIONS = 50
_REACH, _STEP = 12.0, 0.01  # of the grid, standard deviations


def mauve(p: Floats, q: Floats) -> float:
    """Return MAUVE of two laws over equal outcomes, between 0 and 1.

    Parameters
    ----------
    p, q : (K,) probabilities.

    Examples
    --------
    >>> mauve(np.array([0.5, 0.5]), np.array([0.5, 0.5])), round(mauve(np.array([1.0, 0.0]), np.array([0.0, 1.0])), 3)
    (1.0, 0.004)
    """
    mixed = np.multiply.outer(WEIGHTS, p) + np.multiply.outer(1 - WEIGHTS, q)
    kl_q, kl_p = (np.asarray(rel_entr(law, mixed), np.float64).sum(axis=1) for law in (q, p))
    return area_of(kl_q, kl_p)[0]


def cluster_shares(real: Floats, generated: Floats, clusters: int, seed: int) -> tuple[Floats, Floats]:
    """Return the share of each set's points in the clusters of k-means over both.

    Parameters
    ----------
    real, generated : (N, d), (M, d). clusters : K. seed : of the points that k-means starts from.

    Returns
    -------
    (K,) each.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # an empty cluster has no share of either set
        kmeans: Any = vq.kmeans2  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        both = np.concatenate([real, generated])
        centres, label = kmeans(both, clusters, iter=1, minit="points", seed=seed)
        for _ in range(_ITERATIONS - 1):
            before = label
            centres, label = kmeans(both, centres, iter=1, minit="matrix")
            if np.array_equal(label, before):  # as all further steps would leave it
                break
    a, b = (np.bincount(part, minlength=clusters) / len(part) for part in np.split(label, [len(real)]))
    return a, b


def mauve_of_shift(shift: float) -> float:
    """Return MAUVE of N(0, I) and N(mu, I) with mu of length `shift`, whatever their dimension.

    Only the axis along mu tells them apart, so the integrals have one dimension.

    Examples
    --------
    >>> mauve_of_shift(0.0), round(mauve_of_shift(2.0), 3)
    (1.0, 0.106)
    """
    x = np.arange(-_REACH, _REACH + shift + _STEP, _STEP)
    p, q = (np.exp(-0.5 * np.square(x - m)) * _STEP / math.sqrt(2 * math.pi) for m in (0.0, shift))
    return mauve(p, q)


def mauve_of_rows(of_p: Floats, of_q: Floats) -> float:
    """Return MAUVE of two laws from rows of each, of which both probabilities are known.

    Parameters
    ----------
    of_p, of_q : (N,), (M,) log p - log q of rows of p and of rows of q, nats.

    Examples
    --------
    >>> mauve_of_rows(np.zeros(3), np.zeros(2))
    1.0
    """
    w, v = np.log(WEIGHTS)[:, None], np.log1p(-WEIGHTS)[:, None]
    kl_q, kl_p = -np.logaddexp(w + of_q, v).mean(axis=1), -np.logaddexp(w, v - of_p).mean(axis=1)
    return area_of(kl_q, kl_p)[0]
