"""Rows that come in clusters: several answers to each of a sample of prompts.

Where prompts are a sample of a population, the prompt and not the answer is what was drawn independently. Everything
about the error of a mean then follows from one number a cluster. Shapes: N rows, G clusters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from hydrometer.core.array_types import Floats, Ints

__all__ = ["Clusters", "PromptsAre", "Strata"]


PromptsAre = Literal["fixed", "sample"]
"""What prompts are: the experiment's own fixed list (strata), or a sample of a population of prompts (clusters)."""


@dataclass(frozen=True, slots=True, eq=False)
class Clusters:
    """Labels that say which cluster each row belongs to.

    The variance of a mean is then cluster-robust (Liang and Zeger 1986) with the correction G / (G - 1), and an
    interval has G - 1 degrees of freedom (Cameron and Miller 2015, sections II and VI):

        var(mean) = G / (G - 1) * sum_g ( sum_{i in g} (y_i - mean) )^2 / N^2

    Parameters
    ----------
    labels : (N,) any integers; equal labels are one cluster.
    """

    labels: Ints

    def __getitem__(self, rows: Any) -> Clusters:
        """Return the clusters of the chosen rows: a slice, a mask or indices."""
        return Clusters(self.labels[rows])

    @property
    def count(self) -> int:
        """G, clusters with at least one row."""
        return int(np.unique(self.labels).size)

    def collapse(self, values: Floats) -> Floats:
        """Turn rows into one number a cluster, whose plain mean and plain variance of the mean are the rows'.

        Parameters
        ----------
        values : (..., N)

        Returns
        -------
        (..., G) : ``mean + G / N * sum_{i in g} (y_i - mean)``, clusters in the order of their labels.

        Examples
        --------
        >>> Clusters(np.array([0, 0, 1, 1])).collapse(np.array([1.0, 3.0, 5.0, 7.0])).tolist()
        [2.0, 6.0]
        """
        found, inverse = np.unique(self.labels, return_inverse=True)
        mean = values.mean(axis=-1, keepdims=True)
        away = np.atleast_2d(values - mean).reshape(-1, self.labels.size)
        sums = np.stack([np.bincount(inverse, weights=row, minlength=found.size) for row in away])
        return mean + sums.reshape(*values.shape[:-1], found.size) * (found.size / self.labels.size)


Strata = Ints | Clusters
"""How rows are grouped: (N,) labels of strata whose shares are fixed by design, or `Clusters` drawn from many."""
