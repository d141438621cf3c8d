"""The mixture family: specification to laws, fits and files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Literal, cast

import numpy as np
from numpy.typing import NDArray

from hydrometer.core.arrays import open_arrays
from hydrometer.core.errors import StoreError
from hydrometer.core.findings import Finding
from hydrometer.core.spec import ChainSpec, Strict
from hydrometer.core.yaml_io import artifact_json
from hydrometer.models.base import FitRequest, Fitted, Footprint, Law, Level, Precision, Samples, chain_levels
from hydrometer.models.mixture.doctor import examine
from hydrometer.models.mixture.law import Mixture, Points
from hydrometer.models.mixture.spec import MixtureChain, MixtureLevel

__all__ = ["MIXTURE", "MixtureFamily"]

Floats = NDArray[np.float64]
_GRID = 72
_SHOWN_POINTS = 200


class MixtureFamily:
    """Mixtures of Gaussians. Draws are cheap: they are made again where needed instead of being stored."""

    name: str = "mixture"
    chain_spec: type[ChainSpec] = MixtureChain
    keeps_draws: bool = False

    def levels(self, chain: ChainSpec) -> tuple[Level, ...]:
        """Teacher, unless it is the truth; assistants; student."""
        c = _chain(chain)
        return chain_levels(c.teacher, c.assistants, c.student)

    def sizes(self, chain: ChainSpec) -> Mapping[str, int]:
        """Rows per stream; EM needs no held-out rows."""
        d = _chain(chain).data
        return {"train": d.train, "validate": 0, "distill": d.distill, "evaluate": d.evaluate}

    def check(self, chain: ChainSpec) -> None:
        """Nothing is left to check: the specification builds the truth when it is read."""

    def examine(self, chain: ChainSpec) -> Sequence[Finding]:
        """Look for what would spoil the result."""
        return examine(_chain(chain))

    def footprint(self, chain: ChainSpec, stage: Literal["draw", "fit", "judge"], role: str, rows: int) -> Footprint:
        """Points are held in memory, float64, with their log-probabilities."""
        return Footprint(memory_least=8 * rows * (_chain(chain).truth.law().n_features + 1))

    def numerics(self, chain: ChainSpec) -> Mapping[str, object]:
        """Versions of what computes."""
        import numba
        import scipy

        return {"files": 2, "numpy": np.__version__, "scipy": scipy.__version__, "numba": numba.__version__}

    def block_rows(self, chain: ChainSpec) -> int:
        """Draws are not stored; one block holds any draw."""
        return 1 << 20

    def precision(self, chain: ChainSpec, purpose: Literal["train", "judge"]) -> Precision:
        """Always float64."""
        return "float64"

    def truth_identity(self, chain: ChainSpec) -> Mapping[str, object]:
        """The parameters."""
        return _chain(chain).truth.model_dump(mode="json")

    def truth(self, chain: ChainSpec, precision: Precision) -> Mixture:
        """Make the truth."""
        return _chain(chain).truth.law()

    def fit(self, request: FitRequest) -> Fitted[Law]:
        """Fit by EM."""
        from hydrometer.models.mixture.em import fit_mixture

        level = cast("MixtureLevel", request.level)
        fitted = fit_mixture(
            cast("Points", request.data).x,
            level.n_components,
            covariance_type=level.covariance_type,
            n_init=level.n_init,
            seed=request.stream,
            tol=level.tol,
            max_iter=level.max_iter,
            reg_covar=level.reg_covar,
        )
        facts = {name: values[0].item() for name, values in asdict(fitted.info).items()}
        return Fitted(cast("Mixture", fitted.model), facts)

    def save_law(self, law: Law, folder: Path) -> None:
        """Write the parameters as JSON, exact to the last bit."""
        m = cast("Mixture", law)
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

    def save_samples(self, samples: Samples, folder: Path) -> None:
        """Write points."""
        p = cast("Points", samples)
        np.savez(folder / "points.npz", x=p.x, log_prob=p.log_prob)

    def load_samples(self, folders: list[Path], n: int) -> Points:
        """Open the first n points of blocks."""
        parts: list[dict[str, NDArray[np.float64]]] = []
        for folder in folders:
            with open_arrays(folder / "points.npz") as archive:
                parts.append({k: archive[k] for k in ("x", "log_prob")})
        x, log_prob = (np.concatenate([p[k] for p in parts])[:n] for k in ("x", "log_prob"))
        return Points(x, log_prob)

    def take(self, samples: Samples, n: int) -> Points:
        """Return the first n points."""
        p = cast("Points", samples)
        return Points(p.x[:n], p.log_prob[:n])

    def exhibit(
        self, chain: ChainSpec, truth: Law, law: Law, samples: Samples, log_prob_truth: Floats
    ) -> Mapping[str, object] | None:
        """Log density on a grid around the truth, for contours; planes only."""
        p_star, m, points = cast("Mixture", truth), cast("Mixture", law), cast("Points", samples)
        if p_star.n_features != 2:
            return None
        reach = 4 * float(np.sqrt(np.max(p_star.covariances)))
        low, high = p_star.means.min(axis=0) - reach, p_star.means.max(axis=0) + reach
        steps = np.arange(_GRID, dtype=np.float64) / (_GRID - 1)
        x, y = (low[i] + (high[i] - low[i]) * steps for i in range(2))
        grid = np.column_stack([np.tile(x, _GRID), np.repeat(y, _GRID)])
        log_density = m.log_prob(grid).reshape(_GRID, _GRID)
        return {
            "kind": "density-2d",
            "version": 1,
            "x": x.round(6).tolist(),
            "y": y.round(6).tolist(),
            "log_density": log_density.round(4).tolist(),
            "points": points.x[:_SHOWN_POINTS].round(4).tolist(),
            "means": m.means.round(6).tolist(),
            "weights": m.weights.round(9).tolist(),
        }

    def describe_truth(self, chain: ChainSpec) -> str:
        """Name the truth."""
        m = _chain(chain).truth.law()
        return f"mixture of {m.n_components} Gaussians in {m.n_features} dimensions ({m.covariance_type} covariance)"

    def cost(self, chain: ChainSpec, stage: Literal["draw", "fit", "judge"], role: str, rows: int) -> float:
        """Seconds on one core, roughly."""
        return {"draw": 5e-6, "fit": 0.015, "judge": 0.03}[stage]


def _chain(chain: ChainSpec | Strict) -> MixtureChain:
    return cast("MixtureChain", chain)


MIXTURE = MixtureFamily()
