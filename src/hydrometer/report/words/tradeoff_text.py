"""The trade-off in words: what distilling selectively does to precision, with its two parts, and to recall."""

from __future__ import annotations

from collections.abc import Mapping

from hydrometer.report.typed_results import Chain, Diff, Run, Step
from hydrometer.report.wording import (
    KL,
    ON_SUPPORT,
    Sentence,
    Tone,
    among,
    distilled_at,
    is_neutral,
    moved,
    num,
    recall_of,
    setting,
    signed,
    unit_per,
)

__all__ = ["MAX_METHODS", "coldest", "tradeoff_sentence"]

MAX_METHODS = 3  # that are compared one by one


def coldest(chain: Chain) -> Step | None:
    """Return the most selective setting that a student was distilled at, or None."""
    selective = [s for s in chain.tradeoff if not is_neutral(s.selectivity)]
    found = sorted((s for s in selective if s.coldest), key=lambda s: bool(s.method))  # each method has one
    return found[0] if found else selective[-1] if selective else None


def _part(diff: Diff, name: str, down: str, up: str) -> str:
    """Word one part of the precision gain; `down` says what a fall of the part’s own figure means."""
    assert diff.value is not None
    meaning = {-1: down, 1: up, 0: "undecided"}.get(diff.sign if diff.sign is not None else 0, "undecided")
    return f"−Δ{name} = {signed(-diff.value, diff.se)} ({meaning})"


def _split(diffs: Mapping[str, Diff]) -> str:
    entropy, kl = diffs.get("entropy"), diffs.get("kl_student_truth")
    if entropy is None or entropy.value is None or kl is None or kl.value is None:
        return ""
    return (
        ", made of "
        + _part(entropy, "H", "it got colder", "it got warmer")
        + " and "
        + _part(kl, KL, "it fits better", "it fits worse")
    )


def _per_token(diffs: Mapping[str, Diff], metric: str) -> str:
    """Word the move per token: without its sign where the verb has said it."""
    diff = diffs.get(f"{metric}_per_token")
    if diff is None or diff.value is None:
        return ""
    is_said = (diffs[metric].sign or 0) * diff.value > 0
    return f"; {num(abs(diff.value), diff.se) if is_said else signed(diff.value, diff.se)} per token"


def _recall_words(diffs: Mapping[str, Diff], unit: str) -> str:
    recall = recall_of(diffs)
    if recall is None:
        return ""
    if recall.metric == "recall_on_support" or (recall.value is None and "recall_on_support" not in diffs):
        if recall.value is None:
            return "; its recall is −∞ on one side, so the difference is infinite"
        return "; recall is −∞, and it " + moved(recall, ON_SUPPORT, unit)
    return "; it " + moved(recall, "recall", unit, _per_token(diffs, "recall"))


def tradeoff_sentence(run: Run, chain: Chain) -> Sentence:
    """Say what the most selective setting moved, what best-of-n did, and how the methods differ."""
    step = coldest(chain)
    if step is None:
        return Sentence("trade-off", "note", "There is no trade-off to show: no student was distilled selectively.")
    neutral = run.groups.get(chain.neutral_group or "")
    diffs = step.vs_neutral if "precision" in step.vs_neutral else step.vs_direct
    if diffs is step.vs_neutral:
        base = f"instead of at {setting(neutral.selectivity)}" if neutral and neutral.selectivity else "selectively"
    else:
        base = "rather than training directly"
    precision = diffs.get("precision")
    head = f"Distilling at {distilled_at(step)} {base}"
    if precision is None:
        return Sentence("trade-off", "open", f"{head}: precision could not be compared.")
    more = _per_token(diffs, "precision")
    words = f"{head} {moved(precision, 'precision', unit_per(chain), more)}{_split(diffs)}"
    tone: Tone = "note" if precision.sign else "open"  # a gain in precision is a trade-off, not a success
    return Sentence(
        "trade-off", tone, words + _recall_words(diffs, "nats") + "." + _chosen(run, chain, step) + _methods(run, chain)
    )


def _chosen(run: Run, chain: Chain, told: Step) -> str:
    """Describe students of best-of-n teachers, which no entropy orders among the others."""
    words = ""
    for step in chain.tradeoff:
        group = run.groups.get(step.group)
        if step is told or group is None or "entropy_teacher" in group.metrics or is_neutral(step.selectivity):
            continue
        diffs = step.vs_neutral if "precision" in step.vs_neutral else step.vs_direct
        precision = diffs.get("precision")
        if precision is not None:
            found = moved(precision, "precision", unit_per(chain)) + _split(diffs) + _recall_words(diffs, "nats")
            words += f" Distilling at {distilled_at(step)} {found}."
    return words


def _methods(run: Run, chain: Chain) -> str:
    """Compare the methods at the most selective setting, where students were distilled by several."""
    coldest = [s for s in chain.tradeoff if s.coldest]
    if sum(len(s.vs_methods) for s in coldest) > MAX_METHODS:
        return _dominated(run, chain)
    words = ""
    for step in coldest:
        for other, diffs in step.vs_methods.items():
            group, precision = run.groups.get(other), diffs.get("precision")
            if group is not None and precision is not None:
                found = moved(precision, "precision", unit_per(chain)) + _split(diffs) + _recall_words(diffs, "nats")
                words += f" Distilling at {distilled_at(step)} rather than {group.method or 'by mle'} {found}."
    return words


def _dominated(run: Run, chain: Chain) -> str:
    """Name the methods that another one beats in precision and in recall at the same selectivity."""
    beaten: dict[str, dict[str, set[str]]] = {}
    for step in chain.tradeoff:
        for other, diffs in step.vs_methods.items():
            group, recall = run.groups.get(other), recall_of(diffs)
            signs = {d.sign for d in (diffs.get("precision"), recall) if d is not None}
            if group is None or recall is None or signs not in ({1}, {-1}):
                continue
            mine, theirs = (m.removeprefix("by ") or "mle" for m in (step.method, group.method))
            loser, winner = (theirs, mine) if signs == {1} else (mine, theirs)
            beaten.setdefault(loser, {}).setdefault(setting(step.selectivity), set()).add(winner)
    ways = max(len(s.vs_methods) for s in chain.tradeoff) + 1
    words = f" Of {ways} ways to distil, compared in pairs at each selectivity, "
    if not beaten:
        return words + "none is shown to be beaten in precision and in recall (95 % each)."
    found: list[str] = []
    for loser, at in beaten.items():
        by: dict[str, list[str]] = {}  # settings, by those that win there
        for where, winners in at.items():
            by.setdefault(among(sorted(winners)), []).append(where)
        found.append(f"{loser} " + " and ".join(f"at {among(where)} (by {winners})" for winners, where in by.items()))
    return words + f"these are beaten by another in precision and in recall (95 % each): {'; '.join(found)}."
