"""The mixture family: specification to laws, fits and files."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hydrometer.core.arguments import of_type
from hydrometer.core.array_types import Floats
from hydrometer.core.distillation import MLE, Objective, distillations_of
from hydrometer.core.errors import StoreError
from hydrometer.core.findings import Finding
from hydrometer.core.io.yaml_io import artifact_json
from hydrometer.core.rng import Stream
from hydrometer.core.spec import ChainSpec, Strict
from hydrometer.models.base import FitRequest, Fitted, Footprint, Law, Precision, Samples
from hydrometer.models.capabilities import MapPoint
from hydrometer.models.cheap import CheapFamily, Stage, against
from hydrometer.models.mixture.batch import MixtureBatch
from hydrometer.models.mixture.doctor import examine
from hydrometer.models.mixture.law import Mixture
from hydrometer.models.mixture.spec import MixtureChain, MixtureLevel, MixtureWorld
from hydrometer.models.objectives import Divergence, divergence_of
from hydrometer.models.rows.points import Points, density_exhibit

if TYPE_CHECKING:
    from hydrometer.models.mixture.batch import MixtureFit

__all__ = ["MIXTURE", "MixtureFamily"]

_SECONDS_A_PAIR = 0.02  # of components, and start
_PLACES = 60_000  # points of the finest grid in two dimensions


class MixtureFamily(CheapFamily):
    """Mixtures of Gaussians."""

    name: str = "mixture"
    chain_spec: type[ChainSpec] = MixtureChain
    law_type: type[Mixture] = Mixture
    libraries: tuple[str, ...] = ("numpy", "scipy", "numba")
    files: int = 2

    def examine(self, chain: ChainSpec) -> Sequence[Finding]:
        """Look for what would spoil the result."""
        return examine(_chain(chain))

    def fit(self, request: FitRequest) -> Fitted[Law]:
        """Fit by EM; to an objective between densities from there on."""
        fitted = _fit(of_type(Points, request.data).x, request.level, request.stream)
        divergence = divergence_of(Objective.from_json(request.loss))
        if isinstance(divergence, Divergence):
            from hydrometer.models.mixture.divergence_fit import fit_divergence

            teacher = of_type(Mixture, request.teacher)
            teacher = teacher if request.selectivity is None else teacher.select(request.selectivity)
            return Fitted(*fit_divergence(teacher, divergence, of_type(Mixture, fitted.model)))
        facts = {name: values[0].item() for name, values in asdict(fitted.info).items()}
        return Fitted(of_type(Mixture, fitted.model), facts)

    def cost(self, chain: ChainSpec, stage: Stage, role: str, rows: int) -> float:
        """Seconds on one core, roughly: of a fit the mean over the level's students."""
        seconds = super().cost(chain, stage, role, rows)
        if stage != "fit" or role == "teacher":
            return seconds
        fits = [d.objective != MLE for d in distillations_of(chain)]
        from hydrometer.models.mixture.divergence_fit import STARTS

        own, above = _chain(chain).student.n_components, _above(_chain(chain))
        starts = 1 + min(STARTS, math.comb(above, own))
        return seconds + sum(fits) / (len(fits) + 1) * _SECONDS_A_PAIR * own * above * starts

    def footprint(self, chain: ChainSpec, stage: Stage, role: str, rows: int) -> Footprint:
        """Points in memory; of an objective between densities also the components' shares of what is summed over."""
        found = super().footprint(chain, stage, role, rows)
        if stage != "fit" or role == "teacher" or all(d.objective == MLE for d in distillations_of(chain)):
            return found
        table = 60 * _chain(chain).student.n_components * _above(_chain(chain)) * _PLACES
        return replace(found, memory_least=found.memory_least + table)

    def is_map(self, chain: ChainSpec) -> bool:
        """Whether a chain has a grid."""
        return _chain(chain).grid is not None

    def map_seeds(self, chain: ChainSpec, seeds: tuple[int, ...]) -> tuple[int, ...]:
        """Return the seeds of the grid, where it counts its own."""
        grid = _chain(chain).grid
        return seeds if grid is None or grid.seeds is None else tuple(range(grid.seeds))

    def points(self, chain: ChainSpec) -> tuple[MapPoint, ...]:
        """Return the points of the grid."""
        return _chain(chain).points()

    def fit_all(self, rows: Sequence[Samples], level: Strict, streams: Sequence[Stream]) -> Sequence[Mixture]:
        """Fit all data sets as one batch."""
        stacked = np.stack([of_type(Points, x).x for x in rows])
        return list(of_type(MixtureBatch, _fit(stacked, level, list(streams)).model))

    def save_law(self, law: Law, folder: Path) -> None:
        """Write the parameters as JSON, exact to the last bit."""
        m = of_type(Mixture, law)
        fields = {
            "log_weights": m.log_weights.tolist(),
            "means": m.means.tolist(),
            "covariances": m.covariances.tolist(),
            "covariance_type": m.covariance_type,
        }
        (folder / "mixture.json").write_text(json.dumps(fields))

    def load_law(self, folder: Path, chain: ChainSpec, precision: Precision) -> Mixture:
        """Open what `save_law` wrote."""
        try:
            fields = artifact_json(folder / "mixture.json", dict)
            return Mixture.from_log_weights(**fields)
        except (OSError, ValueError, TypeError) as e:
            raise StoreError(f"no mixture can be read: {e}", got=folder.name) from None

    def exhibit(
        self, chain: ChainSpec, truth: Law, law: Law, samples: Samples, log_prob_truth: Floats
    ) -> Mapping[str, object] | None:
        """Log density on a grid around the truth, for contours; planes only."""
        p_star, m, points = of_type(Mixture, truth), of_type(Mixture, law), of_type(Points, samples)
        if p_star.n_features != 2:
            return None
        reach = 4 * float(np.sqrt(np.max(p_star.covariances)))
        low, high = p_star.means.min(axis=0) - reach, p_star.means.max(axis=0) + reach
        return density_exhibit(m.log_prob, (low, high), points, m.means, m.weights)

    def describe_truth(self, chain: ChainSpec) -> str:
        """Name the truth."""
        m = _chain(chain).truth.law()
        said = f"mixture of {m.n_components} Gaussians in {m.n_features} dimensions ({m.covariance_type} covariance)"
        return said + against(chain)


def _fit(x: Floats, level: Strict, seed: Stream | list[Stream]) -> MixtureFit:
    from hydrometer.models.mixture.em import fit_mixture

    p = of_type(MixtureLevel, level)
    return fit_mixture(
        x,
        p.n_components,
        covariance_type=p.covariance_type,
        n_init=p.n_init,
        seed=seed,
        tol=p.tol,
        max_iter=p.max_iter,
        reg_covar=p.reg_covar,
    )


def _chain(chain: ChainSpec) -> MixtureChain:
    return of_type(MixtureChain, chain)


def _above(chain: MixtureChain) -> int:
    """Components of the teacher."""
    if chain.teacher != "truth":
        return chain.teacher.n_components
    return chain.truth.n_components if isinstance(chain.truth, MixtureWorld) else len(chain.truth.means)


MIXTURE = MixtureFamily()
