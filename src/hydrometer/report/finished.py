"""A run's results as an object: tables, charts, and how it shows itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from hydrometer.core.errors import InputError, MissingDependencyError
from hydrometer.core.io.yaml_io import nearest
from hydrometer.core.shown import Shown, html_table
from hydrometer.report.read_results import parse
from hydrometer.report.tables.model_tables import summary_parts
from hydrometer.report.tables.tidy_table import Rows, tidy_table
from hydrometer.report.words.first_sentence import answer
from hydrometer.store.mirror import Mirror
from hydrometer.store.storage_uri import Url

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from hydrometer.report.figures.charts import Draw

__all__ = ["Results"]


@dataclass(frozen=True, slots=True, repr=False)
class Results(Shown):
    """The results of a run's folder.

    Attributes
    ----------
    folder : where everything is: a path, or a URL.
    results : the content of results.json.
    """

    folder: Path | Url
    results: dict[str, Any]

    @property
    def failed_cells(self) -> list[str]:
        """Ids of cells without figures."""
        return [c["id"] for c in self.results["cells"] if c["status"] == "failed"]

    def to_table(self, rows: Rows = "groups") -> Any:
        """Return a tidy `pyarrow.Table`; docs, In a notebook.

        Parameters
        ----------
        rows : "groups" (models, over seeds), "cells" (models, by seed) or "contrasts" (a less b, one metric a row).

        Returns
        -------
        Settings are numbers, under their own names; figures, in nats, have `_se`, and `_lower` and `_upper`, the ends
        of the 95 % interval.
        """
        return tidy_table(self.results, rows)

    def to_frame(self, rows: Rows = "groups") -> Any:
        """Return `to_table` as a `pandas.DataFrame`.

        Raises
        ------
        MissingDependencyError : pandas is not installed.
        """
        try:
            import pandas  # noqa: F401  # pyright: ignore[reportUnusedImport]  (pyarrow uses it)
        except ModuleNotFoundError as e:
            fix = "pip install pandas, or take to_table()"
            raise MissingDependencyError("a data frame needs pandas", got=e.name, fix=fix) from None
        return self.to_table(rows).to_pandas()

    def charts(self, chain: str | None = None) -> list[str]:
        """Return the names of the charts that `plot` draws."""
        return list(self._charts(chain))

    def plot(self, chart: str, ax: Axes | None = None, *, chain: str | None = None) -> Axes:
        """Draw one of the report's charts, with 95 % intervals, in the report's style.

        Parameters
        ----------
        chart : one of `charts`.
        ax : where; pyplot's current axes by default.
        chain : whose, where the run has several.

        Raises
        ------
        InputError : no such chart or chain.
        """
        from hydrometer.report.figures.style import styled

        known = self._charts(chain)
        if chart not in known:
            raise InputError("no such chart of these results", got=chart, fix=nearest(str(chart), list(known)))
        if ax is None:
            from matplotlib.pyplot import gca

            ax = gca()
        with styled():
            known[chart](ax)
        return ax

    def plot_plane(self, ax: Axes | None = None, *, chain: str | None = None) -> Axes:
        """Draw precision against recall; see `plot`."""
        return self.plot("plane", ax, chain=chain)

    def _charts(self, chain: str | None) -> dict[str, Draw]:
        from hydrometer.report.figures.charts import charts

        mirror = Mirror(self.folder) if isinstance(self.folder, Url) else None  # kept until exhibits are read
        run = parse(self.results, mirror.root if mirror else Path(str(self.folder)))
        if chain is None and len(run.chains) != 1:
            raise InputError("name the chain to draw", got=list(run.chains), fix="chain=...")
        if chain is not None and chain not in run.chains:
            raise InputError("no such chain", got=chain, fix=nearest(str(chain), list(run.chains)))
        return charts(run, run.chains[chain or next(iter(run.chains))])

    def _facts(self) -> dict[str, object]:
        cells, folder = self.results["cells"], str(self.folder)
        chains = ", ".join(dict.fromkeys(str(c.get("chain")) for c in cells))
        name, failed = self.results["name"], len(self.failed_cells)
        return {"name": name, "chains": chains, "cells": len(cells), "failed": failed, "folder": folder}

    def _repr_html_(self) -> str:
        run = parse(self.results, self.folder if isinstance(self.folder, Path) else None)
        first = [f"{name}: {answer(run, chain).text}" for name, chain in run.chains.items()]
        made = [html_table([], [], repr(self), first)]
        for part in summary_parts(run, whole=True):
            if isinstance(part, Text):  # a topic, two blanks, a sentence
                lines = [line.strip().replace("  ", ": ", 1) for line in part.plain.split("\n")]
                made.append(html_table([], [], "", lines))
            else:
                made.append(part.html())
        return "".join(made)
