"""What a run reports of itself while it goes on: stages, seconds, and figures of its models as they are judged."""

from __future__ import annotations

import time

from hydrometer.core.dashboards import Dashboards, check_dashboards
from hydrometer.core.errors import InputError
from hydrometer.core.watching import Log
from hydrometer.models.families import RunSpec
from hydrometer.run.graph.outcome import Ended, Outcome
from hydrometer.run.graph.plan import Plan
from hydrometer.stages.judge_files import load_metrics
from hydrometer.stages.nodes import Node
from hydrometer.store.artifacts import ArtifactStore
from hydrometer.store.records import RunFolder
from hydrometer.store.storage_uri import Url

__all__ = ["Reported", "check_report", "dashboards_of"]

_EVERY = 1.0  # seconds at least between two points of stages and seconds
_FIGURES = (
    "precision", "recall", "entropy", "kl_student_truth", "kl_truth_student", "precision_reference",
    "kl_student_reference", "precision_per_byte", "recall_per_byte",
)  # fmt: skip


def check_report(spec: RunSpec, folder: RunFolder) -> None:
    """Refuse what cannot be reported to. Raises InputError."""
    check_dashboards(spec.report_to)
    if spec.report_to and isinstance(folder.place, Url):
        what = "report_to writes into the run's folder, which must be on this machine"
        raise InputError(what, got=str(folder.place), fix="give --out FOLDER --cache URL")


def dashboards_of(spec: RunSpec, folder: RunFolder, plan: Plan) -> Dashboards:
    """Return where a run reports."""
    if not spec.report_to:
        return Dashboards()
    fits = {
        node.law.key: cell.model_name(with_chain=len(plan.chains) > 1)
        for cell in plan.cells
        if (node := plan.judge_of(cell)) is not None and node.law.kind == "fit"
    }
    return Dashboards(spec.report_to, folder.root.absolute() / "dashboards", spec.name, fits)


class Reported:
    """Hears of every stage that ends, and logs; a step is a stage of the plan that is done.

    Parameters
    ----------
    heard : hears of it before.
    """

    def __init__(self, plan: Plan, store: ArtifactStore, log: Log, heard: Ended) -> None:
        self.plan, self.store, self.log, self.heard = plan, store, log, heard
        self.groups: dict[str, list[str]] = {}
        for cell in plan.cells:
            if plan.judge_of(cell) is not None:
                self.groups.setdefault(cell.judge, []).append(cell.group)
        self.seconds: dict[str, float] = {}
        self.unseen: list[Node] = []  # what another machine made may be seen here later than it is heard of
        self.due = 0.0

    def __call__(self, node: Node, outcome: Outcome) -> None:
        """Hear of a stage that was made or has failed."""
        self.heard(node, outcome)
        self.unseen += [node] if node.key not in outcome.failed else []
        seen = [n for n in self.unseen if self.store.has(n.stage, n.key)]
        self.unseen = [n for n in self.unseen if n not in seen]
        figures: dict[str, float] = {}
        for n in seen:
            name = f"seconds/{n.stage}"
            self.seconds[name] = self.seconds.get(name, 0.0) + float(self.store.meta(n.stage, n.key)["seconds"])
            if n.key in self.groups:
                figures |= self._figures(n)
        if figures or not outcome.left or time.monotonic() >= self.due:
            self.due = time.monotonic() + _EVERY
            done = len(self.plan.nodes) - len(outcome.left)
            self.log(done, {"stages/done": done, "stages/failed": len(outcome.failed), **self.seconds, **figures})

    def _figures(self, node: Node) -> dict[str, float]:
        """Return a judged model's figures and their standard errors, named by metric and group."""
        found = load_metrics(self.store.path(node.stage, node.key))
        named: dict[str, float] = {}
        for metric in (m for m in _FIGURES if m in found):
            for name, value in ((metric, found[metric].value), (f"{metric}_se", found[metric].se)):
                if value is not None:
                    named |= {f"{name}/{group}": value for group in self.groups[node.key]}
        return named
