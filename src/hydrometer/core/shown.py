"""How objects show themselves: one short line, and in a notebook a small table.

Tables take colour and font from the page around them, so they suit dark and light; they load nothing, and everything in
them is escaped, for names and texts come from elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from hydrometer.core.errors import brief, one_line

__all__ = ["Shown", "html_table"]

_LONGEST = 300
_CELL = "padding:.25em .9em;vertical-align:top;white-space:nowrap;text-align:"


def _lines(text: str) -> str:
    """Escape a cell; what begins on its second line stands below, fainter."""
    first, *below = (escape(one_line(line, _LONGEST)) for line in text.split("\n"))
    return first + "".join(f'<br><span style="opacity:.65">{line}</span>' for line in below)


def html_table(head: Sequence[str], rows: Sequence[Sequence[str]], title: str = "", notes: Sequence[str] = ()) -> str:
    """Return a table as HTML: texts by row, the first column names and the others figures.

    Examples
    --------
    >>> html_table(["model", "recall"], [["<b>", "−1.5 ± 0.1"]]).count("&lt;b&gt;")
    1
    """

    def row(tag: str, cells: Sequence[str], line: str) -> str:
        sides = ("left" if i == 0 else "right" for i in range(len(cells)))
        made = (f'<{tag} style="{_CELL}{side}">{_lines(c)}</{tag}>' for side, c in zip(sides, cells, strict=True))
        return f'<tr style="background:none;border-bottom:1px {line}">{"".join(made)}</tr>'

    above = f"<div>{_lines(title)}</div>" if title else ""
    below = "".join(f'<div style="max-width:60em">{escape(one_line(n))}</div>' for n in notes)
    top = f"<thead>{row('th', head, 'solid')}</thead>" if any(head) else ""
    body = "".join(row("td", r, "dotted") for r in rows)
    style = "border-collapse:collapse;color:inherit;font-variant-numeric:tabular-nums"
    table = f'<table style="{style}">{top}<tbody>{body}</tbody></table>' if rows else ""
    return f'<div style="overflow-x:auto;margin:.5em 0">{above}{table}{below}</div>'


class Shown:
    """Something that shows its name and a few facts, in one line and as a table."""

    __slots__ = ()

    def _facts(self) -> Mapping[str, object]:
        """Return what is shown, by name."""
        raise NotImplementedError

    def __repr__(self) -> str:
        facts = (f"{name}={_said(value)}" for name, value in self._facts().items())
        return one_line(f"<{type(self).__name__} {' '.join(facts)}>", _LONGEST)

    def _repr_html_(self) -> str:
        return html_table(["", ""], [[k, _said(v)] for k, v in self._facts().items()], type(self).__name__)


def _said(value: object) -> str:
    return one_line(value, _LONGEST) if isinstance(value, str) else brief(value)
