"""The look of all figures, and how a figure becomes bytes: the same bytes every time.

Colours are Okabe and Ito's (2008), safe for colour-blind readers; marker and line style say the same as colour. In the
page the fixed colours become CSS variables, so that figures follow light and dark mode.
"""

# matplotlib leaves the type of its keyword arguments open.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import io
import re
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from hydrometer.report.data.plotdata import FEW_METHODS, Kind

__all__ = [
    "LOOKS",
    "Look",
    "drawing",
    "inline_svg",
    "look_of",
    "objectives_of",
    "render",
    "settle",
    "sources_of",
    "styled",
]

INK, QUIET, FAINT, PAPER = "#1d2430", "#5f6b7a", "#d5dae1", "#fffffe"


@dataclass(frozen=True, slots=True)
class Look:
    """How one kind of model is drawn, in every figure."""

    color: str
    marker: str
    line: Any
    hollow: bool
    label: str
    size: float = 6.0

    def markers(self, size: float, edge: float = 0.7) -> dict[str, Any]:
        """Return matplotlib's marker keywords; hollow markers have a thicker edge in their own colour."""
        face, rim, width = (PAPER, self.color, edge + 0.4) if self.hollow else (self.color, PAPER, edge)
        return {
            "marker": self.marker,
            "markersize": size,
            "markerfacecolor": face,
            "markeredgecolor": rim,
            "markeredgewidth": width,
        }


LOOKS: Mapping[Kind, Look] = {
    "truth": Look(INK, "*", "-", False, "truth p*", 11),
    "teacher": Look("#00805f", "D", (0, (1, 1.6)), False, "teacher", 5.5),
    "direct": Look("#0068a9", "o", "-", False, "direct student", 8.5),
    "decoded": Look("#0068a9", "o", (0, (4, 2)), True, "direct, decoded selectively", 5.5),
    "decoded_neutral": Look("#a8528a", "^", (0, (1, 1.6)), True, "distilled neutrally, decoded selectively", 5.5),
    "distilled": Look("#c94f00", "s", "-", False, "distilled selectively", 6),
    "baseline": Look("#6b4fb3", "X", "none", False, "fitted to a text of one's own", 7),
    "adopted": Look("#8a6d00", "P", "none", False, "trained elsewhere, adopted", 7),
}

_METHOD_MARKERS, _METHOD_LINES = "vXph<>", ((0, (5, 1.5)), (0, (3, 1, 1, 1)), "--", "-.")


_METHOD_COLORS = ("#c1272d", "#008ba3", "#7d8a00", "#b0559f", "#9a6a00", "#7a5cc7")
_SOURCE = " on rows of the "  # as `values.read_method` writes it
_SOURCE_LINES = {"": "-", "truth": (0, (5, 1.5)), "student": (0, (1, 1.2))}


def look_of(kind: Kind, method: str, methods: Iterable[str]) -> Look:
    """Return how a path is drawn; of the distilled, those of other methods differ in marker and line.

    More than `FEW_METHODS` differ in colour by objective, and in line by whose rows they are trained on.
    """
    if not method:
        return LOOKS[kind]
    every = list(methods)
    if len(every) > FEW_METHODS:
        objective, _, source = method.partition(_SOURCE)
        n = objectives_of(every).index(objective)
        color, marker = _METHOD_COLORS[n % len(_METHOD_COLORS)], _METHOD_MARKERS[n % len(_METHOD_MARKERS)]
        return Look(color, marker, _SOURCE_LINES.get(source, "-."), False, method, 4.5)
    n = every.index(method)
    marker, line = _METHOD_MARKERS[n % len(_METHOD_MARKERS)], _METHOD_LINES[n % len(_METHOD_LINES)]
    return replace(LOOKS[kind], marker=marker, line=line, label=f"{LOOKS[kind].label}, {method}")


def objectives_of(methods: Iterable[str]) -> list[str]:
    """Return the methods' objectives, as `look_of` colours them."""
    return list(dict.fromkeys(m.partition(_SOURCE)[0] for m in methods))


