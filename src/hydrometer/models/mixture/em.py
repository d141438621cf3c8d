"""Maximum likelihood for mixtures by expectation maximisation, over a batch of data sets or one large one.

The iterations, and the meaning of convergence, are scikit-learn's `GaussianMixture`; equal starts give equal results.
Data sets of a batch are fitted side by side, each by one thread from start to end. One data set too large for that is
cut into blocks, a fixed number whatever the threads, whose moments are added in order. So results do not depend on the
number of threads.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from threading import local
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from hydrometer.core.arguments import number, whole
from hydrometer.core.array_types import Floats
from hydrometer.core.errors import DataError, FitError, InputError
from hydrometer.core.rng import Stream, as_stream
from hydrometer.models.mixture.batch import MixtureBatch, MixtureFit, MixtureFitInfo
from hydrometer.models.mixture.fit_arrays import (
    CONVERGED,
    DIAG,
    FLOORED,
    FULL,
    ITERATIONS,
    LIKELIHOOD,
    RESEEDED,
    SPHERICAL,
    STATE,
    TIED,
    DataSets,
    Fits,
    Options,
    Settings,
    Start,
)
from hydrometer.models.mixture.kernels import NEAREST, RESPONSIBLE, Points, moments, padded, params, sweep, work
from hydrometer.models.mixture.law import CovarianceType
from hydrometer.models.mixture.real_arrays import real_array, symmetric
from hydrometer.models.mixture.start import kmeans, width
from hydrometer.models.mixture.steps import begin, fit_range, frame, step

__all__ = ["fit_mixture"]

_KINDS: dict[CovarianceType, int] = {"full": FULL, "tied": TIED, "diag": DIAG, "spherical": SPHERICAL}
_LARGE = 1 << 16  # points; a larger data set is cut into blocks, and its k-means sees so many
_BLOCK, _MOST_BLOCKS = 16_384, 64  # points of a block at least, and blocks at most; whatever the threads
_PIECES = 4  # a thread's, of a batch


def _points(x: ArrayLike, n_components: int) -> tuple[Floats, bool]:
    """Return the points as (B, n, d), and whether they were one data set (n, d)."""
    points = real_array(x, "points")
    alone = points.ndim == 2
    if alone:
        points = points[None]
    if points.ndim != 3 or 0 in points.shape:
        raise DataError("points must have shape (n, d), or (B, n, d) for a batch", got=points.shape)
    bad = ~np.isfinite(points)
    if bad.any():
        first = tuple(int(i) for i in np.argwhere(bad)[0][-2:])
        what = f"{int(bad.sum())} NaN or infinite values, first at {first}"
        raise DataError("points must be finite", got=what, fix="drop them")
    if whole(n_components, "n_components", None) < 1 or n_components > points.shape[1]:
        raise DataError(
            f"{n_components} components cannot be fitted to {points.shape[1]} points",
            fix="need 1 <= n_components <= points",
        )
    return np.ascontiguousarray(points), alone


def _weights(sample_weight: ArrayLike | None, shape: tuple[int, int]) -> tuple[Floats, Floats]:
    """Return weights (B, n), or (0, 0) for equal ones, and their sums (B,), which count points of positive weight."""
    if sample_weight is None:
        return np.zeros((0, 0)), np.full(shape[0], float(shape[1]))
    w = real_array(sample_weight, "sample_weight")
    if w.shape not in (shape[1:], shape):
        raise DataError(f"sample_weight must have shape {shape[1:]} or {shape}", got=w.shape)
    w = np.broadcast_to(w, shape)
    if not np.isfinite(w).all() or (w < 0).any() or (w.max(axis=1) <= 0).any():
        raise DataError("sample_weight must be finite and not negative, with a positive one in every data set")
    count = (w > 0).sum(axis=1).astype(np.float64)
    w = w / w.max(axis=1, keepdims=True)
    return np.ascontiguousarray(w * (count / w.sum(axis=1))[:, None]), count


def _start(
    weights: ArrayLike | None, means: ArrayLike | None, precisions: ArrayLike | None, k: int, d: int,
    kind: CovarianceType,
) -> Start:  # fmt: skip
    """Check what the caller starts from."""
    e = padded(d)
    names = ("weights_init", "means_init", "precisions_init")
    starts = zip(names, (weights, means, precisions), strict=True)
    given = [None if a is None else real_array(a, name, InputError) for name, a in starts]
    w, mean, precision = given
    shapes = ((k,), (k, d), {"full": (k, d, d), "tied": (d, d), "diag": (k, d), "spherical": (k,)}[kind])
    for name, array, shape in zip(names, given, shapes, strict=True):
        if array is not None and (array.shape != shape or not np.isfinite(array).all()):
            raise InputError(f"{name} must be finite, with shape {shape}", got=array.shape)
    if w is not None and ((w < 0).any() or abs(w.sum() - 1) > 1e-6):
        raise InputError("weights_init must not be negative and must sum to 1", got=w.tolist())
    covariance = np.zeros((0, e, 1))
    if precision is not None:
        covariance = np.zeros((k, e, 1 if kind in ("diag", "spherical") else e))
        try:
            match kind:
                case "full" | "tied":
                    precision = symmetric(precision, "precisions_init")
                    np.linalg.cholesky(precision)
                    covariance[:, :d, :d] = np.linalg.inv(precision)
                case "diag" | "spherical":
                    if (precision <= 0).any():
                        raise np.linalg.LinAlgError
                    covariance[:, :d, 0] = 1 / precision.reshape(k, -1)
        except np.linalg.LinAlgError:
            raise InputError("precisions_init must be positive definite", got=precision.tolist()) from None
    return Start(np.zeros(0) if w is None else w, np.zeros((0, d)) if mean is None else mean, covariance)


def fit_mixture(
    x: ArrayLike,
    n_components: int,
    *,
    covariance_type: CovarianceType = "full",
    n_init: int = 1,
    seed: int | Stream | Sequence[Stream] = 0,
    tol: float = 1e-3,
    max_iter: int = 100,
    reg_covar: float = 1e-6,
    sample_weight: ArrayLike | None = None,
    means_init: ArrayLike | None = None,
    weights_init: ArrayLike | None = None,
    precisions_init: ArrayLike | None = None,
) -> MixtureFit:
    """Fit mixtures of Gaussians by maximum likelihood, one or a batch at once.

    EM (Dempster, Laird and Rubin 1977) from the better of two greedy k-means++ starts; of a data set of more than
    65,536 points, k-means sees a sample of that size, drawn evenly. More iterations never give a lower likelihood: the
    best parameters met are returned. A component that loses all its points is given to the point of least density where
    that raises the likelihood, else it keeps weight zero.

    Parameters
    ----------
    x : (n, d) one data set, or (B, n, d) a batch of independent ones.
    n_components : K
    covariance_type, tol, max_iter, reg_covar : as in scikit-learn.
    n_init : starts, the most likely fit of which is returned. Not scikit-learn's: each is the better of two k-means
        starts.
    seed : of the k-means starts; start i of data set b takes row ``b * n_init + i`` of the stream. With a stream for
        each data set, row i of its own: then a batch gives what its data sets give one by one.
    sample_weight : (n,) or (B, n), not negative; only their proportions count.
    means_init, weights_init, precisions_init : starts, shaped as scikit-learn's. Where some are missing they come from
        assigning each point to its nearest mean, of `means_init` or of k-means.

    Returns
    -------
    MixtureFit
        ``.model`` a `Mixture` for (n, d), a `MixtureBatch` of B for (B, n, d); ``.info`` with arrays of shape (B,).

    Raises
    ------
    DataError : points that are not finite or no plain real numbers (masked, complex, text, objects), the wrong shape,
        more components than points, weights that are all zero.
    InputError : settings or starts out of range.
    FitError : the result leaves the range of float64.

    Examples
    --------
    >>> from hydrometer.models.mixture.law import Mixture
    >>> x = Mixture([1.0], [[0.0, 1.0]], [[1.0, 4.0]], covariance_type="diag").sample(500).x
    >>> fit = fit_mixture(x, 1, covariance_type="diag")
    >>> bool(np.allclose(fit.model.means[0], x.mean(0))), fit.info.converged.tolist()
    (True, [True])
    """
    batch, alone = _points(x, n_components)
    b, n, d = batch.shape
    if covariance_type not in _KINDS:
        raise InputError("covariance_type must be full, tied, diag or spherical", got=covariance_type)
    whole(n_init, "n_init", 1)
    whole(max_iter, "max_iter", 1)
    number(tol, "tol", finite=False)
    number(reg_covar, "reg_covar")
    weight, total = _weights(sample_weight, (b, n))
    start = _start(weights_init, means_init, precisions_init, n_components, d, covariance_type)
    streams = [as_stream(seed)] if isinstance(seed, int | Stream) else list(seed)
    if not isinstance(seed, int | Stream) and len(streams) != b:
        raise InputError("seed must be one, or a stream for each data set", got=len(streams))
    own = b * n_init // len(streams)
    uniforms = np.concatenate([s.uniforms(0, own, width(n_components)) for s in streams])
    settings = Settings(_KINDS[covariance_type], n_init, float(tol), max_iter, float(reg_covar))
    out = _empty(b, n_components, d, settings.kind)
    fit = _fit_large if n > _LARGE else _fit_batch
    fit(DataSets(batch, weight, total, uniforms), streams, settings, start, out)
    models, state = _models(out, d, covariance_type), out.state
    info = MixtureFitInfo(
        state[:, LIKELIHOOD].copy(),
        state[:, ITERATIONS].astype(np.int64),
        state[:, CONVERGED] == 1,
        state[:, FLOORED].astype(np.int64),
        state[:, RESEEDED].astype(np.int64),
    )
    return MixtureFit(models[0] if alone else models, info)


def _empty(b: int, k: int, d: int, kind: int) -> Fits:
    e = padded(d)
    covariance = np.zeros((b, k, e, 1 if kind >= DIAG else e))
    return Fits(np.zeros((b, k)), np.zeros((b, k, d)), covariance, np.zeros((b, STATE)))


def _models(fits: Fits, d: int, covariance_type: CovarianceType) -> MixtureBatch:
    finite = [np.isfinite(a).reshape(len(a), -1).all(axis=1) for a in (fits.mean, fits.covariance, fits.state)]
    variance = fits.covariance[:, :, :d, 0]
    if fits.covariance.shape[3] > 1:
        variance = np.diagonal(fits.covariance, axis1=2, axis2=3)[:, :, :d]
    held = (variance >= np.finfo(np.float64).tiny).all(axis=(1, 2))
    bad = np.flatnonzero(~(finite[0] & finite[1] & finite[2] & held))
    if len(bad):
        raise FitError(
            f"the fit of data set {int(bad[0])} left the range of float64",
            fix="scale the points, lower n_components, or raise reg_covar",
        )
    match covariance_type:
        case "full":
            covariance = fits.covariance[:, :, :d, :d]
        case "tied":
            covariance = fits.covariance[:, 0, :d, :d]
        case "diag":
            covariance = fits.covariance[:, :, :d, 0]
        case "spherical":
            covariance = fits.covariance[:, :, 0, 0]
    return MixtureBatch(fits.log_weight, fits.mean, np.ascontiguousarray(covariance), covariance_type)


def _threads() -> int:
    """Threads for fits: OMP_NUM_THREADS where it is set, else the processors this process may use."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdigit() and int(asked) > 0:
        return int(asked)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _side_by_side(works: list[Callable[[], None]]) -> None:
    """Run all works on threads; the first error is raised."""
    threads = min(_threads(), len(works))
    if threads == 1:
        for work_ in works:
            work_()
        return
    with ThreadPoolExecutor(threads, "em") as pool:
        for future in [pool.submit(work_) for work_ in works]:
            future.result()


