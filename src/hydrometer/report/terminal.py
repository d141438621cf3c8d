"""The terminal's table: as wide as its content, and transposed if the terminal is narrower."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from hydrometer.core.shown import html_table

__all__ = ["FittedTable"]

_BREAK = re.compile(r" (?![=≤≥\d−(])")  # a number stays with the word before it
_NAME = 10
"""Narrowest column of names, in characters; below it the table is transposed."""


@dataclass(frozen=True, slots=True)
class FittedTable:
    """A table for a terminal of any width, in which no heading, name or figure is cut.

    Where the whole does not fit, names in the first column are broken between their words; where that is not enough,
    the table is turned: one block a row, its name first, then a figure a line.

    Parameters
    ----------
    head : headings, the first that of the names.
    rows : a text for each heading; what begins on a second line of one stands below, dim.
    title, caption : lines above and below.

    Examples
    --------
    >>> import io
    >>> table = FittedTable(["model", "precision", "recall"], [["direct, decoded at temperature 0.8", "−1.2", "−1.5"]])
    >>> Console(file=(out := io.StringIO()), width=30).print(table)
    >>> print(out.getvalue().rstrip())
    direct, decoded at temperature
    0.8
      precision  −1.2
      recall     −1.5
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    caption: str = ""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if self.title:
            yield Text(self.title, style="italic")
        yield self._fitted(console, options) or Text("\n").join(self._turned(options.max_width))
        if self.caption:
            yield Text(self.caption, style="italic dim")

    def html(self) -> str:
        """Return the table for a notebook."""
        return html_table(self.head, self.rows, self.title, [self.caption] if self.caption else [])

    def _fitted(self, console: Console, options: ConsoleOptions) -> Table | None:
        names = [self.head[0], *(row[0] for row in self.rows)]
        longest = max(cell_len(n) for n in names)
        least = max(min(longest, _NAME), *(cell_len(word) for n in names for word in n.split(" ")))
        widest = options.update(width=10**6)
        over = Measurement.get(console, widest, self._table(longest)).maximum - options.max_width
        if over <= 0:
            return self._table(longest)
        return self._table(longest - over) if longest - over >= least else None

    def _table(self, width: int) -> Table:
        """Lay it out with names of at most `width` characters a line."""
        table = Table(header_style="bold", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
        for i, name in enumerate(self.head):
            cells = [line for row in self.rows for line in row[i].split("\n")]
            room = width if i == 0 else max((cell_len(c) for c in cells), default=0)
            head = "\n".join(line for part in name.split("\n") for line in _lines(part, room))
            table.add_column(Text(head), justify="right" if i else "left", no_wrap=True)
        for row in self.rows:
            table.add_row(Text("\n".join(_lines(row[0], width))), *map(_cell, row[1:]))
        return table

    def _turned(self, width: int) -> list[Text]:
        heads = [h.replace("\n", " ") for h in self.head[1:]]
        room = max((cell_len(h) for h in heads), default=0)
        widest = max((cell_len(line) for row in self.rows for c in row[1:] for line in c.split("\n")), default=0)
        beside = 2 + room + 2 + widest <= width
        out: list[Text] = []
        for row in self.rows:
            block = Text(row[0], style="bold")
            for name, cell in zip(heads, row[1:], strict=True):
                first, *below = cell.split("\n")
                lead = f"\n  {name}{' ' * (room - cell_len(name))}  " if beside else f"\n  {name}\n    "
                if cell:
                    block.append(lead + first, "not bold")
                for line in below:
                    block.append("\n" + " " * (room + 4 if beside else 4) + line, "not bold dim")
            out.append(block)
        return out


def _cell(words: str) -> Text:
    first, mark, below = words.partition("\n")
    return Text(first).append(mark + below, "dim")


def _lines(words: str, width: int) -> list[str]:
    """Break words between them into lines of at most `width`; a part that is longer has a line of its own."""
    lines: list[str] = []
    parts = [p for whole in _BREAK.split(words) for p in ([whole] if cell_len(whole) <= width else whole.split(" "))]
    for part in parts:
        if lines and cell_len(lines[-1]) + 1 + cell_len(part) <= width:
            lines[-1] += " " + part
        else:
            lines.append(part)
    return lines
