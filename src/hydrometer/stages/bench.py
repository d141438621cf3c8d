"""The workbench: opens what artifacts hold, and keeps the few laws that are being worked with in memory."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, cast

from hydrometer.models.base import Law, Precision, Samples
from hydrometer.models.chosen import TextFamily, choose, needs_truth
from hydrometer.stages.nodes import Context, LawRef, Rows

if TYPE_CHECKING:
    from hydrometer.core.spec import Selectivity
    from hydrometer.store.artifacts import ArtifactStore

__all__ = ["Bench"]

_LAWS_KEPT = 4
_ROWS_KEPT = 4


class Bench:
    """Opens laws and rows from an artifact store.

    Parameters
    ----------
    store : where artifacts are.
    """

    def __init__(self, store: ArtifactStore) -> None:
        self.store = store
        self._laws: OrderedDict[tuple[str, str, Precision], Law] = OrderedDict()
        self._rows: OrderedDict[str, Samples] = OrderedDict()

    def law(self, context: Context, ref: LawRef, precision: Precision, selectivity: Selectivity | None = None) -> Law:
        """Open a law, selected where asked."""
        slot = (context.name, ref.key, precision)
        if slot in self._laws:
            self._laws.move_to_end(slot)
        else:
            # Room is made before loading, so that large models are not held beside one more.
            while len(self._laws) >= _LAWS_KEPT:
                self._laws.popitem(last=False)
            if ref.kind == "truth":
                self._laws[slot] = context.family.truth(context.spec, precision)
            else:
                self._laws[slot] = context.family.load_law(self.store.path("fit", ref.key), context.spec, precision)
        law = self._laws[slot]
        if selectivity is None or not selectivity.chooses:
            return law if selectivity is None else law.select(selectivity)
        family = cast("TextFamily", context.family)  # run.plan has refused others
        truth = context.family.truth(context.spec, precision) if needs_truth(selectivity) else None
        return choose(law, selectivity, truth=truth, texts=lambda x: family.texts(context.spec, law, x))

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
            law = self.law(context, rows.law, family.precision(context.spec, rows.purpose), rows.selectivity)
            samples = law.sample(rows.n, seed=rows.stream)
        while len(self._rows) >= _ROWS_KEPT:
            self._rows.popitem(last=False)
        self._rows[rows.key] = samples
        return samples
