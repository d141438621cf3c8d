"""A normalizing flow as a law.

    z ~ N(0, tau I)     y = T^-1(z)     x = loc + scale * y
    log q_tau(x) = log N(T(y); 0, tau I) + log |det dT/dy| - sum_i log scale_i

T is the flow of zuko; `loc` and `scale` standardise the rows that it was fitted to. float64 and nats throughout.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
import zuko
from numpy.typing import NDArray
from scipy.special import ndtri

import hydrometer as hm
from hydrometer.core.rng import as_stream
from hydrometer.models.base import Samples, ScoreKind
from hydrometer_flow.spec import FlowLevel

__all__ = ["FlowLaw", "make_flow", "one_thread"]

Floats = NDArray[np.float64]
BLOCK = 512


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread: how torch splits a sum over threads changes its last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def make_flow(level: FlowLevel, n_features: int, seed: int) -> zuko.flows.Flow:
    """Make an unfitted flow, in float64, with weights that depend on `seed` alone."""
    shape = {"transforms": level.transforms, "hidden_features": level.hidden_features}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if level.flow == "nsf":
            flow = zuko.flows.NSF(n_features, bins=level.bins, **shape)
        else:
            flow = zuko.flows.MAF(n_features, **shape)
    return flow.double()


class FlowLaw:
    """The law of a fitted flow, immutable; implements `hydrometer.Law`.

    Parameters
    ----------
    flow : what `make_flow` made, fitted.
    level : the parameters it was made by.
    loc, scale : (d,) of the affine map after it.
    temperature : variance of the base distribution.

    Notes
    -----
    `temperature` is latent: it scales the variance of the flow's base distribution, as sampling from flows at reduced
    temperature does (Kingma and Dhariwal 2018). The law stays normalised and is scored exactly. It is *not* the power
    law ``q ** (1 / tau)``, whose divisor nobody knows, except where the Jacobian is constant. What it prefers is what
    lies near the middle of the latent space, and that need not be where the density is highest.

    Examples
    --------
    >>> import numpy as np
    >>> law = FlowLaw(make_flow(FlowLevel(), 2, seed=0), FlowLevel(), np.zeros(2), np.ones(2))
    >>> x = law.select(hm.Selectivity(temperature=0.5)).sample(3, seed=1)
    >>> x.x.shape, bool((law.select(hm.Selectivity(temperature=0.5)).log_prob(x) > law.log_prob(x)).any())
    ((3, 2), True)
    """

    score_kind: ScoreKind = "exact"

    def __init__(
        self, flow: zuko.flows.Flow, level: FlowLevel, loc: Floats, scale: Floats, temperature: float = 1.0
    ) -> None:
        self.flow, self.level, self.loc, self.scale, self.temperature = flow, level, loc, scale, temperature

    @property
    def n_features(self) -> int:
        """The dimension d: what makes densities over R^d comparable."""
        return len(self.loc)

    def log_prob(self, x: Samples | Floats) -> Floats:
        """Log density of each point, (N,) nats.

        Parameters
        ----------
        x : `hydrometer.Points` or (N, d)

        Raises
        ------
        DataError : points of another dimension.
        """
        points = np.asarray(x.x if isinstance(x, hm.Points) else x, np.float64)
        if points.ndim != 2 or points.shape[1] != self.n_features:
            raise hm.DataError(f"points must have shape (N, {self.n_features})", got=points.shape)
        # Blocks of one size: a row's last bits then do not depend on how many rows stand beside it.
        filled = np.concatenate([points, np.tile(self.loc, (-len(points) % BLOCK, 1))])
        scores = [self._score(filled[i : i + BLOCK]) for i in range(0, len(filled), BLOCK)]
        return np.concatenate(scores)[: len(points)] if scores else np.empty(0)

    def _score(self, x: Floats) -> Floats:
        with torch.no_grad(), one_thread():
            y = torch.from_numpy((x - self.loc) / self.scale)
            z, log_det = self.flow().transform.call_and_ladj(y)
        square = np.square(z.numpy()).sum(axis=1) / self.temperature
        log_base = -0.5 * (self.n_features * math.log(2 * math.pi * self.temperature) + square)
        return log_base + log_det.numpy() - np.log(self.scale).sum()

    def sample(self, n: int, *, seed: int | hm.Stream = 0, start: int = 0) -> hm.Points:
        """Draw rows ``start .. start + n`` of the stream, by whole blocks."""
        first = start - start % BLOCK
        blocks = [self._draw(as_stream(seed), at) for at in range(first, start + n, BLOCK)]
        x = np.concatenate(blocks) if blocks else np.empty((0, self.n_features))
        log_prob = self.log_prob(x)
        kept = slice(start - first, start - first + n)
        return hm.Points(x[kept], log_prob[kept])

    def _draw(self, stream: hm.Stream, at: int) -> Floats:
        z = math.sqrt(self.temperature) * ndtri(stream.uniforms(at, BLOCK, self.n_features))
        with torch.no_grad(), one_thread():
            y = self.flow().transform.inv(torch.from_numpy(z)).numpy()
        return self.loc + self.scale * y

    def select(self, s: hm.Selectivity) -> FlowLaw:
        """Return the flow with its base at ``s.temperature``; temperatures multiply.

        Raises
        ------
        InputError : anything but a temperature.
        """
        if set(s.to_json()) != {"temperature"}:
            raise hm.InputError("a flow is selected by temperature alone", got=s.label, fix="use temperature: TAU")
        return FlowLaw(self.flow, self.level, self.loc, self.scale, self.temperature * (s.temperature or 1.0))

    def compatible(self, other: object) -> None:
        """Refuse a law over other outcomes. Raises LawMismatchError."""
        theirs = getattr(other, "n_features", type(other).__name__)
        if theirs != self.n_features:
            raise hm.LawMismatchError(
                f"a density over {self.n_features} dimensions is compared with its like", got=theirs
            )
