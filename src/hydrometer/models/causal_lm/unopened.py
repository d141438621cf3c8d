"""The causal-LM family where the truth is not on this machine but described: it plans, and does nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from hydrometer.core.spec import ChainSpec
from hydrometer.models.base import Footprint
from hydrometer.models.causal_lm.cost.memory import footprint
from hydrometer.models.causal_lm.cost.operations import Subject
from hydrometer.models.causal_lm.planning import described_config, described_prompts, subject_of
from hydrometer.models.causal_lm.spec import CausalLMChain, causal_chain
from hydrometer.models.work import Lengths

__all__ = ["Unopened"]


class Unopened:
    """What a family does otherwise for chains whose truth is known by `truth.architecture` alone."""

    def check(self, chain: ChainSpec) -> None:
        """Refuse levels that cannot be made of such a truth. Raises SpecError."""
        self.subject(causal_chain(chain))

    def truth_identity(self, chain: ChainSpec) -> Mapping[str, object]:
        """Say what the truth is said to be: no artifact of a run has a key made of it."""
        return {"unopened": causal_chain(chain).truth.model_dump(mode="json", exclude_none=True)}

    def describe_truth(self, chain: ChainSpec) -> str:
        """Name the truth as the specification does."""
        return f"{causal_chain(chain).truth.source} (not at hand, planned from truth.architecture)"

    def lengths(self, chain: ChainSpec) -> Lengths:
        """Nothing is known: every answer is taken to be cut."""
        most = causal_chain(chain).truth.max_new_tokens
        return Lengths(float(most), most, "max_new_tokens: the truth is not at hand")

    def footprint(self, chain: ChainSpec, stage: Literal["draw", "fit", "judge"], role: str, rows: int) -> Footprint:
        """Weights, gradients, optimiser states and caches; activations are left out."""
        c = causal_chain(chain)
        return footprint(c, self.subject(c).configs, stage, role, rows)

    def subject(self, c: CausalLMChain) -> Subject:
        """Return the chain's sizes, counted once."""
        return subject_of(c, described_config(c.truth), described_prompts(c.truth))