def _fit_batch(data: DataSets, streams: list[Stream], settings: Settings, start: Start, out: Fits) -> None:
    """Fit each data set by one thread."""
    # numba would compile again, for half a minute, for a read-only array
    data = data._replace(points=np.require(data.points, requirements="W"))
    b = len(data.points)
    pieces = min(b, _PIECES * _threads())
    edges = [b * i // pieces for i in range(pieces + 1)]
    _side_by_side(
        [
            lambda first=first, last=last: fit_range(first, last, data, settings, start, out)
            for first, last in pairwise(edges)
        ]
    )


def _fit_large(sets: DataSets, streams: list[Stream], settings: Settings, start: Start, out: Fits) -> None:
    """Fit each data set by all threads."""
    k = out.log_weight.shape[1]
    for b, points in enumerate(sets.points):
        w = sets.weight[b] if len(sets.weight) else np.zeros(0)
        with _Blocks(points, w, k, settings) as data:
            for attempt in range(settings.n_init):
                own = streams[0 if len(streams) == 1 else b].child("points", str(b if len(streams) == 1 else 0))
                own = own.child(str(attempt))
                uniforms = sets.uniforms[b * settings.n_init + attempt]
                p, state = data.fit(float(sets.total[b]), own, uniforms, start)
                if attempt == 0 or state[LIKELIHOOD] > out.state[b, LIKELIHOOD]:
                    out.state[b], out.log_weight[b] = state, p.log_weight
                    out.mean[b] = np.asarray(p.mean * data.scale, np.float64) + data.centre
                    out.covariance[b] = p.covariance * data.scale * data.scale


class _Blocks:
    """One large data set, swept block by block on all threads; a block's points are read, never copied whole."""

    def __init__(self, points: Floats, weight: Floats, k: int, settings: Settings) -> None:
        n, d = points.shape
        self.points, self.weight, self.k, self.d, self.settings = points, weight, k, d, settings
        centre = np.zeros(d)
        self.scale = float(frame(points, weight, settings.reg, centre))
        self.centre: Floats = centre
        self._framed = Points(points, weight, centre, self.scale)
        self._blocks = min(_MOST_BLOCKS, -(-n // _BLOCK))
        self._edges = [n * i // self._blocks for i in range(self._blocks + 1)]
        self._parts: list[Any] = [moments(k, d, settings.kind < DIAG) for _ in range(self._blocks)]
        self._room = local()
        self._pool = ThreadPoolExecutor(_threads(), "em")

    def __enter__(self) -> _Blocks:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def sweep(self, p: Any, what: int, out: Any) -> None:
        """Sum all blocks' moments in order."""

        def one(i: int) -> None:
            if not hasattr(self._room, "room"):
                self._room.room = work(self.k, self.d)
            first, last = self._edges[i], self._edges[i + 1]
            sweep(self._framed, first, last, p, what, self._room.room, self._parts[i])

        list(self._pool.map(one, range(self._blocks)))
        for name in ("mass", "first", "second"):
            total = getattr(out, name)
            total[:] = 0
            for part in self._parts:
                total += getattr(part, name)
        lowest = min(self._parts, key=lambda part: part.ends[1])
        out.ends[:] = sum(part.ends[0] for part in self._parts), lowest.ends[1], lowest.ends[2]

    def fit(self, total: float, stream: Stream, uniforms: Floats, start: Start) -> tuple[Any, Floats]:
        """Fit from one start; returns parameters, in scaled units, and the state, in the points'."""
        kind, _, tol, max_iter, reg = self.settings
        options = Options(kind, tol, max_iter, reg / self.scale / self.scale, total)
        triangular = kind < DIAG
        p, best = params(self.k, self.d, triangular), params(self.k, self.d, triangular)
        m, state = moments(self.k, self.d, triangular), np.zeros(STATE)
        if len(start.mean):
            p.mean[:] = (start.mean - self.centre) / self.scale
        else:
            rows = (stream.uniforms(0, _LARGE, 1)[:, 0] * len(self.points)).astype(np.int64)
            w = self.weight[rows] if len(self.weight) else self.weight
            if len(w) and not w.any():
                raise FitError(
                    f"none of {_LARGE} points drawn for the start has weight", fix="drop points of weight zero"
                )
            kmeans(self.points[rows], w, self.centre, self.scale, uniforms, p.mean)
        self.sweep(p, NEAREST, m)
        begin(options, start, self.centre, self.scale, m, p, state)
        what = RESPONSIBLE
        while what >= 0:
            self.sweep(p, what, m)
            what = int(step(options, m, self.points, self.centre, self.scale, p, best, state))
        state[LIKELIHOOD] -= self.d * math.log(self.scale)
        return p, state
