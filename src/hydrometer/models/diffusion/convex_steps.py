"""One step of a deterministic sampler as the gradient of a convex function of the plane, and back.

    F(x) = sum_k r_k(x) (m_k + c_k x),    r = softmax_k(b (l_k + m_k . x + c_k |x|^2 / 2))

is the gradient of log sum_k exp(b (l_k + m_k . x + c_k |x|^2 / 2)) / b. Its Jacobian, sum_k r_k c_k I +
b Cov_r(m + c x), is symmetric and at least min_k c_k. So where every c_k is above 0, F maps the plane onto itself, one
to one, and the density of F(x) is that of x over the determinant.

A step of DDIM (Song, Meng and Ermon 2021) from noise level s to t, with the denoiser D of a mixture of round Gaussians
(weight a_k, mean mu_k, variance v_k), is one of these:

    F(x) = t/s x + (1 - t/s) D(x; s),    D(x; s) = sum_k r_k(x) (s^2 mu_k + v_k x) / (v_k + s^2),
    r_k(x) proportional to a_k N(x; mu_k, v_k + s^2)

Shapes: N points, K pieces. Arrays of pieces by points are (K, N): a point's sum over pieces does not depend on N.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hydrometer.core.array_types import Floats
from hydrometer.core.errors import FitError

__all__ = ["Step"]

_MOST = 200  # rounds of Newton
_HALVINGS = 60
_ROUNDING = 1e-15
_TOLERANCE = 1e-12  # of a preimage, relative to 1 + |x|


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One step.

    Attributes
    ----------
    offsets, slopes, curvatures : l (K,), m (K, 2) and c (K,) above 0, of the pieces.
    sharpness : b, above 0.

    Examples
    --------
    >>> step = Step(np.zeros(2), np.array([[-1.0, 0.0], [1.0, 0.0]]), np.array([0.5, 0.5]), 2.0)
    >>> y, _ = step.at(np.array([[0.3, -1.0]]))
    >>> step.inverse(y).round(9).tolist()
    [[0.3, -1.0]]
    """

    offsets: Floats
    slopes: Floats
    curvatures: Floats
    sharpness: float

    def shares(self, x: Floats) -> tuple[Floats, Floats]:
        """Return r (K, N) at points (N, 2), and the convex function whose gradient the step is, (N,)."""
        m, c = self.slopes, self.curvatures[:, None]
        square = 0.5 * (x[:, 0] ** 2 + x[:, 1] ** 2)
        u = self.sharpness * (self.offsets[:, None] + m[:, :1] * x[:, 0] + m[:, 1:] * x[:, 1] + c * square)
        top = u.max(axis=0)
        r = np.exp(u - top)
        total = r.sum(axis=0)
        return r / total, (top + np.log(total)) / self.sharpness

    def at(self, x: Floats) -> tuple[Floats, Floats]:
        """Return F(x), (N, 2), and its Jacobian's entries xx, xy, yy and determinant, (4, N), at points (N, 2).

        With C = Cov_r(m + c x) the determinant is ``least^2 + least b tr C + b^2 det C``, and det C one coordinate's
        variance times what of the other's is left beside it: all positive, where xx yy - xy^2 cancels if pieces lie
        nearly on a line.
        """
        r, _ = self.shares(x)
        c = self.curvatures[:, None]
        g0, g1 = (self.slopes[:, d : d + 1] + c * x[:, d] for d in range(2))
        y0, y1 = (r * g0).sum(axis=0), (r * g1).sum(axis=0)
        least: Floats = (r * c).sum(axis=0)
        d_2KN = np.stack([g0 - y0, g1 - y1])
        xx, xy, yy = np.stack([(r * d_2KN[i] * d_2KN[j]).sum(axis=0) for i, j in ((0, 0), (0, 1), (1, 1))])
        b, most = self.sharpness, np.maximum(xx, yy)
        share = xy / np.where(most > 0, most, 1.0)
        one_KN, other_KN = np.where(xx >= yy, d_2KN, d_2KN[::-1])
        left = (r * (other_KN - share * one_KN) ** 2).sum(axis=0)
        det = least * (least + b * (xx + yy)) + b * b * most * left
        return np.stack([y0, y1], axis=1), np.stack([least + b * xx, b * xy, least + b * yy, det])

    def inverse(self, y: Floats) -> Floats:
        """Return the points x (N, 2) with F(x) = y, to within 1e-12 of 1 + |x|.

        x is the least value of the convex function less x . y, found by Newton's method with halved steps.

        Raises
        ------
        FitError : points beyond what float64 can trace back.
        """
        x = self._start(y)
        left = np.arange(len(y))
        for _ in range(_MOST):
            at, hessian = self.at(x[left])
            move = _solved(hessian, y[left] - at)
            if not (known := np.isfinite(move).all(axis=1)).all():
                left = left[~known]
                break
            far = np.abs(move).max(axis=1) > _TOLERANCE * (1 + np.abs(x[left]).max(axis=1))
            x[left[~far]] += move[~far]
            left = left[far]
            if not len(left):
                return x
            x[left] = self._descended(x[left], y[left], at[far] - y[left], move[far])

        raise FitError(
            "a point could not be traced back through a step", got=y[left[0]].tolist(), fix="take more steps"
        )

    def _start(self, y: Floats) -> Floats:
        """Return the preimage under the piece that alone would put y cheapest, (N, 2)."""
        m, c = self.slopes, self.curvatures[:, None]
        cost = ((y[:, 0] - m[:, :1]) ** 2 + (y[:, 1] - m[:, 1:]) ** 2) / (2 * c) - self.offsets[:, None]
        best = cost.argmin(axis=0)
        return (y - m[best]) / self.curvatures[best, None]

    def _descended(self, x: Floats, y: Floats, gap: Floats, move: Floats) -> Floats:
        """Move each point along Newton's direction, as far as the function falls with it, but for rounding."""
        before, slope = self._less(x, y), (gap * move).sum(axis=1)
        noise = _ROUNDING * (1 + np.abs(before) + np.abs(x * y).sum(axis=1))
        share = np.ones(len(x))
        for _ in range(_HALVINGS):
            high = self._less(x + share[:, None] * move, y) > before + 1e-4 * share * slope + noise
            if not high.any():
                break
            share = np.where(high, 0.5 * share, share)
        return x + share[:, None] * move

    def _less(self, x: Floats, y: Floats) -> Floats:
        return self.shares(x)[1] - (x * y).sum(axis=1)


def _solved(hessian: Floats, right: Floats) -> Floats:
    """Solve symmetric systems: entries and determinants (4, N), right-hand sides (N, 2)."""
    xx, xy, yy, det = hessian
    a, b = right.T
    return np.stack([yy * a - xy * b, xx * b - xy * a], axis=1) / det[:, None]
