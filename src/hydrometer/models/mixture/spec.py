"""How a mixture chain is specified. See docs, Specification."""

from __future__ import annotations

import math
from itertools import product
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import BeforeValidator, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from hydrometer.core.distillation import MLE, Objective, distillations_of
from hydrometer.core.errors import InputError, SpecError
from hydrometer.core.rng import Stream
from hydrometer.core.spec import MAX_LEVELS, MAX_ROWS, MAX_SEED, Resample, Selectivity, Strict, as_tuples
from hydrometer.core.tilt import Reward
from hydrometer.models.capabilities import MapPoint
from hydrometer.models.cheap import EVERYTHING, ChainWithTarget
from hydrometer.models.mixture.divergence_fit import KINDS
from hydrometer.models.mixture.law import CovarianceType, Mixture
from hydrometer.models.mixture.tilting import place_of
from hydrometer.models.objectives import Divergence, divergence_of

__all__ = ["MixtureChain", "MixtureData", "MixtureGrid", "MixtureLevel", "MixtureTruth", "MixtureWorld"]

MAX_POINTS = 10_000
Nested = float | tuple[float, ...] | tuple[tuple[float, ...], ...] | tuple[tuple[tuple[float, ...], ...], ...]


class MixtureTruth(Strict):
    """The truth, given by its parameters.

    A scalar or one component's worth of `covariances` stands for all components. `weights` default to equal ones.
    """

    means: Annotated[tuple[tuple[float, ...], ...], BeforeValidator(as_tuples)] = Field(min_length=1)
    covariances: Annotated[Nested, BeforeValidator(as_tuples)]
    weights: Annotated[tuple[float, ...] | None, BeforeValidator(as_tuples)] = None
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


class MixtureWorld(Strict):
    """The truth, drawn: spherical components of variance 1, spread out, at a stated separation.

    Attributes
    ----------
    n_components, n_features : K and d.
    separation : the least distance between two means, in standard deviations.
    weight_ratio : of the heaviest to the lightest weight; between them weights fall geometrically.
    seed : of the means. K of many standard normal points, each the farthest from those before, then scaled.
    """

    n_components: int = Field(ge=1, le=1024)
    n_features: int = Field(default=2, ge=1, le=16)
    separation: float = Field(default=4.0, gt=0, lt=1e6)
    weight_ratio: float = Field(default=1.0, ge=1, lt=1e12)
    seed: int = Field(default=0, ge=0, le=MAX_SEED)

    def law(self) -> Mixture:
        """Build the mixture."""
        from scipy.special import ndtri

        k, d = self.n_components, self.n_features
        points = ndtri(Stream(self.seed).child("world").uniforms(0, 16 * k, d))
        chosen = [0]
        nearest = np.full(len(points), np.inf)
        for _ in range(k - 1):
            nearest = np.minimum(nearest, np.square(points - points[chosen[-1]]).sum(axis=1))
            chosen.append(int(nearest.argmax()))
        means = points[chosen] - points[chosen].mean(axis=0)
        if k > 1:
            gaps = np.square(means[:, None] - means[None]).sum(axis=2)
            means *= self.separation / np.sqrt(gaps[~np.eye(k, dtype=bool)].min())
        weights = self.weight_ratio ** -(np.arange(k) / max(k - 1, 1))
        return Mixture(weights / weights.sum(), means, np.ones(k), covariance_type="spherical")


class MixtureGrid(Strict):
    """A map: every combination of these values, each a chain of its own, over all seeds.

    Attributes
    ----------
    teacher, student : numbers of components, in place of the levels' own.
    separation : of a drawn truth, in place of its own.
    seeds : how many seeds, from 0, in place of the run's: a map is cheap.
    """

    teacher: Annotated[tuple[int, ...], BeforeValidator(as_tuples)] = ()
    student: Annotated[tuple[int, ...], BeforeValidator(as_tuples)] = ()
    separation: Annotated[tuple[float, ...], BeforeValidator(as_tuples)] = ()

    seeds: int | None = Field(default=None, ge=2, le=100_000)

    @model_validator(mode="after")
    def _sane(self) -> Self:
        axes = (self.teacher, self.student, self.separation)
        if not any(axes):
            raise PydanticCustomError("grid", "a grid needs values of teacher, student or separation")
        if math.prod(len(v) or 1 for v in axes) > MAX_POINTS:
            raise PydanticCustomError("grid", "a grid has at most {n} points", {"n": MAX_POINTS})
        for values in axes:
            if len(set(values)) != len(values) or any(not 0 < v < math.inf for v in values):
                raise PydanticCustomError("grid", "values of a grid must be distinct, finite and above 0")
        return self


