"""Losses over the vocabulary without a vocabulary-sized tensor of a whole batch.

Shapes: M answer tokens of a batch, m of a chunk, D width, V ids that exist, W >= V rows of the output matrix.

    loss = - (1 / n) sum over M of log softmax(h W')[x]       d loss / d logits = (softmax - onehot) / n

The gradient is made in the forward pass, chunk by chunk, in the logits' own place: three matrix products and two passes
over a chunk. On the CPU threads share a chunk: by rows for the states' gradient, by ids for the output matrix's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hydrometer.models.causal_lm.cpu.llama import as_array
from hydrometer.models.causal_lm.cpu.loss_kernels import softmax_gradient
from hydrometer.models.causal_lm.cpu.thread_pool import ThreadPool

__all__ = ["linear_cross_entropy"]

_CHUNK = 1024


@dataclass(frozen=True, slots=True)
class _Settings:
    """Arguments of the loss that have no gradient; see `linear_cross_entropy`."""

    n_items: float
    vocab_size: int
    holes: Tensor | None
    dtype: torch.dtype


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
    apply: Any = _LinearCrossEntropy.apply
    settings = _Settings(n_items, vocab_size, holes, dtype or states_MD.dtype)
    return apply(states_MD, weight_WD, bias_W, ids_M, settings)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None, ids: Tensor, settings: _Settings
    ) -> Tensor:
        holes, dtype = settings.holes, settings.dtype
        h, w = states.detach().to(dtype), weight.detach().to(dtype)
        b = None if bias is None else bias.detach().to(dtype)
        d_states = torch.empty_like(h)
        learnt = ctx.needs_input_grad[1]  # adapters leave the output matrix as it is
        d_weight = torch.empty(w.shape, dtype=torch.float32, device=w.device) if learnt else None
        d_bias = None if b is None else torch.zeros(b.shape, dtype=torch.float32, device=w.device)
        pool = ThreadPool(len(h) if h.device.type == "cpu" else 1)
        room = torch.empty(min(_CHUNK, len(h)), len(w), dtype=dtype, device=w.device)
        product = torch.empty_like(w) if learnt else None
        total = 0.0
        with torch.no_grad():
            for at in range(0, len(h), _CHUNK):
                chunk = slice(at, min(at + _CHUNK, len(h)))
                h_m, ids_m, d_m = h[chunk], ids[chunk], d_states[chunk]
                g = room[: len(h_m)]

                def through_rows(part: slice, h_m: Tensor = h_m, ids_m: Tensor = ids_m, d_m: Tensor = d_m) -> float:
                    """Logits, their gradient in place, and the gradient of the states."""
                    own = room[part]
                    torch.mm(h_m[part], w.t(), out=own)
                    if b is not None:
                        own += b
                    if holes is not None:
                        own[:, holes] = -torch.inf
                    loss = _to_gradient(own, ids_m[part], settings.vocab_size, 1 / settings.n_items)
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

                total += sum(pool.each(through_rows, pool.split(len(h_m))))
                if learnt:
                    pool.each(through_ids, pool.split(len(w)))
                if d_bias is not None:
                    d_bias += g.sum(0, dtype=torch.float32)
        last = None if d_bias is None or bias is None else d_bias.to(bias.dtype)
        ctx.gradients = (d_states.to(states.dtype), None if d_weight is None else d_weight.to(weight.dtype), last)
        return torch.tensor(total / settings.n_items, dtype=torch.float32, device=states.device)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        scale, gradients = float(grad_outputs[0]), ctx.gradients
        ctx.gradients = None
        if scale != 1:
            gradients = tuple(None if g is None else g.mul_(scale) for g in gradients)
        return (*gradients, None, None)


def _to_gradient(logits_mW: Tensor, ids_m: Tensor, vocab_size: int, scale: float) -> float:
    """Turn logits into ``scale`` times their loss's gradient, in place; return the sum of the losses, nats."""
    if logits_mW.device.type != "cpu":
        return _to_gradient_by_torch(logits_mW, ids_m, vocab_size, scale)
    loss = np.empty(len(logits_mW))
    softmax_gradient(as_array(logits_mW), vocab_size, ids_m.numpy(), np.float32(scale), loss)
    return float(loss.sum())


def _to_gradient_by_torch(logits_mW: Tensor, ids_m: Tensor, vocab_size: int, scale: float) -> float:
    logits = logits_mW[:, :vocab_size].float()
    log_mass = logits.logsumexp(-1, keepdim=True)
    at = ids_m[:, None]
    loss = (log_mass - logits.gather(-1, at)).double().sum()
    gradient = (logits - log_mass).exp_()
    gradient.scatter_add_(-1, at, torch.full_like(log_mass, -1.0))
    logits_mW[:, :vocab_size] = gradient.mul_(scale).to(logits_mW.dtype)
    logits_mW[:, vocab_size:] = 0
    return float(loss)
