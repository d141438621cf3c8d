"""Advice stored in a run's folder, in words."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from hydrometer.core.io.files import file_digest
from hydrometer.report.typed_results import Chain, Run
from hydrometer.report.values import Json, items, mapping, text
from hydrometer.report.wording import Sentence
from hydrometer.report.words.advice_notes import advice_notes
from hydrometer.report.words.advice_text import MAX_BYTES, SCHEMA, advice_sentences, tone_of

__all__ = ["advice_of", "kept_advice"]


def advice_of(run: Run, chain: Chain) -> list[Sentence]:
    """Return the stored advice for one chain as sentences for its page; empty if there is none."""
    data = kept_advice(run, chain)
    if not data.get("status"):
        return [Sentence("caveat", "note", text(data.get("caveat")))] if data else []
    said = [Sentence("advice", tone_of(data), " ".join(advice_sentences(data)))]
    return said + [Sentence("caveat", "note", s) for s in advice_notes(data)]


def kept_advice(run: Run, chain: Chain) -> Json:
    """Return the folder's advice for a chain; empty if there is none, a `caveat` alone if it is stale or unreadable."""
    if run.folder is None:
        return {}
    path = run.folder / "advice.json"
    try:
        if not path.is_file() or path.stat().st_size > MAX_BYTES:
            return {}
        value: object = json.loads(path.read_bytes(), parse_constant=lambda _: None)
    except (OSError, ValueError, RecursionError):
        return {"caveat": "advice.json cannot be read; ask for advice again."}
    data = mapping(value)
    if data.get("schema") != SCHEMA or data.get("chain") != chain.name:
        return {}
    if _digest(run.folder) not in items(data.get("results")):
        folders = " ".join(shlex.quote(text(f)) for f in items(data.get("folders"))) or "DIR"
        need = "" if mapping(data.get("need")).get("stated") is False else ", with the need of advice.json"
        command = f"hydrometer advise {folders} --chain {shlex.quote(chain.name)}"
        return {"caveat": f"The advice kept here is of earlier results; ask again: `{command}`{need}."}
    return {**data, "reference": chain.reference}


def _digest(folder: Path) -> str:
    return file_digest(folder / "results.json")
