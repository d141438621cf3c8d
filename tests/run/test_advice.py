"""The decision, through simulated runs whose best setting is known; its parts against closed forms."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from hydrometer.core.errors import InputError
from hydrometer.core.estimate import crossed_variance, mean_variance
from hydrometer.core.rng import Stream
from hydrometer.stages.advice import ERROR, Need, Problem, confirmed, decide, left_out
from hydrometer.stages.joint import Arm, Design, Joint, row_covariance

Floats = NDArray[np.float64]

RUNS = 200
ROWS = 64
# Spread between seeds, nats per token, of the models behind the candidates; the coldest one is the steadiest.
SPREAD = {"direct": 0.05, "distilled 1": 0.08, "distilled 0.8": 0.06, "distilled 0.6": 0.03}
MODEL = {"direct at 0.8": "direct", "direct at 0.6": "direct"}
COST = {"direct": 0.0, "direct at 0.8": 0.0, "direct at 0.6": 0.0}


@dataclass(frozen=True)
class World:
    """Expected (precision, recall) of every candidate, seeds, and rows a figure."""

    figures: dict[str, tuple[float, float]]
    seeds: int = 3
    rows: int = 256

    def draw(self, rng: np.random.Generator) -> list[Arm]:
        """One run: seeds move all decodings of one model together, rows of the truth move all candidates together."""
        s, kept = self.seeds, ROWS
        scale = math.sqrt(kept / self.rows)  # rows kept stand for all rows: the mean's error is that of `rows`
        luck = {m: rng.normal(0, sd, (s, 2)) for m, sd in SPREAD.items()}
        row = rng.normal(0, 0.8, kept)
        row -= row.mean() - rng.normal(0, 0.8 / math.sqrt(self.rows))
        out: list[Arm] = []
        for name, (precision, recall) in self.figures.items():
            model = MODEL.get(name, name)
            own = 0.9 / math.sqrt(self.rows)
            p = precision + luck[model][:, 0] + rng.normal(0, own, s)
            part = rng.normal(0, 0.3, kept) + rng.normal(0, 0.2, (s, kept))
            centred = row + part * scale + (1 - scale) * 0
            table = recall + 0.5 * luck[model][:, 1:] + centred
            values = np.column_stack([p, table.mean(axis=1)])
            spread = np.column_stack([np.full(s, own**2), np.zeros(s)])
            shown = table.mean(axis=1, keepdims=True) + row - row.mean() + part - part.mean(axis=1, keepdims=True)
            out.append(Arm(name, values, spread, shown, cost=COST.get(name, 1.0)))
        return out


def outcomes(world: World, need: Need, baseline: str, *, fresh: bool = False) -> Counter[str]:
    """Which candidate was named in each of the simulated runs, or why none was."""
    rng = np.random.default_rng(20260801)
    names = list(world.figures)
    found: Counter[str] = Counter()
    for _ in range(RUNS):
        d = decide(world.draw(rng), Design(world.rows, rows_shared=True), need, names.index(baseline))
        found[names[d.leader] if d.status == "decided" else d.reason or d.status] += 1
    return found
