"""Losses over the vocabulary that never hold a vocabulary-sized tensor of a whole batch.

Shapes: M answer tokens of a batch, m of a chunk, D width, V ids that exist, W >= V rows of the output matrix.

    loss = - (1 / n) sum over M of log softmax(h W')[x]       d loss / d logits = (softmax - onehot) / n

The gradient is made in the forward pass, chunk by chunk, where the logits are still in the processor's cache: three
matrix products and two passes over a chunk are all there is. On the CPU each lane does whole chunks of its own.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hydrometer.models.causal_lm.kernels import softmax_gradient
from hydrometer.models.causal_lm.lanes import Lanes
from hydrometer.models.causal_lm.llama import as_array

__all__ = ["linear_cross_entropy"]

_CHUNK = 512


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
    vocab_size : V; later rows of the matrix do not exist in the law and get no gradient.
    holes : ids below V that do not exist either.
    dtype : of the products; None takes that of the states. Sums over the vocabulary are float32 and float64.
    """
    apply: Any = _LinearCrossEntropy.apply
    return apply(states_MD, weight_WD, bias_W, ids_M, n_items, vocab_size, holes, dtype or states_MD.dtype)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        ids: Tensor,
        n_items: float,
        vocab_size: int,
        holes: Tensor | None,
        dtype: torch.dtype,
    ) -> Tensor:
        h, w = states.detach().to(dtype), weight.detach().to(dtype)
        b = None if bias is None else bias.detach().to(dtype)
        d_states = torch.empty_like(h)
        d_bias = None if b is None else torch.zeros_like(b, dtype=torch.float32)
        lanes = Lanes(-(-len(h) // _CHUNK) if h.device.type == "cpu" else 1)
        parts = lanes.split(len(h))
        total = np.zeros(len(parts))
        d_weights = [torch.zeros(w.shape, dtype=torch.float32, device=w.device) for _ in parts]

        def work(lane: int) -> None:
            part, d_weight = parts[lane], d_weights[lane]
            room = min(_CHUNK, part.stop - part.start)
            logits = torch.empty(room, len(w), dtype=dtype, device=w.device)
            product = torch.empty_like(w)
            for at in range(part.start, part.stop, _CHUNK):
                rows = slice(at, min(at + _CHUNK, part.stop))
                g = logits[: rows.stop - rows.start]
                torch.mm(h[rows], w.t(), out=g)
                if b is not None:
                    g += b
                if holes is not None:
                    g[:, holes] = -torch.inf
                total[lane] += _to_gradient(g, ids[rows], vocab_size, 1 / n_items)
                torch.mm(g, w, out=d_states[rows])
                torch.mm(g.t(), h[rows], out=product)
                d_weight += product
                if d_bias is not None:
                    bias_parts[lane] += g.sum(0, dtype=torch.float32)

        bias_parts = [torch.zeros(len(w), device=w.device) for _ in parts] if d_bias is not None else []
        with torch.no_grad():
            lanes.each(work, range(len(parts)))
            for other in d_weights[1:]:
                d_weights[0] += other
            for part in bias_parts:
                cast("Tensor", d_bias).add_(part)
        last = None if d_bias is None or bias is None else d_bias.to(bias.dtype)
        ctx.gradients = (d_states.to(states.dtype), d_weights[0].to(weight.dtype), last)
        return torch.tensor(total.sum() / n_items, dtype=torch.float32, device=states.device)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        scale, gradients = float(grad_outputs[0]), ctx.gradients
        ctx.gradients = None
        if scale != 1:
            gradients = tuple(None if g is None else g.mul_(scale) for g in gradients)
        return (*gradients, None, None, None, None, None)


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
