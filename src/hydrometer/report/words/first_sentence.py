"""The first sentence of a page and the last of a run: what to do, or what would decide it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from hydrometer.report.data.grid_data import places
from hydrometer.report.read_results import parse
from hydrometer.report.typed_results import Chain, Group, Run
from hydrometer.report.values import Json, items, text
from hydrometer.report.wording import Sentence, difference, is_neutral, model, recall_of, setting, where
from hydrometer.report.words.advice_text import advice_sentence, asked_with, provisional, tone_of
from hydrometer.report.words.kept_advice import kept_advice
from hydrometer.store.storage_uri import Url

__all__ = ["answer", "answers"]


def answers(results: Json, folder: Path | Url | None = None) -> dict[str, str]:
    """Say of each chain what to do.

    Parameters
    ----------
    results : the object that results.json holds.
    folder : the run's; advice that is kept in one of this machine comes before the run's own.

    Examples
    --------
    >>> answers({"schema": 1, "summary": {"groups": {}, "chains": {"c": {}}}})
    {'c': 'Undecided: no student was distilled selectively; add settings to `selectivity` and run again.'}
    """
    run = parse(results, folder if isinstance(folder, Path) else None)
    return {name: answer(run, chain).text for name, chain in run.chains.items()}


def answer(run: Run, chain: Chain) -> Sentence:
    """Say in one sentence which setting to take, distilled or decoded; or that it is undecided, and what would decide.

    The last answer of `hydrometer advise` comes before the one that the run itself records, and says what was asked.
    Of a part of a run it is provisional.
    """
    found = _answer(run, chain)
    return replace(found, text=provisional(len(run.missing.get(chain.name, ()))) + found.text)


def _answer(run: Run, chain: Chain) -> Sentence:
    if chain.judged:
        return _judged(run, chain)
    if chain.points:
        return _map(chain)
    kept = kept_advice(run, chain)
    data = {**(kept if kept.get("status") else chain.advice), "reference": chain.reference}
    if text(data.get("why")):
        return Sentence("answer", "open", f"Undecided: {text(data.get('why')).rstrip('.')}.")
    if data.get("status"):
        return Sentence("answer", tone_of(data), _asked(kept) + advice_sentence(data))
    if not any(not is_neutral(s.selectivity) for s in chain.tradeoff):
        words = "Undecided: no student was distilled selectively; add settings to `selectivity` and run again."
        return Sentence("answer", "open", words)
    words = (
        "Undecided: these results hold no advice; run the experiment again, or ask `hydrometer advise` of its folder."
    )
    return Sentence("answer", "open", words)


def _asked(kept: Json) -> str:
    """Say what `advise` was asked, where the answer is its; empty where it is the run's own."""
    if not kept.get("status"):
        return ""
    runs = items(kept.get("runs"))
    of = f" of {len(runs)} runs" if len(runs) > 1 else ""
    return f"Asked{of} {asked_with(kept)}: "


def _map(chain: Chain) -> Sentence:
    """Name the largest gain in precision, over points and settings, without a decided loss of recall."""
    found = [p for p in places(chain) if not is_neutral(p.step.selectivity)]
    gains = [
        (d.value, p)
        for p in found
        if (d := p.step.vs_direct.get("precision")) is not None and d.sign == 1 and d.value is not None
    ]
    free = [(v, p) for v, p in gains if (r := recall_of(p.step.vs_direct)) is not None and r.sign in (0, 1)]
    of = f"of {len(found)} points and settings"
    if not gains:
        words = f"Take the direct student: {of}, none is shown to gain precision by distilling selectively"
        return Sentence("answer", "no" if found else "open", words + "; more seeds would show smaller gains.")
    if not free:
        words = f"Undecided: {of}, {len(gains)} gain precision, every one with a loss of recall; what recall is worth"
        return Sentence("answer", "open", words + " decides.")
    best = max(free, key=lambda f: f[0])[1]
    gain, lost = best.step.vs_direct["precision"], recall_of(best.step.vs_direct)
    at = ", ".join(w for w in (where(best.point.point), setting(best.step.selectivity)) if w)
    recall = "" if lost is None or lost.value is None else f", with recall {difference(lost)}"
    words = (
        f"Distil at {at}: {of} it gains most precision, {difference(gain)}, without a "
        f"decided loss of recall{recall}; a run of that point alone would confirm it."
    )
    return Sentence("answer", "note", words)


def _judged(run: Run, chain: Chain) -> Sentence:
    """Name the judged model of the highest recall, the proper figure: only the truth maximises it."""
    metric = "recall" if all("recall" in g.metrics for g in run.of_chain(chain.name)) else "recall_per_byte"
    students = [g for g in run.of_chain(chain.name) if g.role == "student"]
    known = [g for g in students if g.value(metric) is not None]
    if not known:
        return Sentence("answer", "open", "Undecided: no model has a finite recall; judge one without a cut-off.")
    best = max(known, key=lambda g: g.value(metric) or 0.0)
    if len(students) == 1:
        words = f"Only {model(best)} was judged; to compare, give a second --student or a --decoding"
        return Sentence("answer", "note", words + ".")
    rivals = [_behind(run, best, g, metric) for g in known if g is not best]
    if rivals and all(r == 1 for r in rivals):
        return Sentence("answer", "yes", f"Take {model(best)}: its recall is the highest, and that is decided.")
    open_ = [model(g) for g, r in zip([g for g in known if g is not best], rivals, strict=True) if r != 1]
    if not open_:
        return Sentence("answer", "open", f"Undecided: {model(best)} alone has a finite recall.")
    named = open_[0] if len(open_) == 1 else f"{len(open_)} others"
    words = f"Undecided: {model(best)} has the highest recall, but is not shown to be ahead of {named}"
    return Sentence("answer", "open", words + "; more prompts would decide.")


def _behind(run: Run, best: Group, other: Group, metric: str) -> int | None:
    """Return 1 where the other is shown to be behind, 0 where that is undecided, None where they were not compared."""
    for c in run.contrasts:
        if c.metric == metric and {c.a, c.b} == {best.id, other.id} and c.sign is not None:
            return c.sign if c.a == best.id else -c.sign
    return None
