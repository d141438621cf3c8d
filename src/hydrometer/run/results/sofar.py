"""A run's figures while it goes on: results.json and its records of what is judged so far, and a line a model."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import replace

from hydrometer.run.graph.outcome import Monitor, Outcome
from hydrometer.run.graph.plan import Plan
from hydrometer.stages.judge_files import load_metrics
from hydrometer.stages.nodes import Node
from hydrometer.store.artifacts import ArtifactStore

__all__ = ["SoFar", "part_of"]

_EVERY = 5.0  # seconds at least between two writings
_SHARE = 20.0  # and this many times what the last one took


def part_of(plan: Plan, outcome: Outcome) -> Plan:
    """Return the plan with those of its cells alone that are judged or failed, and what there is to show of them.

    A chain without its truth's figures has none to tell.
    """
    left = outcome.left
    if not left:
        return plan
    out = Plan(plan.nodes)
    for name, chain in plan.chains.items():
        judged = [c for c in chain.cells if c.judge not in left]
        cells = [
            replace(c, **{name: _there(getattr(c, name), left) for name in ("judge_training", "show", "released")})
            for c in judged
        ]
        if any(c.role == "truth" for c in cells) or (cells and all(c.role != "truth" for c in chain.cells)):
            maps = [m for m in chain.maps if m.key not in left]
            out.chains[name] = replace(chain, cells=cells, maps=maps, picture=_there(chain.picture, left))
    return out


def _there(key: str | None, left: Collection[str]) -> str | None:
    return None if key in left else key


class SoFar:
    """Hears of every stage that ends; tells the monitor of new models, and has results written from time to time.

    Parameters
    ----------
    write : writes the results of an outcome so far.
    """

    def __init__(self, plan: Plan, store: ArtifactStore, monitor: Monitor, write: Callable[[Outcome], None]) -> None:
        self.store, self.monitor, self.write = store, monitor, write
        self.groups: dict[str, dict[str, str]] = {}
        for cell in plan.cells:
            self.groups.setdefault(cell.judge, {})[cell.group] = cell.called(with_chain=len(plan.chains) > 1)
        self.told: set[str] | None = None
        self.untold: list[Node] = []
        self.unseen: list[Node] = []  # what another machine made may be seen here later than it is heard of
        self.is_due = False
        self.due = time.monotonic() + _EVERY

    def __call__(self, node: Node, outcome: Outcome) -> None:
        """Hear of a stage that was made or has failed."""
        if self.told is None:
            there = [k for k in self.groups if k not in outcome.left and k != node.key]
            self.told = {group for key in there for group in self.groups[key]}
        if node.key not in outcome.failed:
            self.unseen.append(node)
            self.untold += [node] if node.stage == "judge" else []
        self.untold = [n for n in self.untold if not self._tell(n, self.told)]
        self.is_due = self.is_due or node.key in self.groups
        began = time.monotonic()
        if self.is_due and began >= self.due and all(self.store.has(n.stage, n.key) for n in self.unseen):
            self.write(outcome)
            self.unseen, self.is_due = [], False
            self.due = time.monotonic() + max(_EVERY, _SHARE * (time.monotonic() - began))

    def _tell(self, node: Node, told: set[str]) -> bool:
        """Tell of a model whose group has no figures yet; False where it cannot be read yet."""
        if not self.store.has(node.stage, node.key):
            return False
        for group, name in self.groups.get(node.key, {}).items():
            if group not in told:
                told.add(group)
                self.monitor.judged(name, load_metrics(self.store.path(node.stage, node.key)))
        return True
