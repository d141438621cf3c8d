"""The figures of one judged law, by name."""

from __future__ import annotations

from hydrometer.core.shown import html_table
from hydrometer.core.statistics.estimate import Estimate, interval_words

__all__ = ["Figures"]


class Figures(dict[str, Estimate]):
    """`Estimate` by metric name: a dict that shows a line a figure, with its 95 % interval.

    Examples
    --------
    >>> Figures(recall=Estimate(-1.5, 0.1, 0.1, 100))
    recall  -1.50 +- 0.10 nats  -1.70 to -1.30
    """

    def _rows(self) -> list[list[str]]:
        return [[name, str(e), interval_words(e)] for name, e in self.items()]

    def __repr__(self) -> str:
        rows = self._rows()
        wide = [max((len(r[i]) for r in rows), default=0) for i in (0, 1)]
        return "\n".join(f"{a:{wide[0]}}  {b:{wide[1]}}  {c}".rstrip() for a, b, c in rows) or "no figures"

    def _repr_html_(self) -> str:
        rows = [[name, value.replace("+-", "±"), ends] for name, value, ends in self._rows()]
        return html_table(["figure", "value ± standard error", "95 % interval"], rows)
