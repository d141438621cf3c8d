"""The terminal's table of findings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from hydrometer.core.errors import one_line

__all__ = ["findings_table"]

_STYLE = {"fatal": "bold red", "warning": "yellow", "note": "dim"}


def findings_table(findings: Sequence[Mapping[str, str | None]]) -> RenderableType:
    """List findings for a terminal of any width.

    Parameters
    ----------
    findings : as ``Finding.to_json`` gives them, the most severe first.

    Returns
    -------
    A rich renderable; what findings quote is printed as text, never read as markup.
    """
    if not findings:
        return Text("nothing found")
    parts: list[RenderableType] = []
    for f in findings:
        severity, chain = f["severity"] or "", f["chain"]
        head = Text(severity, style=_STYLE.get(severity, ""))
        head.append(f" {f['code']}" + (f"  {chain}" if chain else ""), style="bold")
        body = Text("\n".join([_text(f["what"]), "why  " + _text(f["why"]), "fix  " + _text(f["fix"])]))
        parts += [head, Padding(body, (0, 0, 0, 2), expand=False)]
    count = {s: sum(f["severity"] == s for f in findings) for s in _STYLE}
    parts.append(Text("  ".join(f"{n} {s}" for s, n in count.items())))
    return Group(*parts)


def _text(value: str | None) -> str:
    return one_line(value or "", 1000)