class MixtureLevel(Strict):
    """A fitted level: scikit-learn's parameters of `GaussianMixture`.

    But for `n_init`: each start is the better of two k-means starts, scikit-learn's is one (docs, The paper).
    """

    n_components: int = Field(ge=1, le=1_000_000)
    covariance_type: CovarianceType = "diag"
    n_init: int = Field(default=1, ge=1, le=1_000_000)
    tol: float = Field(default=1e-3, ge=0, lt=math.inf)
    max_iter: int = Field(default=100, ge=1, le=1_000_000_000)
    reg_covar: float = Field(default=1e-6, ge=0, lt=math.inf)


class MixtureData(Strict):
    """Rows per stream."""

    train: int = Field(default=100, ge=1, le=MAX_ROWS)
    distill: int = Field(default=1000, ge=1, le=MAX_ROWS)
    evaluate: int = Field(default=20_000, ge=2, le=MAX_ROWS)


def _is_bump(s: Selectivity) -> bool:
    return s.tilt is not None and isinstance(s.tilt.reward, Reward) and s.tilt.reward.bump is not None


class MixtureChain(ChainWithTarget):
    """truth -> teacher -> student, all mixtures of Gaussians.

    `loss` names objectives between densities, each with every selectivity (see `divergence_fit`).
    `as_released` adds the figures as the paper's notebook computes them (docs, The paper). `exact` judges without Monte
    Carlo error, by quadrature, in one or two dimensions (docs, Frontiers).
    """

    family: Literal["mixture"]  # pyright: ignore[reportIncompatibleVariableOverride]  (frozen: no one can assign)
    truth: MixtureTruth | MixtureWorld
    teacher: MixtureLevel | Literal["truth"]
    assistants: Annotated[tuple[MixtureLevel, ...], Field(max_length=MAX_LEVELS), BeforeValidator(as_tuples)] = ()
    student: MixtureLevel
    loss: Annotated[tuple[str, ...], Field(min_length=1, max_length=MAX_LEVELS), BeforeValidator(as_tuples)] = ("mle",)  # pyright: ignore[reportIncompatibleVariableOverride]  (frozen)
    data: MixtureData = MixtureData()
    as_released: bool = False
    exact: bool | None = None  # not False, so that keys of earlier specifications do not change
    grid: MixtureGrid | None = None
    resample: Annotated[tuple[Resample, ...], Field(max_length=5), BeforeValidator(as_tuples)] = EVERYTHING

    @field_validator("teacher", mode="before")
    @classmethod
    def _teacher(cls, value: object) -> object:
        if isinstance(value, str) and value != "truth":
            raise PydanticCustomError("teacher", "teacher is a mapping with n_components, or the word truth")
        return value

    @field_validator("truth", mode="before")
    @classmethod
    def _truth(cls, value: object) -> object:
        # One kind or the other, so that an error is about the one that was meant.
        if not isinstance(value, dict):
            return value
        return (MixtureWorld if "n_components" in value else MixtureTruth).model_validate(value)

    @property
    def controls(self) -> tuple[Selectivity, ...]:
        """Settings of the decoding control; by default none but tilts where the student has no weights to sharpen."""
        found = super().controls
        if self.decoding is None and self.grid is None and self.student.n_components == 1:
            return tuple(s for s in found if s.tilt is not None)
        return found

    @property
    def undecoded(self) -> tuple[str, str] | None:
        """One component has no weights to sharpen, but it can be tilted."""
        if self.student.n_components > 1 or any(s.tilt is not None for s in self.selectivity):
            return None
        return "a student of one component has no weights to sharpen", "give the student two components or more"

    def points(self) -> tuple[MapPoint, ...]:
        """All points of the map, the last axis fastest; none without a grid."""
        if self.grid is None:
            return ()
        axes = {name: values for name in ("separation", "teacher", "student") if (values := getattr(self.grid, name))}
        return tuple(self._point(dict(zip(axes, values, strict=True))) for values in product(*axes.values()))

    def _point(self, values: dict[str, Any]) -> MapPoint:
        fields = self.model_dump(exclude={"grid"})
        for name in ("teacher", "student"):
            if name in values:
                fields[name]["n_components"] = values[name]
        if "separation" in values:
            fields["truth"]["separation"] = values["separation"]
        spec = MixtureChain.model_validate(fields)  # first: a whole number may be too large for a float
        return MapPoint({k: float(v) for k, v in values.items()}, spec)

    def _dimensions(self) -> int:
        return self.truth.n_features if isinstance(self.truth, MixtureWorld) else len(self.truth.means[0])

    @model_validator(mode="after")
    def _of_densities(self) -> Self:
        try:
            for o in map(Objective.from_json, self.loss):
                d = divergence_of(o)
                if o != MLE and o.name not in KINDS:
                    what, fix = "mixtures have no such objective", "they have " + ", ".join(("mle", *KINDS))
                    raise SpecError(what, got=o.name, fix=fix)
                if isinstance(d, Divergence) and (d.temperature != 1 or d.mle > 0):
                    what = "an objective between densities has neither temperature nor a share of mle"
                    raise SpecError(what, got=o.to_json(), fix="leave them out")
                if o != MLE and (bump := next((s for s in self.selectivity if _is_bump(s)), None)):
                    what = f"{o.name} would take hours: a teacher at a bump has a hundred components and more"
                    raise SpecError(what, got=bump.label, fix="take mle, or a quadratic")
            distillations_of(self)
        except SpecError as e:
            raise PydanticCustomError("loss", "{problem}", {"problem": str(e)}) from None
        return self

    @model_validator(mode="after")
    def _mappable(self) -> Self:
        if self.grid is None:
            return self
        if self.loss != ("mle",):
            raise PydanticCustomError("grid", "a grid's students are fitted by mle: leave loss out")
        if self.as_released or self.assistants or self.target is not None:
            raise PydanticCustomError("grid", "a grid goes with neither assistants, as_released nor target")
        if set(self.resample) != {"data", "teacher", "distill", "student", "evaluate"}:
            raise PydanticCustomError("grid", "a grid redraws everything with each seed; leave resample out")
        if self.grid.separation and isinstance(self.truth, MixtureTruth):
            raise PydanticCustomError(
                "grid", "grid.separation needs a drawn truth: n_components, n_features, separation"
            )
        if self.grid.teacher and self.teacher == "truth":
            raise PydanticCustomError("grid", "grid.teacher needs a fitted teacher")
        self.points()
        return self

    @model_validator(mode="after")
    def _sane(self) -> Self:
        if self.exact and self._dimensions() > 2:
            raise PydanticCustomError(
                "exact",
                "exact figures are for one or two dimensions; got {d}; leave exact out",
                {"d": self._dimensions()},
            )
        if self.exact and self._dimensions() > 1 and (bump := next(filter(_is_bump, self.settings), None)):
            what = "exact figures at a bump, of a hundred components and more, are for one dimension; got {s}; "
            raise PydanticCustomError("exact", what + "leave exact out", {"s": bump.label})
        for s in self.settings:
            if not set(s.to_json()) <= {"weight_power", "tilt"}:
                what = "a mixture is selected by weight_power or tilt, not by {s}"
                raise PydanticCustomError("kind", what, {"s": s.label})
            if s.tilt is not None:
                try:
                    place_of(s.tilt, self._dimensions())
                except InputError as e:
                    raise PydanticCustomError("tilt", "{m}", {"m": str(e)}) from None
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
