"""Fit: rows in, a law out; and what fits see of a teacher's law, kept along rows."""

from __future__ import annotations

import json
from pathlib import Path

from hydrometer.core.arguments import of_type
from hydrometer.core.distillation import DENSE
from hydrometer.core.errors import LawMismatchError
from hydrometer.core.io.yaml_io import artifact_json
from hydrometer.models.base import FitRequest, KeptLaws, Tick
from hydrometer.models.fit_capabilities import Budgets, KeepsLaws, StartsAlone
from hydrometer.stages.artifact_loader import ArtifactLoader
from hydrometer.stages.given_nodes import KeepLawNode
from hydrometer.stages.nodes import FitNode, LawRef

__all__ = ["fit", "keep_law"]

_OF = "of.json"  # whose law is kept


def keep_law(node: KeepLawNode, bench: ArtifactLoader, folder: Path) -> dict[str, object]:
    """Write what fits see of a teacher's law along one block of rows into `folder`. Raises StageError, InputError."""
    family, context, s = of_type(KeepsLaws, node.context.family), node.context, node.selectivity
    # Of rows that are chosen among candidates the candidates' law is matched.
    s = s.candidates if s is not None and s.chooses else s
    law = bench.law(context, node.teacher, "float32", s, purpose="train")
    rows = bench.block(context, node.block, node.n)
    facts = family.keep_law(law, rows, node.asked_law, folder, stream=node.stream, start=node.start)
    (folder / _OF).write_text(json.dumps({"teacher": node.teacher.key}))
    return {"rows": len(rows), **facts}


def _kept(node: FitNode, bench: ArtifactLoader) -> KeptLaws | None:
    """Return what stands in the teacher's place. Raises LawMismatchError: it is of another teacher."""
    if node.law == DENSE or node.teacher is None:
        return None
    data, validate = ([bench.store.path("keep_law", key) for key in keys] for keys in node.kept)
    for folder in (*data, *validate):
        found = artifact_json(folder / _OF, dict).get("teacher")
        if found != node.teacher.key:
            fix = "delete the artifact and run again"
            raise LawMismatchError(f"what is kept in {folder.name} is another teacher's law", got=found, fix=fix)
    return KeptLaws(node.law, data, validate)


def fit(node: FitNode, bench: ArtifactLoader, folder: Path, tick: Tick) -> dict[str, object]:
    """Fit one level and write the law into `folder`.

    A fit is atomic: killed, it starts again, or goes on from what its family left in the store's partial folder.

    Raises
    ------
    FitError : no usable model.
    """
    family, chain = node.context.family, node.context.spec
    precision = family.precision(chain, "judge")
    # An objective sees the teacher's law itself, which is the float32 one; else the teacher gives a start at most.
    above, teacher = "float32" if _sees_teacher(node) else precision, _teacher(node)
    fitted = family.fit(
        FitRequest(
            # Not in `folder`: a network file system gives the file a name there, and it would count as the law's.
            data=bench.training_rows(node.context, node.data, bench.store.root),
            validate=None if node.validate is None else bench.rows(node.context, node.validate),
            truth=bench.law(node.context, node.truth, precision, purpose="train"),
            teacher=None if teacher is None else bench.law(node.context, teacher, above, purpose="train"),
            level=node.level.spec,
            prefix_source=node.prefix_source,
            loss=node.loss,
            selectivity=node.matched,
            start=None if node.start is None else bench.law(node.context, node.start, precision, purpose="train"),
            tokens=_tokens(node, bench),
            stream=node.stream,
            tick=tick,
            partial=bench.store.partial(node.stage, node.key),
            kept=_kept(node, bench),
        )
    )
    family.save_law(fitted.model, folder)
    return dict(fitted.info)


def _tokens(node: FitNode, bench: ArtifactLoader) -> int | None:
    """Return how many tokens `mle` learns from on the teacher's rows, where that ends the fit."""
    family = node.context.family
    if node.usual is None or not isinstance(family, Budgets):
        return None
    lengths = bench.outline(node.context, node.usual).lengths
    assert lengths is not None  # rows of sequences
    epoch, steps = family.steps(node.level, node.usual.n)
    return int(lengths.sum()) * steps // epoch


def _sees_teacher(node: FitNode) -> bool:
    return node.matched is not None and node.law == DENSE


def _teacher(node: FitNode) -> LawRef | None:
    """Return the model above, if the fit sees it or starts from it."""
    family = node.context.family
    starts_above = node.start is None and not (isinstance(family, StartsAlone) and not family.starts_above(node.level))
    return node.teacher if starts_above or _sees_teacher(node) else None
