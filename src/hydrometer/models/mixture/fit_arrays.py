"""What compiled fits of mixtures take and fill: settings, data sets, starts, results; shapes as in `kernels`."""

from __future__ import annotations

from typing import Any, NamedTuple

__all__ = ["DIAG", "FULL", "SPHERICAL", "STATE", "TIED", "DataSets", "Fits", "Options", "Settings", "Start"]

FULL, TIED, DIAG, SPHERICAL = 0, 1, 2, 3

# Indices into the state of a fit.
LIKELIHOOD, ITERATIONS, CONVERGED, LAST, FLOORED, RESEEDED, BEFORE, BEST = 0, 1, 2, 3, 4, 5, 6, 7
STATE = 8


class Options(NamedTuple):
    """What does not change during a fit.

    Attributes
    ----------
    kind : `FULL`, `TIED`, `DIAG` or `SPHERICAL`. reg : added to variances, in scaled units. total : sum of weights.
    """

    kind: int
    tol: float
    max_iter: int
    reg: float
    total: float


class Settings(NamedTuple):
    """How data sets are fitted.

    Attributes
    ----------
    kind : `FULL`, `TIED`, `DIAG` or `SPHERICAL`. n_init : starts. reg : added to variances, in the points' units.
    """

    kind: int
    n_init: int
    tol: float
    max_iter: int
    reg: float


class DataSets(NamedTuple):
    """A batch of data sets.

    Attributes
    ----------
    points : (B, n, d). weight : (B, n), or (0, 0) for ones. total : (B,) sums of weights.
    uniforms : (B n_init, width) of the k-means starts.
    """

    points: Any
    weight: Any
    total: Any
    uniforms: Any


class Fits(NamedTuple):
    """What the fits of a batch fill.

    Attributes
    ----------
    log_weight : (B, K). mean : (B, K, d). covariance : (B, K, e, D). state : (B, STATE).
    """

    log_weight: Any
    mean: Any
    covariance: Any
    state: Any


class Start(NamedTuple):
    """The caller's starting values; arrays of size zero for missing ones.

    Attributes
    ----------
    weight : (K,). mean : (K, d). covariance : (K, d, D), in the points' units.
    """

    weight: Any
    mean: Any
    covariance: Any
