"""Score: one block of judged rows under the law that drew it and under the other, artifact out.

    a block of rows   --score-->   log p*, log q, control variates, log-probabilities of prefixes   --judge-->   figures

A block is the unit of work here as it is for draws: what is killed loses a block, what is added adds blocks, and blocks
need nothing of each other. `judge` then runs no network. Everything is float64, so figures are bit for bit those of the
scores: with K = 1 + ceil(log2 T) prefixes in place of T tokens a row takes 8 (2 K + 4) bytes, 192 at T = 512.

Shapes: N rows, T tokens, K prefix lengths, C control variates, B rows scored again in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import cast
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from hydrometer.core.arguments import of_type
from hydrometer.core.array_types import Floats, Ints
from hydrometer.core.errors import StageError, StoreError
from hydrometer.core.io.arrays import open_arrays
from hydrometer.core.statistics.controls import Controls, Reference
from hydrometer.metrics.frontiers.prefixes import first_tokens
from hydrometer.metrics.likelihood import Scores
from hydrometer.models.base import Controlled, Law, Samples
from hydrometer.models.capabilities import KnowsItsRows
from hydrometer.models.choosing.best_of_n import candidates_of
from hydrometer.models.rows.sequences import Sequences
from hydrometer.stages.artifact_loader import ArtifactLoader
from hydrometer.stages.nodes import ScoreNode

__all__ = ["Columns", "columns_of", "load_columns", "save_columns", "score", "scores_from"]


_FILE = "scores.npz"


@dataclass(frozen=True, slots=True, eq=False)
class Columns:
    """What is known of rows that one law drew.

    Attributes
    ----------
    own, other : (N,) log-probability under the law that drew them (of chosen rows: under the candidates' law) and under
        the other, nats.
    controls : (N, C) functions of each row whose mean under the law that drew it is zero; or None.
    own_first, other_first : (N, K) of the first 1, 2, 4, ... tokens and of the whole row (`first_tokens`); or None.
    own_exact, other_exact : (B,) `own` and `other` of the first rows in float32, where `own` and `other` are not; None
        elsewhere, and for chosen rows' `own`.
    near_edge, as_if_kept : (N,) steps near a selectivity's edge as the scorer counts them, and those of tokens that are
        scored as if kept (`models.base.PairedScores`); None where the rows' own record is the better one.
    exact : whether both laws' scores are exact.
    reference : points that stand for the law that drew them, where it knows some and its rows are not stored; or None.
    """

    own: Floats
    other: Floats
    controls: Floats | None = None
    own_first: Floats | None = None
    other_first: Floats | None = None
    own_exact: Floats | None = None
    other_exact: Floats | None = None
    near_edge: Ints | None = None
    as_if_kept: Ints | None = None
    exact: bool = True
    reference: Reference | None = None

    def counted(self, rows: Samples) -> Samples:
        """Return the rows that were scored, with the steps near an edge as the scorer counts them where it does."""
        return rows if self.near_edge is None else replace(of_type(Sequences, rows), near_edge=self.near_edge)


def columns_of(law: Law, other: Law, rows: Samples, *, again: bool = False, own: Floats | None = None) -> Columns:
    """Score rows that `law` drew under it and under `other`.

    Parameters
    ----------
    again : the same rows will be scored beside further laws.
    own : (N,) log-probability under `law`, where it is known; laws that give control variates find it anew.

    Raises
    ------
    StageError : a row that its own law cannot say.
    """
    exact = law.score_kind == other.score_kind == "exact"
    if isinstance(law, Controlled) and isinstance(other, Controlled):
        found = law.score_beside(rows, other, again=again)
        near, kept = found.near_edge, found.as_if_kept
        out = Columns(found.own, found.other, found.controls, near_edge=near, as_if_kept=kept, exact=exact)
        out = replace(out, reference=found.reference)
        if found.own_steps is None or found.other_steps is None:
            return out
        return replace(out, own_first=first_tokens(found.own_steps), other_first=first_tokens(found.other_steps))
    if own is None:
        own = law.score_own(rows) if isinstance(law, KnowsItsRows) else law.log_prob(rows)
    mine = own
    return Columns(mine, mine if other is law else other.log_prob(rows), exact=exact)


def scores_from(truth_rows: Samples, law_rows: Samples, x: Columns, y: Columns | None) -> Scores:
    """Put both sides' columns together.

    Parameters
    ----------
    x : of the truth's rows: own is the truth's.
    y : of the law's rows: own is the law's; None where the law is the truth and the rows are its own.

    Raises
    ------
    StageError : NaN or plus infinity.
    """
    on_truth = Controls.of(x.controls, truth_rows.strata, x.reference)
    if y is None:
        s = Scores(truth_rows, law_rows, x.own, x.other, x.other, x.own, on_truth, on_truth)
    else:
        law_rows = y.counted(law_rows)
        on_law = Controls.of(y.controls, law_rows.strata, y.reference)
        s = Scores(truth_rows, law_rows, x.own, x.other, y.other, y.own, on_truth, on_law)
        if x.own_first is not None and x.other_first is not None:
            s = replace(s, truth_first=(x.own_first, x.other_first))
        if y.own_first is not None and y.other_first is not None:
            s = replace(s, law_first=(y.other_first, y.own_first))
    for name in ("truth_on_truth", "law_on_truth", "truth_on_law", "law_on_law"):
        _check(name, cast("Floats", getattr(s, name)))
    return s


def score(node: ScoreNode, bench: ArtifactLoader, folder: Path) -> dict[str, object]:
    """Score one block and write its columns into `folder`.

    Raises
    ------
    StageError : NaN, or a row that its own law cannot say. LawMismatchError : the laws are of other outcomes.
    """
    context = node.context
    precision = context.family.precision(context.spec, "judge")
    truth = bench.law(context, node.truth, precision)
    law = truth if node.is_truth() else bench.law(context, node.law, precision, node.decoding)
    law.compatible(truth)
    rows = bench.block(context, node.block, node.n)
    if law.score_kind == "none":  # what rows were chosen or selected from has scores, they themselves have none
        base = cast("Law", candidates_of(law))
        own = columns_of(base, base, rows)
        found = Columns(own.own, truth.log_prob(rows), near_edge=own.near_edge, as_if_kept=own.as_if_kept, exact=False)
    elif node.side == "truth":
        known = None if node.known is None else load_columns([bench.store.path("score", node.known)]).own
        found = columns_of(truth, law, rows, again=True, own=known)
    else:
        found = columns_of(law, truth, rows)
    for name in ("own", "other"):
        _check(f"{name} of the {node.side}'s rows", cast("Floats", getattr(found, name)))
    if node.again():
        found = _in_float32(node, bench, found, context.family.take(rows, node.again()))
    save_columns(found, folder)
    facts: dict[str, object] = {"rows": len(rows)}
    if found.as_if_kept is not None:
        facts["edge_tokens"] = int(found.as_if_kept.sum())
    return facts


def _in_float32(node: ScoreNode, bench: ArtifactLoader, found: Columns, rows: Samples) -> Columns:
    """Score the first rows once more as the laws are, not as bfloat16 rounds them."""
    truth = bench.law(node.context, node.truth, "float32")
    judged = bench.law(node.context, node.law, "float32", node.decoding)
    law, is_unscored = cast("Law", candidates_of(judged)), judged.score_kind == "none"
    own, other = (truth, law) if node.side == "truth" else (law, truth)
    mine = None if node.side == "law" and is_unscored else own.log_prob(rows)
    return replace(found, own_exact=mine, other_exact=mine if other is own else other.log_prob(rows))


def _check(name: str, column: Floats) -> None:
    if np.isnan(column).any() or np.isposinf(column).any():
        raise StageError(f"scores {name} hold NaN or +inf", fix="the model diverged: lower its learning rate")


def save_columns(found: Columns, folder: Path) -> None:
    """Write one block's columns into an existing folder."""
    columns = {f.name: getattr(found, f.name) for f in fields(found) if f.name != "reference"}
    np.savez(folder / _FILE, **{name: v for name, v in columns.items() if v is not None})


def load_columns(folders: Sequence[Path]) -> Columns:
    """Read what `save_columns` wrote, blocks in the order given. Raises StoreError: a file that cannot be read."""
    parts: list[dict[str, NDArray[np.float64]]] = []
    for folder in folders:
        try:
            with open_arrays(folder / _FILE) as archive:
                parts.append({name: archive[name] for name in archive.files})
        except (StoreError, OSError, ValueError, KeyError, EOFError, BadZipFile) as e:
            raise StoreError(
                f"scores cannot be read: {e}", got=folder.name, fix="delete the artifact, run again"
            ) from None
    out = Columns(_rows(parts, "own"), _rows(parts, "other"), exact=all(bool(p["exact"]) for p in parts))
    if all("controls" in p for p in parts):
        # A column that is infinite for a row is missing in that row's block, and then it serves none of the others.
        least: int = min(p["controls"].shape[1] for p in parts)
        out = replace(out, controls=np.concatenate([p["controls"][:, :least] for p in parts]))
    for name in ("own_first", "other_first"):
        if all(name in p for p in parts):
            out = replace(out, **{name: _prefixes([p[name] for p in parts])})
    for name in ("near_edge", "as_if_kept"):
        if all(name in p for p in parts):
            out = replace(out, **{name: _rows(parts, name).astype(np.int64)})
    for name in ("own_exact", "other_exact"):
        if found := [p[name] for p in parts if name in p]:
            out = replace(out, **{name: np.concatenate(found)})
    return out


def _rows(parts: Sequence[dict[str, Floats]], name: str) -> Floats:
    return np.concatenate([p[name] for p in parts])


def _prefixes(blocks: Sequence[Floats]) -> Floats:
    """Join blocks whose longest rows differ: beyond a block's own, every prefix is the whole row."""
    most: int = max(b.shape[1] for b in blocks)
    return np.concatenate([b[:, np.minimum(np.arange(most), b.shape[1] - 1)] for b in blocks])
