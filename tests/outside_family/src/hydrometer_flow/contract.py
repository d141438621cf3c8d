"""What the contract tests need to know of this family."""

from __future__ import annotations

import hydrometer as hm
from hydrometer.testing import ContractCase
from hydrometer_flow.family import FLOW
from hydrometer_flow.spec import FlowChain, FlowLevel

__all__ = ["case"]

CHAIN = {
    "family": "flow",
    "truth": {"means": [[0, 0], [2, 1]], "covariances": 0.3, "weights": [0.7, 0.3]},
    "teacher": {"flow": "nsf", "transforms": 2, "hidden_features": [16], "epochs": 8, "batch_size": 64},
    "student": {"flow": "maf", "transforms": 1, "hidden_features": [8], "epochs": 8, "batch_size": 64},
    "data": {"train": 256, "validate": 64, "distill": 256, "evaluate": 400},
    "selectivity": [{"temperature": 1}, {"temperature": 0.5}],
}


def case() -> ContractCase:
    """Return a fitted flow of two dimensions, a setting that changes nothing, one that sharpens, and a chain."""
    chain = FlowChain.model_validate(CHAIN)
    truth = chain.truth.law()
    level = FlowLevel(transforms=2, hidden_features=(16,), epochs=10, batch_size=64, learning_rate=0.01)
    request = hm.FitRequest(
        data=truth.sample(512, seed=0), validate=None, truth=truth, teacher=None, level=level,
        prefix_source="truth", loss="mle", stream=hm.Stream(0),
    )  # fmt: skip
    law = FLOW.fit(request).model
    return ContractCase(FLOW, law, hm.Selectivity(temperature=1), hm.Selectivity(temperature=0.5), chain)
