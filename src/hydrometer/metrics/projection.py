"""Projection of embedded rows to the plane, for pictures: by principal components, or by UMAP.

Either is fitted once, to the rows of all models pooled, and every picture of a chain is in these coordinates. Fitted to
the truth's rows alone, UMAP would place any other row beside its nearest truth rows, however far from them it lies, and
principal components would not look in the directions in which a model leaves the truth.

Shapes: M rows, D dimensions.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from importlib import import_module, metadata
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hydrometer.core.array_types import Floats
from hydrometer.core.errors import MissingDependencyError

__all__ = ["Method", "Projection", "project", "projection_versions"]

Method = Literal["pca", "umap"]

_NEIGHBOURS = 15
_UMAP_PACKAGES = ("umap-learn", "pynndescent", "scikit-learn", "scipy", "numba", "numpy")


@dataclass(frozen=True, slots=True)
class Projection:
    """Rows in the plane.

    Attributes
    ----------
    xy : (M, 2)
    explained : share of all variance along each of the two axes; None where the projection is not linear.
    """

    xy: Floats
    explained: tuple[float, float] | None


def projection_versions(method: Method) -> dict[str, str]:
    """Return the versions of the packages that a projection depends on, for keys.

    Raises
    ------
    MissingDependencyError : UMAP is asked for, and umap-learn is not installed.
    """
    if method == "pca":
        return {"numpy": metadata.version("numpy")}
    try:
        return {name: metadata.version(name) for name in _UMAP_PACKAGES}
    except metadata.PackageNotFoundError as e:
        fix = "pip install 'hydrometer[umap]', or set picture: pca, which needs nothing"
        raise MissingDependencyError(f"picture: umap needs the package {e.name}", fix=fix) from None


def project(rows: NDArray[np.float32], method: Method, *, seed: int = 0) -> Projection:
    """Project rows to the plane.

    Parameters
    ----------
    rows : (M, D), finite, at least 3 of them.
    method : "pca", the two directions of most variance, each with its largest loading positive; or "umap" (McInnes,
        Healy and Melville 2018) with 15 neighbours, Euclidean distance, and principal components as the start.
    seed : of UMAP, which then runs on one thread: equal rows and versions give equal coordinates.

    Examples
    --------
    >>> rows = np.array([[0, 0, 0], [3, 0, 0], [6, 0, 0], [3, 1, 0]], np.float32)
    >>> found = project(rows, "pca")
    >>> found.xy[:, 0].round(2).tolist(), sum(found.explained)
    ([-3.0, 0.0, 3.0, 0.0], 1.0)
    """
    if rows.ndim != 2 or len(rows) < 3:
        raise ValueError(f"rows must have shape (M, D), M at least 3; got {rows.shape}")
    return _pca(rows) if method == "pca" else Projection(_umap(rows, seed), None)


def _pca(rows: NDArray[np.float32]) -> Projection:
    centred = rows.astype(np.float64) - rows.mean(axis=0, dtype=np.float64)
    _, size, axes = np.linalg.svd(centred, full_matrices=False)
    axes, size = axes[:2], np.square(size)
    largest = np.abs(axes).argmax(axis=1)
    axes = axes * np.where(axes[np.arange(len(axes)), largest] < 0, -1.0, 1.0)[:, None]
    xy = np.zeros((len(rows), 2))
    xy[:, : len(axes)] = centred @ axes.T
    shares = size[:2] / size.sum() if size.sum() > 0 else np.zeros(2)
    return Projection(xy, (float(shares[0]), float(shares[1]) if len(shares) > 1 else 0.0))


def _umap(rows: NDArray[np.float32], seed: int) -> Floats:
    with warnings.catch_warnings():
        # umap warns about an optional dependency that is not used, and its libraries about one another.
        warnings.simplefilter("ignore")
        umap: Any = import_module("umap")
        reducer = umap.UMAP(
            n_components=2,
            n_neighbors=min(_NEIGHBOURS, len(rows) - 1),
            min_dist=0.1,
            metric="euclidean",
            init="pca",
            random_state=seed,
            n_jobs=1,
        )
        return np.asarray(reducer.fit_transform(rows), np.float64)
