"""Divergences from what is kept of a teacher's next-token laws: k ids of each position in the place of all.

Shapes: M answer tokens of a batch, m of a chunk, k kept ids, V ids that exist, W >= V rows of an output matrix.

An objective is a sum of phi(p, q) over ids (`divergences`), whose s = q dphi/dq. Of all ids that are not kept, together
one outcome t, p is nothing or lies in a bucket; phi is homogeneous, so they add up to phi(p_t, q_t), and with
r = s_t / q_t the gradient by a logit is

    q_v (r - sum of s)                      of an id that is not kept
    q_v (r - sum of s) + s_v - q_v r        of one that is

So of the vocabulary the student's log-sum-exp is needed, and nothing of the teacher. Drawn ids are a law of their own,
the shares of the draws, whose value is put right by the entropy of p: KL(p, q) without bias.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hydrometer.core.distillation import TeacherLaw
from hydrometer.models.causal_lm.cpu import kept_kernels
from hydrometer.models.causal_lm.cpu.llama import as_array
from hydrometer.models.causal_lm.training.divergences import terms
from hydrometer.models.objectives import Divergence

__all__ = ["KeptRows"]

_TOGETHER = 32  # rows whose weights, V float32 each, stay in the processor's cache


@dataclass(frozen=True, slots=True, eq=False)
class KeptRows:
    """What is kept of a teacher's next-token laws at M positions.

    Attributes
    ----------
    law : in which form.
    ids : (M, k) int64. log_p : (M, k) nats; of drawn ids the log of their shares, -inf for all but the first of equals.
    rest : (M,) log of the mass of all other ids, or, of drawn ids, the entropy of the law they were drawn from.
    """

    law: TeacherLaw
    ids: Tensor
    log_p: Tensor
    rest: Tensor

    @classmethod
    def of(cls, law: TeacherLaw, ids: Tensor, log_p: Tensor | None, rest: Tensor) -> KeptRows:
        """Take what is stored; without log-probabilities ids were drawn, and equal ones are neighbours."""
        if log_p is None:
            same = torch.nn.functional.pad(ids[:, 1:] == ids[:, :-1], (1, 0))
            run = (~same).cumsum(-1) - 1
            counts = torch.zeros(ids.shape, dtype=torch.float64, device=ids.device)
            counts.scatter_add_(-1, run, torch.ones_like(counts))
            log_p = torch.where(same, -math.inf, (counts.gather(-1, run) / ids.shape[1]).log())
        return cls(law, ids, log_p, rest)

    def on(self, device: torch.device) -> KeptRows:
        """Return the same on a device."""
        return KeptRows(self.law, *(x.to(device) for x in (self.ids, self.log_p, self.rest)))

    def to(self, dtype: torch.dtype) -> KeptRows:
        """Return itself: what is kept stays as it is stored."""
        return self

    def to_gradient(self, logits_mW: Tensor, rows: slice, vocab_size: int, d: Divergence, scale: float) -> float:
        """Turn the student's logits at some positions into ``scale`` times their divergence's gradient, in place.

        Returns
        -------
        The sum of the rows' divergences, nats.
        """
        total = 0.0
        for at in range(0, len(logits_mW), _TOGETHER):
            part = logits_mW[at : at + _TOGETHER]
            of = slice(rows.start + at, rows.start + at + len(part))
            run = self._by_torch if part.device.type != "cpu" or part.dtype == torch.float64 else self._by_kernels
            total += run(part, of, vocab_size, d, scale * d.factor / d.temperature)
        return total * d.factor

    def _by_kernels(self, logits_mW: Tensor, of: slice, vocab_size: int, d: Divergence, scale: float) -> float:
        own, ids = as_array(logits_mW), self.ids[of].numpy()
        weights, kept = np.empty((len(ids), vocab_size), np.float32), np.empty(ids.shape, np.float32)
        sums = np.empty((len(ids), 2))
        kept_kernels.tail_rows(own, vocab_size, ids, np.float32(1 / d.temperature), kept, weights, sums)
        top_m, tail_m = torch.from_numpy(sums).unbind(-1)
        value, log_mass_m, rest_m, values_mk = self._terms(
            torch.from_numpy(kept).double() / d.temperature, tail_m, of, d
        )
        factor_m = (top_m - log_mass_m).exp() * rest_m * scale
        made = ((x.float()).numpy() for x in (factor_m, values_mk * scale))
        kept_kernels.spread_rows(own, vocab_size, ids, weights, *made)
        return value

    def _by_torch(self, logits_mW: Tensor, of: slice, vocab_size: int, d: Divergence, scale: float) -> float:
        wide = torch.promote_types(logits_mW.dtype, torch.float32)
        z_mV, ids = logits_mW[:, :vocab_size].to(wide) / d.temperature, self.ids[of]
        others_mV = z_mV.scatter(-1, ids, -math.inf)
        tail_m = others_mV.double().logsumexp(-1)
        value, log_mass_m, rest_m, values_mk = self._terms(z_mV.gather(-1, ids).double(), tail_m, of, d)
        made = (others_mV.double() - log_mass_m[:, None]).exp() * (rest_m * scale)[:, None]
        logits_mW[:, :vocab_size] = made.scatter_add_(-1, ids, values_mk * scale).to(logits_mW.dtype)
        logits_mW[:, vocab_size:] = 0
        return value

    def _terms(self, z_mk: Tensor, tail_m: Tensor, of: slice, d: Divergence) -> tuple[float, Tensor, Tensor, Tensor]:
        """Return the value, the student's log-sum-exp, r - sum of s, and the gradient at the kept ids; all float64.

        Parameters
        ----------
        z_mk, tail_m : the student's logits at the kept ids, and the log of the summed exponentials of all others.
        """
        log_p, rest_m = self.log_p[of].double(), self.rest[of].double()
        beyond_m = rest_m if self.law.name == "top_k_bucket" else torch.full_like(rest_m, -math.inf)
        if self.law.is_sampled:  # an id that was drawn twice is one
            z_mk = torch.where(log_p == -math.inf, -math.inf, z_mk)
        if self.law.name == "top_k_renormalised":
            log_p = (log_p / d.temperature).log_softmax(-1)
        log_mass_m = torch.logaddexp(z_mk.logsumexp(-1), tail_m)
        log_p = torch.cat([log_p, beyond_m[:, None]], -1)
        log_q = torch.cat([z_mk, tail_m[:, None]], -1) - log_mass_m[:, None]
        found, slope = terms(d, log_p, log_q)
        q = log_q.exp()
        r_m = torch.where(q[:, -1] > 0, slope[:, -1] / q[:, -1], 0.0)
        rest = r_m - slope.sum(-1)
        values_mk = q[:, :-1] * (rest - r_m)[:, None] + slope[:, :-1]
        value = found.sum()
        if self.law.is_sampled:
            p = log_p.exp()
            value = value - rest_m.sum() - torch.where(p > 0, p * log_p, 0.0).sum()
        return math.nan if bool(log_q.isnan().any()) else float(value), log_mass_m, rest, values_mk