def sources_of(methods: Iterable[str]) -> list[tuple[str, Any]]:
    """Return whose rows the methods are trained on, in words, each with its line."""
    found = dict.fromkeys(m.partition(_SOURCE)[2] for m in methods)
    return [(f"on rows of the {s or 'teacher'}", _SOURCE_LINES.get(s, "-.")) for s in found]


VARIABLES = {
    INK: "--fig-ink",
    QUIET: "--fig-quiet",
    FAINT: "--fig-faint",
    PAPER: "--fig-paper",
    "#00805f": "--c-teacher",
    "#0068a9": "--c-direct",
    "#a8528a": "--c-neutral",
    "#c94f00": "--c-distilled",
    "#8a6d00": "--c-adopted",
    "#6b4fb3": "--c-baseline",
}

_RC: dict[str, Any] = {
    "svg.hashsalt": "hydrometer",
    "svg.fonttype": "path",
    "pdf.fonttype": 42,
    "pdf.compression": 6,
    "font.family": "DejaVu Sans",
    "mathtext.fontset": "dejavusans",
    "font.size": 8.5,
    "text.parse_math": False,
    "axes.titlesize": 9,
    "axes.titleweight": "regular",
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "axes.labelsize": 8.5,
    "axes.labelcolor": INK,
    "axes.edgecolor": QUIET,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "axes.unicode_minus": True,
    "text.color": INK,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "lines.linewidth": 1.5,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "figure.dpi": 100,
    "path.simplify": True,
}


@contextmanager
def styled() -> Generator[None]:
    """Draw and save under matplotlib's defaults with our settings on top, whatever the caller's rcParams."""
    with mpl.rc_context():
        mpl.rcParams.update(mpl.rcParamsDefault)
        for key, value in _RC.items():
            mpl.rcParams[key] = value  # type: ignore[index]
        yield


def new_figure(width: float, height: float) -> Figure:
    """Return a figure of this size in inches, outside pyplot's global state."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def settle(figure: Figure) -> None:
    """Compute the layout once and keep it, so that labels can be placed in final pixels."""
    figure.draw_without_rendering()
    figure.set_layout_engine(None)  # not "none", which would draw everything twice at each save


@contextmanager
def drawing(width: float, height: float) -> Generator[Figure]:
    """Draw a figure of this size in inches, in our style; the layout is settled on exit, if not before."""
    with styled():
        figure = new_figure(width, height)
        yield figure
        if figure.get_layout_engine() is not None:
            settle(figure)


def render(figure: Figure, kind: str) -> bytes:
    """Return the figure as svg, png or pdf; no dates, no version, no random ids."""
    metadata: dict[str, dict[str, Any]] = {
        "svg": {"Date": None, "Creator": None, "Format": None, "Type": None},
        "png": {"Software": None},
        "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    }
    buffer = io.BytesIO()
    with styled():
        figure.savefig(buffer, format=kind, dpi=200, metadata=metadata[kind], transparent=False, facecolor="white")
    return buffer.getvalue()


def inline_svg(figure: Figure, prefix: str, label: str) -> str:
    """Return the figure as an SVG element for the page: own ids, colours as variables, a label for screen readers.

    Parameters
    ----------
    figure : drawn.
    prefix : letters and digits; put before every id, so that figures of one page do not clash.
    label : plain words; escaped here.
    """
    buffer = io.BytesIO()
    with styled():
        figure.savefig(
            buffer,
            format="svg",
            transparent=True,
            metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
        )
    svg = buffer.getvalue().decode()
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}-\1)", svg)
    svg = re.sub(r'xlink:href="#([^"]+)"', rf'href="#{prefix}-\1"', svg)
    for color, variable in VARIABLES.items():
        svg = svg.replace(color, f"var({variable})")
    svg = re.sub(r"\n\s*", "\n", svg)
    view = re.search(r'viewBox="([^"]+)"', svg)
    box = view.group(1) if view else "0 0 100 100"
    body = svg[svg.index(">") + 1 :]
    safe = label.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")
    return f'<svg viewBox="{box}" role="img" aria-label="{safe}">{body}'
