"""How a diffusion chain is specified. See docs, Specification."""

from __future__ import annotations

from typing import Annotated, Literal, Self

import numpy as np
from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from hydrometer.core.errors import InputError
from hydrometer.core.spec import Strict, as_tuples
from hydrometer.models.cheap import CheapChain
from hydrometer.models.diffusion.spherical import Spherical, noise_levels

__all__ = ["DiffusionChain", "DiffusionStudent", "DiffusionTeacher", "DiffusionTruth"]


class DiffusionTruth(Strict):
    """The truth: a mixture of round Gaussians in the plane.

    Attributes
    ----------
    means : K points of the plane.
    covariances : variance of all components, or of each.
    weights : equal ones by default.
    """

    means: Annotated[tuple[tuple[float, float], ...], BeforeValidator(as_tuples)] = Field(min_length=1, max_length=1024)
    covariances: Annotated[float | tuple[float, ...], BeforeValidator(as_tuples)]
    weights: Annotated[tuple[float, ...] | None, BeforeValidator(as_tuples)] = None

    def law(self) -> Spherical:
        """Build the mixture. Raises InputError."""
        k = len(self.means)
        weights = np.full(k, 1 / k) if self.weights is None else np.asarray(self.weights, np.float64)
        variances = np.asarray(self.covariances, np.float64)
        return Spherical(
            weights, np.asarray(self.means, np.float64), np.full(k, variances) if not variances.ndim else variances
        )

    @model_validator(mode="after")
    def _buildable(self) -> Self:
        try:
            self.law()
        except InputError as e:
            raise PydanticCustomError("truth", "{m}", {"m": str(e)}) from None
        return self


class DiffusionTeacher(Strict):
    """A level: a DDIM sampler over the noise levels of Karras et al. (2022).

    Attributes
    ----------
    steps : evaluations of the denoiser for one row.
    n_components : of the mixture that denoises, fitted to the rows. None: the truth's own, the exact score.
    sigma_max, sigma_min, rho : the first noise level, the last one above 0, and how they are spaced.
    """

    steps: int = Field(ge=1, le=1000)
    n_components: int | None = Field(default=None, ge=1, le=1024)
    sigma_max: float = Field(default=20.0, gt=0, lt=1e6)
    sigma_min: float = Field(default=0.02, ge=1e-6, lt=1e6)
    rho: float = Field(default=7.0, ge=1, le=100)

    @model_validator(mode="after")
    def _falling(self) -> Self:
        if not self.sigma_min < self.sigma_max:
            raise PydanticCustomError("levels", "sigma_min must lie below sigma_max")
        levels = noise_levels(self.steps, self.sigma_max, self.sigma_min, self.rho)
        if not (np.diff(levels) < 0).all():
            raise PydanticCustomError("levels", "so many steps do not fit between sigma_max and sigma_min in float64")
        return self


class DiffusionStudent(DiffusionTeacher):
    """A level below the teacher, whose denoiser or steps are fitted: of `n_components` pieces."""

    n_components: int = Field(ge=1, le=1024)  # pyright: ignore[reportIncompatibleVariableOverride]  (frozen)


class DiffusionChain(CheapChain):
    """truth (a mixture) -> teacher (a sampler of many steps) -> student (a sampler of few), selected by guidance.

    `loss`: by ``mle`` a student's denoiser is the mixture that the rows make likeliest; by ``regression`` its steps are
    those that send the teacher's latent points nearest to where the teacher sends them.
    """

    family: Literal["diffusion"]  # pyright: ignore[reportIncompatibleVariableOverride]  (frozen: no one can assign)
    truth: DiffusionTruth
    teacher: DiffusionTeacher
    student: DiffusionStudent
    loss: Annotated[  # pyright: ignore[reportIncompatibleVariableOverride]  (frozen)
        tuple[Literal["mle", "regression"], ...], Field(min_length=1, max_length=2), BeforeValidator(as_tuples)
    ] = ("mle",)

    @model_validator(mode="after")
    def _sane(self) -> Self:
        rows = {"teacher": self.data.train, "student": min(self.data.train, self.data.distill)}
        for name, n in rows.items():
            k = self.teacher.n_components if name == "teacher" else self.student.n_components
            if k is not None and k >= n:
                message = "{name}.n_components is {k}, not below the {n} points it is fitted to; lower it or raise data"
                raise PydanticCustomError("size", message, {"name": name, "k": k, "n": n})
        return self
