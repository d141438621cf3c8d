"""Sample texts side by side, and sanitising of model text.

Model text is untrusted: it may hold markup, control characters, or invisible or direction-changing characters.
Markup is escaped; the others are shown by their code point, ``⟨U+202E⟩``.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from dataclasses import dataclass

from markupsafe import Markup, escape

from hydrometer.report.data.plotdata import Kind, kinds_of
from hydrometer.report.read_results import exhibits
from hydrometer.report.typed_results import Chain, Group, Run
from hydrometer.report.values import items, mapping, number, text
from hydrometer.report.wording import model, num

__all__ = ["Answer", "PromptRow", "prompt_rows", "visible"]

MAX_ROWS = 24
MAX_CHARACTERS = 1200
MAX_MARKS = 4
# Unassigned, private, surrogate, control, format, line and paragraph separators.
_HIDDEN = frozenset({"Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp"})
# Letters and marks that draw nothing: Hangul fillers, blank braille, grapheme joiner, variation selectors.
_BLANK = frozenset("\u115f\u1160\u3164\uffa0\u2800\u034f\u17b4\u17b5\u180b\u180c\u180d\u180f")


@dataclass(frozen=True, slots=True)
class Answer:
    """One model's answer to a prompt."""

    label: str
    kind: Kind
    text: Markup
    note: str


@dataclass(frozen=True, slots=True)
class PromptRow:
    """All models' answers to one prompt."""

    prompt: Markup
    answers: list[Answer]


def _hidden(c: str) -> bool:
    if unicodedata.category(c) in _HIDDEN or c in _BLANK or 0xFE00 <= ord(c) <= 0xFE0F or 0xE0100 <= ord(c) <= 0xE01EF:
        return True
    return unicodedata.category(c) == "Zs" and c not in " \u00a0\u202f\u2009\u3000"


def visible(value: object, limit: int = MAX_CHARACTERS) -> Markup:
    r"""Escape text for HTML and make invisible characters visible.

    Parameters
    ----------
    value : text; anything else is shown as its str.
    limit : characters kept; an ellipsis marks the rest.

    Returns
    -------
    Markup : line feeds and tabs are kept; every other control, format, separator or unassigned character, and more
    than four combining marks in a row, become ``<span class="cp">⟨U+XXXX⟩</span>``.

    Examples
    --------
    >>> str(visible("<b>\u202eevil"))
    '&lt;b&gt;<span class="cp">⟨U+202E⟩</span>evil'
    """
    raw = str(value)
    out: list[str] = []
    marks = 0
    for c in raw[:limit]:
        marks = marks + 1 if unicodedata.combining(c) else 0
        if c in "\n\t":
            out.append(c)
        elif _hidden(c) or marks > MAX_MARKS:
            out.append(f'<span class="cp">⟨U+{ord(c):04X}⟩</span>')
        else:
            out.append(str(escape(c)))
    if len(raw) > limit:
        out.append(f'<span class="cut"> … {len(raw) - limit} more characters</span>')
    return Markup("".join(out))  # every piece is escaped or ours


def _shown(run: Run, chain: Chain) -> list[tuple[Kind, Group]]:
    kinds = kinds_of(run, chain)
    order: tuple[Kind, ...] = (
        *("truth", "teacher", "direct", "baseline", "distilled", "adopted", "decoded", "decoded_neutral"),
    )
    starts = {chain.direct_group, chain.neutral_group}
    return [
        (kind, group)
        for kind in order
        for group in kinds[kind]
        if not (kind in ("decoded", "decoded_neutral") and group.id in starts)
    ]


def _rows(run: Run, group: Group) -> dict[tuple[str, int], dict[str, object]]:
    """Return a group's rows by (prompt, how many times it was asked before), from its first seed with an exhibit."""
    asked: Counter[str] = Counter()
    found: dict[tuple[str, int], dict[str, object]] = {}
    for value in items(mapping(next(exhibits(run, group, "texts"), None)).get("rows")):
        row = mapping(value)
        prompt = text(row.get("prompt"))
        found[prompt, asked[prompt]] = row
        asked[prompt] += 1
    return found


def _note(row: dict[str, object], scorer: str) -> str:
    notes: list[str] = []
    score, own = number(row.get("log_prob_truth")), number(row.get("log_prob"))
    if score is not None:
        notes.append(f"{scorer} {num(score, 1)}")
    if own is not None:
        notes.append(f"own {num(own, 1)}")
    if text(row.get("finish_reason")) == "length":
        notes.append("cut at the limit")
    return " · ".join(notes)


def prompt_rows(run: Run, chain: Chain) -> list[PromptRow]:
    """Collect answers to the same prompts from every model with sample texts, truth first."""
    columns: list[tuple[Kind, str, dict[tuple[str, int], dict[str, object]]]] = [
        (kind, model(group), rows) for kind, group in _shown(run, chain) if (rows := _rows(run, group))
    ]
    keys = list(dict.fromkeys(key for _, _, rows in columns for key in rows))[:MAX_ROWS]
    found: list[PromptRow] = []
    for key in keys:
        answers = [
            Answer(label, kind, visible(text(rows[key].get("answer"))), _note(rows[key], chain.reference or "log p*"))
            for kind, label, rows in columns
            if key in rows
        ]
        found.append(PromptRow(visible(key[0], 400), answers))
    return found
