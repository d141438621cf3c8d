"""The diffusion family: specification to laws, fits and files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from hydrometer.core.arguments import of_type
from hydrometer.core.array_types import Floats
from hydrometer.core.spec import ChainSpec
from hydrometer.models.array_files import save_arrays
from hydrometer.models.base import FitRequest, Fitted, Law, Samples
from hydrometer.models.cheap import CheapFamily, Density, Stage, points_of
from hydrometer.models.diffusion.law import Diffusion
from hydrometer.models.diffusion.spec import DiffusionChain, DiffusionTeacher
from hydrometer.models.diffusion.spherical import Spherical, ddim, noise_levels
from hydrometer.models.rows.points import Points, density_exhibit

__all__ = ["DIFFUSION", "DiffusionFamily"]

_FIRST_LEVELS = 8  # from which a regression starts: sigma_max, a half of it, a quarter, ...
_SECONDS_A_PIECE = 5e-8  # of a step, for one point


class DiffusionFamily(CheapFamily):
    """Deterministic samplers of diffusion models in the plane."""

    name: str = "diffusion"
    chain_spec: type[ChainSpec] = DiffusionChain
    law_type: type[Diffusion] = Diffusion
    libraries: tuple[str, ...] = ("numpy", "scipy")

    def fit(self, request: FitRequest) -> Fitted[Law]:
        """Make the sampler of the truth's mixture, or fit a mixture to the rows; by ``regression`` go on from there."""
        level = of_type(DiffusionTeacher, request.level)
        x = points_of(request.data, 2)
        if level.n_components is None:
            return Fitted(_sampler(level, of_type(Spherical, request.truth)), {})
        from hydrometer.models.diffusion.spherical_em import fit_spherical

        mixture, facts = fit_spherical(x, level.n_components, request.stream.child("start"))
        if request.loss != "regression":
            return Fitted(_sampler(level, mixture), facts)
        from hydrometer.models.diffusion.pair_regression import fit_pairs

        teacher = of_type(Diffusion, request.teacher)
        teacher = teacher if request.selectivity is None else teacher.select(request.selectivity)
        starts = [_sampler(level, mixture, 0.5**i) for i in range(_FIRST_LEVELS)]
        found = fit_pairs(starts, teacher.latent(x), x, request.tick)
        return Fitted(found[0], facts | found[1])

    def save_truth(self, chain: ChainSpec, folder: Path) -> None:
        """Write the mixture."""
        save_arrays(self.truth(chain, "float64"), folder)

    def exhibit(
        self, chain: ChainSpec, truth: Law, law: Law, samples: Samples, log_prob_truth: Floats
    ) -> Mapping[str, object] | None:
        """Log density on a grid around the truth, for contours."""
        p_star, points = of_type(Spherical, truth), of_type(Points, samples)
        reach = 4 * math.sqrt(p_star.covariances.max())
        corners = p_star.means.min(axis=0) - reach, p_star.means.max(axis=0) + reach
        own = (law.means, law.weights) if isinstance(law, Spherical) else (np.empty((0, 2)), np.empty(0))
        return density_exhibit(of_type(Density, law).log_density, corners, points, *own)

    def describe_truth(self, chain: ChainSpec) -> str:
        """Name the truth."""
        return f"mixture of {len(of_type(DiffusionChain, chain).truth.means)} round Gaussians in the plane"

    def cost(self, chain: ChainSpec, stage: Stage, role: str, rows: int) -> float:
        """Seconds on one core, roughly: a row costs as much as it has steps and pieces; to undo them, ten times so."""
        c = of_type(DiffusionChain, chain)
        k = c.teacher.n_components or len(c.truth.means)
        above, own = c.teacher.steps * k, c.student.steps * c.student.n_components
        fits = 1e-5 * c.student.n_components * rows
        if "regression" in c.loss:
            fits += _SECONDS_A_PIECE * rows * (10 * above + 1000 * own)
        mine = above if role in ("truth", "teacher") else own
        draws = _SECONDS_A_PIECE * rows * mine
        return {"draw": draws, "fit": fits, "judge": 10 * draws}[stage] + 1e-3


def _sampler(level: DiffusionTeacher, mixture: Spherical, share: float = 1.0) -> Diffusion:
    """Return the level's sampler of a mixture, its first noise level lowered to a share, and the last with it."""
    high = share * level.sigma_max
    return ddim(mixture, noise_levels(level.steps, high, min(level.sigma_min, 0.5 * high), level.rho))


DIFFUSION = DiffusionFamily()
