"""What the field says about distilling, measured in worlds where the answer is exact: docs, Claims.

A claim is a recipe under ``recipes/claims``, its words and its world, and a module of `measures`, which measures it.
"""

from typing import TYPE_CHECKING

from hydrometer._lazy import lazily

if TYPE_CHECKING:
    from hydrometer.claims.claim_spec import ClaimSpec, claims, load_claim
    from hydrometer.claims.run_claim import ClaimResult, run_claim

__all__ = ["ClaimResult", "ClaimSpec", "claims", "load_claim", "run_claim"]

__getattr__, __dir__ = lazily(
    __name__,
    {"claim_spec": "ClaimSpec claims load_claim", "run_claim": "ClaimResult run_claim"},
)
