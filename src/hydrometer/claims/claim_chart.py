"""What a claim's picture shows, as numbers, and how it is drawn: lines with their intervals, in the report's style."""

# matplotlib leaves the type of its keyword arguments open.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from hydrometer.core.errors import InputError
from hydrometer.core.statistics.estimate import Estimate

__all__ = ["Chart", "Line", "draw_claim"]

_COLORS = ("#0068a9", "#c94f00", "#00805f", "#a8528a", "#8a6d00", "#6b4fb3", "#5f6b7a")  # as `report.figures.style`
_MARKERS = ("o", "s", "D", "^", "v", "P", "X")
_DECADES = 300.0
"""A logarithmic axis that spans more than this factor shows powers of ten alone."""
_COLUMNS = 3
_CURVE = 30  # points; a line of more has no markers
_HEIGHT, _WIDTH, _LEGEND = 3.1, 3.9, 0.17  # inches; of a line of the legend


@dataclass(frozen=True, slots=True)
class Line:
    """One line, or unconnected points.

    Attributes
    ----------
    label : in the legend; empty for none.
    x, y : (N,) of equal length.
    low, high : (N,) ends of 95 % intervals of `y`, or None.
    dashed : a reference, without markers; grey, unless it has a colour's number.
    connected : False for points alone.
    color : number of its colour and marker; by default its place among the chart's lines. Lines of equal number in
        several charts are one thing.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    dashed: bool = False
    connected: bool = True
    color: int | None = None

    def __post_init__(self) -> None:
        sizes = {len(v) for v in (self.x, self.y, self.low, self.high) if v is not None}
        if len(sizes) != 1 or (self.low is None) != (self.high is None):
            raise InputError("a line needs as many x as y, and both ends of its intervals or none", got=self.label)

    @classmethod
    def of(cls, label: str, x: Sequence[float], estimates: Sequence[Estimate], *, color: int | None = None) -> Line:
        """Return the line of these estimates with their 95 % intervals. Raises InputError where one is not finite."""
        ends = [e.interval() for e in estimates]
        y = [e.value for e in estimates if e.value is not None]
        low, high = ([end[i] for end in ends if end is not None] for i in range(2))
        return cls(label, x, y, low, high, color=color)


@dataclass(frozen=True, slots=True)
class Chart:
    """Lines on common axes.

    Attributes
    ----------
    title : one short line that says what is to be seen.
    x_label, y_label : with units.
    log_x, log_y : scales.
    zero : whether a thin line marks y = 0.
    """

    title: str
    x_label: str
    y_label: str
    lines: tuple[Line, ...]
    log_x: bool = False
    log_y: bool = False
    zero: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the fields."""
        return asdict(self)


def draw_claim(charts: Sequence[Chart], kind: Literal["svg", "png"]) -> bytes:
    """Draw the charts in rows of three at most. Equal charts make equal bytes."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

    from hydrometer.report.figures.style import FAINT, PAPER, QUIET, drawing, render

    named = max(sum(bool(line.label) for line in chart.lines) for chart in charts)
    columns = min(len(charts), _COLUMNS)
    rows = -(-len(charts) // columns)
    with drawing(_WIDTH * columns, rows * (_HEIGHT + _LEGEND * named)) as figure:
        places = figure.subplots(rows, columns, squeeze=False).flat
        for axes, chart in zip(places, charts, strict=False):
            for i, line in enumerate(chart.lines):
                number = i if line.color is None else line.color
                color = QUIET if line.dashed and line.color is None else _COLORS[number % len(_COLORS)]
                if line.low is not None and line.high is not None:
                    ends = [
                        [max(y - a, 0.0) for y, a in zip(line.y, line.low, strict=True)],
                        [max(b - y, 0.0) for y, b in zip(line.y, line.high, strict=True)],
                    ]
                    axes.errorbar(line.x, line.y, yerr=ends, fmt="none", ecolor=color, elinewidth=1.0, capsize=2)
                style = "--" if line.dashed else "-" if line.connected else "none"
                is_curve = line.connected and len(line.x) > _CURVE
                marks: dict[str, Any] = {} if line.dashed or is_curve else {
                    "marker": _MARKERS[number % len(_MARKERS)], "markersize": 5, "markeredgecolor": PAPER,
                    "markeredgewidth": 0.6,
                }  # fmt: skip
                axes.plot(line.x, line.y, color=color, linestyle=style, label=line.label or None, **marks)
            if chart.zero:
                axes.axhline(0, color=FAINT, linewidth=0.8, zorder=0)
            axes.set(title=chart.title, xlabel=chart.x_label, ylabel=chart.y_label)
            for axis, scaled in ((axes.xaxis, chart.log_x), (axes.yaxis, chart.log_y)):
                if scaled:  # the style sets no mathematics, in which matplotlib writes powers
                    (axes.set_xscale if axis is axes.xaxis else axes.set_yscale)("log")
                    low, high = sorted(axis.get_view_interval())
                    between = (1.0,) if high > _DECADES * low else (1.0, 2.0, 5.0)
                    axis.set_major_locator(LogLocator(subs=between, numticks=7))
                    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
                    axis.set_minor_formatter(NullFormatter())
            if not chart.log_x and all(float(x).is_integer() for line in chart.lines for x in line.x):
                axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            if any(line.label for line in chart.lines):
                axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2))
    return render(figure, kind)
