"""The workbench: opens what artifacts hold, and keeps the few laws that are being worked with in memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import numpy as np
from numpy.typing import NDArray

from hydrometer.core.arguments import of_type
from hydrometer.core.statistics.sampling_design import Clusters, Strata
from hydrometer.models.base import Family, Law, Precision, Samples
from hydrometer.models.capabilities import AsksParts, CompactRows, given_models
from hydrometer.models.choosing.best_of_n import TextFamily, choose, needs_truth
from hydrometer.models.rows.sequences import Sequences
from hydrometer.stages.nodes import Context, JudgeNode, LawRef, Rows

if TYPE_CHECKING:
    from hydrometer.core.spec import Selectivity
    from hydrometer.store.artifacts import ArtifactStore

__all__ = ["ArtifactLoader", "Outline"]

_LAWS_KEPT = 4
_GIVEN_KEPT = 2  # models of any size: the two that are compared
_ROWS_KEPT = 4


@dataclass(frozen=True, slots=True, eq=False)
class Outline:
    """What is known of rows besides the outcomes themselves; `models.base.Samples`."""

    log_prob: NDArray[np.float64]
    lengths: NDArray[np.int64] | None
    strata: Strata | None

    def __len__(self) -> int:
        return int(self.log_prob.size)


class ArtifactLoader:
    """Opens laws and rows from an artifact store. `store`: where artifacts are."""

    def __init__(self, store: ArtifactStore) -> None:
        self.store = store
        self._laws: OrderedDict[tuple[str, str, Precision], Law] = OrderedDict()
        self._rows: OrderedDict[str, Samples] = OrderedDict()
        self._training: tuple[str, Samples] | None = None

    def law(
        self,
        context: Context,
        ref: LawRef,
        precision: Precision,
        selectivity: Selectivity | None = None,
        *,
        purpose: Literal["train", "judge"] = "judge",
    ) -> Law:
        """Open a law, selected where a selectivity is given.

        Parameters
        ----------
        purpose : "train" for stages that read training rows: prompts kept for judging are not theirs.
        """
        slot = (context.name, ref.key, precision)
        if slot in self._laws:
            self._laws.move_to_end(slot)
        else:
            # Room is made before loading, so that large models are not held beside one more.
            while len(self._laws) >= (_LAWS_KEPT if ref.kind != "given" else _GIVEN_KEPT):
                self._laws.popitem(last=False)
            match ref.kind:
                case "truth":
                    self._laws[slot] = context.family.truth(context.spec, precision)
                case "given":
                    self._laws[slot] = given_models(context.family).open_given(context.spec, ref.role, precision)
                case "fit":
                    folder = self.store.path("fit", ref.key)
                    self._laws[slot] = context.family.load_law(folder, context.spec, precision)
        law = self._laws[slot]
        able = _asks_parts(context.family)
        law = law if able is None else able.asked(context.spec, law, purpose)
        if selectivity is None or not selectivity.chooses:
            return law if selectivity is None else law.select(selectivity)
        family = of_type(TextFamily, context.family)  # run.plan has refused others
        truth = context.family.truth(context.spec, precision) if needs_truth(selectivity) else None
        if truth is not None and able is not None:
            truth = able.asked(context.spec, truth, purpose)
        return choose(law, selectivity, truth=truth, texts=lambda x: family.texts(context.spec, law, x))

    def judged_against(self, node: JudgeNode, precision: Precision) -> Law:
        """Open what a law is judged against: the truth, or the chain's target, which drew the truth's rows."""
        return self.law(node.context, node.truth, precision, node.truth_rows.selectivity)

    def rows(self, context: Context, rows: Rows) -> Samples:
        """Open rows from their blocks, or draw them again where draws are cheap."""
        if rows.key in self._rows:
            self._rows.move_to_end(rows.key)
            return self._rows[rows.key]
        family = context.family
        if rows.blocks:
            folders: list[Path] = [self.store.path("draw", k) for k in rows.blocks]
            samples = family.load_samples(folders, rows.n)
        else:
            precision = family.precision(context.spec, rows.purpose)
            law = self.law(context, rows.law, precision, rows.selectivity, purpose=rows.purpose)
            samples = law.sample(rows.n, seed=rows.stream)
        while len(self._rows) >= _ROWS_KEPT:
            self._rows.popitem(last=False)
        self._rows[rows.key] = samples
        return samples

    def block(self, context: Context, key: str, n: int) -> Samples:
        """Open the first `n` rows of one block of draws."""
        return context.family.load_samples([self.store.path("draw", key)], n)

    def head(self, context: Context, rows: Rows, n: int) -> Samples:
        """Open the first `n` rows, from the first blocks alone where draws are stored; else all rows."""
        if not rows.blocks:
            return self.rows(context, rows)
        n = min(n, rows.n)
        blocks = rows.blocks[: -(-n // context.family.block_rows(context.spec))]
        return context.family.load_samples([self.store.path("draw", k) for k in blocks], n)

    def outline(self, context: Context, rows: Rows) -> Samples:
        """Open lengths, strata and recorded log-probabilities alone, where draws are stored: 24 bytes a row.

        Where draws are made again these are the rows themselves.
        """
        if not rows.blocks:
            return self.rows(context, rows)
        parts = [Outline(x.log_prob, x.lengths, x.strata) for x in self._blocks(context, rows)]
        lengths = [x.lengths for x in parts if x.lengths is not None]
        labels = [x.strata.labels if isinstance(x.strata, Clusters) else x.strata for x in parts]
        strata = None if labels[0] is None else np.concatenate(cast("list[NDArray[np.int64]]", labels))
        return Outline(
            np.concatenate([x.log_prob for x in parts]),
            np.concatenate(lengths) if lengths else None,
            Clusters(strata) if strata is not None and isinstance(parts[0].strata, Clusters) else strata,
        )

    def texts(self, context: Context, rows: Rows) -> Samples:
        """Open stored rows for what is said of outcomes: without what was recorded of each token."""
        plain: list[Sequences] = []
        for x in self._blocks(context, rows):
            if not isinstance(x, Sequences):
                return self.rows(context, rows)
            plain.append(replace(x, token_log_prob=None, token_log_prob_unselected=None))
        return Sequences.concatenate(plain)

    def training_rows(self, context: Context, rows: Rows, scratch: Path) -> Samples:
        """Open rows for a fit: in the family's compact form where it has one. The last ones are kept for the next fit.

        Parameters
        ----------
        scratch : an existing folder on whose disk rows may lie that memory would not hold, as a file without a name.
        """
        if not rows.blocks or not isinstance(context.family, CompactRows):
            return self.rows(context, rows)
        if self._training is None or self._training[0] != rows.key:
            self._training = None  # what they take is given back first
            folders = [self.store.path("draw", k) for k in rows.blocks]
            self._training = rows.key, context.family.load_training_rows(folders, rows.n, scratch)
        return self._training[1]

    def _blocks(self, context: Context, rows: Rows) -> Iterator[Samples]:
        left = rows.n
        for key in rows.blocks:
            x = self.block(context, key, left)
            left -= len(x)
            yield x


@cache
def _asks_parts(family: Family) -> AsksParts | None:
    """Whether a family has the capability, asked once: opening a cheap law takes less time than the question."""
    return family if isinstance(family, AsksParts) else None
