"""Losses over the vocabulary without a vocabulary-sized tensor of a whole batch.

Shapes: M answer tokens of a batch, m of a chunk, D width, V ids that exist, W >= V rows of the output matrix.

    loss = - (1 / n) sum over M of log softmax(h W')[x]       d loss / d logits = (softmax - onehot) / n

The gradient is made in the forward pass, chunk by chunk, in the logits' own place: three matrix products and two passes
over a chunk. On the CPU threads share a chunk: by rows for the states' gradient, by ids for the output matrix's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hydrometer.core.spec import Selectivity
from hydrometer.models.causal_lm.cpu.divergence_kernels import softmax_gradient
from hydrometer.models.causal_lm.cpu.llama import as_array
from hydrometer.models.causal_lm.cpu.thread_pool import ThreadPool
from hydrometer.models.causal_lm.cuda import has_kernels
from hydrometer.models.causal_lm.training.divergences import to_gradient
from hydrometer.models.causal_lm.training.kept_rows import KeptRows
from hydrometer.models.objectives import Divergence

__all__ = ["TeacherRows", "cross_entropy_fused", "linear_cross_entropy", "linear_divergence", "linear_policy_gradient"]

_CHUNK = 1024


@dataclass(frozen=True, slots=True)
class _Settings:
    """What a loss is besides its differentiable arguments.

    Attributes
    ----------
    gradient : turns the logits of some rows, which it gets with where they are among all, into the gradient of their
        summed loss, in place, and returns that sum.
    """

    gradient: Callable[[Tensor, slice], float | Tensor]
    n_items: float
    holes: Tensor | None
    dtype: torch.dtype
    chunk: int = _CHUNK


def linear_cross_entropy(
    states_MD: Tensor,
    weight_WD: Tensor,
    bias_W: Tensor | None,
    ids_M: Tensor,
    *,
    n_items: float,
    vocab_size: int,
    holes: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Cross-entropy of ids under ``softmax(states @ weight.T + bias)``, summed and divided by `n_items`; nats.

    Parameters
    ----------
    states_MD : differentiable.
    weight_WD, bias_W : output matrix, differentiable; its gradient is accumulated in float32.
    ids_M : int64 in 0 .. vocab_size - 1.
    n_items : divisor; the number of answer tokens of the whole step.
    vocab_size : V; later rows of the matrix belong to no id and get no gradient.
    holes : ids below V that do not exist.
    dtype : of the products; None takes that of the states. Sums over the vocabulary are float32 and float64.
    """

    def gradient(logits_mW: Tensor, rows: slice) -> float | Tensor:
        return _to_gradient(logits_mW, ids_M[rows], vocab_size, 1 / n_items)

    apply: Any = _LinearLoss.apply
    return apply(states_MD, weight_WD, bias_W, _Settings(gradient, n_items, holes, dtype or states_MD.dtype, _CHUNK))


@dataclass(frozen=True, slots=True, eq=False)
class TeacherRows:
    """A teacher's next-token laws at M positions.

    Attributes
    ----------
    states : (M, D') hidden states, D' need not be the student's width; or (M, W') logits where there is no `weight`.
    weight, bias : its output matrix, (W', D'), and bias.
    holes : ids that do not exist.
    selectivity : of the law that is matched.
    """

    states: Tensor
    weight: Tensor | None = None
    bias: Tensor | None = None
    holes: Tensor | None = None
    selectivity: Selectivity | None = None

    def to(self, dtype: torch.dtype) -> TeacherRows:
        """Return the same in another dtype, without gradients."""
        weight, bias = (None if x is None else x.detach().to(dtype) for x in (self.weight, self.bias))
        return TeacherRows(self.states.detach().to(dtype), weight, bias, self.holes, self.selectivity)

    def logits(self, rows: slice) -> Tensor:
        """Logits of some rows, (m, W')."""
        made = self.states[rows] if self.weight is None else self.states[rows] @ self.weight.t()
        if self.bias is not None:
            made += self.bias
        return made if self.holes is None else made.index_fill(-1, self.holes.to(made.device), -torch.inf)

    def to_gradient(
        self, logits_mW: Tensor, rows: slice, vocab_size: int, d: Divergence, scale: float
    ) -> float | Tensor:
        """Turn the student's logits of some rows into ``scale`` times their divergence's gradient; return their sum."""
        return to_gradient(logits_mW, self.logits(rows), vocab_size, self.selectivity, d, scale)


