"""A student that learns where its teacher sends each latent point.

    minimise  mean |F(z_n) - x_n|^2  over the student's steps,  z_n the latent point that the teacher makes x_n of

Source: Luhman and Luhman (2021), Knowledge distillation in iterative generative models, whose student has one step;
"regression on noise-image pairs" elsewhere. Every step has pieces of its own, as a network that knows the noise level.

Shapes: N pairs, n steps, K pieces.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from hydrometer.core.array_types import Floats
from hydrometer.core.errors import FitError
from hydrometer.models.base import Tick
from hydrometer.models.diffusion.law import Diffusion

__all__ = ["fit_pairs", "loss_and_gradient"]

_MAX_ITER = 300
_FACTOR = 1e3
"""By which curvatures and sharpness may move from the start: from few pairs some students would sharpen without end."""


def fit_pairs(starts: Sequence[Diffusion], z: Floats, x: Floats, tick: Tick) -> tuple[Diffusion, dict[str, float]]:
    """Return the student nearest to pairs z, x (N, 2) by L-BFGS from the best of some starts, and its squared error.

    Raises
    ------
    FitError : the error is not finite.
    """
    from scipy import optimize

    minimize: Any = optimize.minimize  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    start = min(starts, key=lambda law: loss_and_gradient(law, z, x)[0])
    rounds = iter(range(1, _MAX_ITER + 1))

    def error(theta: Floats) -> tuple[float, Floats]:
        return loss_and_gradient(_law(start, theta), z, x)

    def after_round(theta: Floats) -> None:
        tick(next(rounds), _MAX_ITER, "rounds")

    options = {"maxiter": _MAX_ITER, "maxfun": 2 * _MAX_ITER, "maxcor": 30, "ftol": 1e-10, "gtol": 1e-8}
    theta = _theta(start)
    reach = np.full(len(theta), np.inf)
    reach[-len(start.curvatures.ravel()) - len(start.sharpness) :] = np.log(_FACTOR)
    bounds = optimize.Bounds(theta - reach, theta + reach)  # pyright: ignore[reportArgumentType]
    found = minimize(error, theta, jac=True, method="L-BFGS-B", bounds=bounds, options=options, callback=after_round)
    if not np.isfinite(found.fun):
        raise FitError("a student diverged from its pairs", got=float(found.fun), fix="give it fewer steps or pieces")
    return _law(start, found.x), {"squared_error": float(found.fun), "rounds": int(found.nit)}


def loss_and_gradient(law: Diffusion, z: Floats, x: Floats) -> tuple[float, Floats]:
    """Return the mean squared error of pairs, and its gradient by what `_theta` lists, by backpropagation.

    With h_k = r_k a . (g_k - F), where a is the gradient by the step's value F and g_k = m_k + c_k x, the gradient by
    the step's argument is sum_k (r_k c_k a + b h_k g_k), and h is that by the arguments of the softmax.
    """
    at = [law.scale * z]
    for step in law.steps:
        at.append(step.at(at[-1])[0])
    gap = at[-1] - x
    a = 2 * gap / len(x)
    by_step: list[tuple[Floats, Floats, Floats, float]] = []
    for step, y, value in zip(reversed(law.steps), at[-2::-1], at[:0:-1], strict=True):
        r, _ = step.shares(y)
        b, c, (y0, y1), (a0, a1) = step.sharpness, step.curvatures[:, None], y.T, a.T
        g0, g1 = step.slopes[:, :1] + c * y0, step.slopes[:, 1:] + c * y1
        h = r * (a0 * (g0 - value[:, 0]) + a1 * (g1 - value[:, 1]))
        half = 0.5 * (y0**2 + y1**2)
        slopes = np.stack([(r * a0 + b * h * y0).sum(axis=1), (r * a1 + b * h * y1).sum(axis=1)], axis=1)
        curvatures = (r * (a0 * y0 + a1 * y1) + b * h * half).sum(axis=1)
        sharpness = b * (h * (step.slopes[:, :1] * y0 + step.slopes[:, 1:] * y1 + c * half)).sum()
        by_step.append((h.sum(axis=1), slopes, step.curvatures * curvatures, float(sharpness)))
        least = (r * c).sum(axis=0)
        a = np.stack([least * a0 + b * (h * g0).sum(axis=0), least * a1 + b * (h * g1).sum(axis=0)], axis=1)
    parts = zip(*reversed(by_step), strict=True)
    return float(np.square(gap).sum() / len(x)), np.concatenate([np.ravel(np.stack(p)) for p in parts])


def _theta(law: Diffusion) -> Floats:
    """Free numbers of the steps: b l, m, log c, log b."""
    arguments = law.offsets * law.sharpness[:, None]
    parts = arguments, law.slopes, np.log(law.curvatures), np.log(law.sharpness)
    return np.concatenate([p.ravel() for p in parts])


def _law(like: Diffusion, theta: Floats) -> Diffusion:
    n, k = like.offsets.shape
    arguments, slopes, curvatures, sharpness = np.split(theta, np.cumsum([n * k, 2 * n * k, n * k]))
    b = np.exp(sharpness)
    return replace(
        like,
        offsets=arguments.reshape(n, k) / b[:, None],
        slopes=slopes.reshape(n, k, 2),
        curvatures=np.exp(curvatures).reshape(n, k),
        sharpness=b,
    )
