"""Fit a flow by maximum likelihood."""

from __future__ import annotations

import copy
import math
from typing import cast

import numpy as np
import torch

import hydrometer as hm
from hydrometer.family import points_of
from hydrometer_flow.law import FlowLaw, make_flow, one_thread
from hydrometer_flow.spec import FlowLevel

__all__ = ["fit_flow"]


def fit_flow(request: hm.FitRequest) -> hm.Fitted[FlowLaw]:
    """Fit a new flow by Adam; equal requests give equal bits.

    Raises
    ------
    FitError : rows without spread, or a likelihood that is not finite.
    """
    level = cast("FlowLevel", request.level)
    rows = points_of(request.data)
    loc, scale = rows.mean(axis=0), rows.std(axis=0)
    if not (np.isfinite(scale) & (scale > 0)).all():
        raise hm.FitError("the rows have no spread in some coordinate", got=scale.tolist(), fix="raise data")
    flow = make_flow(level, rows.shape[1], request.stream.child("start").integer())
    order = torch.Generator().manual_seed(request.stream.child("order").integer())
    y = torch.from_numpy((rows - loc) / scale)
    held_out = None if request.validate is None else torch.from_numpy((points_of(request.validate) - loc) / scale)
    with one_thread():
        best, info = _train(flow, level, y, held_out, order, request)
    flow.load_state_dict(best)
    shift = float(np.log(scale).sum())  # of the standardised rows' density to that of the rows
    return hm.Fitted(FlowLaw(flow, level, loc, scale), {k: v - shift if "log" in k else v for k, v in info.items()})


def _train(
    flow: torch.nn.Module, level: FlowLevel, y: torch.Tensor, held_out: torch.Tensor | None, order: torch.Generator,
    request: hm.FitRequest,
) -> tuple[dict[str, torch.Tensor], dict[str, float]]:  # fmt: skip
    """Return the parameters of the best epoch (without held-out rows: the last), and facts of the fit."""
    adam = torch.optim.Adam(flow.parameters(), lr=level.learning_rate)
    best: dict[str, torch.Tensor] = {}
    info: dict[str, float] = {}
    size = min(level.batch_size, len(y))
    batches = len(y) // size
    for epoch in range(level.epochs):
        shuffled = y[torch.randperm(len(y), generator=order)]
        total = 0.0
        for batch in shuffled[: batches * size].split(size):
            loss = -flow().log_prob(batch).mean()
            adam.zero_grad()
            loss.backward()
            adam.step()
            total -= loss.item() / batches
        seen = total if held_out is None else _mean_log_prob(flow, held_out)
        if not (math.isfinite(total) and math.isfinite(seen)):
            raise hm.FitError("the flow diverged", got=f"{total} nats in epoch {epoch}", fix="lower learning_rate")
        if held_out is None or not best or seen > info["log_likelihood_validate"]:
            best = copy.deepcopy(flow.state_dict())
            info = {"epoch": epoch + 1, "log_likelihood_train": total}
            info |= {} if held_out is None else {"log_likelihood_validate": seen}
        request.tick(epoch + 1, level.epochs, "epochs")
    return best, info


def _mean_log_prob(flow: torch.nn.Module, y: torch.Tensor) -> float:
    with torch.no_grad():
        return float(flow().log_prob(y).mean())
