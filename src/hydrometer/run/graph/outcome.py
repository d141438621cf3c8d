"""What becomes of a plan's stages, and who watches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from hydrometer.core.findings import Finding
from hydrometer.core.statistics.estimate import Estimate
from hydrometer.stages.nodes import Node

__all__ = ["Ended", "Monitor", "Outcome", "SilentMonitor", "nobody"]


class Monitor(Protocol):
    """Watches a run. Costs are relative, for time-left estimates."""

    def found(self, findings: Sequence[Finding]) -> None:
        """Hear what the examination found, before anything is made."""

    def begin(self, total: float, reused: float, stages: int) -> None:
        """Start: the cost of all stages, and of those that are there already."""

    def stage(self, label: str, cost: float) -> None:
        """Tell that a stage begins."""

    def tick(self, done: float, total: float, what: str) -> None:
        """Tell how far the stage is."""

    def done(self, cost: float, failed: str | None) -> None:
        """Tell that the stage ended."""

    def judged(self, name: str, figures: Mapping[str, Estimate]) -> None:
        """Tell of the first figures of a model and its decoding, by the model's name (a map's: its group's id)."""


class SilentMonitor(Monitor):
    """A monitor that says nothing."""


@dataclass(slots=True)
class Outcome:
    """What a run did.

    Attributes
    ----------
    computed : stages computed, by kind.
    reused : stages found finished, by kind.
    failed : reason by key, for stages that failed or whose inputs did.
    left : keys of stages that are still to be made.
    made : keys of stages that this process itself computed.
    """

    computed: Counter[str] = field(default_factory=Counter[str])
    reused: Counter[str] = field(default_factory=Counter[str])
    failed: dict[str, str] = field(default_factory=dict[str, str])
    left: set[str] = field(default_factory=set[str])
    made: list[str] = field(default_factory=list[str], compare=False)

    def end(self, node: Node, reason: str | None) -> None:
        """Count a stage as made, or as failed for a reason."""
        self.left.discard(node.key)
        if reason is None:
            self.computed[node.stage] += 1
        else:
            self.failed[node.key] = reason


Ended = Callable[[Node, Outcome], None]
"""Hears of every stage when it has ended."""


def nobody(node: Node, outcome: Outcome) -> None:
    """Hear of a stage and do nothing."""