def linear_divergence(
    states_MD: Tensor,
    head: tuple[Tensor, Tensor | None] | None,
    ids_M: Tensor,
    target: tuple[TeacherRows | KeptRows, Divergence],
    *,
    n_items: float,
    vocab_size: int,
    holes: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Divergence between a teacher's next-token laws and ``softmax(states @ weight.T + bias)``, nats.

    Summed over rows and divided by `n_items`. The teacher's logits, unless its laws were kept, are made chunk by chunk
    beside the student's; the gradient flows to the student alone. The other parameters are those of
    `linear_cross_entropy`.

    Parameters
    ----------
    head : output matrix, (W, D), and bias; None where `states_MD` are the logits themselves, (M, W).
    ids_M : the rows' own tokens, for the share of maximum likelihood in a mix.
    target : what is matched, and how far from it is measured.
    """
    made = dtype or states_MD.dtype
    teacher, divergence = target
    theirs = teacher.to(made)

    def gradient(logits_mW: Tensor, rows: slice) -> float | Tensor:
        share = divergence.mle
        own = logits_mW.clone() if share else logits_mW
        found = (1 - share) * theirs.to_gradient(logits_mW, rows, vocab_size, divergence, (1 - share) / n_items)
        if share:
            found += share * _to_gradient(own, ids_M[rows], vocab_size, share / n_items)
            logits_mW += own
        return found

    chunk = _CHUNK // 2 if isinstance(teacher, TeacherRows) else _CHUNK
    return _through(states_MD, head, _Settings(gradient, n_items, holes, made, chunk))


def linear_policy_gradient(
    states_MD: Tensor,
    head: tuple[Tensor, Tensor | None] | None,
    ids_M: Tensor,
    target: tuple[Tensor, Tensor],
    *,
    n_items: float,
    vocab_size: int,
    holes: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Estimate KL(q, p) from the rows' own tokens, with the policy gradient in the place of the value's.

    Summed over rows and divided by `n_items`. The other parameters are those of `linear_divergence`.

    Parameters
    ----------
    target : log p - log q of each token, and its advantage: what the gradient of -log q is multiplied by, (M,) each.
    """
    log_ratio_M, advantage_M = target

    def gradient(logits_mW: Tensor, rows: slice) -> float | Tensor:
        _to_gradient(logits_mW, ids_M[rows], vocab_size, 1 / n_items)
        logits_mW *= advantage_M[rows, None].to(logits_mW.dtype)
        return -float(log_ratio_M[rows].sum())

    return _through(states_MD, head, _Settings(gradient, n_items, holes, dtype or states_MD.dtype, _CHUNK))


def _through(states_MD: Tensor, head: tuple[Tensor, Tensor | None] | None, settings: _Settings) -> Tensor:
    if head is None:
        apply: Any = _LogitsLoss.apply
        return apply(states_MD, settings.gradient, settings.n_items)
    apply = _LinearLoss.apply
    return apply(states_MD, *head, settings)


class _LogitsLoss(torch.autograd.Function):
    """The same for a network whose output is logits that no one product makes of its states."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, gradient: Callable[[Tensor, slice], float | Tensor], n_items: float
    ) -> Tensor:
        made = logits.detach().clone(memory_format=torch.contiguous_format)
        with torch.no_grad():
            total = gradient(made, slice(0, len(made)))
        ctx.gradient = made
        dtype = torch.promote_types(made.dtype, torch.float32)
        return torch.as_tensor(total / n_items, dtype=dtype, device=made.device)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        made, ctx.gradient = ctx.gradient, None
        return made.mul_(float(grad_outputs[0])), None, None


class _LinearLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None, settings: _Settings) -> Tensor:
        holes, dtype, size = settings.holes, settings.dtype, settings.chunk
        h, w = states.detach().to(dtype), weight.detach().to(dtype)
        b = None if bias is None else bias.detach().to(dtype)
        d_states = torch.empty_like(h)
        made = torch.promote_types(dtype, torch.float32)
        learnt = ctx.needs_input_grad[1]  # adapters leave the output matrix as it is
        d_weight = torch.empty(w.shape, dtype=made, device=w.device) if learnt else None
        d_bias = None if b is None else torch.zeros(b.shape, dtype=made, device=w.device)
        pool = ThreadPool(len(h) if h.device.type == "cpu" else 1)
        room = torch.empty(min(size, len(h)), len(w), dtype=dtype, device=w.device)
        product = torch.empty_like(w) if learnt else None
        total: float | Tensor = 0.0
        with torch.no_grad():
            for at in range(0, len(h), size):
                chunk = slice(at, min(at + size, len(h)))
                h_m, d_m = h[chunk], d_states[chunk]
                g = room[: len(h_m)]

                def through_rows(part: slice, h_m: Tensor = h_m, d_m: Tensor = d_m, at: int = at) -> float | Tensor:
                    """Logits, their gradient in place, and the gradient of the states."""
                    own = room[part]
                    torch.mm(h_m[part], w.t(), out=own)
                    if b is not None:
                        own += b
                    if holes is not None:
                        own[:, holes] = -torch.inf
                    loss = settings.gradient(own, slice(at + part.start, at + part.stop))
                    torch.mm(own, w, out=d_m[part])
                    return loss

                def through_ids(part: slice, h_m: Tensor = h_m, g: Tensor = g, first: bool = at == 0) -> None:
                    """Gradient of the output matrix, each worker over its own range of ids."""
                    assert d_weight is not None
                    assert product is not None
                    torch.mm(g[:, part].t(), h_m, out=product[part])
                    if first:
                        d_weight[part] = product[part]
                    else:
                        d_weight[part] += product[part]

                total = total + sum(pool.each(through_rows, pool.split(len(h_m))))
                if learnt:
                    pool.each(through_ids, pool.split(len(w)))
                if d_bias is not None:
                    d_bias += g.sum(0, dtype=d_bias.dtype)
        last = None if d_bias is None or bias is None else d_bias.to(bias.dtype)
        ctx.gradients = (d_states.to(states.dtype), None if d_weight is None else d_weight.to(weight.dtype), last)
        return torch.as_tensor(total / settings.n_items, dtype=made, device=states.device)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        scale, gradients = float(grad_outputs[0]), ctx.gradients
        ctx.gradients = None
        if scale != 1:
            gradients = tuple(None if g is None else g.mul_(scale) for g in gradients)
        return (*gradients, None)


def _to_gradient(logits_mW: Tensor, ids_m: Tensor, vocab_size: int, scale: float) -> float | Tensor:
    """Turn logits into ``scale`` times their loss's gradient, in place; return the sum of the losses, nats."""
    if has_kernels(logits_mW):
        return cross_entropy_fused(logits_mW, ids_m, vocab_size, scale)
    if logits_mW.device.type != "cpu" or logits_mW.dtype == torch.float64:
        return _to_gradient_by_torch(logits_mW, ids_m, vocab_size, scale)
    loss = np.empty(len(logits_mW))
    softmax_gradient(as_array(logits_mW), vocab_size, ids_m.numpy(), np.float32(scale), loss)
    return float(loss.sum())


def cross_entropy_fused(logits_mW: Tensor, ids_m: Tensor, vocab_size: int, scale: float) -> Tensor:
    """Do the same in one Triton kernel; the sum is a tensor, for which nobody has waited."""
    from hydrometer.models.causal_lm.cuda.loss_kernels import cross_entropy_rows

    return cross_entropy_rows(logits_mW, ids_m, vocab_size, scale).sum()


def _to_gradient_by_torch(logits_mW: Tensor, ids_m: Tensor, vocab_size: int, scale: float) -> float:
    logits = logits_mW[:, :vocab_size].to(torch.promote_types(logits_mW.dtype, torch.float32))
    log_mass = logits.logsumexp(-1, keepdim=True)
    at = ids_m[:, None]
    loss = (log_mass - logits.gather(-1, at)).double().sum()
    gradient = (logits - log_mass).exp_()
    gradient.scatter_add_(-1, at, torch.full_like(log_mass, -1.0))
    logits_mW[:, :vocab_size] = gradient.mul_(scale).to(logits_mW.dtype)
    logits_mW[:, vocab_size:] = 0
    return float(loss)
