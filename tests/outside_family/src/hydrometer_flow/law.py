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
from scipy.special import ndtri

from hydrometer.family import Density, Floats, Selectivity
from hydrometer_flow.spec import FlowLevel

__all__ = ["FlowLaw", "make_flow", "one_thread"]


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


class FlowLaw(Density):
    """The law of a fitted flow, immutable.

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
    >>> import hydrometer as hm
    >>> law = FlowLaw(make_flow(FlowLevel(), 2, seed=0), FlowLevel(), np.zeros(2), np.ones(2))
    >>> x = law.select(hm.Selectivity(temperature=0.5)).sample(3, seed=1)
    >>> x.x.shape, bool((law.select(hm.Selectivity(temperature=0.5)).log_prob(x) > law.log_prob(x)).any())
    ((3, 2), True)
    """

    selected_by = ("temperature",)
    block_rows = 512

    def __init__(
        self, flow: zuko.flows.Flow, level: FlowLevel, loc: Floats, scale: Floats, temperature: float = 1.0
    ) -> None:
        self.flow, self.level, self.loc, self.scale, self.temperature = flow, level, loc, scale, temperature

    @property
    def n_features(self) -> int:
        """The dimension d: what makes densities over R^d comparable."""
        return len(self.loc)

    def log_density(self, x: Floats) -> Floats:
        """Log density of points (N, d), (N,) nats."""
        with torch.no_grad(), one_thread():
            y = torch.from_numpy((x - self.loc) / self.scale)
            z, log_det = self.flow().transform.call_and_ladj(y)
        square = np.square(z.numpy()).sum(axis=1) / self.temperature
        log_base = -0.5 * (self.n_features * math.log(2 * math.pi * self.temperature) + square)
        return log_base + log_det.numpy() - np.log(self.scale).sum()

    def points(self, uniforms: Floats) -> Floats:
        """Send normals of variance `temperature` through the flow."""
        z = math.sqrt(self.temperature) * ndtri(uniforms)
        with torch.no_grad(), one_thread():
            y = self.flow().transform.inv(torch.from_numpy(z)).numpy()
        return self.loc + self.scale * y

    def sharpened(self, s: Selectivity) -> FlowLaw:
        """Return the flow with its base at ``s.temperature``; temperatures multiply."""
        return FlowLaw(self.flow, self.level, self.loc, self.scale, self.temperature * (s.temperature or 1.0))
