"""What a causal-LM chain's stages have to do, and the rates of this machine. Imports without torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from hydrometer.core.spec import ChainSpec
from hydrometer.models.base import Precision
from hydrometer.models.causal_lm.opening import open_law, outline_of, set_threads, truth_opening
from hydrometer.models.causal_lm.spec import CausalLMChain, causal_chain
from hydrometer.models.causal_lm.texts_and_given import as_opened
from hydrometer.models.work import Device, Lengths, Stage, Work

if TYPE_CHECKING:
    from hydrometer.models.causal_lm.cost.operations import Subject

__all__ = ["CostModel"]

# For progress and relative costs: the two cores that the recipes were developed on. Only ratios between stages matter
# here; estimated hours come from `run.cost.cost_plan`.
REFERENCE = Device(
    name="reference",
    source="two cores of an AMD EPYC (Zen 5), torch 2.13",
    flops={"float32": 2.1e11, "bfloat16": 8.8e11},
    bandwidth=2e10,
    utilisation={"draw": 0.45, "score": 0.6, "train": 0.3},
    link=5e8,
)


class CostModel:
    """`Family.cost`, and the capability `HasCostModel` but for models that are not at hand."""

    def cost(self, chain: ChainSpec, stage: Literal["draw", "fit", "judge"], role: str, rows: int) -> float:
        """Seconds on the reference machine, from the counts of `plan`, with every answer at max_new_tokens."""
        c = causal_chain(chain)
        precision = c.draw_dtype if stage == "draw" else c.judge_dtype
        sides: tuple[Stage, ...] = ("score truth", "score law")
        kinds = (stage,) if stage != "judge" else ("score own",) if role == "truth" else sides
        works = [self.work(c, kind, role, rows, c.truth.max_new_tokens, precision) for kind in kinds]
        return sum(work.seconds(REFERENCE) for work in works)

    def work(self, chain: ChainSpec, stage: Stage, role: str, rows: int, mean: float, precision: Precision) -> Work:
        """Operations, bytes and tokens of a stage."""
        from hydrometer.models.causal_lm.cost.operations import stage_work

        return stage_work(self.subject(causal_chain(chain)), stage, role, rows, mean, precision)

    def lengths(self, chain: ChainSpec) -> Lengths:
        """Mean length of a few answers drawn from the truth; at most `max_new_tokens` where it is served."""
        from hydrometer.models.causal_lm.planning import expected_lengths

        c = causal_chain(chain)
        if c.truth.is_served:  # a plan asks no server
            most = c.truth.max_new_tokens
            return Lengths(float(most), most, "max_new_tokens: the truth is served")
        return expected_lengths(c, as_opened(open_law(c, c.truth, c.draw_dtype)))

    def measure(self, chain: ChainSpec, mean: float, known: Mapping[str, float]) -> Mapping[str, float]:
        """Time random networks of the chain's shapes and few layers, through the sampler, scorer and trainer."""
        from hydrometer.models.causal_lm.cost.timing import measure

        c = causal_chain(chain)
        set_threads(c)
        return measure(self.subject(c), mean, known)

    def machine(self, chain: ChainSpec) -> Mapping[str, float]:
        """Rates of matrix products, at the truth's width, and of memory copies, on this machine."""
        from hydrometer.models.causal_lm.cost.timing import machine

        c = causal_chain(chain)
        set_threads(c)
        return machine(self.subject(c))

    def subject(self, c: CausalLMChain) -> Subject:
        """Return the chain's sizes, counted once."""
        from hydrometer.models.causal_lm.planning import subject_of

        resolved, prompts, _ = truth_opening(c.truth)
        return subject_of(c, outline_of(resolved).config, tuple(len(p) for p in prompts.ids))
