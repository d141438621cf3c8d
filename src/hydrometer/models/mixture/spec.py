"""How a mixture chain is specified. See docs, Specification."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, cast

import numpy as np
from pydantic import BeforeValidator, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from hydrometer.core.errors import InputError
from hydrometer.core.spec import ChainSpec, Resample, Strict
from hydrometer.models.mixture.law import CovarianceType, Mixture

__all__ = ["MixtureChain", "MixtureData", "MixtureLevel", "MixtureTruth"]

Nested = float | tuple[float, ...] | tuple[tuple[float, ...], ...] | tuple[tuple[tuple[float, ...], ...], ...]


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in cast("list[Any]", value)) if isinstance(value, list) else value


class MixtureTruth(Strict):
    """The truth, given by its parameters.

    A scalar or one component's worth of `covariances` stands for all components. `weights` default to equal ones.
    """

    means: Annotated[tuple[tuple[float, ...], ...], BeforeValidator(_tuples)] = Field(min_length=1)
    covariances: Annotated[Nested, BeforeValidator(_tuples)]
    weights: Annotated[tuple[float, ...] | None, BeforeValidator(_tuples)] = None
    covariance_type: CovarianceType = "spherical"

    def law(self) -> Mixture:
        """Build the mixture. Raises InputError."""
        if len({len(m) for m in self.means}) != 1:
            raise InputError("all means must have the same dimension", got=[len(m) for m in self.means])
        k, d = len(self.means), len(self.means[0])
        weights = np.full(k, 1 / k) if self.weights is None else np.asarray(self.weights)
        try:
            cov = np.asarray(self.covariances, np.float64)
        except ValueError:
            raise InputError("covariances must be a number or a regular array of numbers") from None
        shape = {"full": (k, d, d), "tied": (d, d), "diag": (k, d), "spherical": (k,)}[self.covariance_type]
        if cov.ndim == 0 and self.covariance_type in ("full", "tied"):
            cov = cov * np.eye(d)
        if cov.ndim < len(shape):
            try:
                cov = np.broadcast_to(cov, shape)
            except ValueError:
                raise InputError(
                    f"{self.covariance_type!r} covariances must have shape {shape}", got=cov.shape
                ) from None
        return Mixture(weights, self.means, cov, covariance_type=self.covariance_type)

    @model_validator(mode="after")
    def _buildable(self) -> Self:
        try:
            self.law()
        except InputError as e:
            raise PydanticCustomError("truth", "{m}", {"m": str(e)}) from None
        return self


class MixtureLevel(Strict):
    """A fitted level: scikit-learn's parameters of `GaussianMixture`."""

    n_components: int = Field(ge=1)
    covariance_type: CovarianceType = "diag"
    n_init: int = Field(default=1, ge=1)
    tol: float = Field(default=1e-3, ge=0)
    max_iter: int = Field(default=100, ge=1)
    reg_covar: float = Field(default=1e-6, ge=0)


class MixtureData(Strict):
    """Rows per stream."""

    train: int = Field(default=100, ge=1)
    distill: int = Field(default=1000, ge=1)
    evaluate: int = Field(default=20_000, ge=2)


class MixtureChain(ChainSpec):
    """truth -> teacher -> student, all mixtures of Gaussians.

    `as_released` adds the figures as the paper's notebook computes them (docs, The paper).
    """

    family: Literal["mixture"]  # pyright: ignore[reportIncompatibleVariableOverride]  (frozen: no one can assign)
    truth: MixtureTruth
    teacher: MixtureLevel | Literal["truth"]
    assistants: Annotated[tuple[MixtureLevel, ...], BeforeValidator(_tuples)] = ()
    student: MixtureLevel
    data: MixtureData = MixtureData()
    as_released: bool = False
    resample: Annotated[tuple[Resample, ...], BeforeValidator(_tuples)] = (
        "data",
        "teacher",
        "distill",
        "student",
        "evaluate",
    )

    @field_validator("teacher", mode="before")
    @classmethod
    def _teacher(cls, value: object) -> object:
        if isinstance(value, str) and value != "truth":
            raise PydanticCustomError("teacher", "teacher is a mapping with n_components, or the word truth")
        return value

    @model_validator(mode="after")
    def _sane(self) -> Self:
        for s in (*self.selectivity, *(self.decoding or ())):
            if s.is_token:
                raise PydanticCustomError("kind", "a mixture is selected by weight_power, not by {s}", {"s": s.label})
        levels = [("student", self.student), *((f"assistants.{i}", a) for i, a in enumerate(self.assistants))]
        for name, level in levels:
            points = min(self.data.train, self.data.distill)
            if level.n_components > points:
                raise PydanticCustomError(
                    "size",
                    "{name}.n_components is {k}, more than the {n} points it is fitted to; lower it or raise data",
                    {"name": name, "k": level.n_components, "n": points},
                )
        if self.teacher != "truth" and self.teacher.n_components > self.data.train:
            raise PydanticCustomError(
                "size",
                "teacher.n_components is {k}, more than the {n} points it is fitted to; lower it or raise data.train",
                {"k": self.teacher.n_components, "n": self.data.train},
            )
        if self.as_released and self.teacher == "truth":
            raise PydanticCustomError("released", "as_released needs a fitted teacher")
        return self
