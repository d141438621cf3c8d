"""Findings about a chain of mixtures, from the specification alone; nothing is drawn."""

from __future__ import annotations

from collections.abc import Iterator

from hydrometer.core.arguments import of_type
from hydrometer.core.findings import Finding, note, warning
from hydrometer.models.finite_selectivity import canonical
from hydrometer.models.mixture.spec import MixtureChain, MixtureLevel

__all__ = ["examine"]

_POINTS_A_PARAMETER = 2


def examine(chain: MixtureChain) -> list[Finding]:
    """Return the findings of one chain; of a map, those of its points, once each."""
    found: dict[str, Finding] = {}
    for one in [of_type(MixtureChain, p.chain) for p in chain.points()] or [chain]:
        # A map is meant to go through all sizes.
        for finding in (*(() if chain.grid is not None else (*_sizes(one), *_decoding(one))), *_points(one)):
            found.setdefault(finding.code, finding)
    return list(found.values())


def _sizes(chain: MixtureChain) -> Iterator[Finding]:
    teacher = chain.teacher
    if teacher == "truth" or chain.student.n_components <= teacher.n_components:
        return
    yield warning(
        "student-larger",
        f"the student has {chain.student.n_components} components, the teacher {teacher.n_components}",
        "a student that can hold more than its teacher is not the compression that distilling is about",
        "give the student no more components than the teacher",
    )


def _decoding(chain: MixtureChain) -> Iterator[Finding]:
    idle = any(canonical(s) is not None and s.tilt is None for s in chain.controls)
    if chain.student.n_components > 1 or not idle:
        return
    yield note(
        "decoding-idle",
        "the student has one component, and decoding names settings for it",
        "one component has no weights to sharpen: each such row repeats the model as it is, on other draws",
        "leave decoding out",
    )


def _points(chain: MixtureChain) -> Iterator[Finding]:
    d = chain.truth.law().n_features
    levels = [("student", chain.student, min(chain.data.train, chain.data.distill))]
    if chain.teacher != "truth":
        levels.insert(0, ("teacher", chain.teacher, chain.data.train))
    for role, level, points in levels:
        parameters = n_parameters(level, d)
        if points < _POINTS_A_PARAMETER * parameters:
            yield warning(
                "few-points",
                f"the {role} has {parameters} free parameters and is fitted to {points} points",
                "with so few points a component closes in on single ones; its figures say how EM overfits",
                f"raise data to {_POINTS_A_PARAMETER * parameters} points or more, or lower n_components",
            )
            return


def n_parameters(level: MixtureLevel, d: int) -> int:
    """Free parameters of a mixture in d dimensions: weights, means, covariances.

    Examples
    --------
    >>> n_parameters(MixtureLevel(n_components=4, covariance_type="diag"), 2)
    19
    """
    k = level.n_components
    full = d * (d + 1) // 2
    covariances = {"full": k * full, "tied": full, "diag": k * d, "spherical": k}[level.covariance_type]
    return k - 1 + k * d + covariances
